package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/internal/home"
)

func TestImport(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "home")))
	ctx := t.Context()
	a := writeImage(t, filepath.Join(dir, "debian.qcow2"), "one")

	first, cached, err := s.Import(ctx, Import{Path: a, User: "debian"}, nil)
	if err != nil || cached || first.Name != "debian" || first.VirtualSize != 4096 || first.User != "debian" || len(first.Digest) != 64 || first.Source != a {
		t.Fatalf("%+v, %v, %v", first, cached, err)
	}
	// The same file is not read again; a link to it is the same file.
	if err := os.Symlink(a, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	again, cached, err := s.Import(ctx, Import{Path: filepath.Join(dir, "link")}, nil)
	if err != nil || !cached || again.Digest != first.Digest || again.Name != "debian" {
		t.Errorf("again: %+v, %v, %v", again, cached, err)
	}
	// The same content from another file is read, and stored once.
	b := writeImage(t, filepath.Join(dir, "copy.img"), "one")
	other, cached, err := s.Import(ctx, Import{Path: b, Name: "web:1"}, nil)
	if err != nil || cached || other.Digest != first.Digest || other.Name != "web:1" {
		t.Errorf("copy: %+v, %v, %v", other, cached, err)
	}
	// A file that changed is read again; its name is taken by what it was.
	writeImage(t, a, "two")
	later(t, a)
	changed, cached, err := s.Import(ctx, Import{Path: a}, nil)
	if err != nil || cached || changed.Digest == first.Digest || changed.Name != "debian-2" {
		t.Errorf("changed: %+v, %v, %v", changed, cached, err)
	}
	if _, _, err := s.Import(ctx, Import{Path: a, Name: "debian"}, nil); !errors.Is(err, ErrExists) {
		t.Errorf("a name with other content: %v", err)
	}
	if c, _, err := s.Import(ctx, Import{Path: writeImage(t, filepath.Join(dir, "c"), "three"), Suggest: "alpine:3"}, nil); err != nil || c.Name != "alpine:3" {
		t.Errorf("suggested name: %+v, %v", c, err)
	}
	for _, in := range []Import{{Path: filepath.Join(dir, "none")}, {Path: dir}, {Path: a, Name: "a/b"}, {Path: "/dev/null"}} {
		if _, _, err := s.Import(ctx, in, nil); err == nil {
			t.Errorf("import of %+v succeeded", in)
		}
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := s.Import(canceled, Import{Path: writeImage(t, filepath.Join(dir, "d"), "four")}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	requireWhole(t, s)
	list, err := s.Templates(ctx)
	if err != nil || len(list) != 3 || !slices.Equal(list[0].Names, []string{"debian", "web:1"}) || list[0].Name != "debian" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestTemplateByDigest(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(dir))
	one := importImage(t, s, writeImage(t, filepath.Join(dir, "one"), "1"), "one")
	importImage(t, s, writeImage(t, filepath.Join(dir, "two"), "2"), "two")
	for _, ref := range []string{"one", one.Digest, one.Digest[:12]} {
		if got, err := s.Template(t.Context(), ref); err != nil || got.Digest != one.Digest {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "none", one.Digest[:11], strings.Repeat("0", 64), "%", "' OR 1"} {
		if got, err := s.Template(t.Context(), ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %+v, %v", ref, got, err)
		}
	}
}

func TestRemoveTemplate(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	ctx := t.Context()
	path := writeImage(t, filepath.Join(dir, "i"), "x")
	tm := importImage(t, s, path, "one")
	importImage(t, s, path, "two")
	made, err := s.CreateMachines(ctx, tm, newMachines("m-1", "m-2"), nil)
	if err != nil {
		t.Fatal(err)
	}
	// One of two names goes, whoever needs the template.
	if err := s.RemoveTemplate(ctx, "two"); err != nil {
		t.Error(err)
	}
	for _, ref := range []string{"one", tm.Digest} {
		err := s.RemoveTemplate(ctx, ref)
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "m-1, m-2") {
			t.Errorf("remove %s: %v", ref, err)
		}
	}
	// The database refuses too, whatever the program thinks.
	for _, q := range []string{`UPDATE templates SET state = 'removing'`, `DELETE FROM templates`,
		`INSERT INTO machines SELECT 'i', 'n', 'ready', 'no-such-digest', '', '', 0, '', '', ''`} {
		if _, err := s.db.ExecContext(ctx, q); err == nil {
			t.Errorf("%s succeeded", q)
		}
	}
	requireWhole(t, s)
	for _, m := range made {
		if err := s.RemoveMachine(ctx, m.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveTemplate(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveTemplate(ctx, "one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	requireWhole(t, s)
	if list, err := s.Templates(ctx); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if again := importImage(t, s, path, "one"); again.Digest != tm.Digest {
		t.Errorf("imported again: %+v", again)
	}
	requireWhole(t, s)
}

func TestChangedTemplate(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	ctx := t.Context()
	source := writeImage(t, filepath.Join(dir, "i"), "x")
	tm := importImage(t, s, source, "one")
	path := s.Home().TemplateDisk(tm.Digest)
	// Touched, not changed: the content proves it.
	later(t, path)
	if err := s.Intact(ctx, tm.Digest); !errors.Is(err, ErrChanged) {
		t.Errorf("touched: %v", err)
	}
	if err := s.Verify(ctx, tm.Digest, nil); err != nil {
		t.Errorf("verify of a touched one: %v", err)
	}
	if err := s.Intact(ctx, tm.Digest); err != nil {
		t.Errorf("after the verification: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	writeImage(t, path, "booted by mistake")
	later(t, path)
	if err := s.Verify(ctx, tm.Digest, nil); !errors.Is(err, ErrChanged) {
		t.Errorf("verify: %v", err)
	}
	if _, err := s.CreateMachines(ctx, tm, newMachines("m"), nil); !errors.Is(err, ErrChanged) {
		t.Errorf("clone of a changed template: %v", err)
	}
	if _, _, err := s.Import(ctx, Import{Path: source}, nil); !errors.Is(err, ErrChanged) {
		t.Errorf("import onto a changed template: %v", err)
	}
}

func TestConcurrentImports(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	var group sync.WaitGroup
	digests := make([]string, 12)
	for i := range digests {
		path := filepath.Join(dir, fmt.Sprintf("i%d", i%4))
		if i < 4 {
			writeImage(t, path, "same content")
		}
		digests[i] = path
	}
	for i, path := range digests {
		group.Go(func() {
			tm, _, err := s.Import(t.Context(), Import{Path: path, Name: fmt.Sprintf("n-%d", i)}, nil)
			if err != nil {
				t.Error(err)
			}
			digests[i] = tm.Digest
		})
	}
	group.Wait()
	if len(slices.Compact(digests)) != 1 {
		t.Errorf("digests %q", digests)
	}
	requireWhole(t, s)
	if entries, err := os.ReadDir(s.Home().Templates()); err != nil || len(entries) != 1 {
		t.Errorf("%d files, %v", len(entries), err)
	}
}

// TestImportAfterFailedRemoval: a removal that failed half way (an error of the
// disk) is finished by the next import of the same content.
func TestImportAfterFailedRemoval(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	source := writeImage(t, filepath.Join(dir, "i"), "x")
	for _, known := range []bool{true, false} {
		tm := importImage(t, s, source, "one")
		if _, err := s.db.ExecContext(t.Context(), `UPDATE templates SET state = 'removing'`); err != nil {
			t.Fatal(err)
		}
		if !known {
			later(t, source)
		}
		again, _, err := s.Import(t.Context(), Import{Path: source, Name: "again"}, nil)
		if err != nil || again.Digest != tm.Digest || again.Name != "again" {
			t.Errorf("%+v, %v", again, err)
		}
		requireWhole(t, s)
		if err := s.RemoveTemplate(t.Context(), "again"); err != nil {
			t.Error(err)
		}
	}
}
