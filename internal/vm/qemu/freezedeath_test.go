package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// writer stands in for what a guest does with its disks: each write goes to a place of
// its own and over the one before, and is flushed.
type writer struct {
	t *testing.T
	n int
}

// It leaves alone what the guest boots from.
const writeSize, writeAt = 4096, 512 << 10

// write is one write to each disk; a guest that does not execute writes nothing.
func (w *writer) write(m *machine) {
	w.t.Helper()
	status, err := m.queryStatus(w.t.Context())
	if err != nil {
		w.t.Error(err)
	}
	if status != statusRunning {
		return
	}
	w.n++
	for i := range m.spec().Disks {
		b, err := m.queryBlock(w.t.Context(), m.diskIDAt(i))
		if err != nil {
			w.t.Error(err)
		}
		for _, c := range []string{fmt.Sprintf("write -P %d %d %d", w.n, writeAt, writeSize), fmt.Sprintf("write -P %d %d %d", w.n, writeAt+w.n*writeSize, writeSize), "flush"} {
			var out string
			line := fmt.Sprintf("qemu-io -d %q %q", b.QDev, c)
			if err := m.execute(w.t.Context(), "human-monitor-command", map[string]string{"command-line": line}, &out); err != nil || strings.Contains(out, "rror") {
				w.t.Errorf("%s: %v, %s", line, err, out)
			}
		}
	}
}

// require looks for all that was written.
func (w *writer) require(path string) {
	w.t.Helper()
	if w.n == 0 {
		return
	}
	reads := []string{fmt.Sprintf("read -q -P %d %d %d", w.n, writeAt, writeSize)}
	for i := range w.n {
		reads = append(reads, fmt.Sprintf("read -q -P %d %d %d", i+1, writeAt+(i+1)*writeSize, writeSize))
	}
	qemutest.IO(w.t, "qcow2", path, reads...)
}

// survivor is the image that the next start takes where no QEMU runs, by the rule of
// vm.Freezer: the overlay if it is there and holds something.
func survivor(t *testing.T, image, overlay string) string {
	t.Helper()
	if _, err := os.Lstat(overlay); err != nil {
		return image
	}
	if strings.Contains(qemutest.Img(t, "map", "--output=json", overlay), `"depth": 0`) {
		return overlay
	}
	return image
}

// dying is a freeze of a machine in which something dies at a step. It fails when all
// is kept, and is undone from there on.
type dying struct {
	m        *machine
	w        *writer
	r        vm.FreezeRequest
	images   []string // before it
	overlays []string
	reached  string // the step at which it died
}

var errKept = errors.New("it was to fail here")

// die freezes until the step-th step, and there ends QEMU, or the freezer.
func (d *dying) die(t *testing.T, step int, qemu, freezer bool) {
	t.Helper()
	at := 0
	d.m.atStep = func(name string) error {
		var fails error
		if name == "kept" {
			fails = errKept
		}
		if d.reached == "" || !qemu {
			d.w.write(d.m)
		}
		if at++; at != step {
			return fails
		}
		d.reached = name
		if qemu {
			if err := unix.Kill(d.m.Info().PID, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			<-d.m.proc.done
		}
		if freezer {
			runtime.Goexit()
		}
		return fails
	}
	done := make(chan error, 1)
	go func() {
		err := errors.New("the freezer is gone")
		defer func() { done <- err }()
		_, err = d.m.Freeze(context.WithoutCancel(t.Context()), d.r)
	}()
	err := <-done
	d.m.atStep = nil
	if want := qemu && !freezer && d.reached != "" && d.reached != "goes on"; d.reached == "" && !errors.Is(err, errKept) || want && !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("step %s: %v", d.reached, err)
	}
	if freezer && d.reached != "" {
		_ = d.m.Release()
	}
}

func newDying(t *testing.T, disks int) *dying {
	t.Helper()
	spec := tinySpec(t)
	out := t.TempDir()
	for len(spec.Disks) < disks {
		path := filepath.Join(out, fmt.Sprint("image", len(spec.Disks)))
		qemutest.Img(t, "create", "-f", "qcow2", path, "1M")
		spec.Disks = append(spec.Disks, vm.Disk{Path: path, Format: "qcow2"})
	}
	d := &dying{w: &writer{t: t}}
	d.r = vm.FreezeRequest{RAM: filepath.Join(out, "ram"), State: filepath.Join(out, "state"), Layers: map[string]string{}}
	for i, name := range spec.WithDefaults().DiskNames() {
		d.images = append(d.images, spec.Disks[i].Path)
		d.overlays = append(d.overlays, filepath.Join(out, "over-"+name))
		d.r.Layers[name] = d.overlays[i]
		qemutest.Img(t, "create", "-f", "qcow2", "-b", d.images[i], "-F", "qcow2", d.overlays[i])
	}
	d.m = vmtest.Start(t, New(Options{}), spec, t.TempDir()).(*machine)
	d.w.write(d.m)
	return d
}

// TestDeathsInFreeze ends QEMU, the freezer, or both, at each step of a freeze that fails
// at its very end and is taken back: what the guest has written and flushed is in
// the image that is taken next, by the one who adopts the machine, or without a QEMU.
func TestDeathsInFreeze(t *testing.T) {
	for _, c := range []struct {
		who           string
		disks         int
		qemu, freezer bool
		first, least  int // steps
	}{{"both", 2, true, true, 4, 14}, {"freezer", 1, false, true, 4, 12}, {"QEMU", 1, true, false, 12, 4}} {
		var reached []string
		for step := c.first; ; step++ {
			d := newDying(t, c.disks)
			d.die(t, step, c.qemu, c.freezer)
			at := fmt.Sprintf("%s dies at %q", c.who, d.reached)
			switch {
			case d.reached == "":
				d.goesOn(t, d.m, at)
			case !c.qemu:
				d.adopt(t, at)
			default:
				if _, err := New(Options{}).Adopt(t.Context(), d.m.dir); !errors.Is(err, vm.ErrNotRunning) {
					t.Errorf("%s: %v", at, err)
				}
			}
			for i, image := range d.images {
				d.w.require(survivor(t, image, d.overlays[i]))
			}
			if t.Failed() {
				t.Fatal(at)
			}
			if d.reached == "" {
				break
			}
			reached = append(reached, d.reached)
		}
		if len(reached) < c.least {
			t.Errorf("%s: only %q", c.who, reached)
		}
		t.Logf("%s: %q", c.who, reached)
	}
}

// adopt has the next process take the machine over, which goes on on the image that is
// the right one, and dies then.
func (d *dying) adopt(t *testing.T, at string) {
	t.Helper()
	again, err := New(Options{}).Adopt(t.Context(), d.m.dir)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	m := again.(*machine)
	d.goesOn(t, m, at)
}

// goesOn requires a machine that executes on the images that its record tells, and
// ends it with all that it has written since.
func (d *dying) goesOn(t *testing.T, m *machine, at string) {
	t.Helper()
	if s, err := m.State(t.Context()); err != nil || s != vm.StateRunning {
		t.Errorf("%s: state %s, %v", at, s, err)
	}
	for i, name := range m.RunningSpec().DiskNames() {
		path, err := m.DiskImage(t.Context(), name)
		if err != nil || path != m.RunningSpec().Disks[i].Path || path != d.images[i] && path != d.overlays[i] {
			t.Errorf("%s: drive %s writes to %s, by its spec to %s; %v", at, name, path, m.RunningSpec().Disks[i].Path, err)
		}
	}
	if r, err := readRecord(m.dir); err != nil || r.Freeze != nil {
		t.Errorf("%s: record %+v, %v", at, r.Freeze, err)
	}
	for range 2 {
		d.w.write(m)
	}
	if err := unix.Kill(m.Info().PID, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	for i, image := range d.images {
		if now := survivor(t, image, d.overlays[i]); now != m.RunningSpec().Disks[i].Path {
			t.Errorf("%s: drive %d wrote to %s, and %s is taken", at, i, m.RunningSpec().Disks[i].Path, now)
		}
	}
}

// TestDeathsInSnapshot is the same for overlays that come over images without a freeze,
// while the guest executes.
func TestDeathsInSnapshot(t *testing.T) {
	for _, qemu := range []bool{true, false} {
		for step := 1; ; step++ {
			d := newDying(t, 1)
			d.snapshot(t, step, qemu)
			at := fmt.Sprintf("dies at %q, QEMU too: %v", d.reached, qemu)
			switch {
			case d.reached == "":
				d.goesOn(t, d.m, at)
			case !qemu:
				d.adopt(t, at)
			}
			d.w.require(survivor(t, d.images[0], d.overlays[0]))
			if t.Failed() {
				t.Fatal(at)
			}
			if d.reached == "" {
				if step < 4 {
					t.Errorf("only %d steps", step-1)
				}
				break
			}
		}
	}
}

// snapshot ends who makes a snapshot at a step.
func (d *dying) snapshot(t *testing.T, step int, qemu bool) {
	t.Helper()
	at := 0
	d.m.atStep = func(name string) error {
		d.w.write(d.m)
		if at++; at != step {
			return nil
		}
		d.reached = name
		if qemu {
			if err := unix.Kill(d.m.Info().PID, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			<-d.m.proc.done
		}
		runtime.Goexit()
		return nil
	}
	done := make(chan error, 1)
	go func() {
		var err error
		defer func() { done <- err }()
		err = d.m.SnapshotDisks(t.Context(), d.r.Layers)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	d.m.atStep = nil
	if d.reached != "" {
		_ = d.m.Release()
	}
}

// TestSnapshotUnanswered: where the answer is lost, what QEMU does decides.
func TestSnapshotUnanswered(t *testing.T) {
	d := newDying(t, 1)
	d.m.atStep = func(name string) error {
		if name == "switched" {
			return errors.New("no answer")
		}
		return nil
	}
	if err := d.m.SnapshotDisks(t.Context(), d.r.Layers); err != nil {
		t.Error(err)
	}
	d.m.atStep = nil
	if path, err := d.m.DiskImage(t.Context(), "vda"); err != nil || path != d.overlays[0] {
		t.Errorf("it writes to %s, %v", path, err)
	}
	d.goesOn(t, d.m, "unanswered")
	d.w.require(d.overlays[0])
	if _, err := d.m.DiskImage(t.Context(), "vda"); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("after its end: %v", err)
	}
}

// TestPausedStaysPaused: a guest that is paused when it is frozen, or comes to be
// meanwhile, does not execute a moment, whether the freeze comes to something or not. Its
// images are open for it all the same.
func TestPausedStaysPaused(t *testing.T) {
	for _, when := range []string{"", "opened", "switched", "migrated"} {
		for _, fails := range []bool{when == "opened", when == "" || when == "switched"} {
			d := newDying(t, 1)
			m := d.m
			pause := func() {
				if err := m.Pause(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if when == "" {
				pause()
			}
			events := m.monitor().Subscribe(eventBuffer)
			m.atStep = func(name string) error {
				if name == when {
					pause()
				}
				if fails && name == "kept" {
					return errKept
				}
				return nil
			}
			if _, err := m.Freeze(t.Context(), d.r); fails != errors.Is(err, errKept) || !fails && err != nil {
				t.Error(err)
			}
			m.atStep = nil
			requireHeld(t, d, fails, when)
			for {
				select {
				case e := <-events.Events():
					if e.Name == "RESUME" {
						t.Errorf("paused at %q, fails %v: it went on", when, fails)
					}
					continue
				default:
				}
				break
			}
			events.Close()
			if err := m.Resume(t.Context()); err != nil {
				t.Error(err)
			}
			vmtest.WaitSerial(t, m, vmtest.Ready)
			vmtest.Send(t, m, "x") // which it echoes
			d.goesOn(t, m, when)
		}
	}
}

// requireHeld: it is paused, and has its image's lock.
func requireHeld(t *testing.T, d *dying, fails bool, when string) {
	t.Helper()
	path := d.overlays[0]
	if fails {
		path = d.images[0]
	}
	if s, err := d.m.State(t.Context()); err != nil || s != vm.StatePaused {
		t.Errorf("paused at %q, fails %v: %s, %v", when, fails, s, err)
	}
	if now, err := d.m.DiskImage(t.Context(), "vda"); err != nil || now != path {
		t.Errorf("paused at %q, fails %v: it writes to %s, %v", when, fails, now, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 101, Len: 1} // QEMU's write lock
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil || l.Type == unix.F_UNLCK {
		t.Errorf("paused at %q, fails %v: %s is not locked, %v", when, fails, path, err)
	}
}

// TestImagePath: what QEMU calls images.
func TestImagePath(t *testing.T) {
	for name, want := range map[string]string{
		"/a/b.qcow2": "/a/b.qcow2",
		`json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a/json:b"}, "backing": {"driver": "raw"}}`: "/a/json:b",
	} {
		if got, err := imagePath(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for _, name := range []string{"json:{}", "json:x", `json:{"driver": "null-co"}`} {
		if got, err := imagePath(name); err == nil {
			t.Errorf("%s: %s", name, got)
		}
	}
}
