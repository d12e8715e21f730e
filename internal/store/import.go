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

// Import is what to make a template of.
type Import struct {
	Path   string // a local file
	Format string // "" probes
	// Compress is how the stored image is compressed: "" or "none", "zlib", "zstd". The
	// same content with the same choice is the same template.
	Compress string
	Source   string // where it comes from, for people; Path if empty
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
	if in.Compress, err = compression(in.Compress); err != nil {
		return t, false, fmt.Errorf("import %s: %w", in.Path, err)
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
	print, err := fingerprint(real, in.Format, in.Compress)
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
	path, format, compress         string
	dev, inode, size, mtime, ctime int64
}

func fingerprint(path, format, compress string) (source, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return source{}, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return source{}, fmt.Errorf("%s: %w: not a regular file", path, ErrInvalid)
	}
	return source{path, format, compress, int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// known returns the digest of the template that was made of this file, ""
// where there is none or the template is not whole any more.
func (s *Store) known(ctx context.Context, f source) (string, error) {
	var digest string
	err := s.db.QueryRowContext(ctx, `SELECT digest FROM sources JOIN templates USING (digest)
		WHERE state = 'ready' AND path = ? AND format = ? AND sources.compress = ? AND dev = ? AND inode = ? AND size = ? AND mtime = ? AND ctime = ?`,
		f.path, f.format, f.compress, f.dev, f.inode, f.size, f.mtime, f.ctime).Scan(&digest)
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

// compression checks how an image is to be stored.
func compression(choice string) (string, error) {
	switch choice {
	case "", "none":
		return "none", nil
	case "zlib", "zstd":
		return choice, nil
	}
	return "", fmt.Errorf("%w: compression %q: it is none, zlib or zstd", ErrInvalid, choice)
}

// importNew converts the image into a temporary file and publishes it.
func (s *Store) importNew(ctx context.Context, in Import, f source, progress func(done, total int64)) (t api.Template, err error) {
	tmp, err := s.temporary(s.home.Templates())
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, s.removeTemporary(tmp)) }()
	s.step("import convert")
	size, err := s.images.Import(ctx, f.path, f.format, tmp, f.compress, progress)
	if err != nil {
		return t, fmt.Errorf("import %s: %w", f.path, err)
	}
	now, err := fingerprint(f.path, f.format, f.compress)
	if err != nil || now != f {
		return t, errors.Join(fmt.Errorf("import %s: %w: the file changed while it was read; try again when nothing writes to it", f.path, ErrInvalid), err)
	}
	return s.publishLayer(ctx, tmp, newLayer{kind: api.LayerTemplate, source: in.Source, size: size, user: in.User, compress: f.compress, at: time.Now()},
		func(ctx context.Context, tx *sql.Tx, digest string) (string, error) {
			name, err := s.giveName(ctx, tx, digest, in)
			if err != nil {
				return "", fmt.Errorf("import %s: %w", f.path, err)
			}
			_, err = tx.ExecContext(ctx, `INSERT OR REPLACE INTO sources (path, format, compress, dev, inode, size, mtime, ctime, digest)
				VALUES (?,?,?,?,?,?,?,?,?)`, f.path, f.format, f.compress, f.dev, f.inode, f.size, f.mtime, f.ctime, digest)
			return name, err
		})
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

// hashFile returns the SHA-256 of a file in hex. read, if not nil, is told how many
// bytes were read more.
func hashFile(ctx context.Context, path string, read func(int)) (string, error) {
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
		if read != nil {
			read(n)
		}
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("store: %w", err)
		}
	}
}
