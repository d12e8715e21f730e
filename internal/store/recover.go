package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
)

// The names that the store gives. Nothing else in its folders is touched.
var (
	digestPattern    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	frozenPattern    = regexp.MustCompile(`^f[0-9a-f]{24}$`)
	machineIDPattern = regexp.MustCompile(`^[0-9a-f]{12}$`)
	temporaryPattern = regexp.MustCompile(`^\.import-[0-9]+\.tmp$`)
)

const temporaryName = ".import-*.tmp" // for os.CreateTemp

// recover undoes what was being created and finishes what was being removed.
// A file that cannot be removed is not a reason to serve nothing: its row stays
// an intent, and the next start tries again.
func (s *Store) recover(ctx context.Context) error {
	for _, k := range []struct {
		level       slog.Level
		what, query string
		drop        func(context.Context, string) error
	}{
		{slog.LevelInfo, "machine", `SELECT id FROM machines WHERE state <> 'ready' ORDER BY id`, s.dropHalfMachine},
		{slog.LevelInfo, "warm unit", `SELECT id FROM units WHERE state <> 'ready' ORDER BY id`, s.dropUnit},
		{slog.LevelInfo, "change of a machine's disk", `SELECT machine FROM disk_changes UNION SELECT id FROM machines WHERE streaming = 1 AND state = 'ready'`, s.settleStopped},
		// A machine that has been frozen may have names that its QEMU needed.
		{slog.LevelDebug, "frozen machine", `SELECT id FROM machines WHERE generation > 0 AND state = 'ready'`, s.settleStopped},
		// Those of a change that is to be settled yet, and of a unit that is there yet, are
		// none of these.
		{slog.LevelInfo, "layer", `SELECT digest FROM templates t WHERE state <> 'ready' AND NOT EXISTS (SELECT 1 FROM disk_changes WHERE layer = t.digest)
			AND NOT EXISTS (SELECT 1 FROM units WHERE layer = t.digest) ORDER BY digest`, s.dropHalf},
		{slog.LevelInfo, "export", `SELECT path FROM exports ORDER BY path`, s.dropExport},
	} {
		list, err := all(ctx, s.db, scanText, k.query)
		if err != nil {
			return fmt.Errorf("state database: %w", err)
		}
		for _, id := range list {
			s.log.Log(ctx, k.level, "cleaning up what was half made or half removed", "what", k.what, "id", id)
			if err := k.drop(ctx, id); err != nil {
				s.log.Error("not cleaned up yet", "what", k.what, "id", id, "error", err)
			}
		}
	}
	if err := s.endInstalls(ctx); err != nil {
		return err
	}
	for _, clean := range []func(context.Context) error{s.dropUnneeded, s.sweepTemporary, s.sweepScratch, s.sweepUnfinished} {
		if err := clean(ctx); err != nil {
			s.log.Error("not everything is cleaned up yet", "error", err)
		}
	}
	unknown, err := s.unknown(ctx)
	for _, path := range unknown {
		s.log.Warn("the state database does not know this file; it is left alone", "path", path)
	}
	return err
}

func (s *Store) dropHalfMachine(ctx context.Context, id string) error {
	return s.dropMachines(ctx, []string{id})
}

// settleStopped settles a change of a machine's disk where no QEMU runs by all that
// can be seen. Else the daemon asks QEMU first.
func (s *Store) settleStopped(ctx context.Context, id string) error {
	c, err := s.diskChange(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for _, name := range []string{home.RunFile, home.PIDFile, home.QMPSocket} {
		if _, err := os.Lstat(filepath.Join(s.Dir(id), name)); err != nil {
			continue
		}
		if c.done { // the links stay: a QEMU that runs has its layers open by them
			return s.settle(ctx, c, "")
		}
		return nil
	}
	_, err = s.SettleFreeze(ctx, id, "")
	return err
}

// SweepMemory removes the memory of forks that no change of a machine's disk needs. A
// QEMU that was just being started from it, when the daemon died, makes the file anew
// where it is gone: the daemon calls this when it has ended such processes, and before
// it serves anybody.
func (s *Store) SweepMemory(ctx context.Context) error {
	ids, err := all(ctx, s.db, scanText, `SELECT id FROM machines WHERE generation > 0 AND id NOT IN (SELECT machine FROM disk_changes)`)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	for _, id := range ids {
		for _, name := range []string{home.RAMFile, home.StateFile} {
			if _, err := os.Lstat(filepath.Join(s.Dir(id), name)); errors.Is(err, os.ErrNotExist) {
				continue
			}
			s.step("memory of a fork swept")
			if err := s.removeInFolder(id, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepTemporary removes the store's temporary files that nobody writes to.
func (s *Store) sweepTemporary(context.Context) error {
	list, err := s.leftovers()
	if err != nil {
		return err
	}
	for _, path := range list {
		s.step("sweep " + filepath.Base(path))
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("store: unfinished image: %w", err)
		}
	}
	return nil
}

// leftovers lists the store's temporary files that nobody writes to.
func (s *Store) leftovers() ([]string, error) {
	var list []string
	for _, dir := range []string{s.home.Templates(), s.home.Layers()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if temporaryPattern.MatchString(e.Name()) && e.Type().IsRegular() && !s.temps.has(path) {
				list = append(list, path)
			}
		}
	}
	return list, nil
}

// sweepScratch removes copies of machines that were being worked on.
func (s *Store) sweepScratch(ctx context.Context) error {
	entries, err := os.ReadDir(s.home.Machines())
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(s.home.Machines(), e.Name(), home.ScratchDir)
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() || !machineIDPattern.MatchString(e.Name()) {
			continue
		}
		if err := s.end(ctx, dir); err != nil {
			errs = append(errs, err)
			continue
		}
		s.step("sweep scratch")
		errs = append(errs, s.RemoveScratch(ctx, e.Name()))
	}
	return errors.Join(errs...)
}

// unfinishedPattern is what files of a machine's folder are called, which are written
// beside their names by the store, the daemon and the driver, until they are whole.
var unfinishedPattern = regexp.MustCompile(`^(\.link\.new|(` + home.SeedFile + `|` + home.KnownHosts + `|` + home.SSHUserFile + `)\.new|\.nvram-[0-9]+)$`)

// sweepUnfinished removes what a process that was killed has left of those in the
// folders of machines. Only their writers, of which none lives yet, take such names.
func (s *Store) sweepUnfinished(context.Context) error {
	folders, err := os.ReadDir(s.home.Machines())
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	var errs []error
	for _, f := range folders {
		if !f.IsDir() || !machineIDPattern.MatchString(f.Name()) {
			continue
		}
		dir := s.home.Machine(f.Name())
		entries, err := os.ReadDir(dir)
		errs = append(errs, err)
		for _, e := range entries {
			if !unfinishedPattern.MatchString(e.Name()) || !e.Type().IsRegular() && e.Type() != os.ModeSymlink {
				continue
			}
			s.step("sweep " + e.Name())
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("store: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// unknown lists the files among templates, machines and warm units that the
// database does not know. They are left alone (see the package comment).
func (s *Store) unknown(ctx context.Context) ([]string, error) {
	var list []string
	for _, k := range []struct{ dir, suffix, query string }{
		{s.home.Templates(), ".qcow2", `SELECT digest FROM templates WHERE parent IS NULL`},
		{s.home.Layers(), ".qcow2", `SELECT digest FROM templates WHERE parent IS NOT NULL`},
		{s.home.Machines(), "", `SELECT id FROM machines`},
		{s.home.Warm(), "", `SELECT id FROM units`},
	} {
		// The folder first: what is made meanwhile has its row before its file.
		entries, err := os.ReadDir(k.dir)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		known, err := all(ctx, s.db, scanText, k.query)
		if err != nil {
			return nil, fmt.Errorf("state database: %w", err)
		}
		is := make(map[string]bool, len(known))
		for _, n := range known {
			is[n+k.suffix] = true
		}
		for _, e := range entries {
			path := filepath.Join(k.dir, e.Name())
			if !is[e.Name()] && !s.temps.has(path) && !(temporaryPattern.MatchString(e.Name()) && e.Type().IsRegular() && k.suffix != "") {
				list = append(list, path)
			}
		}
	}
	return list, nil
}

// removeMachineFolder removes a machine's folder with everything in it.
func (s *Store) removeMachineFolder(id string) error {
	if !machineIDPattern.MatchString(id) {
		return fmt.Errorf("store: %w: machine id %q", ErrInvalid, id)
	}
	return removeFolder(s.home.Machine(id))
}

// removeFolder removes a folder of the store's own with everything in it. It does
// not follow a link.
func removeFolder(dir string) error {
	// A picture of the screen may be on its way while its machine ends: what
	// comes into the folder behind the look at it goes with the next look.
	for try := 1; ; try++ {
		err := os.RemoveAll(dir)
		if err == nil {
			return nil
		}
		if try == 5 || !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("store: %w", err)
		}
	}
}
