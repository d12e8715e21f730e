package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestLayers gives the disk of a running machine two more layers, of which others
// may be made at once, has another process adopt it, flattens it, and grows it.
func TestLayers(t *testing.T) {
	spec := vmtest.Spec(t)
	first := overlayOf(t)
	spec.Disks = []vm.Disk{{Path: first, Format: "qcow2", Discard: true}, {Path: vmtest.Image(t), Format: "raw"}}
	dir := t.TempDir()
	driver := New(Options{})
	m := vmtest.Start(t, driver, spec, dir).(*machine)
	vmtest.WaitSerial(t, m, vmtest.Ready)
	ctx := t.Context()
	if err := m.SnapshotDisks(ctx, map[string]string{"vda": first + "-1", "vdb": first + "-2"}); !errors.Is(err, vm.ErrNoLayer) {
		t.Errorf("a raw disk: %v", err)
	}
	if err := m.SnapshotDisks(ctx, map[string]string{"vda": filepath.Join(dir, "missing")}); err == nil {
		t.Error("an overlay that is not there")
	}
	below, frozen := first, ""
	for _, name := range []string{"one", "two"} {
		// What is frozen has another name from then on, as in the store.
		over := filepath.Join(filepath.Dir(first), name)
		frozen = over + "-layer"
		if err := os.Link(below, frozen); err != nil {
			t.Fatal(err)
		}
		qemutest.Img(t, "create", "-f", "qcow2", "-b", frozen, "-F", "qcow2", over)
		if err := m.SnapshotDisks(ctx, map[string]string{"vda": over}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(below); err != nil {
			t.Fatal(err)
		}
		// QEMU lets go of the lock of what it only reads.
		qemutest.Img(t, "info", frozen)
		below = over
	}
	requireFrozen(t, frozen)
	if got := m.RunningSpec().Disks[0].Path; got != below {
		t.Errorf("the machine writes to %s by its spec", got)
	}
	adopted := requireAdopt(t, driver, m, dir)
	if err := adopted.ResizeDisk(ctx, "vda", 2<<20); err != nil {
		t.Error(err)
	}
	if err := adopted.FlattenDisk(ctx, "vda", nil); err != nil {
		t.Fatal(err)
	}
	if depth, err := adopted.depth(ctx, "disk0"); err != nil || depth != 0 {
		t.Errorf("%d images below, %v", depth, err)
	}
	if nodes, err := adopted.nodesOf(ctx, "disk0"); err != nil || len(nodes) != 1 {
		t.Errorf("nodes %v, %v", nodes, err)
	}
	if err := adopted.FlattenDisk(ctx, "vda", nil); err != nil {
		t.Errorf("flattening a flat one: %v", err)
	}
	if err := adopted.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	qemutest.Img(t, "check", below)
}

// requireFrozen starts another machine over an image that is only read by now.
func requireFrozen(t *testing.T, base string) {
	t.Helper()
	clone := filepath.Join(t.TempDir(), "clone")
	qemutest.Img(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", clone)
	spec := vmtest.Spec(t)
	spec.Disks = []vm.Disk{{Path: clone, Format: "qcow2"}}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
	vmtest.WaitSerial(t, m, vmtest.Ready)
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
}

// requireAdopt lets go of a machine and has a second driver take it over.
func requireAdopt(t *testing.T, driver *Driver, m *machine, dir string) *machine {
	t.Helper()
	if err := m.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := driver.Adopt(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return again.(*machine)
}

// TestFlattenCancelled: the end of the context ends the job, and the image stays
// as good as it was; the next call finishes it.
func TestFlattenCancelled(t *testing.T) {
	spec := vmtest.Spec(t)
	spec.Disks = []vm.Disk{{Path: overlayOf(t), Format: "qcow2"}}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir()).(*machine)
	// A job that takes half a minute: the image is 1 MiB.
	start := map[string]any{"job-id": flattenJob("disk0"), "device": "disk0", "speed": 32 << 10, "auto-dismiss": false}
	if err := m.execute(t.Context(), "block-stream", start, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told := false
	err := m.FlattenDisk(ctx, "vda", func(done, total int64) {
		told = total == 1<<20
		cancel()
	})
	if !errors.Is(err, context.Canceled) || !told {
		t.Errorf("a cancelled one, told %v: %v", told, err)
	}
	if depth, err := m.depth(t.Context(), "disk0"); err != nil || depth != 2 {
		t.Errorf("%d images below, %v", depth, err)
	}
	if err := m.FlattenDisk(t.Context(), "vda", nil); err != nil {
		t.Error(err)
	}
	if depth, err := m.depth(t.Context(), "disk0"); err != nil || depth != 0 {
		t.Errorf("%d images below, %v", depth, err)
	}
}

// TestPause: a held machine stays held when another process adopts it, and goes
// on when it is told to.
func TestPause(t *testing.T) {
	driver, dir := New(Options{}), t.TempDir()
	m := vmtest.Start(t, driver, vmtest.Spec(t), dir).(*machine)
	vmtest.WaitSerial(t, m, vmtest.Ready)
	ctx := t.Context()
	for range 2 {
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := m.State(ctx); err != nil || s != vm.StatePaused || m.WaitsForSpace() {
		t.Errorf("paused: %s, %v", s, err)
	}
	m = requireAdopt(t, driver, m, dir)
	if s, err := m.State(ctx); err != nil || s != vm.StatePaused {
		t.Errorf("adopted: %s, %v", s, err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := m.State(ctx); err != nil || s != vm.StateRunning {
		t.Errorf("resumed: %s, %v", s, err)
	}
	ended, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := m.Kill(ended); err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(ctx); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("pause of a dead one: %v", err)
	}
}
