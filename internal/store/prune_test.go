package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// pruned is what a prune says it takes, in short.
func pruned(r api.PruneResult) []string {
	var list []string
	for _, i := range r.Items {
		name := i.Name
		if i.Kind == "warm" {
			name = "unit"
		}
		list = append(list, fmt.Sprintf("%s %s %v", i.Kind, name, i.Gone))
	}
	return list
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	s := newStore(t, h)
	ctx := t.Context()
	for _, name := range []string{"used", "two", "kept", "base"} {
		importImage(t, s, writeImage(t, filepath.Join(dir, name), name), name)
	}
	used, err := s.Template(ctx, "used")
	if err != nil {
		t.Fatal(err)
	}
	made, err := s.CreateMachines(ctx, used, newMachines("m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A template over another one, and a frozen layer between that and a machine.
	base, err := s.Template(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := s.CreateMachines(ctx, base, newMachines("gone"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CommitMachine(ctx, gone[0].ID, "over", false); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveMachine(ctx, gone[0].ID); err != nil {
		t.Fatal(err)
	}
	u, err := makeUnit(ctx, s, "two")
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(h.Templates(), ".import-123.tmp")
	mine := filepath.Join(h.Layers(), "mine")
	for _, path := range []string{left, mine} {
		if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	busy, err := s.temporary(h.Templates()) // an import is under way
	if err != nil {
		t.Fatal(err)
	}
	o := PruneOptions{Keep: func(t api.Template) string {
		if t.Name == "kept" {
			return "a fleet names it"
		}
		return ""
	}}
	for _, c := range []struct {
		r    api.PruneRequest
		fits bool
		want []string
	}{
		{api.PruneRequest{DryRun: true}, true, []string{"leftover .import-123.tmp false"}},
		{api.PruneRequest{DryRun: true}, false, []string{"warm unit false", "layer " + u.Layer[:12] + " false", "leftover .import-123.tmp false"}},
		{api.PruneRequest{DryRun: true, Templates: true}, true, []string{"template over false", "template base false", "leftover .import-123.tmp false"}},
		{api.PruneRequest{DryRun: true, Templates: true, All: true}, true, []string{"warm unit false", "template over false", "template base false",
			"layer " + u.Layer[:12] + " false", "template two false", "leftover .import-123.tmp false"}},
		{api.PruneRequest{Templates: true, All: true, OlderThan: time.Hour}, false, []string{"leftover .import-123.tmp true"}},
		{api.PruneRequest{Templates: true}, true, []string{"template over true", "template base true"}},
		{api.PruneRequest{Templates: true, All: true}, true, []string{"warm unit true", "layer " + u.Layer[:12] + " true", "template two true"}},
		{api.PruneRequest{Templates: true, All: true}, true, nil},
	} {
		o.Fits = func(Unit) (bool, string) { return c.fits, "another QEMU" }
		got, err := s.Prune(ctx, c.r, o)
		if err != nil || !slices.Equal(pruned(got), c.want) {
			t.Errorf("%+v: %q, %v, want %q", c.r, pruned(got), err, c.want)
		}
		if (got.Freed > 0) != (len(c.want) > 0) || !slices.Equal(got.Kept, []string{mine}) {
			t.Errorf("%+v: frees %d, keeps %q", c.r, got.Freed, got.Kept)
		}
	}
	if err := s.removeTemporary(busy); err != nil {
		t.Errorf("a file that is in use: %v", err)
	}
	if err := os.Remove(mine); err != nil {
		t.Error(err)
	}
	if list, err := s.Templates(ctx); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	requireWhole(t, s)
	before, err := s.Usage(ctx)
	if err != nil || before.Templates == 0 || before.Machines == 0 {
		t.Errorf("%+v, %v", before, err)
	}
	if err := s.RemoveMachine(ctx, made[0].ID); err != nil {
		t.Fatal(err)
	}
	if after, err := s.Usage(ctx); err != nil || after.Machines >= before.Machines || after.Templates != before.Templates {
		t.Errorf("%+v, %v", after, err)
	}
}

// TestPruneSteps: each step of a prune takes what it was planned for, and not that if it
// is needed by then.
func TestPruneSteps(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	ctx := t.Context()
	var list []api.Template
	for _, name := range []string{"a", "b", "needed"} {
		list = append(list, importImage(t, s, writeImage(t, filepath.Join(dir, name), name), name))
	}
	if _, err := s.CreateMachines(ctx, list[2], newMachines("m"), nil); err != nil {
		t.Fatal(err)
	}
	// Layers that come and go with what lies over them.
	if _, err := s.db.Exec(`DELETE FROM template_names; DELETE FROM sources; UPDATE templates SET kind = 'frozen'`); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.dropIfUnneeded(ctx, list[0].Digest), s.dropIfUnneeded(ctx, list[0].Digest)); err != nil {
		t.Error(err)
	}
	if err := s.dropIfUnneeded(ctx, list[2].Digest); !errors.Is(err, ErrInUse) {
		t.Errorf("what a machine lies over: %v", err)
	}
	for i, want := range []bool{false, true, true} {
		_, err := os.Lstat(s.home.TemplateDisk(list[i].Digest))
		if there := err == nil; there != want || (s.Intact(ctx, list[i].Digest) == nil) != want {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

// TestPruneSparesUnits: a unit is pruned for its own damage only, not as its template, which
// can be put back, is damaged, and nothing is where it cannot be looked at.
func TestPruneSparesUnits(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	u, err := makeUnit(t.Context(), s, "two")
	if err != nil {
		t.Fatal(err)
	}
	path := s.home.TemplateDisk(tm.Digest)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := s.IntactUnit(t.Context(), u.ID); !errors.Is(err, ErrChanged) {
		t.Fatal(err)
	}
	if got, err := s.Prune(t.Context(), api.PruneRequest{Templates: true}, PruneOptions{}); err != nil || len(got.Items) > 0 {
		t.Errorf("%q, %v", pruned(got), err)
	}
	if err := errors.Join(os.Rename(path+".away", path), s.Verify(t.Context(), tm.Digest, nil), s.IntactUnit(t.Context(), u.ID)); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(u.RAM, 1); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Prune(t.Context(), api.PruneRequest{}, PruneOptions{}); err != nil || !slices.Contains(pruned(got), "warm unit true") {
		t.Errorf("%q, %v", pruned(got), err)
	}
	requireWhole(t, s)
}
