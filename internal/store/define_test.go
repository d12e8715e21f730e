package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// definitionFiles are what newDefinition names: a disk that is a person's, a
// file of the machine's and one of its install phase.
var definitionFiles = []string{"disk", "seed", "kernel"}

// newDefinition describes a machine whose files lie in dir.
func newDefinition(dir string) NewDefinition {
	disks := []vm.Disk{{Path: filepath.Join(dir, "disk"), Format: "raw"}}
	return NewDefinition{
		Spec: vm.Spec{Name: "defined", UUID: "u", Disks: disks},
		Definition: api.Definition{
			Phase: api.InstallRuns, Owned: []string{filepath.Join(dir, "seed")},
			Install: &api.Install{Spec: vm.Spec{Name: "defined", UUID: "u", Disks: disks}, Owned: []string{filepath.Join(dir, "kernel")}},
		},
	}
}

func writeDefinitionFiles(t testing.TB, dir string) {
	t.Helper()
	for _, name := range definitionFiles {
		writeImage(t, filepath.Join(dir, name), name)
	}
}

// there lists which of a definition's files are in dir.
func there(dir string) (list []string) {
	for _, name := range definitionFiles {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			list = append(list, name)
		}
	}
	return list
}

// install ends the install phase of the machine "defined".
func install(ctx context.Context, s *Store) error {
	m, err := s.Machine(ctx, "defined")
	if err != nil {
		return err
	}
	d := *m.Definition
	d.Phase = api.Installed
	m.Definition, m.Last.Wanted = &d, true
	if err := s.SetRecord(ctx, m.ID, Record{Spec: m.Spec, Last: m.Last, Definition: m.Definition}); err != nil {
		return err
	}
	_, err = s.EndInstall(ctx, m)
	return err
}

func undoAll(ctx context.Context, s *Store) error {
	list, err := s.Machines(ctx)
	for _, m := range list {
		err = errors.Join(err, s.UndoDefinition(ctx, m.ID))
	}
	return err
}

// TestDefinitionKilledAtEachStep kills a process at each step of what is done
// to a machine with a definition: the next start finds it as it was before or
// as it is after, with the files that belong to that.
func TestDefinitionKilledAtEachStep(t *testing.T) {
	for _, c := range []struct {
		work          string
		defined       bool // there before
		minSteps      int
		before, after []string // files
		gone          bool     // is the machine after it
	}{
		{work: "define", minSteps: 3, before: definitionFiles, after: definitionFiles},
		{work: "remove", defined: true, minSteps: 5, before: definitionFiles, after: []string{"disk"}, gone: true},
		{work: "remove with disks", defined: true, minSteps: 6, before: definitionFiles, gone: true},
		{work: "undo", defined: true, minSteps: 3, before: definitionFiles, after: definitionFiles, gone: true},
		{work: "install", defined: true, minSteps: 3, before: definitionFiles, after: []string{"disk", "seed"}},
	} {
		t.Run(c.work, func(t *testing.T) {
			for step := 1; ; step++ {
				dir := t.TempDir()
				writeDefinitionFiles(t, dir)
				reopen(t, dir, func(s *Store) {
					if c.defined {
						if _, err := s.Define(t.Context(), newDefinition(dir)); err != nil {
							t.Fatal(err)
						}
					}
				})
				killed := killedAt(t, dir, c.work, step)
				reopen(t, dir, func(s *Store) {
					_, err := s.Machine(t.Context(), "defined")
					isThere := err == nil
					files := there(dir)
					done := isThere == !c.gone && slices.Equal(files, c.after)
					undone := isThere == c.defined && slices.Equal(files, c.before)
					if !done && (!undone || !killed) {
						t.Errorf("killed at step %d (%v): machine there %v, files %v", step, killed, isThere, files)
					}
					if isThere && c.work == "install" {
						m, _ := s.Machine(t.Context(), "defined")
						if over := m.Definition.Phase == api.Installed; over != m.Last.Wanted || over == (m.Definition.Install != nil) {
							t.Errorf("killed at step %d: half switched: %+v", step, m)
						}
					}
					if err := removeAll(t.Context(), s); err != nil {
						t.Error(err)
					}
				})
				if !killed {
					if step <= c.minSteps {
						t.Errorf("only %d steps", step-1)
					}
					return
				}
			}
		})
	}
}

// TestRemoveLeavesAlone removes a machine whose files have become something
// else, or are gone.
func TestRemoveLeavesAlone(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	writeDefinitionFiles(t, dir)
	m, err := s.Define(t.Context(), newDefinition(dir))
	if err != nil {
		t.Fatal(err)
	}
	seed, kernel := filepath.Join(dir, "seed"), filepath.Join(dir, "kernel")
	if err := errors.Join(os.Remove(seed), os.Mkdir(seed, 0o700), os.Remove(kernel), s.RemoveMachine(t.Context(), m.ID)); err != nil {
		t.Fatal(err)
	}
	if got := there(dir); !slices.Equal(got, []string{"disk", "seed"}) {
		t.Errorf("left: %v", got)
	}
}

// TestMigrate opens databases of earlier versions with a machine in them.
func TestMigrate(t *testing.T) {
	for version, columns := range map[int]string{1: ``, 2: `, definition`} {
		dir := t.TempDir()
		h := home.At(filepath.Join(dir, "h"))
		reopen(t, dir, func(s *Store) {
			importImage(t, s, writeImage(t, filepath.Join(dir, "image"), "content"), "one")
			if err := clone(t.Context(), s, "old"); err != nil {
				t.Fatal(err)
			}
		})
		old := filepath.Join(dir, "old.db")
		db, err := sql.Open("sqlite", "file:"+old)
		if err != nil {
			t.Fatal(err)
		}
		db.SetMaxOpenConns(1) // what is attached is attached to a connection
		const template = `digest, state, source, virtual_size, user, created_at, file_size, file_mtime`
		machine := `id, name, state, digest, template, user, created_at, config, spec, last` + columns
		for _, q := range append(append([]string{}, migrations[:version]...), `ATTACH '`+h.Database()+`' AS now`,
			`INSERT INTO templates (`+template+`) SELECT `+template+` FROM now.templates`,
			`INSERT INTO template_names SELECT * FROM now.template_names`,
			`INSERT INTO sources (path, format, dev, inode, size, mtime, ctime, digest) SELECT path, format, dev, inode, size, mtime, ctime, digest FROM now.sources`,
			`INSERT INTO machines (`+machine+`) SELECT `+machine+` FROM now.machines`,
			fmt.Sprintf(`PRAGMA user_version = %d`, version)) {
			if _, err := db.Exec(q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		if err := errors.Join(db.Close(), os.Rename(old, h.Database())); err != nil {
			t.Fatal(err)
		}
		reopen(t, dir, func(s *Store) {
			m, err := s.Machine(t.Context(), "old")
			if err != nil || m.Digest == "" || m.Definition != nil || m.Spec.Name != "old" {
				t.Errorf("%+v, %v", m, err)
			}
			if err := s.RemoveTemplate(t.Context(), "one"); !errors.Is(err, ErrInUse) {
				t.Errorf("a template that is needed: %v", err)
			}
			tm, cached, err := s.Import(t.Context(), Import{Path: filepath.Join(dir, "image")}, nil)
			if err != nil || !cached || tm.Kind != api.LayerTemplate || tm.Compress != "none" {
				t.Errorf("%+v, %v, %v", tm, cached, err)
			}
			// What was not recorded then is from the first look on.
			if err := s.Intact(t.Context(), tm.Digest); err != nil {
				t.Error(err)
			}
			path := h.TemplateDisk(tm.Digest)
			st, err := os.Stat(path)
			if err := errors.Join(err, os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
				t.Fatal(err)
			}
			if err := s.Intact(t.Context(), tm.Digest); !errors.Is(err, ErrChanged) {
				t.Errorf("touched: %v", err)
			}
			if err := s.Verify(t.Context(), tm.Digest, nil); err != nil {
				t.Error(err)
			}
			if _, err := s.Define(t.Context(), newDefinition(dir)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRemoveBusyFile removes a machine of whose files one cannot be: it goes
// all the same, and the file is not removed later.
func TestRemoveBusyFile(t *testing.T) {
	dir := t.TempDir()
	writeDefinitionFiles(t, dir)
	disk := filepath.Join(dir, "disk")
	// What a file system is mounted on is busy, for root too.
	if err := unix.Mount(filepath.Join(dir, "kernel"), disk, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceValue(func() error { return unix.Unmount(disk, unix.MNT_DETACH) })
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	reopen(t, dir, func(s *Store) {
		m, err := s.Define(t.Context(), newDefinition(dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveMachine(t.Context(), m.ID, disk); err != nil {
			t.Error(err)
		}
		if taken, err := s.Taken(t.Context(), "defined"); taken || err != nil {
			t.Errorf("its name is taken: %v, %v", taken, err)
		}
	})
	if err := unmount(); err != nil {
		t.Error(err)
	}
	reopen(t, dir, func(*Store) {})
	if got := there(dir); !slices.Equal(got, []string{"disk"}) {
		t.Errorf("left: %q", got)
	}
}
