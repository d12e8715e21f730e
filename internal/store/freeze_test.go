package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// writesTo holds the lock that QEMU has on an image while it may write to it.
func writesTo(t *testing.T, path string) (end func()) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: lockWrite, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSettleFreeze: what became of a freeze that no daemon finished is decided by what
// QEMU writes to, and without a QEMU by what was written.
func TestSettleFreeze(t *testing.T) {
	for _, c := range []struct {
		name      string
		runs      bool   // a QEMU may be there
		locked    string // "old", "new": QEMU has that open for writing
		written   bool   // the guest wrote to the new layer
		removed   bool   // the new layer was taken off again
		running   string // what the driver says: "old", "new", "none"
		committed bool
		fails     error
	}{
		{name: "not switched, runs", runs: true, locked: "old", running: "old"},
		{name: "switched, runs", runs: true, locked: "new", running: "new", committed: true},
		{name: "switched and written, runs", runs: true, locked: "new", written: true, running: "new", committed: true},
		{name: "open, and not in use", runs: true, locked: "new", running: "old", fails: ErrInUse},
		{name: "taken off, runs", runs: true, locked: "old", removed: true, running: "old"},
		{name: "taken off, gone", removed: true, running: "none"},
		{name: "taken off, gone with its record", runs: true, removed: true, running: "none"},
		{name: "without locks", runs: true, running: "new", committed: true},
		{name: "another disk", runs: true, running: "/other", fails: ErrInvalid},
		{name: "said to be gone", runs: true, locked: "new", running: "none", fails: ErrInUse},
		{name: "gone before the switch", running: "none"},
		{name: "gone after the switch", written: true, running: "none", committed: true},
		{name: "gone, with its record", runs: true, running: "none"},
		{name: "gone after the switch, with its record", runs: true, written: true, running: "none", committed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			var id, before string
			paths := map[string]string{"none": ""}
			reopen(t, dir, func(s *Store) {
				tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
				made, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil)
				if err != nil {
					t.Fatal(err)
				}
				id, before = made[0].ID, tm.Digest
			})
			s, err := Open(t.Context(), home.At(filepath.Join(dir, "h")), Options{Images: plainImages{}})
			if err != nil {
				t.Fatal(err)
			}
			f, err := s.BeginFreeze(t.Context(), id, newMachines("c"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.BeginFreeze(t.Context(), id, nil, nil); !errors.Is(err, ErrInUse) {
				t.Errorf("a second freeze: %v", err)
			}
			paths["old"], paths["new"] = f.Disk, f.Overlay
			if c.runs {
				if err := os.WriteFile(filepath.Join(s.Dir(id), home.RunFile), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.locked != "" {
				defer writesTo(t, paths[c.locked])()
			}
			if c.written {
				if err := appendTo(f.Overlay, "written"); err != nil {
					t.Fatal(err)
				}
			}
			if c.removed {
				if err := os.Remove(f.Overlay); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(t.Context(), home.At(filepath.Join(dir, "h")), Options{Images: plainImages{}}); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			running := c.running
			if p, ok := paths[running]; ok {
				running = p
			}
			m, err := s.SettleFreeze(t.Context(), id, running)
			if !errors.Is(err, c.fails) {
				t.Fatal(err)
			}
			if c.fails != nil {
				return
			}
			if err := os.Remove(filepath.Join(s.Dir(id), home.RunFile)); err != nil && c.runs {
				t.Error(err)
			}
			if committed := m.Digest != before; committed != c.committed {
				t.Errorf("committed: %v", committed)
			}
			if want := paths[map[bool]string{true: "new", false: "old"}[c.committed]]; s.Disk(m) != want || m.Spec.Disks[0].Path != want {
				t.Errorf("its disk is %s", s.Disk(m))
			}
			if got := machineNames(t, s); len(got) != 1 {
				t.Errorf("machines %q", got)
			}
			requireWhole(t, s)
		})
	}
}

// TestFreezeLive goes through a fork as a daemon does, with a stock QEMU's tools for
// the guest.
func TestFreezeLive(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	tm, m := oneMachine(t, s, dir)
	for round := 1; round <= 2; round++ {
		clones := bare(fmt.Sprintf("c-%d-1", round), fmt.Sprintf("c-%d-2", round))
		f, err := s.BeginFreeze(t.Context(), m.ID, clones, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{f.RAM, f.State} {
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		qemutest.IO(t, "qcow2", f.Disk, "write -q -P 0x99 60M 64k") // up to the instant
		if empty, err := s.images.Empty(t.Context(), f.Overlay); err != nil || !empty {
			t.Errorf("new overlay: %v, %v", empty, err)
		}
		qemutest.IO(t, "qcow2", f.Overlay, "write -q -P 0xaa 61M 64k") // from there on
		if empty, err := s.images.Empty(t.Context(), f.Overlay); err != nil || empty {
			t.Errorf("written overlay: %v, %v", empty, err)
		}
		now, made, err := s.CommitFreeze(t.Context(), m.ID)
		if err != nil {
			t.Fatal(err)
		}
		if now.Digest != f.Layer || len(f.Layer) != 25 || len(made) != 2 || made[1].Digest != f.Layer || made[0].Name != clones[0].Name {
			t.Errorf("%+v, %+v", now, made)
		}
		// It is needed until the end, and no longer, whoever makes it anew.
		if err := s.SweepMemory(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(f.RAM); err != nil {
			t.Error(err)
		}
		if err := errors.Join(s.EndFreeze(t.Context(), m.ID), s.EndFreeze(t.Context(), m.ID)); err != nil {
			t.Error(err)
		}
		if err := errors.Join(os.WriteFile(f.RAM, nil, 0o600), s.SweepMemory(t.Context())); err != nil {
			t.Error(err)
		}
		for _, path := range []string{f.RAM, f.State} {
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		}
		// The name that a QEMU has it open by leads to the layer, as long as one may.
		if to, err := filepath.EvalSymlinks(f.Disk); err != nil || to != s.home.LayerDisk(f.Layer) {
			t.Errorf("%s leads to %s, %v", f.Disk, to, err)
		}
		if round == 2 {
			if _, err := s.SettleFreeze(t.Context(), m.ID, ""); err != nil {
				t.Error(err)
			}
			requireFiles(t, s.Dir(m.ID), filepath.Base(s.Disk(now)))
			if _, err := os.Lstat(f.Disk); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", f.Disk, err)
			}
		}
		requireContent(t, s.Disk(now))
		qemutest.IO(t, "qcow2", s.Disk(now), "read -q -P 0x99 60M 64k", "read -q -P 0xaa 61M 64k")
		for _, c := range made {
			requireContent(t, s.Disk(c))
			qemutest.IO(t, "qcow2", s.Disk(c), "read -q -P 0x99 60M 64k")
		}
		// The digest is computed later.
		if list, err := s.Undigested(t.Context()); err != nil || len(list) != 1 || list[0] != f.Layer {
			t.Errorf("%q, %v", list, err)
		}
		if err := s.RecordDigest(t.Context(), f.Layer); err != nil {
			t.Error(err)
		}
		if list, err := s.Undigested(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%q, %v", list, err)
		}
		if err := s.Verify(t.Context(), f.Layer, nil); err != nil {
			t.Error(err)
		}
		m = now
	}
	// A layer that is worth a name stays.
	layer, err := s.Tag(t.Context(), m.Digest[:12], "kept", false)
	if err != nil || layer.Kind != api.LayerTemplate {
		t.Errorf("%+v, %v", layer, err)
	}
	if err := s.RemoveMachines(t.Context(), func() (ids []string) {
		list, err := s.Machines(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			ids = append(ids, m.ID)
		}
		return ids
	}()); err != nil {
		t.Fatal(err)
	}
	left, err := s.Layers(t.Context())
	if err != nil || len(left) != 3 || left[0].Digest != tm.Digest || left[2].Name != "kept" {
		t.Errorf("%+v, %v", left, err)
	}
	requireContent(t, s.home.LayerDisk(layer.Digest))
	if err := errors.Join(s.RemoveTemplate(t.Context(), "kept"), s.RemoveTemplate(t.Context(), "one")); err != nil {
		t.Error(err)
	}
	if left, err := s.Layers(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%+v, %v", left, err)
	}
}

func TestFreezeRefused(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	two := newMachines("two")
	two[0].Spec.Disks = append(two[0].Spec.Disks, vm.Disk{Device: vm.DeviceDisk, Path: "/other", Format: "raw"})
	made, err := s.CreateMachines(t.Context(), tm, append(newMachines("m"), two...), nil)
	if err != nil {
		t.Fatal(err)
	}
	defined, err := s.Define(t.Context(), newDefinition(dir))
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{made[1].ID: "/other", defined.ID: "description", "none": "not found"} {
		if _, err := s.BeginFreeze(t.Context(), id, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("freeze: %v", err)
		}
	}
	if _, err := s.BeginFreeze(t.Context(), made[0].ID, newMachines("a", "two"), nil); !errors.Is(err, ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	for _, f := range []func() error{
		func() error { _, _, err := s.CommitFreeze(t.Context(), made[0].ID); return err },
		func() error { return s.AbortFreeze(t.Context(), made[0].ID) },
	} {
		if err := f(); !errors.Is(err, ErrNotFound) {
			t.Errorf("without a freeze: %v", err)
		}
	}
	end := writesTo(t, s.Disk(made[0]))
	for what, f := range map[string]func() error{
		"flatten": func() error { _, err := s.Flatten(t.Context(), made[0].ID, nil); return err },
		"rebase":  func() error { _, err := s.Rebase(t.Context(), made[0].ID, "one", nil); return err },
		"commit":  func() error { _, _, err := s.CommitMachine(t.Context(), made[0].ID, "", false); return err },
		"scratch": func() error { _, _, err := s.Scratch(t.Context(), made[0].ID); return err },
	} {
		if err := f(); !errors.Is(err, ErrInUse) {
			t.Errorf("%s of a running machine: %v", what, err)
		}
	}
	end()
	f, err := s.BeginFreeze(t.Context(), made[0].ID, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	end = writesTo(t, f.Overlay)
	if err := s.AbortFreeze(t.Context(), made[0].ID); !errors.Is(err, ErrInUse) {
		t.Errorf("abort after the switch: %v", err)
	}
	end()
	if err := os.Remove(f.Overlay); err != nil { // as it is when it was taken off
		t.Fatal(err)
	}
	if err := s.AbortFreeze(t.Context(), made[0].ID); err != nil {
		t.Error(err)
	}
	// A machine goes also in the middle.
	if _, err := s.BeginFreeze(t.Context(), made[0].ID, newMachines("c"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveMachine(t.Context(), made[0].ID); err != nil {
		t.Error(err)
	}
	if err := s.RemoveMachine(t.Context(), made[1].ID); err != nil {
		t.Error(err)
	}
	requireWhole(t, s)
}

// TestStreamKilled: a header without a backing file, of a QEMU that was killed before it
// said that all is there, is not believed.
func TestStreamKilled(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	tm, m := oneMachine(t, s, dir)
	if err := s.BeginStream(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	qemutest.Img(t, "rebase", "-u", "-f", "qcow2", "-b", "", s.Disk(m))
	end := writesTo(t, s.Disk(m))
	if m, err := s.EndStream(t.Context(), m.ID, false); err != nil || !m.Streaming() {
		t.Errorf("while QEMU runs: %+v, %v", m, err)
	}
	end()
	m, err := s.SettleFreeze(t.Context(), m.ID, "")
	if err != nil || m.Digest != tm.Digest || m.Streaming() {
		t.Errorf("%+v, %v", m, err)
	}
	requireContent(t, s.Disk(m))
	// What says that it is done, and is not, is not believed either.
	if err := s.BeginStream(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if m, err := s.EndStream(t.Context(), m.ID, true); err == nil || m.Digest != tm.Digest {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestStreamRefuses: while a QEMU copies what lies below into a machine's disk, nothing
// else is made of that disk.
func TestStreamRefuses(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	importImage(t, s, writeImage(t, filepath.Join(dir, "j"), "y"), "two")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].ID
	if err := errors.Join(s.BeginStream(t.Context(), id), s.BeginStream(t.Context(), id)); err != nil {
		t.Fatal(err)
	}
	before := contents(t, s)["m"]
	for what, f := range map[string]func() error{
		"freeze":   func() error { _, err := s.BeginFreeze(t.Context(), id, nil, nil); return err },
		"flatten":  func() error { _, err := s.Flatten(t.Context(), id, nil); return err },
		"rebase":   func() error { _, err := s.Rebase(t.Context(), id, "two", nil); return err },
		"commit":   func() error { _, _, err := s.CommitMachine(t.Context(), id, "", false); return err },
		"clone":    func() error { _, _, err := s.CloneMachine(t.Context(), id, newMachines("c"), nil); return err },
		"restack":  func() error { _, err := s.Restack(t.Context(), id, ""); return err },
		"scratch":  func() error { _, _, err := s.Scratch(t.Context(), id); return err },
		"template": func() error { _, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: id}, nil); return err },
	} {
		if err := f(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "flattened") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if m, err := s.EndStream(t.Context(), id, false); err != nil || m.Streaming() || contents(t, s)["m"] != before {
		t.Errorf("%+v, %v", m, err)
	}
	requireWhole(t, s)
}

// TestRecoveryKeepsLinks: a change that was done is finished at the next start, also where
// the machine runs; the names by which its QEMU opens its layers stay until that is gone.
func TestRecoveryKeepsLinks(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	s, err := Open(t.Context(), h, Options{Images: plainImages{}})
	if err != nil {
		t.Fatal(err)
	}
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.BeginFreeze(t.Context(), made[0].ID, newMachines("c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(s.Dir(made[0].ID), home.RunFile)
	if err := errors.Join(os.WriteFile(f.RAM, []byte("ram"), 0o600), os.WriteFile(runs, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CommitFreeze(t.Context(), made[0].ID); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Unsettled(t.Context()); err != nil || len(list) != 1 {
		t.Fatalf("the daemon dies before the copies have the memory: %q, %v", list, err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(t.Context(), h, Options{Images: plainImages{}}); err != nil {
			t.Fatal(err)
		}
		if list, err := s.Unsettled(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("not finished: %q, %v", list, err)
		}
		if to, err := filepath.EvalSymlinks(f.Disk); err != nil || to != h.LayerDisk(f.Layer) {
			t.Errorf("what QEMU has open leads to %q, %v", to, err)
		}
	}
	defer func() { _ = s.Close() }()
	if len(machineNames(t, s)) != 2 {
		t.Errorf("machines %q", machineNames(t, s))
	}
	if err := os.Remove(runs); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SettleFreeze(t.Context(), made[0].ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(f.Disk); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its QEMU is gone: %v", err)
	}
	requireWhole(t, s)
}
