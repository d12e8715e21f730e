package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// tower is machine m over the frozen layer f over the template "one"; other lies over f
// too.
func tower(t *testing.T, dir string) (s *Store, one api.Template, m Machine) {
	layered(t, dir, "")
	s = newStore(t, home.At(filepath.Join(dir, "h")))
	one, err := s.Template(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	return s, one, machine(t, s, "m")
}

// TestChangedChain: whatever happens to an image anywhere below a machine is found
// before it is used, and the message says which, how, and what to do.
func TestChangedChain(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(path string) error
		says   []string
		back   bool // verify takes it back into use
	}{
		{"moved", func(path string) error { return os.Rename(path, path+".away") }, []string{"gone", "put it back"}, false},
		{"truncated", func(path string) error { return os.Truncate(path, 50) }, []string{"has 50 bytes"}, false},
		{"edited", func(path string) error { return appendTo(path, "x") }, []string{"bytes in place of"}, false},
		{"edited in place", func(path string) error {
			b, err := os.ReadFile(path)
			b[len(b)-1]++
			return errors.Join(err, os.WriteFile(path, b, 0))
		}, []string{"was written"}, false},
		{"edited in secret", func(path string) error { return rewrite(path, "ONE") }, []string{"was changed"}, false},
		{"replaced", func(path string) error { return replace(path, "ONE") }, nil, false},
		{"touched", func(path string) error { later(t, path); return nil }, []string{"was written", "takes it back"}, true},
		{"chmod", func(path string) error { return os.Chmod(path, 0o644) }, []string{"another mode"}, true},
		{"copied back", func(path string) error {
			b, err := os.ReadFile(path)
			return errors.Join(err, replace(path, string(b)))
		}, []string{"another file of the same size"}, true},
		{"a folder", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, []string{"no regular file"}, false},
		{"a link", func(path string) error {
			return errors.Join(os.Rename(path, path+".away"), os.Symlink(path+".away", path))
		}, []string{"no regular file"}, false},
	} {
		for _, which := range []string{"template", "frozen layer"} {
			t.Run(c.name+" "+which, func(t *testing.T) {
				s, one, m := tower(t, t.TempDir())
				path, name := s.home.TemplateDisk(one.Digest), "one"
				if which == "frozen layer" {
					path, name = s.home.LayerDisk(m.Digest), m.Digest[:12]
				}
				if err := s.Intact(t.Context(), m.Digest); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(setImmutable(path, false), c.change(path)); err != nil {
					t.Fatal(err)
				}
				err := s.Intact(t.Context(), m.Digest)
				if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "verify "+name) {
					t.Errorf("%v", err)
				}
				for _, word := range c.says {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("%v: %q is missing", err, word)
					}
				}
				if _, err := s.CreateMachines(t.Context(), api.Template{Digest: m.Digest}, newMachines("x"), nil); !errors.Is(err, ErrChanged) {
					t.Errorf("clone: %v", err)
				}
				if _, _, err := s.CloneMachine(t.Context(), m.ID, newMachines("x"), nil); !errors.Is(err, ErrChanged) {
					t.Errorf("clone of the machine: %v", err)
				}
				if err := s.Export(t.Context(), m.Digest, api.ExportRequest{Path: filepath.Join(t.TempDir(), "x")}, nil); !errors.Is(err, ErrChanged) {
					t.Errorf("export: %v", err)
				}
				err = s.Verify(t.Context(), m.Digest, nil)
				if c.back && err != nil || !c.back && !errors.Is(err, ErrChanged) {
					t.Errorf("verify: %v", err)
				}
				if err := s.Intact(t.Context(), m.Digest); c.back && err != nil || !c.back && err == nil {
					t.Errorf("after the verification: %v", err)
				}
			})
		}
	}
}

func TestTag(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	ctx := t.Context()
	a := importImage(t, s, writeImage(t, filepath.Join(dir, "a"), "a"), "web:1")
	b := importImage(t, s, writeImage(t, filepath.Join(dir, "b"), "b"), "web:2")
	tag := func(ref, name string, move bool) api.Template {
		t.Helper()
		tm, err := s.Tag(ctx, ref, name, move)
		if err != nil {
			t.Fatal(err)
		}
		return tm
	}
	if got := tag("web:1", "web", false); got.Name != "web" || !slices.Equal(got.Names, []string{"web", "web:1"}) {
		t.Errorf("%+v", got)
	}
	tag("web:1", "web", false) // again
	if _, err := s.Tag(ctx, "web:2", "web", false); !errors.Is(err, ErrExists) {
		t.Errorf("a taken name: %v", err)
	}
	if got := tag("web:2", "web", true); got.Digest != b.Digest {
		t.Errorf("%+v", got)
	}
	for _, bad := range [][2]string{{"none", "x"}, {"web", "a/b"}, {"web", ""}, {"web", a.Digest}} {
		if _, err := s.Tag(ctx, bad[0], bad[1], true); err == nil {
			t.Errorf("%q succeeded", bad)
		}
	}
	// One whose last name went elsewhere stays, by its digest.
	tag("web:2", "web:1", true)
	if got, err := s.Template(ctx, a.Digest[:12]); err != nil || got.Name != "" || len(got.Names) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	requireWhole(t, s)
	if list, err := s.Templates(ctx); err != nil || len(list) != 2 || len(list[1].Names) != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, name := range []string{"web", "web:1", "web:2", a.Digest} {
		if err := s.RemoveTemplate(ctx, name); err != nil {
			t.Error(err)
		}
	}
	requireWhole(t, s)
	if list, err := s.Templates(ctx); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestImmutable: nobody changes or removes a layer, not even root, until the store does.
func TestImmutable(t *testing.T) {
	dir := t.TempDir()
	h := home.At(filepath.Join(dir, "h"))
	t.Cleanup(func() {
		for _, pattern := range []string{"templates/*", "layers/disks/*", "warm/*/*"} {
			files, err := filepath.Glob(filepath.Join(h.Data, pattern))
			for _, f := range files {
				err = errors.Join(err, setImmutable(f, false))
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	if err := os.MkdirAll(h.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	probe := writeImage(t, filepath.Join(h.Data, "probe"), "")
	if err := setImmutable(probe, true); err != nil {
		t.Fatal(err)
	}
	has := isImmutable(probe) // not on every file system, nor in every container
	if err := errors.Join(setImmutable(probe, false), os.Remove(probe)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), h, Options{Images: plainImages{}, Immutable: ImmutableAlways})
	if err != nil {
		t.Fatal(err)
	}
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "two")
	if tm.Immutable != has {
		t.Errorf("immutable: %v, and the file system has it: %v", tm.Immutable, has)
	}
	made, err := s.CreateMachines(t.Context(), tm, newMachines("m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := s.CloneMachine(t.Context(), made[0].ID, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := makeUnit(t.Context(), s, "two")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{s.home.TemplateDisk(tm.Digest), s.home.LayerDisk(m.Digest), u.Disk, u.State} {
		if isImmutable(path) != has {
			t.Errorf("%s: %v", path, !has)
		}
		if !has {
			continue
		}
		for what, err := range map[string]error{"write": os.WriteFile(path, nil, 0), "remove": os.Remove(path), "rename": os.Rename(path, path+"x"),
			"truncate": os.Truncate(path, 0), "chmod": os.Chmod(path, 0o600)} {
			if !errors.Is(err, unix.EPERM) {
				t.Errorf("%s %s: %v", what, path, err)
			}
		}
	}
	if isImmutable(u.RAM) {
		t.Error("QEMU 7.2 cannot open the RAM file")
	}
	if err := errors.Join(s.IntactUnit(t.Context(), u.ID), s.Verify(t.Context(), tm.Digest, nil), s.Intact(t.Context(), m.Digest)); err != nil {
		t.Error(err)
	}
	// Who takes the flag off is found, also where that was all; a look puts it back.
	for _, path := range []string{s.home.TemplateDisk(tm.Digest), s.home.LayerDisk(m.Digest), u.Disk, u.State} {
		if !has {
			break
		}
		if err := setImmutable(path, false); err != nil {
			t.Fatal(err)
		}
		if s.IntactUnit(t.Context(), u.ID) == nil && s.Intact(t.Context(), m.Digest) == nil {
			t.Errorf("%s without its flag is not found", path)
		}
		if err := errors.Join(s.Verify(t.Context(), tm.Digest, nil), s.Verify(t.Context(), m.Digest, nil)); err != nil || !isImmutable(path) {
			t.Errorf("verify: %v, immutable %v", err, isImmutable(path))
		}
		if err := errors.Join(s.IntactUnit(t.Context(), u.ID), s.Intact(t.Context(), m.Digest)); err != nil {
			t.Error(err)
		}
	}
	// A file of the same content that nobody knows is in the way.
	other := home.At(filepath.Join(dir, "other"))
	if err := os.MkdirAll(other.Templates(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func() error{
		func() error { return s.RemoveUnit(t.Context(), u.ID) },
		func() error { return s.RemoveMachine(t.Context(), m.ID) },
		func() error { requireWhole(t, s); return nil },
		func() error {
			_, err := s.db.ExecContext(t.Context(), `DELETE FROM templates`)
			return err
		},
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	if again := importImage(t, s, filepath.Join(dir, "i"), "two"); again.Digest != tm.Digest || again.Immutable != has {
		t.Errorf("%+v", again)
	}
	if err := s.RemoveTemplate(t.Context(), "two"); err != nil {
		t.Error(err)
	}
	requireWhole(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFleetsAndLimits(t *testing.T) {
	dir := t.TempDir()
	want := Fleet{Name: "f", State: "applying", Hash: "h", Document: api.Fleet{Name: "f", Groups: []api.FleetGroup{{Name: "web", Count: 3}}}}
	limits := api.SpaceLimits{MinFree: 5, Quota: 6}
	reopen(t, dir, func(s *Store) {
		if l, err := s.Limits(t.Context()); err != nil || l != (api.SpaceLimits{}) {
			t.Errorf("%+v, %v", l, err)
		}
		if err := s.SetLimits(t.Context(), api.SpaceLimits{Quota: -1}); !errors.Is(err, ErrInvalid) {
			t.Error(err)
		}
		if _, err := s.Fleet(t.Context(), "f"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		first := want
		first.State, first.Document.Groups = "failed", nil
		if err := errors.Join(s.SetFleet(t.Context(), first), s.SetFleet(t.Context(), want), s.SetLimits(t.Context(), limits), s.SetLimits(t.Context(), limits)); err != nil {
			t.Error(err)
		}
	})
	reopen(t, dir, func(s *Store) {
		if l, err := s.Limits(t.Context()); err != nil || l != limits {
			t.Errorf("%+v, %v", l, err)
		}
		list, err := s.Fleets(t.Context())
		if err != nil || len(list) != 1 || list[0].State != "applying" || list[0].Document.Groups[0].Count != 3 || list[0].Hash != "h" {
			t.Errorf("%+v, %v", list, err)
		}
		if err := s.RemoveFleet(t.Context(), "f"); err != nil {
			t.Error(err)
		}
		if _, err := s.Fleet(t.Context(), "f"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	})
}
