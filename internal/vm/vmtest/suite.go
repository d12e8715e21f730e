package vmtest

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

type maker = func(*testing.T) vm.Driver

func itoa(n int) string { return strconv.Itoa(n) }

func testStart(t *testing.T, newDriver maker) {
	d, dir := newDriver(t), t.TempDir()
	spec := Spec(t)
	spec.RNG = true
	spec.NICs = []vm.NIC{{Forwards: []vm.Forward{{GuestPort: 22}, {Proto: "udp", GuestPort: 53}}}}
	before := time.Now()
	m := Start(t, d, spec, dir)
	info := m.Info()
	if info.Accel != vm.AccelTCG || info.PID <= 0 || !processExists(info.PID) || info.QEMU == "" {
		t.Errorf("info %+v", info)
	}
	if info.StartedAt.Before(before) || info.StartedAt.After(time.Now()) {
		t.Errorf("started at %v", info.StartedAt)
	}
	if len(info.Forwards) != 2 || info.Forwards[0].HostPort == 0 || info.Forwards[1].HostPort == 0 {
		t.Fatalf("forwards %v", info.Forwards)
	}
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", itoa(info.Forwards[0].HostPort)))
	if err != nil {
		t.Errorf("the forwarded port: %v", err)
	} else {
		_ = c.Close()
	}
	v, err := net.Dial("unix", info.VNC)
	if err != nil {
		t.Errorf("VNC: %v", err)
	} else {
		hello := make([]byte, 4)
		if _, err := v.Read(hello); err != nil || string(hello) != "RFB " {
			t.Errorf("VNC greets with %q, %v", hello, err)
		}
		_ = v.Close()
	}
	requireState(t, m, vm.StateRunning)
	WaitSerial(t, m, Ready)
	if _, err := d.Start(t.Context(), spec, dir); err == nil || !strings.Contains(err.Error(), "already runs") {
		t.Errorf("second start in the same folder: %v", err)
	}
	requireState(t, m, vm.StateRunning)

	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for a machine that runs: %v", err)
	}
	kill(t, m)
	if processExists(info.PID) {
		t.Error("the process is still there after Kill")
	}
	if e := waitExit(t, m, dir); e.State != vm.StateStopped || e.Reason != "killed" {
		t.Errorf("exit %+v", e)
	}
	requireState(t, m, vm.StateStopped)
	if err := m.Shutdown(t.Context()); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("shutdown after the end: %v", err)
	}
	if _, err := m.ScreenText(t.Context()); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("screen after the end: %v", err)
	}
	kill(t, m) // again: nothing to do
	if err := m.Release(); err != nil {
		t.Errorf("release after the end: %v", err)
	}
}

func testAdopt(t *testing.T, newDriver maker) {
	dir := t.TempDir()
	m := Start(t, newDriver(t), Spec(t), dir)
	want := m.Info()
	if err := m.Release(); err != nil {
		t.Fatal(err)
	}
	if err := m.Release(); err != nil {
		t.Errorf("second release: %v", err)
	}
	if _, err := m.Wait(t.Context()); err == nil {
		t.Error("a released machine was waited for")
	}
	d := newDriver(t)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	again, err := d.Adopt(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(t, again) })
	got := again.Info()
	if got.PID != want.PID || !got.StartedAt.Equal(want.StartedAt) || got.Accel != want.Accel || got.QEMU != want.QEMU || got.VNC != want.VNC {
		t.Errorf("adopted %+v, started %+v", got, want)
	}
	requireState(t, again, vm.StateRunning)
	WaitSerial(t, again, Ready)
	Send(t, again, PowerOff)
	if e := waitExit(t, again, dir); e.State != vm.StateStopped || e.Reason != "guest shut down" {
		t.Errorf("exit %+v", e)
	}
	if _, err := d.Adopt(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopt after the end: %v", err)
	}
	if _, err := d.Adopt(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopt in a folder that is not there: %v", err)
	}
}

// testPowerOff presses the power button; the guest obeys.
func testPowerOff(t *testing.T, newDriver maker) {
	dir := t.TempDir()
	m := Start(t, newDriver(t), Spec(t), dir)
	WaitSerial(t, m, Ready)
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := waitExit(t, m, dir); e.State != vm.StateStopped || e.Reason != "guest shut down" {
		t.Errorf("exit %+v", e)
	}
}

func testPanic(t *testing.T, newDriver maker) {
	dir := t.TempDir()
	m := Start(t, newDriver(t), Spec(t), dir)
	WaitSerial(t, m, Ready)
	Send(t, m, Panic)
	eventually(t, "state crashed", func() (bool, any) {
		s, err := m.State(t.Context())
		return err == nil && s == vm.StateCrashed, s
	})
	// Its screen can still be read.
	if lines, err := m.ScreenText(t.Context()); err != nil || !strings.Contains(strings.Join(lines, "\n"), Ready) {
		t.Errorf("screen %q, %v", lines, err)
	}
	kill(t, m)
	if e := waitExit(t, m, dir); e.State != vm.StateCrashed || !strings.Contains(e.Reason, "panicked") {
		t.Errorf("exit %+v", e)
	}
}

// testReset: a guest's reboot ends the machine only where that was asked for.
func testReset(t *testing.T, newDriver maker) {
	dir := t.TempDir()
	spec := Spec(t)
	m := Start(t, newDriver(t), spec, dir)
	WaitSerial(t, m, Ready)
	Send(t, m, Reset)
	eventually(t, "second boot", func() (bool, any) {
		b, err := os.ReadFile(m.SerialLog())
		return err == nil && strings.Count(string(b), Ready) == 2, string(b)
	})
	kill(t, m)

	spec.NoReboot = true
	m = Start(t, newDriver(t), spec, dir)
	WaitSerial(t, m, Ready)
	Send(t, m, Reset)
	if e := waitExit(t, m, dir); e.State != vm.StateStopped || !strings.Contains(e.Reason, "rebooted") {
		t.Errorf("exit %+v", e)
	}
	old, err := os.ReadFile(filepath.Join(dir, home.SerialLogOld))
	if err != nil || strings.Count(string(old), Ready) != 2 {
		t.Errorf("serial log of the start before: %q, %v", old, err)
	}
}

func testScreen(t *testing.T, newDriver maker) {
	m := Start(t, newDriver(t), Spec(t), t.TempDir())
	WaitSerial(t, m, Ready)
	lines := func() []string {
		l, err := m.ScreenText(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	text := lines()
	if len(text) == 0 || text[len(text)-1] != Ready {
		t.Errorf("text screen %q, want %q as the last line", text, Ready)
	}
	b, err := m.ScreenPNG(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil || img.Bounds().Dx() != 720 || img.Bounds().Dy() != 400 {
		t.Errorf("picture %v, %v", img, err)
	}

	// Row 10 of the memory becomes the first one of the screen.
	Send(t, m, Scroll)
	eventually(t, "scrolled text", func() (bool, any) {
		l := lines()
		return len(l) == 21 && l[20] == "Sd", l
	})

	Send(t, m, Graphics)
	eventually(t, "graphics mode", func() (bool, any) {
		l := lines()
		return l == nil, l
	})
	if _, err := m.ScreenPNG(t.Context()); err != nil {
		t.Error(err)
	}
	kill(t, m)
}

// testSerial: the log has every byte, whether or not a client is there.
func testSerial(t *testing.T, newDriver maker) {
	m := Start(t, newDriver(t), Spec(t), t.TempDir())
	WaitSerial(t, m, Ready)
	for _, word := range []string{"a", "b", "c"} {
		Send(t, m, word)
	}
	WaitSerial(t, m, "\r\nabc")
	if st, err := os.Stat(m.SerialLog()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("serial log: %v, %v", st, err)
	}
	kill(t, m)
}

func testBadSpec(t *testing.T, newDriver maker) {
	d := newDriver(t)
	dir := filepath.Join(t.TempDir(), "m")
	refuse := func(name, want string, change func(*vm.Spec)) {
		t.Helper()
		spec := Spec(t)
		change(&spec)
		m, err := d.Start(t.Context(), spec, dir)
		if err == nil {
			kill(t, m)
			t.Errorf("%s: started", name)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q in it", name, err, want)
		}
		RequireNoLeftovers(t, dir)
	}
	refuse("name", "not a machine name", func(s *vm.Spec) { s.Name = "a b" })
	refuse("memory", "memory", func(s *vm.Spec) { s.Memory = 1 })
	refuse("missing disk", "no such file", func(s *vm.Spec) { s.Disks[0].Path += ".not" })
	var invalid *vm.InvalidError
	spec := Spec(t)
	spec.CPUs, spec.Disks[0].Bus = -1, "xen"
	if _, err := d.Start(t.Context(), spec, dir); !errors.As(err, &invalid) || len(invalid.Problems) != 2 {
		t.Errorf("two problems: %v", err)
	}
}

// testRefusals: what only the hypervisor can find, it says in its own words.
func testRefusals(t *testing.T, newDriver maker) {
	d := newDriver(t)
	dir := filepath.Join(t.TempDir(), "m")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	for name, c := range map[string]struct {
		want   string
		change func(*vm.Spec)
	}{
		"not an image": {"qcow2", func(s *vm.Spec) { s.Disks[0].Format = "qcow2" }},
		"port taken":   {"in use", func(s *vm.Spec) { s.NICs = []vm.NIC{{Forwards: []vm.Forward{{HostPort: port, GuestPort: 1}}}} }},
		"unknown CPU":  {"nosuchcpu", func(s *vm.Spec) { s.CPU = "nosuchcpu" }},
	} {
		spec := Spec(t)
		c.change(&spec)
		m, err := d.Start(t.Context(), spec, dir)
		if err == nil {
			kill(t, m)
			t.Errorf("%s: started", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
		RequireNoLeftovers(t, dir)
	}
	// After all that a good one starts in the same folder.
	kill(t, Start(t, d, Spec(t), dir))
}

// testLongPath: a folder whose path no socket can have, with characters that
// command lines dislike.
func testLongPath(t *testing.T, newDriver maker) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long, ", 20), strings.Repeat("x", 100))
	spec := Spec(t)
	odd := filepath.Join(t.TempDir(), `odd,name "quoted" [x]=é.raw`)
	if err := os.Rename(spec.Disks[0].Path, odd); err != nil {
		t.Fatal(err)
	}
	spec.Disks[0].Path = odd
	m := Start(t, newDriver(t), spec, dir)
	WaitSerial(t, m, Ready)
	if err := m.Release(); err != nil {
		t.Fatal(err)
	}
	m, err := newDriver(t).Adopt(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	Send(t, m, PowerOff)
	waitExit(t, m, dir)
	if err := m.Release(); err != nil {
		t.Errorf("release after the end: %v", err)
	}
}

func testCancelled(t *testing.T, newDriver maker) {
	d := newDriver(t)
	dir := t.TempDir()
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		m, err := d.Start(ctx, Spec(t), dir)
		cancel()
		if err == nil { // it was faster
			kill(t, m)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled after %v: %v", after, err)
		}
		RequireNoLeftovers(t, dir)
	}
}

// cycles is how often testNoLeaks starts and stops a machine in one folder;
// [NoLeaks] is for many.
const cycles = 5

func testNoLeaks(t *testing.T, newDriver maker) {
	d, dir, spec := newDriver(t), t.TempDir(), Spec(t)
	cycle := func() {
		m := Start(t, d, spec, dir)
		kill(t, m)
		if processExists(m.Info().PID) {
			t.Fatalf("process %d is left", m.Info().PID)
		}
	}
	cycle() // what is made once is made now
	before := descriptors(t)
	for range cycles {
		cycle()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors after %d starts, %d before", after, cycles, before)
	}
	RequireNoLeftovers(t, dir)
}

// descriptors counts this process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
