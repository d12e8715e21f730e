package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"
)

// The names that the store gives. Nothing else in its folders is touched.
var (
	digestPattern    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	machineIDPattern = regexp.MustCompile(`^[0-9a-f]{12}$`)
	temporaryPattern = regexp.MustCompile(`^\.import-[0-9]+\.tmp$`)
)

const temporaryName = ".import-*.tmp" // for os.CreateTemp

// recover undoes what was being created and finishes what was being removed.
// A file that cannot be removed is not a reason to serve nothing: its row stays
// an intent, and the next start tries again.
func (s *Store) recover(ctx context.Context) error {
	ids, err := all(ctx, s.db, scanText, `SELECT id FROM machines WHERE state <> 'ready' ORDER BY id`)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	if len(ids) > 0 {
		s.log.Info("cleaning up machines that were half made or half removed", "ids", ids)
	}
	for _, id := range ids {
		if err := s.dropMachines(ctx, []string{id}); err != nil {
			s.log.Error("a machine is not cleaned up yet", "id", id, "error", err)
		}
	}
	digests, err := all(ctx, s.db, scanText, `SELECT digest FROM templates WHERE state <> 'ready' ORDER BY digest`)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	for _, d := range digests {
		s.log.Info("cleaning up a template that was half made or half removed", "digest", d)
		if err := s.dropTemplate(ctx, d); err != nil {
			s.log.Error("a template is not cleaned up yet", "digest", d, "error", err)
		}
	}
	if err := s.endInstalls(ctx); err != nil {
		return err
	}
	if err := s.sweepTemporary(); err != nil {
		s.log.Error("unfinished imports are not cleaned up yet", "error", err)
	}
	return s.reportUnknown(ctx)
}

func (s *Store) sweepTemporary() error {
	entries, err := os.ReadDir(s.home.Templates())
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for _, e := range entries {
		if !temporaryPattern.MatchString(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		s.step("sweep " + e.Name())
		if err := os.Remove(filepath.Join(s.home.Templates(), e.Name())); err != nil {
			return fmt.Errorf("store: unfinished import: %w", err)
		}
	}
	return nil
}

// reportUnknown tells of templates and machines that the database does not
// know. They are left alone (see the package comment).
func (s *Store) reportUnknown(ctx context.Context) error {
	for _, k := range []struct{ dir, suffix, query string }{
		{s.home.Templates(), ".qcow2", `SELECT digest FROM templates`},
		{s.home.Machines(), "", `SELECT id FROM machines`},
	} {
		known, err := all(ctx, s.db, scanText, k.query)
		if err != nil {
			return fmt.Errorf("state database: %w", err)
		}
		entries, err := os.ReadDir(k.dir)
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		is := make(map[string]bool, len(known))
		for _, n := range known {
			is[n+k.suffix] = true
		}
		for _, e := range entries {
			if !is[e.Name()] {
				s.log.Warn("the state database does not know this file; it is left alone", "path", filepath.Join(k.dir, e.Name()))
			}
		}
	}
	return nil
}

// removeMachineFolder removes a machine's folder with everything in it. It
// does not follow a link, and removes nothing but a folder of the store's own.
func (s *Store) removeMachineFolder(id string) error {
	if !machineIDPattern.MatchString(id) {
		return fmt.Errorf("store: %w: machine id %q", ErrInvalid, id)
	}
	// A picture of the screen may be on its way while its machine ends: what
	// comes into the folder behind the look at it goes with the next look.
	for try := 1; ; try++ {
		err := os.RemoveAll(s.home.Machine(id))
		if err == nil {
			return nil
		}
		if try == 5 || !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("store: %w", err)
		}
	}
}

func (s *Store) removeTemplateFile(digest string) error {
	if !digestPattern.MatchString(digest) {
		return fmt.Errorf("store: %w: template digest %q", ErrInvalid, digest)
	}
	if err := os.Remove(s.home.TemplateDisk(digest)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}
