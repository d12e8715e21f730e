package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
)

// print is what a file's folder entry tells of it: an edit that puts the time of
// change back still moves ctime, a copy put in its place has another inode.
type print struct {
	Size  int64 `json:"size"`
	Mtime int64 `json:"mtime"` // ns since 1970
	Ctime int64 `json:"ctime"`
	Inode int64 `json:"inode"`
}

// look returns the print of a regular file.
func look(path string) (print, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return print{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return print{}, fmt.Errorf("%s is no regular file", path)
	}
	return print{st.Size, st.Mtim.Nano(), st.Ctim.Nano(), int64(st.Ino)}, nil
}

// differs says in words how a file is not what it was, "" where it is.
func (p print) differs(now print) string {
	date := func(ns int64) string { return time.Unix(0, ns).Format(time.RFC3339Nano) }
	switch {
	case now.Size != p.Size:
		return fmt.Sprintf("has %d bytes in place of %d", now.Size, p.Size)
	case now.Mtime != p.Mtime:
		return fmt.Sprintf("was written %s, and is known as of %s", date(now.Mtime), date(p.Mtime))
	case p.Ctime != 0 && now.Inode != p.Inode:
		return "is another file of the same size and time"
	case p.Ctime != 0 && now.Ctime != p.Ctime:
		return fmt.Sprintf("was changed, or given another mode, owner or name, %s", date(now.Ctime))
	}
	return ""
}

// same says whether a file still has the content that it had, which may have another name,
// mode or owner by now.
func (p print) same(path string) error {
	now, err := look(path)
	if err != nil {
		return err
	}
	p.Ctime = 0
	if how := p.differs(now); how != "" {
		return fmt.Errorf("%w: %s %s while it was read: end what writes to it, and try again", ErrInUse, path, how)
	}
	return nil
}

// layer is an immutable image, as its row says.
type layer struct {
	key, parent string
	kind        api.LayerKind
	name        string // for people
	sha256      string // of the file; "" is not known yet
	print       print
}

func (l layer) path(s *Store) string { return s.layerPath(l.key, l.parent) }

// layerPath is where a layer's image lies. Whole images lie beside each other;
// one that names a base lies as deep as a machine's own layer, so that the
// name of the base is the same in both (see home.Layers).
func (s *Store) layerPath(key, parent string) string {
	if parent == "" {
		return s.home.TemplateDisk(key)
	}
	return s.home.LayerDisk(key)
}

// backingName is what the own layer of a machine, or a layer in home.Layers, calls
// its base: relative, so that a home can be moved as a whole.
func backingName(key, parent string) string {
	if parent == "" {
		return "../../templates/" + key + ".qcow2"
	}
	return "../../layers/disks/" + key + ".qcow2"
}

// layerName is how messages call a layer; the query's row is t.
const layerName = `coalesce((SELECT min(name) FROM template_names n WHERE n.digest = t.digest),
	CASE WHEN t.origin = '' THEN substr(t.digest, 1, 12) ELSE substr(t.digest, 1, 12) || ' (of machine ' || t.origin || ')' END)`

const layerColumns = `t.digest, coalesce(t.parent, ''), t.kind, ` + layerName + `,
	CASE WHEN length(t.digest) = 64 THEN t.digest ELSE t.sha256 END, t.file_size, t.file_mtime, t.file_ctime, t.file_inode`

func scanLayer(r scanner) (l layer, err error) {
	err = r.Scan(&l.key, &l.parent, &l.kind, &l.name, &l.sha256, &l.print.Size, &l.print.Mtime, &l.print.Ctime, &l.print.Inode)
	return l, err
}

// maxChain is more images than any chain of ours has: api.MaxDepth bounds those.
const maxChain = 4 * api.MaxDepth

// chain returns a layer and all below it, top first.
func (s *Store) chain(ctx context.Context, q querier, key string) ([]layer, error) {
	list, err := all(ctx, q, scanLayer, `WITH RECURSIVE c (key, depth) AS (
			SELECT ?1, 0 UNION ALL SELECT parent, depth + 1 FROM c JOIN templates ON digest = key WHERE parent IS NOT NULL AND depth < ?2)
		SELECT `+layerColumns+` FROM c JOIN templates t ON t.digest = c.key ORDER BY depth`, key, maxChain)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("template %.12s: %w", key, ErrNotFound)
	}
	if len(list) > maxChain {
		return nil, fmt.Errorf("template %.12s: %w: the state database has it over itself", key, ErrInvalid)
	}
	return list, nil
}

// Chain returns the paths of a layer's image and of all below it, top first; none for "".
func (s *Store) Chain(ctx context.Context, key string) ([]string, error) {
	if key == "" {
		return nil, nil
	}
	list, err := s.chain(ctx, s.db, key)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(list))
	for i, l := range list {
		paths[i] = l.path(s)
	}
	return paths, nil
}

// Intact says whether the file of a layer, and those of all below it, still are what
// they were when they were made, as far as size, times and inode tell: it costs one stat
// each. ErrChanged if not. "", no layer at all, is intact.
func (s *Store) Intact(ctx context.Context, key string) error {
	if key == "" {
		return nil
	}
	list, err := s.chain(ctx, s.db, key)
	if err != nil {
		return err
	}
	for _, l := range list {
		if err := s.intact(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) intact(ctx context.Context, l layer) error {
	path := l.path(s)
	now, err := look(path)
	if err != nil {
		return fmt.Errorf("%w: %s: its file is gone (%w): put it back where it was, and `lamina template verify %s` takes it back into use; without it what lies over it cannot be read", ErrChanged, l.name, err, ref(l))
	}
	if how := l.print.differs(now); how != "" {
		return fmt.Errorf("%w: %s: its file %s %s: `lamina template verify %s` tells whether the content is another one, and takes it back into use if not",
			ErrChanged, l.name, path, how, ref(l))
	}
	if l.print.Ctime == 0 {
		// Made by an earlier version, which did not look so closely.
		return s.setPrint(ctx, l.key, now)
	}
	return nil
}

// ref is what a command takes for a layer.
func ref(l layer) string {
	if l.kind == api.LayerTemplate && len(l.name) > 0 && l.name != l.key[:12] {
		return l.name
	}
	return l.key[:12]
}

func (s *Store) setPrint(ctx context.Context, key string, p print) error {
	_, err := s.db.ExecContext(ctx, `UPDATE templates SET file_size = ?, file_mtime = ?, file_ctime = ?, file_inode = ? WHERE digest = ?`,
		p.Size, p.Mtime, p.Ctime, p.Inode, key)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// seal keeps a finished file from being changed: by its mode, and by the
// immutable flag where that can be had. It returns the file as it is then. The
// file is on stable storage. To seal it again does no harm.
func (s *Store) seal(path string) (print, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return print{}, fmt.Errorf("store: %w", err)
	}
	if st.Mode().Perm() != 0o444 {
		s.step("sealed by its mode")
		if err := s.thaw(path); err != nil {
			return print{}, err
		}
		if err := os.Chmod(path, 0o444); err != nil {
			return print{}, fmt.Errorf("store: %w", err)
		}
	}
	if err := syncPath(path); err != nil {
		return print{}, fmt.Errorf("store: %w", err)
	}
	if s.immutable {
		s.step("sealed by its flag")
		if err := setImmutable(path, true); err != nil {
			return print{}, fmt.Errorf("store: %w", err)
		}
	}
	p, err := look(path)
	if err != nil {
		return print{}, fmt.Errorf("store: %w", err)
	}
	return p, nil
}

// thaw takes the immutable flag away again, so that the store may remove or move the
// file.
func (s *Store) thaw(path string) error {
	// Also where this store sets none: an earlier one may have.
	if err := setImmutable(path, false); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Verify reads the files of a layer, of all below it and of its warm units, and
// compares them with their digests. An intact file whose times alone changed (a
// restored backup) is taken back into use. ErrChanged if the content differs.
// progress, if not nil, is told of bytes on the calling goroutine.
func (s *Store) Verify(ctx context.Context, key string, progress func(done, total int64)) error {
	list, err := s.chain(ctx, s.db, key)
	if err != nil {
		return err
	}
	units, err := s.UnitsOf(ctx, key)
	if err != nil {
		return err
	}
	count := counter{report: progress}
	for _, l := range list {
		count.total += l.print.Size
	}
	for _, u := range units {
		count.total += u.files.RAM.Size + u.files.State.Size
	}
	for _, l := range list {
		if err := s.verifyLayer(ctx, l, count.add); err != nil {
			return err
		}
	}
	for _, u := range units {
		if err := s.verifyUnit(ctx, u, count.add); err != nil {
			return err
		}
	}
	return s.DamagedUnit(ctx, key)
}

// counter adds up bytes.
type counter struct {
	done, total int64
	report      func(done, total int64)
}

func (c *counter) add(n int) {
	c.done += int64(n)
	if c.report != nil {
		c.report(min(c.done, c.total), c.total)
	}
}

func (s *Store) verifyLayer(ctx context.Context, l layer, read func(int)) error {
	path := l.path(s)
	got, _, err := hashStill(ctx, path, read)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrChanged, l.name, err)
	}
	if l.sha256 == "" {
		return s.adoptDigest(ctx, l, got)
	}
	if got != l.sha256 {
		return fmt.Errorf("%w: %s: %s has SHA-256 %s: put the file back as it was; else what is read through it is wrong: remove what lies over it, and import the image again", ErrChanged, l.name, path, got)
	}
	p, err := s.seal(path)
	if err != nil {
		return err
	}
	return s.setPrint(ctx, l.key, p)
}

// adoptDigest records the digest of a layer that was frozen while its machine ran and was
// not looked at till now. Where size and time of change are what they were, inode and
// ctime alone tell of a copy (a home that was restored): somebody asked for a look, and
// there is nothing better to compare it with.
func (s *Store) adoptDigest(ctx context.Context, l layer, digest string) error {
	path := l.path(s)
	now, err := look(path)
	if err != nil {
		return err
	}
	content := l.print
	content.Ctime = 0
	if content.differs(now) != "" {
		return s.intact(ctx, l)
	}
	if how := l.print.differs(now); how != "" {
		s.log.Warn("a layer whose digest was not known yet is taken back into use by its size and time of change", "layer", l.name, "path", path, "how", how)
	}
	p, err := s.seal(path)
	if err != nil {
		return err
	}
	if err := s.setPrint(ctx, l.key, p); err != nil {
		return err
	}
	return s.recordDigest(ctx, l, digest)
}

// hashStill is hashFile of a file that must not change meanwhile.
func hashStill(ctx context.Context, path string, read func(int)) (digest string, p print, err error) {
	if p, err = look(path); err != nil {
		return "", p, err
	}
	if digest, err = hashFile(ctx, path, read); err != nil {
		return "", p, err
	}
	now, err := look(path)
	if err == nil && now != p {
		err = fmt.Errorf("%s changed while it was read: end what writes to it, and try again", path)
	}
	return digest, p, err
}

// RecordDigest computes and records the digest of a layer that was frozen while
// its machine ran; at once where that is done. It can be cancelled and done again.
func (s *Store) RecordDigest(ctx context.Context, key string) error {
	list, err := s.chain(ctx, s.db, key)
	if err != nil {
		return err
	}
	l := list[0]
	if l.sha256 != "" {
		return nil
	}
	if err := s.intact(ctx, l); err != nil {
		return err
	}
	got, _, err := hashStill(ctx, l.path(s), nil)
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.name, err)
	}
	return s.recordDigest(ctx, l, got)
}

func (s *Store) recordDigest(ctx context.Context, l layer, digest string) error {
	if _, err := s.db.ExecContext(ctx, `UPDATE templates SET sha256 = ? WHERE digest = ?`, digest, l.key); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// Undigested lists the layers whose digest is to be recorded yet.
func (s *Store) Undigested(ctx context.Context) ([]string, error) {
	list, err := all(ctx, s.db, scanText, `SELECT digest FROM templates WHERE state = 'ready' AND length(digest) <> 64 AND sha256 = '' ORDER BY created_at`)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	return list, nil
}

// depthOf is how many images a machine over key has below its own layer; the
// limit is api.MaxDepth.
func (s *Store) depthOf(ctx context.Context, q querier, key string) (int, error) {
	if key == "" {
		return 0, nil
	}
	list, err := s.chain(ctx, q, key)
	return len(list), err
}

// notTooDeep refuses one more image over key.
func (s *Store) notTooDeep(ctx context.Context, what, key string, advice string) error {
	n, err := s.depthOf(ctx, s.db, key)
	if err == nil && n >= api.MaxDepth {
		return fmt.Errorf("%s: %w: it would lie over %d images, and %d are the most: %s", what, ErrInvalid, n+1, api.MaxDepth, advice)
	}
	return err
}

// noRows makes sql.ErrNoRows what a caller can act on.
func noRows(err error, what string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}
