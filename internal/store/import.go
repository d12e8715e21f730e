package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
)

// Images does to disk images what the store needs done.
type Images interface {
	// Import checks the image at source, which nobody vouches for, and
	// writes its content to target, an empty file of the store's own, as an
	// uncompressed qcow2 image that names no other file. The same content
	// gives the same bytes. It returns the virtual size.
	Import(ctx context.Context, source, format, target string, progress func(done, total int64)) (int64, error)
	// Overlay makes an empty qcow2 image of size bytes at path on the qcow2
	// image backing, which is relative to path's folder.
	Overlay(ctx context.Context, path, backing string, size int64) error
}

// Import is what to make a template of.
type Import struct {
	Path   string // a local file
	Format string // "" probes
	Source string // where it comes from, for people; Path if empty
	// Name is the template's. "" means the one that its content has
	// already, else Suggest if that is free, else one made of Source.
	Name    string
	Suggest string
	User    string // default user of its clones
}

// Import makes a template of an image, or finds the one that was made of it
// before; cached says that nothing was read. A second name for known content
// costs nothing: it is stored once.
func (s *Store) Import(ctx context.Context, in Import, progress func(done, total int64)) (t api.Template, cached bool, err error) {
	if in.Name != "" {
		if err := names.CheckTemplate(in.Name); err != nil {
			return t, false, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	real, err := filepath.EvalSymlinks(in.Path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return t, false, fmt.Errorf("import: %w", err)
	}
	if in.Source == "" {
		in.Source = real
	}
	unlock, err := s.sources.lock(ctx, real)
	if err != nil {
		return t, false, fmt.Errorf("import %s: %w", real, err)
	}
	defer unlock()
	print, err := fingerprint(real, in.Format)
	if err != nil {
		return t, false, fmt.Errorf("import: %w", err)
	}
	digest, err := s.known(ctx, print)
	if err != nil {
		return t, false, err
	}
	if digest != "" {
		t, err = s.claim(ctx, digest, in)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return t, err == nil, err
		}
	}
	t, err = s.importNew(ctx, in, print, progress)
	return t, false, err
}

// source identifies a file at one time, as far as its folder entry tells.
type source struct {
	path, format                   string
	dev, inode, size, mtime, ctime int64
}

func fingerprint(path, format string) (source, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return source{}, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return source{}, fmt.Errorf("%s: %w: not a regular file", path, ErrInvalid)
	}
	return source{path, format, int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// known returns the digest of the template that was made of this file, ""
// where there is none or the template is not whole any more.
func (s *Store) known(ctx context.Context, f source) (string, error) {
	var digest string
	err := s.db.QueryRowContext(ctx, `SELECT digest FROM sources JOIN templates USING (digest)
		WHERE state = 'ready' AND path = ? AND format = ? AND dev = ? AND inode = ? AND size = ? AND mtime = ? AND ctime = ?`,
		f.path, f.format, f.dev, f.inode, f.size, f.mtime, f.ctime).Scan(&digest)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("state database: %w", err)
	}
	return digest, nil
}

// claim gives the template with this digest the name that is asked for.
func (s *Store) claim(ctx context.Context, digest string, in Import) (api.Template, error) {
	s.publish.Lock()
	defer s.publish.Unlock()
	if err := s.Intact(ctx, digest); err != nil {
		return api.Template{}, err
	}
	var name string
	err := transact(ctx, s.db, func(tx *sql.Tx) (err error) {
		name, err = s.giveName(ctx, tx, digest, in)
		return err
	})
	if err != nil {
		return api.Template{}, err
	}
	return s.Template(ctx, name)
}

// importNew converts the image into a temporary file and publishes it.
func (s *Store) importNew(ctx context.Context, in Import, f source, progress func(done, total int64)) (t api.Template, err error) {
	s.step("import temporary")
	tmp, err := os.CreateTemp(s.home.Templates(), temporaryName)
	if err != nil {
		return t, fmt.Errorf("store: %w", err)
	}
	defer func() {
		// Gone already when it was published.
		if e := os.Remove(tmp.Name()); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	if err := tmp.Close(); err != nil {
		return t, fmt.Errorf("store: %w", err)
	}
	s.step("import convert")
	size, err := s.images.Import(ctx, f.path, f.format, tmp.Name(), progress)
	if err != nil {
		return t, fmt.Errorf("import %s: %w", f.path, err)
	}
	now, err := fingerprint(f.path, f.format)
	if err != nil || now != f {
		return t, errors.Join(fmt.Errorf("import %s: %w: the file changed while it was read; try again when nothing writes to it", f.path, ErrInvalid), err)
	}
	s.step("import sync")
	if err := os.Chmod(tmp.Name(), 0o444); err != nil {
		return t, fmt.Errorf("store: %w", err)
	}
	if err := syncPath(tmp.Name()); err != nil {
		return t, fmt.Errorf("store: %w", err)
	}
	digest, err := hashFile(ctx, tmp.Name())
	if err != nil {
		return t, err
	}
	s.publish.Lock()
	defer s.publish.Unlock()
	return s.publishTemplate(context.WithoutCancel(ctx), tmp.Name(), digest, size, in, f)
}

// publishTemplate makes a finished image a template. The row is committed as
// creating before the file gets its name, so that a crash leaves no image
// without a row; the caller holds s.publish.
func (s *Store) publishTemplate(ctx context.Context, tmp, digest string, size int64, in Import, f source) (api.Template, error) {
	st, err := os.Lstat(tmp)
	if err != nil {
		return api.Template{}, fmt.Errorf("store: %w", err)
	}
	if err := s.finishTemplate(ctx, digest); err != nil {
		return api.Template{}, err
	}
	isNew := false
	var name string
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `INSERT INTO templates
			(digest, state, source, virtual_size, user, created_at, file_size, file_mtime) VALUES (?,'creating',?,?,?,?,?,?)
			ON CONFLICT (digest) DO NOTHING`,
			digest, in.Source, size, in.User, time.Now().UnixNano(), st.Size(), st.ModTime().UnixNano())
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		isNew = n > 0
		if name, err = s.giveName(ctx, tx, digest, in); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT OR REPLACE INTO sources (path, format, dev, inode, size, mtime, ctime, digest)
			VALUES (?,?,?,?,?,?,?,?)`, f.path, f.format, f.dev, f.inode, f.size, f.mtime, f.ctime, digest)
		return err
	})
	if err != nil {
		return api.Template{}, fmt.Errorf("import %s: %w", f.path, err)
	}
	s.step("import row committed")
	if !isNew {
		if err := s.Intact(ctx, digest); err != nil {
			return api.Template{}, err
		}
		return s.Template(ctx, name)
	}
	if err := s.placeTemplate(ctx, tmp, digest); err != nil {
		// The last commit may have gone through for all its error: the row
		// is made an intent again before the file goes.
		_, e := s.db.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ?`, digest)
		if e == nil {
			e = s.dropTemplate(ctx, digest)
		}
		return api.Template{}, errors.Join(err, e)
	}
	return s.Template(ctx, name)
}

// finishTemplate finishes the removal of a template that failed half way (the
// caller holds s.publish, so nobody is at it), which would be taken for a whole
// one by its row.
func (s *Store) finishTemplate(ctx context.Context, digest string) error {
	var n int
	err := s.db.QueryRowContext(ctx, `SELECT count(*) FROM templates WHERE digest = ? AND state <> 'ready'`, digest).Scan(&n)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	if n == 0 {
		return nil
	}
	return s.dropTemplate(ctx, digest)
}

func (s *Store) placeTemplate(ctx context.Context, tmp, digest string) error {
	// A file of that name that the database does not know has the same
	// content, or should have: to replace it is right in both cases.
	if err := os.Rename(tmp, s.home.TemplateDisk(digest)); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("import renamed")
	if err := syncPath(s.home.Templates()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if _, err := s.db.ExecContext(ctx, `UPDATE templates SET state = 'ready' WHERE digest = ?`, digest); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	s.step("import ready")
	return nil
}

// giveName makes in.Name, or one made of in.Source where the template has none
// yet, a name of the template, and returns the name it is to be shown by.
func (s *Store) giveName(ctx context.Context, tx *sql.Tx, digest string, in Import) (string, error) {
	if in.User != "" {
		if _, err := tx.ExecContext(ctx, `UPDATE templates SET user = ? WHERE digest = ?`, in.User, digest); err != nil {
			return "", err
		}
	}
	name := in.Name
	if name == "" {
		var have string
		err := tx.QueryRowContext(ctx, `SELECT name FROM template_names WHERE digest = ? ORDER BY name LIMIT 1`, digest).Scan(&have)
		if err == nil || !errors.Is(err, sql.ErrNoRows) {
			return have, err
		}
		if name, err = freeName(ctx, tx, in); err != nil {
			return "", err
		}
	}
	owner, err := nameOwner(ctx, tx, name)
	switch {
	case err != nil:
		return "", err
	case owner == digest:
		return name, nil
	case owner != "":
		return "", fmt.Errorf("template %s %w with other content (%.12s): choose another name, or remove it first", name, ErrExists, owner)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO template_names (name, digest) VALUES (?, ?)`, name, digest)
	return name, err
}

// freeName makes up the name of a template.
func freeName(ctx context.Context, tx *sql.Tx, in Import) (name string, failed error) {
	taken := func(n string) bool {
		owner, err := nameOwner(ctx, tx, n)
		failed = errors.Join(failed, err)
		return err == nil && owner != "" || names.CheckTemplate(n) != nil
	}
	if in.Suggest != "" && !taken(in.Suggest) {
		return in.Suggest, failed
	}
	return names.Free(names.FromSource(in.Source), taken), failed
}

func nameOwner(ctx context.Context, tx *sql.Tx, name string) (digest string, err error) {
	err = tx.QueryRowContext(ctx, `SELECT digest FROM template_names WHERE name = ?`, name).Scan(&digest)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return digest, err
}

// hashFile returns the SHA-256 of a file in hex.
func hashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("store: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("store: %w", err)
		}
	}
}
