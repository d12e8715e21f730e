package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestAutoOnThisHost: whatever this host has, the guest runs, and a note says
// why it is not on KVM.
func TestAutoOnThisHost(t *testing.T) {
	d := New(Options{CacheDir: t.TempDir()})
	for range 2 {
		m := vmtest.Start(t, d, autoSpec(t), t.TempDir())
		vmtest.WaitSerial(t, m, vmtest.Ready)
		info := m.Info()
		if (info.Accel == vm.AccelKVM) != (info.AccelNote == "") {
			t.Errorf("info %+v", info)
		}
		t.Logf("%s %s", info.Accel, info.AccelNote)
	}
}

// TestProcess: QEMU is in a session of its own, has its system calls filtered,
// and is tied to us by nothing.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	m := vmtest.Start(t, New(Options{}), vmtest.Spec(t), dir)
	pid := m.Info().PID
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d, %v", sid, pid, err)
	}
	requireIn(t, readFile(t, fmt.Sprintf("/proc/%d/status", pid)), "Seccomp:\t2\n")
	log := filepath.Join(dir, home.QEMULogFile)
	for fd, want := range []string{os.DevNull, log, log} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); err != nil || got != want {
			t.Errorf("descriptor %d is %s, %v; want %s", fd, got, err, want)
		}
	}
	for _, name := range []string{home.RunFile, home.PIDFile, home.SerialLogFile, home.QEMULogFile} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v; want its owner's alone", name, st, err)
		}
	}
}
