package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestDamagedTwin: a machine whose disk has the digest of a layer that was damaged keeps
// its own, good one; a new import of the same image repairs the layer.
func TestDamagedTwin(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("a", "b"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made {
		if err := appendTo(s.Disk(m), "same"); err != nil {
			t.Fatal(err)
		}
	}
	layer, _, err := s.CommitMachine(t.Context(), made[0].ID, "twin", false)
	if err != nil {
		t.Fatal(err)
	}
	path := s.layerPath(layer.Digest, layer.Parent)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.thaw(path), os.Chmod(path, 0o600), rewrite(path, "damaged"), os.Chmod(path, 0o444)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CommitMachine(t.Context(), made[1].ID, "other", false); !errors.Is(err, ErrChanged) {
		t.Errorf("commit over a damaged twin: %v", err)
	}
	if b, err := os.ReadFile(s.Disk(made[1])); err != nil || string(b) != string(good) {
		t.Errorf("its disk: %q, %v", b, err)
	}
	again, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: made[1].ID, Name: "repaired"}, nil)
	if err != nil || again.Digest != layer.Digest {
		t.Fatalf("%+v, %v", again, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(good) {
		t.Errorf("the layer: %q, %v", b, err)
	}
	if _, _, err := s.CommitMachine(t.Context(), made[1].ID, "other", false); err != nil {
		t.Error(err)
	}
	requireWhole(t, s)
}

// TestRestoredLayer: a copy of a layer whose digest was not known yet is taken back into
// use when somebody asks for a look, if its size and time are right.
func TestRestoredLayer(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.BeginFreeze(t.Context(), made[0].ID, nil, nil)
	if err == nil {
		_, _, err = s.CommitFreeze(t.Context(), made[0].ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := s.home.LayerDisk(f.Layer)
	restore := func(at time.Duration) {
		t.Helper()
		st, err := os.Stat(path)
		b, err1 := os.ReadFile(path)
		if err := errors.Join(err, err1, os.WriteFile(path+".x", b, 0o444), s.thaw(path)); err != nil {
			t.Fatal(err)
		}
		when := st.ModTime().Add(at)
		if err := errors.Join(os.Chtimes(path+".x", when, when), os.Rename(path+".x", path)); err != nil {
			t.Fatal(err)
		}
	}
	restore(0)
	if err := s.RecordDigest(t.Context(), f.Layer); !errors.Is(err, ErrChanged) {
		t.Errorf("unasked: %v", err)
	}
	if err := s.Verify(t.Context(), f.Layer, nil); err != nil {
		t.Error(err)
	}
	if list, err := s.Undigested(t.Context()); err != nil || len(list) != 0 || s.Intact(t.Context(), f.Layer) != nil {
		t.Errorf("%q, %v", list, err)
	}
	if _, err := s.db.Exec(`UPDATE templates SET sha256 = '' WHERE digest = ?`, f.Layer); err != nil {
		t.Fatal(err)
	}
	restore(time.Second)
	if err := s.Verify(t.Context(), f.Layer, nil); !errors.Is(err, ErrChanged) {
		t.Errorf("of another time: %v", err)
	}
}

// TestExportOwnFiles: nothing of Lamina's own is replaced by an export.
func TestExportOwnFiles(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	h := s.home
	for _, path := range []string{h.Database(), h.Database() + "-wal", h.Lock(), h.Key(), h.LayerDisk("x"), filepath.Join(filepath.Dir(h.Layers()), "x")} {
		if err := s.Export(t.Context(), "one", api.ExportRequest{Path: path, Force: true}, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestVerifyBrokenOff: a look at a unit that is broken off leaves one that can be used.
func TestVerifyBrokenOff(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	u, err := makeUnit(t.Context(), s, "two")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.thaw(u.State), os.Chmod(u.State, 0o600), appendTo(u.State, "damage")); err != nil {
		t.Fatal(err)
	}
	later(t, u.RAM) // is right, and sealed again
	if err := s.Verify(t.Context(), tm.Digest, nil); !errors.Is(err, ErrUnitChanged) {
		t.Error(err)
	}
	now, err := s.Unit(t.Context(), u.ID)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := look(u.RAM); err != nil || p != now.files.RAM {
		t.Errorf("RAM is %+v, on record %+v, %v", p, now.files.RAM, err)
	}
	before := now.files.RAM
	if p, err := s.sealRAM(now); err != nil || p != before {
		t.Errorf("sealed once more: %+v, before %+v, %v", p, before, err)
	}
}

// TestEmptySnapshot: an image with an internal snapshot stores something.
func TestEmptySnapshot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "i")
	qemutest.Img(t, "create", "-f", "qcow2", path, "1M")
	for _, want := range []bool{true, false} {
		if empty, err := (diskImages{}).Empty(t.Context(), path); err != nil || empty != want {
			t.Errorf("%v, %v", empty, err)
		}
		qemutest.Img(t, "snapshot", "-c", "s", path)
	}
}

// TestUsageLayers: what lies over a template counts.
func TestUsageLayers(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.Usage(t.Context())
	if err == nil {
		_, _, err = s.CommitMachine(t.Context(), made[0].ID, "two", false)
	}
	if err != nil {
		t.Fatal(err)
	}
	if after, err := s.Usage(t.Context()); err != nil || after.Templates <= before.Templates {
		t.Errorf("%+v, before %+v, %v", after, before, err)
	}
}

// TestDamagedRows: what a damaged database says is refused before it is acted upon, and
// costs no others.
func TestDamagedRows(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	made, err := s.CreateMachines(t.Context(), tm, newMachines("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	good, err := makeUnit(t.Context(), s, "two")
	if err != nil {
		t.Fatal(err)
	}
	bad, err := makeUnit(t.Context(), s, "two")
	if err != nil {
		t.Fatal(err)
	}
	set := func(query string, args ...any) {
		t.Helper()
		if _, err := s.db.Exec(query, args...); err != nil {
			t.Fatal(err)
		}
	}
	set(`UPDATE units SET files = '{' WHERE id = ?`, bad.ID)
	if list, err := s.UnitsOf(t.Context(), tm.Digest); err != nil || len(list) != 1 || list[0].ID != good.ID {
		t.Errorf("%+v, %v", list, err)
	}
	set(`UPDATE units SET files = (SELECT files FROM units WHERE id = ?)`, good.ID)
	set(`UPDATE templates SET parent = ? WHERE digest = ?`, good.Layer, tm.Digest)
	if err := s.Intact(t.Context(), tm.Digest); !errors.Is(err, ErrInvalid) {
		t.Errorf("a circle: %v", err)
	}
	set(`UPDATE templates SET parent = NULL WHERE digest = ?`, tm.Digest)
	set(`INSERT INTO disk_changes (machine, layer, state, old_disk, new_disk, generation, clones) VALUES (?, NULL, 'begun', 'disk.qcow2', '../../x', 1, '[]')`, made[0].ID)
	if _, err := s.SettleFreeze(t.Context(), made[0].ID, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("a change: %v", err)
	}
	set(`DELETE FROM disk_changes`)
	set(`UPDATE machines SET disk = '../x' WHERE id = ?`, made[0].ID)
	if _, err := s.Machine(t.Context(), made[0].ID); !errors.Is(err, ErrInvalid) {
		t.Errorf("a disk: %v", err)
	}
	set(`UPDATE machines SET disk = 'disk.qcow2' WHERE id = ?`, made[0].ID)
}
