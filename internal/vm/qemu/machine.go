package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

// machine is a running QEMU. It implements [vm.Machine].
type machine struct {
	dir    string
	dirFD  *os.File // open where dir's sockets have too long a path
	record record   // its Spec and ids change, under mu; the rest is constant
	proc   *process

	// Both are set before supervise.
	onKVMFailure func(reason string) // may be nil
	spacePause   time.Duration

	// ended is closed when the process is gone and its files are removed;
	// exit is set before. released is closed by Release.
	ended, released chan struct{}
	releaseOnce     sync.Once

	// atStep, set by tests alone, is told of each step of a change of the drives' images;
	// an error is that step's.
	atStep func(name string) error

	held atomic.Bool // by Pause: the supervisor lets it not go on
	full atomic.Bool // it waits for space on the host

	// runMu is held while the guest is let go on after it was stopped. While freezing is
	// set nobody may do so but the freeze itself: a QEMU that is about to end a
	// migration does not survive it.
	runMu    sync.Mutex
	freezing bool

	// plug is held while a device is added or changed, forgetMu while one that
	// is gone is cleaned up after, changeMu while the record is written; taken in
	// this order, each before mu.
	plug, forgetMu, changeMu sync.Mutex
	ports                    *portPicker // set before supervise

	mu     sync.Mutex // guards the fields below and record's spec; never held while blocking
	client *qmp.Client
	events *qmp.Subscription
	exit   vm.Exit
	story
}

// story is what is known of how the machine came, or will come, to its end.
type story struct {
	killed   bool   // by Kill
	shutdown string // the reason of the last SHUTDOWN event
	panicked bool   // the guest's kernel said so and has not been reset since
	internal bool   // stopped with status internal-error
}

const (
	// killTimeout is how long QEMU may take to flush and end by itself.
	killTimeout = 10 * time.Second
	// adoptTimeout is how long a running QEMU's monitor may take to answer.
	adoptTimeout = 10 * time.Second
	// eventBuffer is more than QEMU sends while the supervisor is busy.
	eventBuffer = 256
)

// errReleased: the machine was released.
var errReleased = errors.New("machine was released by this process")

// Statuses of query-status (RunState in QEMU's qapi/run-state.json).
const (
	statusInternalError = "internal-error"
	statusIOError       = "io-error"
	statusPrelaunch     = "prelaunch"
	statusRunning       = "running"
	statusPaused        = "paused"
	statusIncoming      = "inmigrate"
	statusFinishing     = "finish-migrate"
	statusMigrated      = "postmigrate"
)

// attach connects to the monitor of a process that works in dir.
func attach(ctx context.Context, p *process, r record, dir string) (*machine, error) {
	m := &machine{
		dir:      dir,
		record:   r,
		proc:     p,
		ended:    make(chan struct{}),
		released: make(chan struct{}),
	}
	if len(filepath.Join(dir, home.SerialSock)) > maxSocketPath {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		m.dirFD = f
	}
	if err := m.connect(ctx); err != nil {
		return nil, errors.Join(err, m.closeDir())
	}
	return m, nil
}

// maxSocketPath is sun_path of unix(7) less its final zero.
const maxSocketPath = 107

// socketPath returns a path by which this process can connect to a socket of
// the machine's folder.
func (m *machine) socketPath(name string) string {
	if m.dirFD != nil {
		return fmt.Sprintf("/proc/self/fd/%d/%s", m.dirFD.Fd(), name)
	}
	return filepath.Join(m.dir, name)
}

// closeDir may be called twice: at the machine's end and by Release after it.
func (m *machine) closeDir() error {
	if m.dirFD == nil {
		return nil
	}
	if err := m.dirFD.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// connect opens the monitor and its events.
func (m *machine) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	// The subscription begins before any command can cause an event.
	client, err := qmp.Dial(ctx, m.socketPath(home.QMPSocket))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.client, m.events = client, client.Subscribe(eventBuffer)
	return nil
}

// disconnect lets go of everything but the process.
func (m *machine) disconnect() error {
	return errors.Join(m.monitor().Close(), m.closeDir())
}

func (m *machine) monitor() *qmp.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.client
}

// execute runs a monitor command.
func (m *machine) execute(ctx context.Context, command string, args, result any) error {
	err := m.monitor().Execute(ctx, command, args, result)
	if errors.Is(err, qmp.ErrClosed) {
		switch {
		case m.isReleased():
			return errReleased
		case m.proc.ended():
			return fmt.Errorf("%w: %w", vm.ErrNotRunning, err)
		}
	}
	return err
}

// isReleased says whether the machine was let go of while it ran. One that
// has ended is released by whoever waited for that, a moment before others that
// wait see it: to them it has ended.
func (m *machine) isReleased() bool {
	select {
	case <-m.released:
		return !m.hasEnded()
	default:
		return false
	}
}

func (m *machine) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// Info implements [vm.Machine].
func (m *machine) Info() vm.RunInfo { return m.record.Info }

// State implements [vm.Machine].
func (m *machine) State(ctx context.Context) (vm.State, error) {
	status, err := m.queryStatus(ctx)
	if errors.Is(err, vm.ErrNotRunning) {
		select { // the supervisor is about to know why
		case <-m.ended:
			return m.exitNow().State, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	panicked := m.panicked
	m.mu.Unlock()
	if panicked {
		return vm.StateCrashed, nil
	}
	return stateOf(status), nil
}

// stateOf translates a status of query-status.
func stateOf(status string) vm.State {
	switch status {
	case statusRunning:
		return vm.StateRunning
	case "shutdown":
		return vm.StateStopped
	case statusInternalError, "guest-panicked", "watchdog":
		return vm.StateCrashed
	}
	// Also while it waits for space on the host, with which it goes on.
	return vm.StatePaused
}

func (m *machine) exitNow() vm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Wait implements [vm.Machine].
func (m *machine) Wait(ctx context.Context) (vm.Exit, error) {
	err := m.waitEnded(ctx)
	if err != nil {
		return vm.Exit{}, err
	}
	return m.exitNow(), nil
}

// Shutdown implements [vm.Machine].
func (m *machine) Shutdown(ctx context.Context) error {
	return m.execute(ctx, "system_powerdown", nil, nil)
}

// Kill implements [vm.Machine]. QEMU is asked first, as it then writes out
// what it still holds of its images' metadata.
func (m *machine) Kill(ctx context.Context) error {
	if m.isReleased() {
		return errReleased
	}
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	if m.quit(ctx) {
		return m.waitEnded(ctx)
	}
	if err := m.proc.kill(ctx); err != nil {
		return err
	}
	return m.waitEnded(ctx)
}

// quit asks QEMU to end and says whether it did in time.
func (m *machine) quit(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	// It may end before it answers; if it refuses, a signal asks again.
	if err := m.execute(ctx, "quit", nil, nil); err != nil && !m.proc.ended() {
		return false
	}
	select {
	case <-m.proc.done:
		return true
	case <-ctx.Done():
		return false
	}
}

func (m *machine) waitEnded(ctx context.Context) error {
	err := error(nil)
	select {
	case <-m.ended:
	case <-m.released:
		err = errReleased
	case <-ctx.Done():
		err = ctx.Err()
	}
	if m.hasEnded() { // whatever else is so
		return nil
	}
	return err
}

// SerialSocket implements [vm.Machine]. Where the folder's path is too long
// for a socket, it is one that only this process can use.
func (m *machine) SerialSocket() string { return m.socketPath(home.SerialSock) }

// SerialLog implements [vm.Machine].
func (m *machine) SerialLog() string { return filepath.Join(m.dir, home.SerialLogFile) }

// Release implements [vm.Machine].
func (m *machine) Release() error {
	var err error
	m.releaseOnce.Do(func() {
		close(m.released)
		err = errors.Join(m.disconnect(), m.proc.letGo())
	})
	return err
}

func vncHostPort(host string, display int) string {
	return net.JoinHostPort(host, strconv.Itoa(5900+display))
}
