package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

func TestMachines(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	s := newStore(t, h)
	ctx := t.Context()
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	var told []string
	made, err := s.CreateMachines(ctx, tm, newMachines("b", "a", "c"), func(n string) { told = append(told, n) })
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(told)
	if !slices.Equal(told, []string{"a", "b", "c"}) || !slices.Equal(machineNames(t, s), told) {
		t.Errorf("told of %q, made %q", told, machineNames(t, s))
	}
	last := Last{Started: true, Running: true, Stage: boot.StageInit, LoginIn: time.Second,
		Exit: &vm.Exit{State: vm.StateCrashed, Reason: "r"}, Problem: &boot.Problem{Kind: "stalled"}}
	if err := s.SetLast(ctx, made[0].ID, last); err != nil {
		t.Fatal(err)
	}
	got, err := s.Machine(ctx, "b")
	if err != nil || got.ID != made[0].ID || got.Template != "one" || got.User != "root" || got.Config.CPUs != 2 ||
		got.Last.Stage != boot.StageInit || got.Last.Exit.Reason != "r" || got.Last.Problem.Kind != "stalled" {
		t.Errorf("%+v, %v", got, err)
	}
	if byID, err := s.Machine(ctx, made[1].ID); err != nil || byID.Name != "a" {
		t.Errorf("by id: %+v, %v", byID, err)
	}
	if _, err := s.Machine(ctx, "none"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	requireWhole(t, s)

	// All or none: one name is taken, or one file cannot be made.
	if _, err := s.CreateMachines(ctx, tm, newMachines("d", "a", "c"), nil); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "machines a, c exist already: choose other names") {
		t.Errorf("taken names: %v", err)
	}
	bad := newMachines("d", "e", "f")
	bad[2].Seed = func() ([]byte, error) { return nil, errors.New("bad user-data") }
	if _, err := s.CreateMachines(ctx, tm, bad, nil); err == nil || !strings.Contains(err.Error(), "machine f: bad user-data") {
		t.Errorf("bad seed: %v", err)
	}
	small := newMachines("d")
	small[0].Size = 512
	if _, err := s.CreateMachines(ctx, tm, small, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("small disk: %v", err)
	}
	canceled, cancel := context.WithCancel(ctx)
	half := newMachines("d", "e")
	half[0].Seed = func() ([]byte, error) { cancel(); return nil, canceled.Err() }
	if _, err := s.CreateMachines(canceled, tm, half, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if got := machineNames(t, s); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("machines %q", got)
	}
	requireWhole(t, s)

	// Files of a run go with the machine.
	for _, f := range []string{home.SerialLogFile, home.RunFile, "x/y"} {
		path := filepath.Join(s.Dir(made[0].ID), f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o400)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveMachine(ctx, made[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveMachine(ctx, made[0].ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	requireWhole(t, s)
}

// TestSecrets: a password or user-data is nowhere but in the seed.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	s := newStore(t, h)
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	if _, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil); err != nil {
		t.Fatal(err)
	}
	files := 0
	err := filepath.WalkDir(h.Data, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm()
		if d.IsDir() {
			if mode != 0o700 {
				t.Errorf("%s has mode %o", path, mode)
			}
			return nil
		}
		files++
		if mode != 0o600 && !(mode == 0o444 && filepath.Dir(path) == h.Templates()) {
			t.Errorf("%s has mode %o", path, mode)
		}
		b, err := os.ReadFile(path)
		// The data is base64 in JSON.
		if strings.Contains(string(b), "secret-password") || strings.Contains(string(b), "c2VjcmV0LWRhdGE") {
			t.Errorf("%s holds a secret", path)
		}
		return err
	})
	if err != nil || files < 4 {
		t.Errorf("%d files, %v", files, err)
	}
}

// TestMovedHome: a home that is moved as a whole keeps working.
func TestMovedHome(t *testing.T) {
	dir := t.TempDir()
	before, after := home.At(filepath.Join(dir, "a")), home.At(filepath.Join(dir, "deeper", "b"))
	s := newStore(t, before)
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "one")
	if _, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(after.Data), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(before.Data, after.Data); err != nil {
		t.Fatal(err)
	}
	moved := newStore(t, after)
	m, err := moved.Machine(t.Context(), "m")
	if err != nil || !strings.HasPrefix(m.Spec.Disks[0].Path, after.Data) {
		t.Errorf("%+v, %v", m, err)
	}
	requireWhole(t, moved)
}

// TestUnknownFiles: what the database does not know is left alone, but for the
// store's own temporary files.
func TestUnknownFiles(t *testing.T) {
	h := home.At(filepath.Join(t.TempDir(), "h"))
	s := newStore(t, h)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	keep := []string{
		filepath.Join(h.Machines(), "0123456789ab", "disk.qcow2"),
		h.TemplateDisk(strings.Repeat("ab", 32)),
		filepath.Join(h.Templates(), ".import-1.tmp.bak"),
		filepath.Join(h.Templates(), "import-1.tmp"),
		filepath.Join(h.Machines(), ".import-1.tmp"),
		filepath.Join(h.Data, ".import-1.tmp"),
	}
	sweep := filepath.Join(h.Templates(), ".import-1234.tmp")
	for _, f := range append(keep, sweep) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o700), os.WriteFile(f, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	newStore(t, h)
	for _, f := range keep {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("swept: %v", err)
		}
	}
	if _, err := os.Stat(sweep); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", sweep, err)
	}
}

func TestDatabase(t *testing.T) {
	t.Run("newer", func(t *testing.T) {
		h := home.At(filepath.Join(t.TempDir(), "h"))
		s := newStore(t, h)
		if _, err := s.db.Exec(fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1)); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), h, Options{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "newer program") {
			t.Error(err)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		h := home.At(t.TempDir())
		if err := os.WriteFile(h.Database(), []byte(strings.Repeat("not a database", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), h, Options{}); err == nil || !strings.Contains(err.Error(), h.Database()) {
			t.Error(err)
		}
	})
	t.Run("odd path", func(t *testing.T) {
		newStore(t, home.At(filepath.Join(t.TempDir(), "a ?b#c%20&d=é")))
	})
	t.Run("settings", func(t *testing.T) {
		s := newStore(t, home.At(t.TempDir()))
		for q, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"} {
			var got string
			if err := s.db.QueryRow("PRAGMA " + q).Scan(&got); err != nil || got != want {
				t.Errorf("%s = %s, %v; want %s", q, got, err, want)
			}
		}
	})
}
