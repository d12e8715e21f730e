package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

func TestUnits(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	ctx := t.Context()
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	u, err := makeUnit(ctx, s, "two")
	if err != nil {
		t.Fatal(err)
	}
	if u.Template != tm.Digest || u.Frozen.RAM != u.RAM || u.Frozen.Spec.Disks[0].Path != u.Disk || u.BootTime != time.Second ||
		u.Agent != "lamina" || u.RAMSize == 0 || !u.UsedAt.IsZero() || u.Frozen.Key != u.Key {
		t.Errorf("%+v", u)
	}
	key := vm.FrozenKey{QEMU: "7.2", CPUs: 1}
	found, err := s.FindUnit(ctx, tm.Digest, key)
	if err != nil || len(found) != 1 || found[0].ID != u.ID {
		t.Fatalf("%+v, %v", found, err)
	}
	key.CPUs = 2
	if none, err := s.FindUnit(ctx, tm.Digest, key); err != nil || len(none) != 0 {
		t.Errorf("another key: %+v, %v", none, err)
	}
	list := newMachines("m", "n")
	list[0].Unit = u.ID
	made, err := s.CreateMachines(ctx, tm, list, nil)
	if err != nil {
		t.Fatal(err)
	}
	if made[0].Digest != u.Layer || made[1].Digest != tm.Digest || made[0].Template != "two" || made[0].Unit != u.ID {
		t.Errorf("%+v", made)
	}
	if err := s.TouchUnit(ctx, u.ID); err != nil {
		t.Error(err)
	}
	if u, err = s.Unit(ctx, u.ID); err != nil || len(u.Machines) != 1 || u.Machines[0] != "m" || u.UsedAt.IsZero() {
		t.Errorf("%+v, %v", u, err)
	}
	if got, err := s.Template(ctx, "two"); err != nil || len(got.Warm) != 1 || len(got.Machines) != 2 || len(got.Layers) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	requireWhole(t, s)
	if err := s.RemoveMachine(ctx, made[1].ID); err != nil {
		t.Fatal(err)
	}
	// The unit goes, the layer of its disk not before its machine, the template last.
	for range 2 {
		err := s.RemoveTemplate(ctx, "two")
		if !errors.Is(err, ErrInUse) {
			t.Errorf("template: %v", err)
		}
	}
	if err := s.RemoveUnit(ctx, u.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveUnit(ctx, u.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	if m := machine(t, s, "m"); m.Unit != "" || s.Intact(ctx, m.Digest) != nil {
		t.Errorf("%+v", m)
	}
	requireWhole(t, s)
	if err := s.RemoveMachine(ctx, made[0].ID); err != nil {
		t.Fatal(err)
	}
	requireWhole(t, s)
	// Without machines a unit alone keeps its template.
	if u, err = makeUnit(ctx, s, "two"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveTemplate(ctx, "two"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), u.ID) && !strings.Contains(err.Error(), u.Layer[:12]) {
		t.Errorf("template: %v", err)
	}
	if err := errors.Join(s.RemoveUnit(ctx, u.ID), s.RemoveTemplate(ctx, "two")); err != nil {
		t.Error(err)
	}
	requireWhole(t, s)
}

// TestChangedUnit: a file of a unit that was changed is found before it is used.
func TestChangedUnit(t *testing.T) {
	for what, change := range map[string]func(u Unit) error{
		"has 1 bytes":   func(u Unit) error { return os.Truncate(u.RAM, 1) },
		"is gone":       func(u Unit) error { return os.Remove(u.RAM) },
		"state file":    func(u Unit) error { return errors.Join(os.Chmod(u.State, 0o600), appendTo(u.State, "x")) },
		"has 38 bytes":  func(u Unit) error { return os.Truncate(u.Disk, 38) },
		"another file":  func(u Unit) error { return replace(u.RAM, "mar") },
		"given another": func(u Unit) error { return rewrite(u.RAM, "mar") },
	} {
		dir := t.TempDir()
		s := newStore(t, home.At(filepath.Join(dir, "h")))
		tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
		u, err := makeUnit(t.Context(), s, "two")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.IntactUnit(t.Context(), u.ID); err != nil {
			t.Error(err)
		}
		if err := change(u); err != nil {
			t.Fatal(err)
		}
		err = s.IntactUnit(t.Context(), u.ID)
		if !errors.Is(err, ErrUnitChanged) || errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.Verify(t.Context(), tm.Digest, nil); !errors.Is(err, ErrUnitChanged) {
			t.Errorf("%s: verify: %v", what, err)
		}
		if err := s.Intact(t.Context(), tm.Digest); err != nil {
			t.Errorf("%s: the template: %v", what, err)
		}
		if err := s.RemoveUnit(t.Context(), u.ID); err != nil {
			t.Error(err)
		}
	}
}

// replace puts another file of equal size and time in the place of one.
func replace(path, content string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path+".x", []byte(content), 0o600), os.Chtimes(path+".x", st.ModTime(), st.ModTime()), os.Rename(path+".x", path))
}

// rewrite changes a file where it is, and puts its time back.
func rewrite(path, content string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(content), 0)
	return errors.Join(err, f.Close(), os.Chtimes(path, st.ModTime(), st.ModTime()))
}

// TestTouchedUnit: files of a unit whose times alone changed are taken back into use.
func TestTouchedUnit(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	u, err := makeUnit(t.Context(), s, "two")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{u.RAM, u.State, u.Disk, s.home.TemplateDisk(tm.Digest)} {
		later(t, path)
	}
	if err := s.IntactUnit(t.Context(), u.ID); !errors.Is(err, ErrUnitChanged) {
		t.Errorf("touched: %v", err)
	}
	var last, total int64
	if err := s.Verify(t.Context(), tm.Digest, func(a, b int64) { last, total = a, b }); err != nil || last != total || total < 4096 {
		t.Errorf("%v, %d of %d", err, last, total)
	}
	if err := s.IntactUnit(t.Context(), u.ID); err != nil {
		t.Error(err)
	}
}

// TestUnfinishedUnit: what runs for a unit that was not finished is ended before its
// files go.
func TestUnfinishedUnit(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	s, err := Open(t.Context(), h, Options{Images: plainImages{}})
	if err != nil {
		t.Fatal(err)
	}
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	discarded, err := s.BeginUnit(t.Context(), tm.Digest, 8192)
	if err == nil {
		err = s.DiscardUnit(t.Context(), discarded.ID)
	}
	u, err1 := s.BeginUnit(t.Context(), tm.Digest, 0)
	scratch, _, err2 := s.Scratch(t.Context(), made[0].ID)
	if err := errors.Join(err, err1, err2); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveTemplate(t.Context(), "two"); !errors.Is(err, ErrInUse) {
		t.Errorf("template: %v", err)
	}
	if _, err := s.BeginUnit(t.Context(), tm.Digest, 512); !errors.Is(err, ErrInvalid) {
		t.Errorf("a small disk: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ended := map[string]bool{}
	stuck := errors.New("it does not end")
	open := func(result error) *Store {
		s, err := Open(t.Context(), h, Options{Images: plainImages{}, End: func(_ context.Context, dir string) error {
			if _, err := os.Stat(dir); err != nil {
				t.Error(err)
			}
			ended[dir] = true
			return result
		}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s = open(stuck)
	for _, path := range []string{u.Dir, u.Disk, scratch} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("what may run has lost %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(nil)
	defer func() { _ = s.Close() }()
	if len(ended) != 2 || !ended[u.Dir] || !ended[scratch] {
		t.Errorf("ended: %v", ended)
	}
	requireWhole(t, s)
}
