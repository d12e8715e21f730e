package store

import (
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
