package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestRealMachine freezes a machine that a real QEMU runs, three times and in three ways,
// with the store moving the images under it, thaws a clone, and flattens it.
func TestRealMachine(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	ctx := t.Context()
	guest := vmtest.Spec(t)
	tm, _, err := s.Import(ctx, Import{Path: guest.Disks[0].Path, Format: "raw", Name: "tiny"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	guest.Disks = []vm.Disk{{Format: "qcow2"}}
	guest.GenerationID = vm.NewUUID()
	guest = guest.WithDefaults()
	made, err := s.CreateMachines(ctx, tm, []NewMachine{{Name: "m", Spec: guest}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := made[0]
	driver := qemu.New(qemu.Options{})
	run := vmtest.Start(t, driver, m.Spec, s.Dir(m.ID))
	vmtest.WaitSerial(t, run, vmtest.Ready)
	if _, err := s.Flatten(ctx, m.ID, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("flatten of a disk that QEMU writes to: %v", err)
	}

	// A fork.
	clone := guest.Clone()
	clone.Name, clone.UUID, clone.GenerationID = "c", vm.NewUUID(), vm.NewUUID()
	f, err := s.BeginFreeze(ctx, m.ID, []NewMachine{{Name: "c", Spec: clone}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := run.(vm.Freezer).Freeze(ctx, vm.FreezeRequest{RAM: f.RAM, State: f.State, Layers: map[string]string{"vda": f.Overlay}})
	if err != nil {
		t.Fatal(err)
	}
	m, clones, err := s.CommitFreeze(ctx, m.ID)
	if err != nil {
		t.Fatal(err)
	}
	thawed, err := driver.Thaw(ctx, clones[0].Spec, res.Frozen, s.Dir(clones[0].ID))
	if err != nil {
		t.Fatal(err)
	}
	vmtest.Send(t, thawed, "c")
	if err := errors.Join(thawed.Kill(ctx), s.EndFreeze(ctx, m.ID)); err != nil {
		t.Error(err)
	}

	// A live clone, of whose switch the daemon did not hear: QEMU tells.
	f, err = s.BeginFreeze(ctx, m.ID, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := run.(vm.DiskSnapshotter).SnapshotDisks(ctx, map[string]string{"vda": f.Overlay}); err != nil {
		t.Fatal(err)
	}
	if err := s.AbortFreeze(ctx, m.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("abort after the switch: %v", err)
	}
	if _, err := s.SettleFreeze(ctx, m.ID, f.Disk); !errors.Is(err, ErrInUse) {
		t.Errorf("settled by an old record: %v", err)
	}
	now, err := run.(vm.ImageTeller).DiskImage(ctx, "vda")
	if err != nil || now != f.Overlay {
		t.Fatalf("it writes to %s, %v", now, err)
	}
	if m, err = s.SettleFreeze(ctx, m.ID, now); err != nil || m.Digest != f.Layer || s.Disk(m) != f.Overlay {
		t.Fatalf("%+v, %v", m, err)
	}

	// One that did not come to it.
	if f, err = s.BeginFreeze(ctx, m.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	if m, err = s.SettleFreeze(ctx, m.ID, f.Disk); err != nil || m.Digest == f.Layer || s.Disk(m) != f.Disk {
		t.Fatalf("%+v, %v", m, err)
	}
	vmtest.Send(t, run, "y")

	if err := s.BeginStream(ctx, m.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginFreeze(ctx, m.ID, nil, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("a freeze while it is flattened: %v", err)
	}
	if err := run.(vm.DiskFlattener).FlattenDisk(ctx, "vda", nil); err != nil {
		t.Fatal(err)
	}
	below := m.Digest
	if m, err = s.EndStream(ctx, m.ID, true); err != nil || m.Digest != "" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := os.Stat(s.home.LayerDisk(below)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer that nothing needs: %v", err)
	}
	vmtest.Send(t, run, "z")
	if err := run.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	qemutest.RequireClean(t, s.Disk(m))
	qemutest.RequireSame(t, "qcow2", s.home.TemplateDisk(tm.Digest), "qcow2", s.Disk(m))
	if err := s.RemoveMachines(ctx, []string{m.ID, clones[0].ID}); err != nil {
		t.Error(err)
	}
	if left, err := s.Layers(ctx); err != nil || len(left) != 1 {
		t.Errorf("%+v, %v", left, err)
	}
}
