package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// TestNamedLeftovers: on a file system without nameless files, what a killed process was
// writing has a name. Whatever it is, it is gone after the next start, and was never taken
// for what it was to become.
func TestNamedLeftovers(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	s, err := Open(t.Context(), h, Options{Images: plainImages{}})
	if err != nil {
		t.Fatal(err)
	}
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	if _, err := s.CreateMachines(t.Context(), tm, bare("m", "n"), nil); err != nil {
		t.Fatal(err)
	}
	m, n := machine(t, s, "m"), machine(t, s, "n")
	f, err := s.BeginFreeze(t.Context(), m.ID, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.BeginUnit(t.Context(), tm.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := s.temporary(h.Templates())
	if err != nil {
		t.Fatal(err)
	}
	tmp2, err := s.temporary(h.Layers())
	if err != nil {
		t.Fatal(err)
	}
	gone := []string{tmp, tmp2, f.RAM, f.State, f.Overlay, u.RAM, u.State, u.Dir}
	for _, name := range []string{home.SeedFile + ".new", home.KnownHosts + ".new", home.SSHUserFile + ".new", ".nvram-123", ".link.new"} {
		gone = append(gone, filepath.Join(s.Dir(n.ID), name))
	}
	for _, path := range gone[:len(gone)-1] {
		if path == u.Dir {
			continue
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", gone[len(gone)-1]); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(s.Dir(n.ID), "notes.new")
	if err := os.WriteFile(mine, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// What prune sees while it is written is not a leftover.
	if res, err := s.Prune(t.Context(), api.PruneRequest{}, PruneOptions{}); err != nil || len(res.Items) > 0 || len(res.Kept) > 0 {
		t.Errorf("pruned %+v, %v", res, err)
	}
	if units, err := s.Units(t.Context()); err != nil || len(units) > 0 {
		t.Errorf("units %+v, %v", units, err)
	}
	if err := s.Close(); err != nil { // the kill
		t.Fatal(err)
	}
	s = newStore(t, h)
	for _, path := range gone {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left: %s, %v", path, err)
		}
	}
	if _, err := os.Lstat(mine); err != nil {
		t.Errorf("a file that is not ours: %v", err)
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if after := machine(t, s, "m"); after.disk != m.disk || after.Digest != tm.Digest {
		t.Errorf("the machine is %+v", after)
	}
	requireWhole(t, s)
}
