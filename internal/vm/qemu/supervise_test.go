package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestLostMonitor: a connection that breaks while the machine runs is made
// anew, with its events.
func TestLostMonitor(t *testing.T) {
	m := vmtest.Start(t, New(Options{}), vmtest.Spec(t), t.TempDir()).(*machine)
	old := m.monitor()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for m.monitor() == old {
		if time.Now().After(deadline) {
			t.Fatal("the monitor is not back")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if s, err := m.State(t.Context()); err != nil || s != vm.StateRunning {
		t.Errorf("state %s, %v", s, err)
	}
	vmtest.WaitSerial(t, m, vmtest.Ready)
	vmtest.Send(t, m, vmtest.PowerOff)
	if e, err := m.Wait(t.Context()); err != nil || e.Reason != "guest shut down" {
		t.Errorf("exit %+v, %v", e, err)
	}
}

// TestFault: a QEMU that ends by a fault of its own is told from one that was
// killed: only the first may be started again unasked.
func TestFault(t *testing.T) {
	for sig, failed := range map[unix.Signal]bool{unix.SIGABRT: true, unix.SIGSEGV: true, unix.SIGKILL: false, unix.SIGTERM: false} {
		m := vmtest.Start(t, New(Options{}), vmtest.Spec(t), t.TempDir())
		if err := unix.Kill(m.Info().PID, sig); err != nil {
			t.Fatal(err)
		}
		if e, err := m.Wait(t.Context()); err != nil || e.Failed != failed {
			t.Errorf("%v: %+v, %v", sig, e, err)
		}
	}
}

// TestKilledAndReleased: whoever kills a machine is told that it has ended also
// where another one, who waited for the end, has released it by then.
func TestKilledAndReleased(t *testing.T) {
	m := vmtest.Start(t, New(Options{}), vmtest.Spec(t), t.TempDir())
	released := make(chan error, 1)
	go func() {
		_, err := m.Wait(context.WithoutCancel(t.Context()))
		released <- errors.Join(err, m.Release())
	}()
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-released; err != nil {
		t.Error(err)
	}
	for range 50 { // a select takes any of what is ready
		if err := m.Kill(t.Context()); err != nil {
			t.Fatalf("again: %v", err)
		}
		if e, err := m.Wait(t.Context()); err != nil || e.Reason != "killed" {
			t.Fatalf("again: %+v, %v", e, err)
		}
	}
}

// TestStuckQEMU: one that answers nothing is killed all the same.
func TestStuckQEMU(t *testing.T) {
	dir := t.TempDir()
	m := vmtest.Start(t, New(Options{}), vmtest.Spec(t), dir)
	if err := unix.Kill(m.Info().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_ = m.Kill(soon) // its patience was too short to say how it went
	e, err := m.Wait(t.Context())
	if err != nil || e.Reason != "killed" {
		t.Errorf("exit %+v, %v", e, err)
	}
	vmtest.RequireNoLeftovers(t, dir)
}

// TestStuckOrphan: one that answers nothing and was started by another process
// cannot be adopted, and can be killed.
func TestStuckOrphan(t *testing.T) {
	d, dir := New(Options{}), t.TempDir()
	m := vmtest.Start(t, d, vmtest.Spec(t), dir)
	pid := m.Info().PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(); err != nil {
		t.Error(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := d.Adopt(soon, dir)
	if err == nil || errors.Is(err, vm.ErrNotRunning) {
		t.Fatalf("adopt: %v", err)
	}
	requireIn(t, err.Error(), fmt.Sprintf("process %d does not answer", pid))
	if err := d.KillIn(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
	vmtest.RequireNoLeftovers(t, dir)
	if err := d.KillIn(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("again: %v", err)
	}
}

// TestDyingOrphan: a process that is being killed has closed its monitor and is not gone
// yet. It has ended: it is not one that may go on and cannot be reached.
func TestDyingOrphan(t *testing.T) {
	d, dir := New(Options{}), t.TempDir()
	m := vmtest.Start(t, d, vmtest.Spec(t), dir)
	pid := m.Info().PID
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(); err != nil {
		t.Error(err)
	}
	// A monitor that takes a connection and closes it: QEMU's, as its end leaves it.
	socket := filepath.Join(dir, home.QMPSocket)
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }() // only a test's
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.Close()
		time.Sleep(100 * time.Millisecond)
		_ = unix.Kill(pid, unix.SIGKILL)
	}()
	if _, err := d.Adopt(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopt: %v", err)
	}
	vmtest.RequireNoLeftovers(t, dir)
}

// TestStopped: a guest that a person stopped through the monitor is paused, not
// broken.
func TestStopped(t *testing.T) {
	m := vmtest.Start(t, New(Options{}), vmtest.Spec(t), t.TempDir()).(*machine)
	for command, want := range map[string]vm.State{"stop": vm.StatePaused, "cont": vm.StateRunning} {
		if err := m.execute(t.Context(), command, nil, nil); err != nil {
			t.Fatal(err)
		}
		if s, err := m.State(t.Context()); err != nil || s != want {
			t.Errorf("after %s: %s, %v", command, s, err)
		}
	}
}

// TestDiskFull: a guest that finds no space on the host waits, and goes on by
// itself when there is some.
func TestDiskFull(t *testing.T) {
	d, dir := fakeDriver(t, "disk-full", ""), t.TempDir()
	d.spacePause = 300 * time.Millisecond
	m := vmtest.Start(t, d, vmtest.Spec(t), dir)
	var states []vm.State
	deadline := time.Now().Add(30 * time.Second)
	for len(states) < 2 || states[len(states)-1] != vm.StateRunning {
		s, err := m.State(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("states %v, %v", states, err)
		}
		// What is seen before it stops for the first time does not count.
		if len(states) == 0 && s == vm.StateRunning {
			continue
		}
		if len(states) == 0 || states[len(states)-1] != s {
			states = append(states, s)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if states[0] != vm.StatePaused {
		t.Errorf("states %v", states)
	}
}
