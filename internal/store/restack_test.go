package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/home"
)

// TestRestack puts a machine that has written nothing over a warm unit's disk and back,
// also where the unit was damaged meanwhile.
func TestRestack(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	ctx := t.Context()
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	u, err := makeUnit(ctx, s, "two")
	if err != nil {
		t.Fatal(err)
	}
	if err := machineOf(t, s, tm.Name); err != nil {
		t.Fatal(err)
	}
	id := machine(t, s, "m").ID
	m, err := s.Restack(ctx, id, u.ID)
	if err != nil || m.Digest != u.Layer || m.Unit != u.ID || m.Template != "two" {
		t.Fatalf("%+v, %v", m, err)
	}
	if got := contents(t, s)["m"]; !strings.HasPrefix(got, "x") || !strings.HasSuffix(got, " booted") {
		t.Errorf("over the unit it shows %q", got)
	}
	requireWhole(t, s)
	if _, err := s.Restack(ctx, id, "123456789abc"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such unit: %v", err)
	}
	if err := os.Truncate(u.Disk, 38); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restack(ctx, id, u.ID); !errors.Is(err, ErrUnitChanged) && !errors.Is(err, ErrChanged) {
		t.Errorf("over a layer that was cut: %v", err)
	}
	if m := machine(t, s, "m"); m.Unit != u.ID {
		t.Errorf("what was refused has changed it: %+v", m)
	}
	if m, err = s.Restack(ctx, id, ""); err != nil || m.Digest != tm.Digest || m.Unit != "" {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := s.RemoveUnit(ctx, u.ID); err != nil {
		t.Error(err)
	}
	requireWhole(t, s)

	// What its guest has written is never thrown away.
	if err := appendTo(s.Disk(m), " own"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restack(ctx, id, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("a machine with data: %v", err)
	}
	if got := contents(t, s)["m"]; got != "x own" {
		t.Errorf("it shows %q", got)
	}
}

func machineOf(t *testing.T, s *Store, template string) error {
	t.Helper()
	tm, err := s.Template(t.Context(), template)
	if err == nil {
		_, err = s.CreateMachines(t.Context(), tm, newMachines("m"), nil)
	}
	return err
}

// TestRestackKilledAtEachStep: the machine lies over its template or over the unit,
// and can be put over it again.
func TestRestackKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for step := 1; ; step++ {
		dir := t.TempDir()
		reopen(t, dir, func(s *Store) {
			importImage(t, s, writeImage(t, filepath.Join(dir, "two"), "two"), "two")
			_, err := makeUnit(t.Context(), s, "two")
			if err = errors.Join(err, machineOf(t, s, "two")); err != nil {
				t.Fatal(err)
			}
		})
		killed := killedAt(t, dir, "restack", step)
		reopen(t, dir, func(s *Store) {
			at := fmt.Sprintf("killed at step %d", step)
			m := machine(t, s, "m")
			want := "two"
			if m.Unit != "" {
				want = "two booted"
			}
			if got := contents(t, s)["m"]; got != want || !killed && m.Unit == "" {
				t.Errorf("%s: unit %q, it shows %q", at, m.Unit, got)
			}
			if err := workOnLayers(t.Context(), s, "restack", dir); err != nil {
				t.Errorf("%s: again: %v", at, err)
			}
		})
		if !killed {
			if step <= 4 {
				t.Errorf("only %d steps", step-1)
			}
			return
		}
	}
}
