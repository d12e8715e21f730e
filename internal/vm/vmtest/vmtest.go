// Package vmtest is the conformance suite that every driver of package vm
// passes, and the tiny guest that it runs.
package vmtest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// limit bounds every wait of the suite, on a busy machine under TCG.
const limit = 3 * time.Minute

// Run runs the suite. newDriver returns a new value of the driver, as another
// process would have it. without names the tests of what a driver does not have;
// its own test says why.
func Run(t *testing.T, newDriver func(t *testing.T) vm.Driver, without ...string) {
	for name, test := range map[string]func(*testing.T, func(*testing.T) vm.Driver){
		"Start":     testStart,
		"Adopt":     testAdopt,
		"PowerOff":  testPowerOff,
		"Panic":     testPanic,
		"Reset":     testReset,
		"Screen":    testScreen,
		"Serial":    testSerial,
		"BadSpec":   testBadSpec,
		"Refusals":  testRefusals,
		"LongPath":  testLongPath,
		"Cancelled": testCancelled,
		"NoLeaks":   testNoLeaks,
		"Display":   testDisplay,
		"Devices":   testDevices,
		"Freeze":    testFreeze,
	} {
		if !slices.Contains(without, name) {
			t.Run(name, func(t *testing.T) { test(t, newDriver) })
		}
	}
}

// Spec is a small machine with the tiny guest's disk.
func Spec(t testing.TB) vm.Spec {
	t.Helper()
	return vm.Spec{
		Name:   "tiny",
		Memory: 32 << 20,
		Accel:  vm.AccelTCG,
		Disks:  []vm.Disk{{Path: Image(t), Format: "raw"}},
	}
}

// Start starts a machine that is killed at the test's end, if it still runs.
func Start(t *testing.T, d vm.Driver, spec vm.Spec, dir string) vm.Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	m, err := d.Start(ctx, spec, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(t, m) })
	return m
}

// kill must always work, but on a machine that has been released.
func kill(t *testing.T, m vm.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := m.Kill(ctx); err != nil && !strings.Contains(err.Error(), "released") {
		t.Errorf("kill: %v", err)
	}
}

// WaitSerial waits until the serial log holds text.
func WaitSerial(t *testing.T, m vm.Machine, text string) {
	t.Helper()
	eventually(t, "serial log with "+text, func() (bool, any) {
		b, err := os.ReadFile(m.SerialLog())
		return err == nil && strings.Contains(string(b), text), string(b)
	})
}

// eventually polls until ok, and fails the test with the last thing seen.
func eventually(t *testing.T, what string, poll func() (ok bool, seen any)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		ok, seen := poll()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s; last seen: %q", what, seen)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Send writes commands to the guest's serial port.
func Send(t *testing.T, m vm.Machine, commands string) {
	t.Helper()
	c, err := net.Dial("unix", m.SerialSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(commands)); err != nil {
		t.Fatal(err)
	}
	// The echo says that the guest has it. Where the command ends the
	// machine, it may end before the echo is out.
	_, _ = c.Read(make([]byte, 1))
}

// waitExit waits for the machine's end and checks that it left nothing.
func waitExit(t *testing.T, m vm.Machine, dir string) vm.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	e, err := m.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	RequireNoLeftovers(t, dir)
	return e
}

// RequireNoLeftovers fails the test if a machine's folder holds more than what
// outlives the machine.
func RequireNoLeftovers(t *testing.T, dir string) {
	t.Helper()
	stay := []string{home.SerialLogFile, home.SerialLogOld, home.QEMULogFile, home.DiskFile, home.SeedFile, home.NVRAMFile, home.TPMDir}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(stay, e.Name()) {
			t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
		}
	}
}

func requireState(t *testing.T, m vm.Machine, want vm.State) {
	t.Helper()
	if got, err := m.State(t.Context()); err != nil || got != want {
		t.Fatalf("state %s, %v; want %s", got, err, want)
	}
}

// processExists says whether a process is there, also as a zombie.
func processExists(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", itoa(pid)))
	return err == nil
}
