package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// bootSector prints text on the first serial port, waits for a key there, and
// reboots by the keyboard controller.
func bootSector(text string) []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xfc,             // cld
		0xbe, 0x22, 0x7c, // mov si, text
		0xac,       // next: lodsb
		0x08, 0xc0, // or al, al
		0x74, 0x06, // jz wait
		0xba, 0xf8, 0x03, // mov dx, COM1
		0xee,       // out dx, al
		0xeb, 0xf5, // jmp next
		0xba, 0xfd, 0x03, // wait: mov dx, COM1's line status
		0xec,       // again: in al, dx
		0xa8, 0x01, // test al, data ready
		0x74, 0xfb, // jz again
		0xb0, 0xfe, // mov al, pulse the reset line
		0xe6, 0x64, // out 64h, al
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	disk := make([]byte, 1<<20)
	copy(disk, code)
	copy(disk[len(code):], text)
	disk[510], disk[511] = 0x55, 0xaa
	return disk
}

// medium writes a disk that boots as bootSector says.
func medium(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, bootSector(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// pressKey types into a machine's serial port, whether a daemon runs or not.
func pressKey(t *testing.T, dir string) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(dir, home.SerialSock))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
}

// until waits until ok.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// says waits until the log of a machine's serial port has text.
func says(t *testing.T, dir, text string) {
	t.Helper()
	until(t, text, func() bool {
		b, err := os.ReadFile(filepath.Join(dir, home.SerialLogFile))
		return err == nil && strings.Contains(string(b), text)
	})
}

// spec is a machine with the given disks, the first of which boots.
func spec(name string, disks ...vm.Disk) vm.Spec {
	return vm.Spec{Name: name, Memory: 128 << 20, Accel: vm.AccelTCG, RNG: true, Disks: disks, NICs: []vm.NIC{{}}}
}

// TestInstall takes a machine through its install phase to the login prompt of
// the guest that it is in the end.
func TestInstall(t *testing.T) {
	h, dir := newHome(t), t.TempDir()
	p := start(t, h)
	c := client.New(h)
	disk := filepath.Join(dir, "disk.qcow2")
	if err := image.Overlay(t.Context(), disk, image.OverlayOptions{Base: guestimage.Small(t), BaseFormat: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	installer := medium(t, dir, "installer", "Welcome to the installer\r\n")
	target := vm.Disk{Path: disk, Format: "qcow2"}
	followed := make(chan error, 1)
	go func() {
		_, err := c.Define(context.WithoutCancel(t.Context()), api.DefineRequest{
			Spec: spec("web", target), Start: true,
			Install: &api.Install{Spec: spec("web", vm.Disk{Path: installer, Format: "raw", BootIndex: 1}, target), Owned: []string{installer}},
		}, nil)
		followed <- err
	}()
	var m api.Machine
	until(t, "the install phase", func() bool {
		var err error
		m, err = c.Machine(t.Context(), "web")
		return err == nil && m.State == api.Installing && m.Run != nil
	})
	says(t, m.Dir, "Welcome to the installer")
	pressKey(t, m.Dir)
	if err := <-followed; err != nil {
		t.Fatal(err)
	}
	m, err := c.Machine(t.Context(), "web")
	if err != nil || m.State != api.Login || m.Definition.Phase != api.Installed || m.Definition.Install != nil {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := os.Stat(installer); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the installer's file is left: %v", err)
	}
	if err := c.Remove(t.Context(), "web", true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(disk); err != nil {
		t.Errorf("the person's disk is gone: %v", err)
	}
	leaveNothing(t, c, h)
	p.end(t, syscall.SIGTERM)
}

// TestInstallUnseen kills the daemon in the install phase. The guest ends while
// none runs: the next one starts the final machine where it rebooted, and does
// not where QEMU was killed.
func TestInstallUnseen(t *testing.T) {
	h, dir := newHome(t), t.TempDir()
	p := start(t, h)
	c := client.New(h)
	machines := map[string]api.Machine{}
	for _, name := range []string{"rebooted", "killed", "signalled"} {
		installer := vm.Disk{Path: medium(t, dir, name+"-cd", "Welcome to the installer\r\n"), Format: "raw", BootIndex: 1}
		disk := vm.Disk{Path: medium(t, dir, name, "\r\nguest login: "), Format: "raw"}
		m, err := c.Define(t.Context(), api.DefineRequest{Spec: spec(name, disk), Start: true, NoWait: true,
			Install: &api.Install{Spec: spec(name, installer, disk)}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		machines[name] = m
	}
	for _, m := range machines {
		says(t, m.Dir, "Welcome to the installer")
	}
	p.end(t, syscall.SIGKILL)
	pressKey(t, machines["rebooted"].Dir)
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "signalled": syscall.SIGTERM} {
		if err := syscall.Kill(machines[name].Run.PID, sig); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range machines {
		until(t, m.Name+" ends", func() bool { return syscall.Kill(m.Run.PID, 0) != nil })
	}
	p = start(t, h)
	until(t, "the login of the final machine", func() bool {
		m, err := c.Machine(t.Context(), "rebooted")
		return err == nil && m.State == api.Login
	})
	for _, name := range []string{"killed", "signalled"} {
		m, err := c.Machine(t.Context(), name)
		if err != nil || m.Run != nil || m.Definition.Phase != api.Interrupted || m.Exit == nil || m.Exit.Cause != vm.CauseKilled {
			t.Errorf("%s: %+v, %+v, %v", name, m, m.Exit, err)
		}
	}
	// The next start is the final machine's.
	if m, err := c.Start(t.Context(), "killed", api.StartRequest{}, nil); err != nil || m.State != api.Login {
		t.Errorf("%+v, %v", m, err)
	}
	leaveNothing(t, c, h)
	p.end(t, syscall.SIGTERM)
}

// TestCycles makes, starts, kills and removes machines: nothing of them is left,
// no descriptor of the daemon's, no process, no file.
func TestCycles(t *testing.T) {
	h, dir := newHome(t), t.TempDir()
	p := start(t, h)
	c := client.New(h)
	disk := vm.Disk{Path: medium(t, dir, "disk", "\r\nguest login: "), Format: "raw"}
	descriptors := func() int {
		list, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.Process.Pid), "fd"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	cycle := func() {
		m, err := c.Define(t.Context(), api.DefineRequest{Spec: spec("web", disk), Start: true, NoWait: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Stop(t.Context(), "web", api.StopRequest{Force: true}, nil); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(m.Run.PID, 0); err == nil {
			t.Errorf("process %d is left", m.Run.PID)
		}
		if err := c.Remove(t.Context(), "web", false); err != nil {
			t.Fatal(err)
		}
	}
	cycle() // what is opened once is open now
	before := descriptors()
	for range 12 {
		cycle()
	}
	until(t, "the daemon has as many descriptors as before", func() bool { return descriptors() <= before })
	leaveNothing(t, c, h)
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("beside the disk: %v, %v", list, err)
	}
	p.end(t, syscall.SIGTERM)
}

// TestWaitAcrossDaemons waits for an install whose daemon is killed: the client
// starts the next one and goes on waiting.
func TestWaitAcrossDaemons(t *testing.T) {
	h, dir, bin := newHome(t), t.TempDir(), t.TempDir()
	wrapper := "#!/bin/sh\n" + envMain + "=1 exec '" + os.Args[0] + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "laminad"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	p := start(t, h)
	c := client.New(h)
	installer := vm.Disk{Path: medium(t, dir, "cd", "Welcome to the installer\r\n"), Format: "raw", BootIndex: 1}
	disk := vm.Disk{Path: medium(t, dir, "disk", "\r\nguest login: "), Format: "raw"}
	m, err := c.Define(t.Context(), api.DefineRequest{Spec: spec("web", disk), Start: true, NoWait: true,
		Install: &api.Install{Spec: spec("web", installer, disk), NoRestart: true}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	says(t, m.Dir, "Welcome to the installer")
	type result struct {
		m   api.Machine
		err error
	}
	waited := make(chan result, 1)
	go func() {
		m, err := c.Wait(context.WithoutCancel(t.Context()), "web", api.WaitInstalled)
		waited <- result{m, err}
	}()
	p.end(t, syscall.SIGKILL)
	until(t, "the next daemon", func() bool {
		v, err := c.Version(t.Context())
		return err == nil && v.PID != p.Process.Pid
	})
	pressKey(t, m.Dir)
	r := <-waited
	if r.err != nil || r.m.State != api.Stopped || r.m.Definition.Phase != api.Installed {
		t.Errorf("%+v, %v", r.m, r.err)
	}
	_ = os.Remove(h.StartLock()) // of the client, which started a daemon
	leaveNothing(t, c, h)
	if err := c.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	until(t, "the daemon ends", func() bool { _, err := c.Version(t.Context()); return err != nil })
}
