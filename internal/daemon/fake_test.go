package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/catalog"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// fakeDriver runs machines that are goroutines of the test. It outlives a
// daemon, as QEMU processes do.
type fakeDriver struct {
	// script is what a guest does after its start; nil means bootToLogin.
	script func(*fakeMachine)
	// deaf guests do not hear the power button.
	deaf bool
	note string        // RunInfo.AccelNote
	slow time.Duration // a start takes that long
	fail error         // a start fails
	hold chan struct{} // a start waits for it, if not nil
	// snapshot fails one of disks; flatten, if not nil, is waited for.
	snapshot error
	flatten  chan struct{}
	// mute fails the question which image a machine writes to.
	mute error

	mu       sync.Mutex
	running  map[string]*fakeMachine // by folder
	unseen   map[string]vm.Exit      // of those that ended
	starts   int
	atOnce   atomic.Int64
	mostOnce atomic.Int64
}

func (d *fakeDriver) Start(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	n := d.atOnce.Add(1)
	defer d.atOnce.Add(-1)
	for {
		most := d.mostOnce.Load()
		if n <= most || d.mostOnce.CompareAndSwap(most, n) {
			break
		}
	}
	select {
	case <-time.After(d.slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if d.hold != nil {
		select {
		case <-d.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if d.fail != nil {
		return nil, d.fail
	}
	for _, disk := range spec.Disks {
		if _, err := os.Stat(disk.Path); err != nil && disk.Path != "" {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.running[dir]; m != nil {
		return nil, fmt.Errorf("two processes on one disk: %s", dir)
	}
	m, err := newFakeMachine(d, spec, dir)
	if err != nil {
		return nil, err
	}
	if d.running == nil {
		d.running = make(map[string]*fakeMachine)
	}
	d.running[dir] = m
	d.starts++
	script := d.script
	if script == nil {
		script = bootToLogin
	}
	go script(m)
	return m, nil
}

func (d *fakeDriver) Adopt(ctx context.Context, dir string) (vm.Machine, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.running[dir]; m != nil {
		return m, nil
	}
	if exit, ok := d.unseen[dir]; ok && exit.Cause != "" {
		return nil, &vm.EndedError{Exit: exit}
	}
	return nil, vm.ErrNotRunning
}

func (d *fakeDriver) machine(t testing.TB, dir string) *fakeMachine {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.running[dir]
	if m == nil {
		t.Fatalf("no machine runs in %s", dir)
	}
	return m
}

func (d *fakeDriver) all() []*fakeMachine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.running))
}

func (d *fakeDriver) count() (running, starts int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.running), d.starts
}

// fakeMachine has a serial port: a log, and a socket that echoes.
type fakeMachine struct {
	d        *fakeDriver
	dir      string
	spec     vm.Spec
	info     vm.RunInfo
	listener net.Listener
	ended    chan struct{}

	mu     sync.Mutex
	conn   net.Conn
	log    *os.File
	exit   *vm.Exit
	paused bool
	pauses int // how often it was told to stop
	waits  atomic.Bool
}

func newFakeMachine(d *fakeDriver, spec vm.Spec, dir string) (*fakeMachine, error) {
	m := &fakeMachine{d: d, dir: dir, spec: spec, ended: make(chan struct{})}
	m.info = vm.RunInfo{PID: os.Getpid(), StartedAt: time.Now(), Accel: vm.AccelTCG, AccelNote: d.note, QEMU: "fake"}
	var forwards []vm.Forward
	if len(spec.NICs) > 0 {
		forwards = spec.NICs[0].Forwards
	}
	for i, f := range forwards {
		if f.HostPort == 0 {
			f.HostPort = 40000 + i
		}
		m.info.Forwards = append(m.info.Forwards, f)
	}
	var err error
	if m.log, err = os.Create(m.SerialLog()); err != nil {
		return nil, err
	}
	if m.listener, err = net.Listen("unix", m.SerialSocket()); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, home.PIDFile), []byte("1"), 0o600); err != nil {
		return nil, err
	}
	go m.serve()
	return m, nil
}

// serve is the guest's end of the serial port: what is typed comes back.
func (m *fakeMachine) serve() {
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.conn = conn
		m.mu.Unlock()
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				break
			}
			m.say(string(buf[:n]))
		}
		m.mu.Lock()
		m.conn = nil
		m.mu.Unlock()
	}
}

// say writes to the serial port, to the socket first as QEMU does.
func (m *fakeMachine) say(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		_, _ = m.conn.Write([]byte(text))
	}
	_, _ = m.log.WriteString(text)
}

func (m *fakeMachine) end(state vm.State, reason string) {
	m.exitWith(vm.Exit{State: state, Reason: reason})
}

func (m *fakeMachine) exitWith(exit vm.Exit) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit != nil {
		return
	}
	m.exit = &exit
	_ = m.listener.Close()
	if m.conn != nil {
		_ = m.conn.Close()
	}
	_ = m.log.Close()
	_ = os.Remove(filepath.Join(m.dir, home.PIDFile))
	delete(m.d.running, m.dir)
	if m.d.unseen == nil {
		m.d.unseen = make(map[string]vm.Exit)
	}
	m.d.unseen[m.dir] = exit
	close(m.ended)
}

func (m *fakeMachine) Info() vm.RunInfo                            { return m.info }
func (m *fakeMachine) State(ctx context.Context) (vm.State, error) { return vm.StateRunning, nil }
func (m *fakeMachine) SerialSocket() string                        { return filepath.Join(m.dir, home.SerialSock) }
func (m *fakeMachine) SerialLog() string                           { return filepath.Join(m.dir, home.SerialLogFile) }
func (m *fakeMachine) Release() error                              { return nil }
func (m *fakeMachine) ScreenPNG(context.Context) ([]byte, error)   { return []byte("\x89PNG"), nil }
func (m *fakeMachine) ScreenText(context.Context) ([]string, error) {
	return []string{"one", "two"}, nil
}

func (m *fakeMachine) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-m.ended:
		return *m.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

func (m *fakeMachine) Shutdown(context.Context) error {
	if !m.d.deaf && !m.held() {
		m.exitWith(vm.Exit{State: vm.StateStopped, Cause: vm.CauseShutdown, Reason: "guest shut down"})
	}
	return nil
}

func (m *fakeMachine) Kill(context.Context) error {
	m.exitWith(vm.Exit{State: vm.StateStopped, Cause: vm.CauseKilled, Reason: "killed"})
	return nil
}

func (m *fakeMachine) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit != nil {
		return vm.ErrNotRunning
	}
	m.paused = true
	m.pauses++
	return nil
}

func (m *fakeMachine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exit != nil {
		return vm.ErrNotRunning
	}
	m.paused = false
	return nil
}

func (m *fakeMachine) held() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

func (m *fakeMachine) WaitsForSpace() bool { return m.waits.Load() }

// reboot is what a guest does when its installer is done.
func (m *fakeMachine) reboot() {
	m.exitWith(vm.Exit{State: vm.StateStopped, Cause: vm.CauseReset, Reason: "guest rebooted, which ends this machine"})
}

// bootToLogin is a guest that boots.
func bootToLogin(m *fakeMachine) {
	m.say("SeaBIOS (version 1.16)\r\nBooting from Hard Disk...\r\n")
	m.say("[    0.000000] Linux version 6.1.0 (builder) #1 SMP\r\n[    0.5] Run /sbin/init as init process\r\n")
	m.say("\r\nGuest ttyS0\r\n\r\nguest login: ")
}

// bootAndWait is a guest that hangs in its kernel.
func bootAndWait(m *fakeMachine) { m.say("[    0.000000] Linux version 6.1.0\r\n") }

// fakeFetcher takes local files as they are.
type fakeFetcher struct {
	block chan struct{} // a fetch waits for it, if not nil
	entry *api.CatalogEntry
}

func (f fakeFetcher) Fetch(ctx context.Context, ref string, o catalog.Options, progress func(api.Event)) (catalog.Result, error) {
	progress(api.Event{Step: "download", Current: 1, Total: 2})
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return catalog.Result{}, ctx.Err()
		}
	}
	st, err := os.Stat(ref)
	if err != nil {
		return catalog.Result{}, err
	}
	if o.Checksum == "bad" {
		return catalog.Result{}, errors.New("checksum does not match")
	}
	return catalog.Result{Source: ref, Entry: f.entry, PullResult: api.PullResult{Path: ref, Size: st.Size()}}, nil
}

// fakeImages stands in for package image; what is not here is not asked for.
type fakeImages struct{ store.Images }

func (fakeImages) Import(ctx context.Context, source, format, target, compress string, progress func(done, total int64)) (int64, error) {
	b, err := os.ReadFile(source)
	if err != nil {
		return 0, err
	}
	progress(int64(len(b)), int64(len(b)))
	return 1 << 20, os.WriteFile(target, b, 0o600)
}

// Describe knows an overlay by the name that Overlay has put into its first line.
func (fakeImages) Describe(_ context.Context, path string) (store.Disk, error) {
	b, err := os.ReadFile(path)
	backing, _, _ := strings.Cut(string(b), "\n")
	return store.Disk{Size: 1 << 20, Backing: backing, BackingFormat: "qcow2"}, err
}

func (fakeImages) Content(_ context.Context, path, format string, untrusted bool) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (fakeImages) Overlay(ctx context.Context, path, backing string, size int64) error {
	return os.WriteFile(path, []byte(backing), 0o600)
}
