package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/screen"
)

// machine is a running domain. It implements [vm.Machine].
type machine struct {
	dir    string
	record record

	ended, released chan struct{} // as their names say; exit is set before ended
	ending          chan struct{} // closed when the domain has ended, before its connection is
	releaseOnce     sync.Once

	// plugging is held while a device comes, goes or changes.
	plugging sync.Mutex

	mu   sync.Mutex // guards what follows, and record.Spec; never held while blocking
	link link
	exit vm.Exit
	story
}

// link is a machine's connection, which is made again if the daemon is restarted.
type link struct {
	conn   *Conn
	domain *Domain
	watch  *Watch
	qemu   <-chan golibvirt.DomainEvent // QEMU's SHUTDOWN events
	cancel context.CancelFunc           // of qemu
}

// story is what is known of how the machine came to its end.
type story struct {
	killed   bool
	panicked bool
	shutdown string // the reason of QEMU's last SHUTDOWN event
	stopped  *StopReason
}

var errReleased = errors.New("machine was released by this process")

// attach subscribes to a domain's events.
func attach(ctx context.Context, conn *Conn, dom *Domain, r record, dir string) (*machine, error) {
	m := &machine{dir: dir, record: r, ending: make(chan struct{}), ended: make(chan struct{}), released: make(chan struct{})}
	l, err := newLink(ctx, conn, dom)
	if err != nil {
		return nil, err
	}
	m.link = l
	return m, nil
}

func newLink(ctx context.Context, conn *Conn, dom *Domain) (link, error) {
	w, err := dom.Watch(ctx)
	if err != nil {
		return link{}, err
	}
	sub, cancel := context.WithCancel(context.WithoutCancel(ctx))
	// This tells a reboot that ends the machine from a shutdown.
	qemu, err := call(ctx, conn, dom.op("events of"), func(l *golibvirt.Libvirt) (<-chan golibvirt.DomainEvent, error) {
		return l.SubscribeQEMUEvents(sub, dom.Name())
	})
	if err != nil {
		cancel()
		w.Close()
		return link{}, err
	}
	return link{conn: conn, domain: dom, watch: w, qemu: qemu, cancel: cancel}, nil
}

// drop lets go of the events, and reads what is still sent so that its sender
// ends.
func (l link) drop() {
	l.cancel()
	go func() {
		for range l.qemu { //nolint:revive // nothing is wanted of them
		}
	}()
	l.watch.Close()
}

// detach ends the subscriptions of a machine that is not supervised yet.
func (m *machine) detach() { m.now().drop() }

func (m *machine) now() link {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.link
}

// watchStart returns when the guest has executed for the given time: under KVM a
// virtual CPU that cannot go on stops in the first moment.
func (m *machine) watchStart(ctx context.Context, watch time.Duration) error {
	end := time.After(watch)
	for watch > 0 {
		state, reason, err := m.now().domain.State(ctx)
		switch {
		case err != nil:
			return err
		case state == Paused && reason != pausedUser && reason != pausedIOError:
			return errors.New("QEMU stopped the guest: the virtual CPU cannot go on")
		case !state.Active():
			return nil // it powered off at once
		}
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// supervise follows the machine to its end or release.
func (m *machine) supervise() {
	for {
		l := m.now()
		gone := m.follow(l)
		l.drop()
		if gone {
			m.finish(l.conn)
			return
		}
		select {
		case <-m.released:
			return
		default:
		}
		_ = l.conn.Close() // the daemon has gone
		if !m.reconnect() {
			return
		}
	}
}

// follow returns true when the domain has stopped, false when the connection
// has, or the machine was released.
func (m *machine) follow(l link) bool {
	ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
	state, _, err := l.domain.State(ctx)
	cancel()
	if errors.Is(err, ErrNotFound) || err == nil && !state.Active() {
		m.drain(l)
		return true
	}
	qemu := l.qemu
	for {
		select {
		case e, open := <-qemu:
			if !open {
				qemu = nil
				continue
			}
			m.noteQEMU(e)
		case e := <-l.watch.Events():
			if m.note(e) {
				m.drain(l)
				return true
			}
		case <-l.watch.Done():
			return false
		case <-m.released:
			return false
		}
	}
}

// eventGrace is how long the story of an end that has come may take to arrive,
// on a busy machine.
const eventGrace = 2 * time.Second

// drain takes the events that tell why the domain has stopped.
func (m *machine) drain(l link) {
	timeout := time.After(eventGrace)
	for !m.told() {
		select {
		case e, open := <-l.qemu:
			if !open {
				return
			}
			m.noteQEMU(e)
		case e := <-l.watch.Events():
			m.note(e)
		case <-timeout:
			return
		}
	}
}

// told says whether the story has all that it needs.
func (m *machine) told() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stopped != nil && (*m.stopped != StopShutdown || m.shutdown != "")
}

// note keeps what an event says, and whether it is the end.
func (m *machine) note(e Event) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Kind {
	case EventCrashed:
		m.panicked = true
	case EventRebooted:
		m.panicked = false
	case EventStopped:
		m.stopped = &e.Reason
		return true
	}
	return false
}

func (m *machine) noteQEMU(e golibvirt.DomainEvent) {
	if e.Event != "SHUTDOWN" {
		return
	}
	var data struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(eventDetails(e.Details), &data) != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shutdown == "" { // libvirt itself ends a QEMU whose guest has shut down, by a signal
		m.shutdown = data.Reason
	}
}

// eventDetails is an event's JSON without what the wire may have around it.
func eventDetails(b []byte) []byte {
	for i, c := range b {
		if c == '{' {
			b = b[i:]
			break
		}
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return b
}

// reconnectPause is between two tries to reach a daemon that has gone.
const reconnectPause = 500 * time.Millisecond

// reconnect waits for the daemon to come back; false when the machine was
// released meanwhile, or had ended.
func (m *machine) reconnect() bool {
	for {
		select {
		case <-m.released:
			return false
		case <-time.After(reconnectPause):
		}
		ctx, cancel := context.WithTimeout(context.Background(), reachTimeout)
		conn, err := Connect(ctx, m.record.URI)
		if err != nil {
			cancel()
			continue
		}
		dom, err := conn.LookupDomainByUUID(ctx, m.record.UUID)
		if errors.Is(err, ErrNotFound) {
			cancel()
			m.finish(conn)
			return false
		}
		var l link
		if err == nil {
			l, err = newLink(ctx, conn, dom)
		}
		cancel()
		if err != nil {
			_ = conn.Close() // another try follows
			continue
		}
		m.mu.Lock()
		m.link = l
		m.mu.Unlock()
		if m.isReleased() { // which may have closed the connection before
			l.drop()
			_ = conn.Close()
			return false
		}
		return true
	}
}

// finish closes the story of a domain that has stopped.
func (m *machine) finish(conn *Conn) {
	m.mu.Lock()
	m.exit = m.story.exit()
	m.mu.Unlock()
	if err := m.cleanUp(); err != nil {
		m.mu.Lock()
		m.exit.Reason += fmt.Sprintf(" (left behind: %v)", err)
		m.mu.Unlock()
	}
	close(m.ending)  // whoever's answer is lost with the connection learns why
	_ = conn.Close() // nothing is asked of it any more
	close(m.ended)
}

// cleanUp removes the runtime files, unless they are another start's.
func (m *machine) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), changeTimeout)
	defer cancel()
	unlock, err := home.LockFolder(ctx, m.dir)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRecord(m.dir)
	if err != nil || r.UUID != m.record.UUID || !r.Info.StartedAt.Equal(m.record.Info.StartedAt) {
		return nil // gone, or not ours
	}
	return removeRuntime(m.dir, r)
}

// exit says why the domain stopped.
func (s story) exit() vm.Exit {
	stopped := func(cause vm.Cause, why string) vm.Exit {
		return vm.Exit{State: vm.StateStopped, Cause: cause, Reason: why}
	}
	reason := StopUnknown
	if s.stopped != nil {
		reason = *s.stopped
	}
	switch {
	case s.panicked:
		return vm.Exit{State: vm.StateCrashed, Reason: "the guest's kernel panicked"}
	case s.shutdown == "guest-shutdown" && !s.killed, reason == StopShutdown && s.shutdown == "":
		return stopped(vm.CauseShutdown, "guest shut down")
	case s.shutdown == "guest-reset" && !s.killed:
		return stopped(vm.CauseReset, "guest rebooted, which ends this machine")
	case s.killed, reason == StopDestroyed:
		return stopped(vm.CauseKilled, "killed")
	case s.shutdown == "host-signal":
		return stopped(vm.CauseKilled, "QEMU was ended by a signal")
	case reason == StopCrashed, reason == StopFailed:
		return vm.Exit{State: vm.StateCrashed, Failed: true, Reason: "QEMU ended by itself: see libvirt's log of the domain"}
	case reason == StopMigrated, reason == StopSaved, reason == StopFromSnapshot:
		return stopped("", reason.String())
	}
	return stopped("", "it ended while libvirt's daemon was away")
}

// Info implements [vm.Machine].
func (m *machine) Info() vm.RunInfo { return m.record.Info }

// RunningSpec implements [vm.Described].
func (m *machine) RunningSpec() vm.Spec {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.record.Spec
	s.Disks, s.NICs = slices.Clone(s.Disks), slices.Clone(s.NICs)
	return s
}

// asked turns the error of a call on the domain into what callers test for.
func (m *machine) asked(err error) error {
	if err == nil {
		return nil
	}
	if m.isEnding() || errors.Is(err, ErrNotFound) || errors.Is(err, ErrInvalid) {
		return fmt.Errorf("%w: %w", vm.ErrNotRunning, err)
	}
	if m.isReleased() {
		return errReleased
	}
	return err
}

// isEnding says whether the domain has ended; its supervisor may still be about
// to say so.
func (m *machine) isEnding() bool { return isClosed(m.ending) }

func (m *machine) hasEnded() bool { return isClosed(m.ended) }

// isReleased says whether the machine was let go of while it ran.
func (m *machine) isReleased() bool { return isClosed(m.released) && !m.hasEnded() }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// State implements [vm.Machine].
func (m *machine) State(ctx context.Context) (vm.State, error) {
	state, _, err := m.now().domain.State(ctx)
	err = m.asked(err)
	if errors.Is(err, vm.ErrNotRunning) || err == nil && !state.Active() {
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
	switch state {
	case Crashed:
		return vm.StateCrashed, nil
	case Paused, PMSuspended:
		return vm.StatePaused, nil
	}
	return vm.StateRunning, nil
}

func (m *machine) exitNow() vm.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Wait implements [vm.Machine].
func (m *machine) Wait(ctx context.Context) (vm.Exit, error) {
	if err := m.waitEnded(ctx); err != nil {
		return vm.Exit{}, err
	}
	return m.exitNow(), nil
}

func (m *machine) waitEnded(ctx context.Context) error {
	var err error
	select {
	case <-m.ended:
	case <-m.released:
		err = errReleased
	case <-ctx.Done():
		err = ctx.Err()
	}
	if m.hasEnded() {
		return nil
	}
	return err
}

// Shutdown implements [vm.Machine].
func (m *machine) Shutdown(ctx context.Context) error {
	return m.asked(m.now().domain.Shutdown(ctx))
}

// Kill implements [vm.Machine]. QEMU is asked first, as it then writes out
// what it still holds of its images' metadata.
func (m *machine) Kill(ctx context.Context) error {
	if m.hasEnded() {
		return nil
	}
	if m.isReleased() {
		return errReleased
	}
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	dom := m.now().domain
	err := dom.Destroy(ctx, true)
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) && ctx.Err() == nil {
		err = dom.Destroy(ctx, false)
	}
	if err = m.asked(err); err != nil && !errors.Is(err, vm.ErrNotRunning) {
		return err
	}
	return m.waitEnded(ctx)
}

// ScreenPNG implements [vm.Machine].
func (m *machine) ScreenPNG(ctx context.Context) ([]byte, error) {
	pic, err := m.now().domain.Screenshot(ctx)
	if err != nil {
		return nil, m.asked(err)
	}
	return pic.PNG()
}

// ScreenText implements [vm.Machine].
func (m *machine) ScreenText(ctx context.Context) ([]string, error) {
	dom := m.now().domain
	lines, err := screen.Text(
		func() (screen.Picture, error) { return dom.Screenshot(ctx) },
		func(command string) (string, error) { return dom.MonitorCommand(ctx, command, true) })
	return lines, m.asked(err)
}

// SerialSocket implements [vm.Machine].
func (m *machine) SerialSocket() string {
	return filepath.Join(m.record.place(m.dir), home.SerialSock)
}

// SerialLog implements [vm.Machine].
func (m *machine) SerialLog() string { return filepath.Join(m.dir, home.SerialLogFile) }

// Release implements [vm.Machine].
func (m *machine) Release() error {
	var err error
	m.releaseOnce.Do(func() {
		close(m.released)
		if !m.hasEnded() {
			err = m.now().conn.Close()
		}
	})
	return err
}
