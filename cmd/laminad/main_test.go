package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

const envMain = "LAMINAD_TEST_MAIN"

// TestMain lets the test binary be laminad.
func TestMain(m *testing.M) {
	if os.Getenv(envMain) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args     []string
		status   int
		out, err string
	}{
		{[]string{"--help"}, 0, "Usage: laminad", ""},
		{[]string{"--version"}, 0, "laminad " + api.BuildVersion + "\n", ""},
		{[]string{"--none"}, 2, "", "none"},
		{[]string{"word"}, 2, "", `"word"`},
		{[]string{"--idle-exit", "-1s"}, 2, "", "negative"},
		{[]string{"--idle-exit", "soon"}, 2, "", "soon"},
	} {
		var out, errs bytes.Buffer
		if got := run(c.args, &out, &errs); got != c.status || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.err) {
			t.Errorf("%q: status %d, %q, %q", c.args, got, out.String(), errs.String())
		}
	}
}

// process is a laminad.
type process struct {
	*exec.Cmd
	out  bytes.Buffer
	done chan error
}

// start runs laminad in the home and waits until it answers.
func start(t *testing.T, h home.Home, args ...string) *process {
	t.Helper()
	p := prepare(h, args...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.watch(t)
	c := client.New(h)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if v, err := c.Version(t.Context()); err == nil && v.PID == p.Process.Pid {
			return p
		}
		select {
		case err := <-p.done:
			t.Fatalf("laminad ended: %v: %s", err, p.out.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatal("laminad does not answer")
		}
	}
}

func prepare(h home.Home, args ...string) *process {
	p := &process{Cmd: exec.Command(os.Args[0], args...), done: make(chan error, 1)}
	p.Env = append(os.Environ(), envMain+"=1", home.Env+"="+h.Data)
	p.Stdout, p.Stderr = &p.out, &p.out
	return p
}

func (p *process) watch(t *testing.T) {
	go func() { p.done <- p.Wait() }()
	t.Cleanup(func() { _ = p.Process.Kill() }) // has ended, as a rule
}

// end sends a signal and returns the exit status.
func (p *process) end(t *testing.T, sig os.Signal) int {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.done:
		t.Logf("laminad after %s: %v", sig, err)
	case <-time.After(20 * time.Second):
		t.Fatalf("laminad does not end on %s", sig)
	}
	return p.ProcessState.ExitCode()
}

func newHome(t *testing.T) home.Home {
	t.Helper()
	dir, err := os.MkdirTemp("", "lmd") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		endMachines(t, home.At(dir))
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return home.At(dir)
}

// endMachines ends what a failed test left running: machines survive their
// daemon.
func endMachines(t *testing.T, h home.Home) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.Machines(), "*", home.PIDFile))
	if err != nil {
		t.Error(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Error(err)
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Error(err)
			continue
		}
		// Only a process that works in the machine's folder is the machine's.
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == filepath.Dir(f) {
			t.Errorf("left running: %s", cwd)
			_ = syscall.Kill(pid, syscall.SIGKILL) // has just ended by itself
		}
	}
}

func TestSecondDaemon(t *testing.T) {
	h := newHome(t)
	first := start(t, h)
	second := prepare(h)
	err := second.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(second.out.String(), fmt.Sprintf("serves this home already: it has the lock %s (pid %d)", h.Lock(), first.Process.Pid)) {
		t.Errorf("%v: %s", err, second.out.String())
	}
	if status := first.end(t, syscall.SIGTERM); status != 0 {
		t.Errorf("status %d", status)
	}
	// One that is killed is in nobody's way.
	third := start(t, h)
	third.end(t, syscall.SIGKILL)
	if status := start(t, h).end(t, os.Interrupt); status != 0 {
		t.Errorf("status %d", status)
	}
	if b, err := os.ReadFile(h.DaemonLog()); err != nil || strings.Count(string(b), "msg=listening") != 3 {
		t.Errorf("%s, %v", b, err)
	}
}

func TestIdleExit(t *testing.T) {
	p := start(t, newHome(t), "--idle-exit", "200ms")
	select {
	case err := <-p.done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("laminad stays")
	}
}

// TestSocketActivation: systemd makes the socket and passes it on.
func TestSocketActivation(t *testing.T) {
	h := newHome(t)
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.Socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// LISTEN_PID must be laminad's own, which only the shell knows in time.
	p := &process{Cmd: exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"`, os.Args[0]), done: make(chan error, 1)}
	p.Env = append(os.Environ(), envMain+"=1", home.Env+"="+h.Data)
	p.Stdout, p.Stderr = &p.out, &p.out
	p.ExtraFiles = []*os.File{f}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.watch(t)
	// A request before it listens waits in the socket.
	v, err := client.New(h).Version(t.Context())
	if err != nil || v.PID != p.Process.Pid {
		t.Errorf("%+v, %v: %s", v, err, p.out.String())
	}
	if status := p.end(t, syscall.SIGTERM); status != 0 {
		t.Errorf("status %d: %s", status, p.out.String())
	}
	if _, err := os.Stat(h.Socket()); err != nil {
		t.Errorf("systemd's socket is gone: %v", err)
	}
}

// TestMachineSurvives runs a real QEMU with an empty disk through the death of
// its daemon.
func TestMachineSurvives(t *testing.T) {
	h := newHome(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	disk := filepath.Join(t.TempDir(), "empty.img")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, h)
	c := client.New(h)
	m, err := c.Run(ctx, api.RunRequest{Image: disk, Format: "raw", Name: "m", NoWait: true,
		MachineConfig: api.MachineConfig{Memory: 64 << 20, Accel: vm.AccelTCG}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pid := m.Run.PID
	for _, sig := range []os.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		p.end(t, sig)
		if err := syscall.Kill(pid, 0); err != nil {
			t.Fatalf("the machine died with its daemon (%s): %v", sig, err)
		}
		p = start(t, h)
		m, err := c.Machine(ctx, "m")
		if err != nil || m.Run == nil || m.Run.PID != pid || m.SSHPort == 0 || m.Memory < 10<<20 {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	// The watcher sees on the screen that there is nothing to boot from.
	err = c.Boot(ctx, "m", nil)
	var stuck *api.Error
	if !errors.As(err, &stuck) || stuck.Problem == nil || stuck.Problem.Kind != "no-bootable-disk" {
		t.Errorf("boot: %+v", err)
	}
	if m, err = c.Machine(ctx, "m"); err != nil || m.State != api.Stuck {
		t.Errorf("%s, %v", m.State, err)
	}
	if text, err := c.Screen(ctx, "m", "text"); err != nil || !strings.Contains(string(text), "SeaBIOS") {
		t.Errorf("screen: %q, %v", text, err)
	}
	console, err := c.Console(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(console, "x"); err != nil {
		t.Error(err)
	}
	if err := console.Close(); err != nil {
		t.Error(err)
	}
	// A restart remembers what came out.
	p.end(t, syscall.SIGTERM)
	p = start(t, h)
	if m, err = c.Machine(ctx, "m"); err != nil || m.State != api.Stuck || m.Problem == nil {
		t.Errorf("%s, %v", m.State, err)
	}
	// A machine that ends while no daemon is there.
	p.end(t, syscall.SIGTERM)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for syscall.Kill(pid, 0) == nil {
		time.Sleep(10 * time.Millisecond)
	}
	p = start(t, h)
	if m, err = c.Machine(ctx, "m"); err != nil || m.Run != nil || m.Exit == nil {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err = c.Start(ctx, "m", api.StartRequest{NoWait: true}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ctx, "m", true); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(m.Run.PID, 0); err == nil {
		t.Error("the machine outlives its removal")
	}
	if err := c.RemoveTemplate(ctx, m.Template); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{h.Machines(), h.Templates()} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind in %s: %v, %v", dir, left, err)
		}
	}
	p.end(t, syscall.SIGTERM)
}
