package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
)

// exportPattern is what an unfinished export is called, before a number.
const exportPattern = ".lamina-export-*.tmp"

var exportName = regexp.MustCompile(`^\.lamina-export-[0-9]+\.tmp$`)

// Export writes a layer, with all below it, as one image that needs no other. The target
// appears as a whole, with mode 0644 less the umask, or not at all.
func (s *Store) Export(ctx context.Context, ref string, r api.ExportRequest, progress func(done, total int64)) (err error) {
	t, err := s.Template(ctx, ref)
	if err != nil {
		return err
	}
	o, err := exportOptions(r)
	if err == nil {
		err = s.exportTarget(r)
	}
	if err == nil {
		err = s.Intact(ctx, t.Digest)
	}
	if err != nil {
		return fmt.Errorf("export of template %s: %w", ref, err)
	}
	tmp, err := s.exportFile(ctx, filepath.Dir(r.Path))
	if err != nil {
		return fmt.Errorf("export of template %s to %s: %w", ref, r.Path, err)
	}
	defer func() { err = errors.Join(err, s.dropExport(context.WithoutCancel(ctx), tmp)) }()
	s.step("export converted")
	if err := s.images.Convert(ctx, s.layerPath(t.Digest, t.Parent), tmp, o, progress); err != nil {
		return fmt.Errorf("export of template %s to %s: %w", ref, r.Path, err)
	}
	if err := publishExport(tmp, r); err != nil {
		return fmt.Errorf("export of template %s to %s: %w", ref, r.Path, err)
	}
	s.step("export there")
	return nil
}

func exportOptions(r api.ExportRequest) (o ConvertOptions, err error) {
	if o.Compress, err = compression(r.Compress); err != nil {
		return o, err
	}
	switch o.Format = r.Format; {
	case r.Format != "" && r.Format != "qcow2" && r.Format != "raw":
		return o, fmt.Errorf("%w: format %q: it is qcow2 or raw (`lamina img convert` makes others of them)", ErrInvalid, r.Format)
	case r.Format == "raw" && o.Compress != "none":
		return o, fmt.Errorf("%w: a raw image cannot be compressed: leave out one of the two", ErrInvalid)
	}
	return o, nil
}

// exportTarget checks that a file may be written.
func (s *Store) exportTarget(r api.ExportRequest) error {
	if !filepath.IsAbs(r.Path) {
		return fmt.Errorf("%w: the path %q is not absolute", ErrInvalid, r.Path)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(r.Path))
	if err != nil {
		return err
	}
	for _, own := range []string{s.home.Templates(), filepath.Dir(s.home.Layers()), s.home.Machines(), s.home.Warm()} {
		if real, err := filepath.EvalSymlinks(own); err == nil && (dir == real || strings.HasPrefix(dir, real+"/")) {
			return fmt.Errorf("%w: %s is the store's own folder: choose another one", ErrInvalid, dir)
		}
	}
	if real, err := filepath.EvalSymlinks(s.home.Data); err == nil && dir == real && s.isOwnFile(filepath.Base(r.Path)) {
		return fmt.Errorf("%w: %s is a file of Lamina's own: choose another name", ErrInvalid, r.Path)
	}
	st, err := os.Lstat(r.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%w: %s is no regular file: choose another name", ErrInvalid, r.Path)
	case !r.Force:
		return fmt.Errorf("%s %w: choose another name, or replace it (--force)", r.Path, ErrExists)
	}
	return nil
}

// isOwnFile says whether a name in the home's folder is one of a file that Lamina keeps there.
func (s *Store) isOwnFile(name string) bool {
	db, key := filepath.Base(s.home.Database()), filepath.Base(s.home.Key())
	return slices.Contains([]string{db, db + "-wal", db + "-shm", db + "-journal", key, key + ".pub", filepath.Base(s.home.Lock()),
		filepath.Base(s.home.DaemonLog()), filepath.Base(s.home.Autostarted())}, name)
}

// exportFile makes an empty file that dropExport removes, at the latest at the next start.
func (s *Store) exportFile(ctx context.Context, dir string) (string, error) {
	// The row comes first, so the name cannot be os.CreateTemp's.
	for try := 0; ; try++ {
		path := filepath.Join(dir, strings.Replace(exportPattern, "*", fmt.Sprint(randomNumber()), 1))
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if _, err := s.db.ExecContext(ctx, `INSERT INTO exports (path) VALUES (?)`, path); err != nil {
			return "", fmt.Errorf("state database: %w", err)
		}
		s.step("export file")
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err == nil {
			if err = f.Close(); err == nil {
				return path, nil
			}
			return "", errors.Join(err, s.dropExport(context.WithoutCancel(ctx), path))
		}
		_, forgotten := s.db.ExecContext(context.WithoutCancel(ctx), `DELETE FROM exports WHERE path = ?`, path)
		if !errors.Is(err, os.ErrExist) || try == 10 || forgotten != nil {
			return "", errors.Join(err, forgotten)
		}
	}
}

// publishExport gives a finished export its name.
func publishExport(tmp string, r api.ExportRequest) error {
	if err := syncPath(tmp); err != nil {
		return err
	}
	if r.Force {
		if err := os.Rename(tmp, r.Path); err != nil {
			return err
		}
		return syncPath(filepath.Dir(r.Path))
	}
	err := unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, r.Path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = os.Link(tmp, r.Path) // the other name goes with the export's row
	}
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: somebody has made it meanwhile: choose another name", ErrExists)
	}
	if err != nil {
		return err
	}
	return syncPath(filepath.Dir(r.Path))
}

// dropExport removes the file of an unfinished export, and its row.
func (s *Store) dropExport(ctx context.Context, path string) error {
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && exportName.MatchString(filepath.Base(path)) {
		s.step("export file removed")
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("store: %w", err)
		}
	}
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM exports WHERE path = ?`, path)
		return err
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}
