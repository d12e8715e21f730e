package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
)

// Templates lists all templates, by creation and name. A template with
// several names comes once for each.
func (s *Store) Templates(ctx context.Context) ([]api.Template, error) {
	list, err := s.templates(ctx, ``)
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Template returns the template that ref means: a name, a digest, or the
// first 12 or more digits of one.
func (s *Store) Template(ctx context.Context, ref string) (api.Template, error) {
	list, err := s.templates(ctx, ` AND n.name = ?`, ref)
	if err != nil {
		return api.Template{}, err
	}
	if len(list) == 0 && names.IsDigest(ref) {
		list, err = s.templates(ctx, ` AND t.digest >= ? AND t.digest <= ?`, ref, ref+strings.Repeat("f", 64-len(ref)))
		if err != nil {
			return api.Template{}, err
		}
	}
	switch {
	case len(list) == 0:
		return api.Template{}, fmt.Errorf("template %q: %w", ref, ErrNotFound)
	case list[0].Digest != list[len(list)-1].Digest:
		return api.Template{}, fmt.Errorf("template %q: %w: several digests begin like this", ref, ErrInvalid)
	}
	return list[0], nil
}

func (s *Store) templates(ctx context.Context, where string, args ...any) ([]api.Template, error) {
	list, err := all(ctx, s.db, scanTemplate, `
		SELECT t.digest, coalesce(n.name, ''), t.source, t.virtual_size, t.user, t.created_at
		FROM templates t LEFT JOIN template_names n ON n.digest = t.digest
		WHERE t.state = 'ready'`+where+` ORDER BY t.created_at, t.digest, n.name`, args...)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	for i := range list {
		t := &list[i]
		t.DiskSize = allocated(s.home.TemplateDisk(t.Digest))
		if t.Machines, err = s.machinesOf(ctx, s.db, t.Digest); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func scanTemplate(r scanner) (t api.Template, err error) {
	var created int64
	err = r.Scan(&t.Digest, &t.Name, &t.Source, &t.VirtualSize, &t.User, &created)
	t.CreatedAt = time.Unix(0, created)
	return t, err
}

// machinesOf lists the names of the machines that need a template.
func (s *Store) machinesOf(ctx context.Context, q querier, digest string) ([]string, error) {
	list, err := all(ctx, q, scanText, `SELECT name FROM machines WHERE digest = ? ORDER BY name`, digest)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	if list == nil {
		list = []string{}
	}
	return list, nil
}

// allocated returns the bytes that a file takes on the host, 0 if it is gone.
func allocated(path string) int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}

// RemoveTemplate forgets the name ref, and removes the template when that was
// its last one or ref is a digest. It fails with ErrInUse, and names the
// machines, while a machine needs the template.
func (s *Store) RemoveTemplate(ctx context.Context, ref string) error {
	s.publish.Lock()
	defer s.publish.Unlock()
	t, err := s.Template(ctx, ref)
	if err != nil {
		return err
	}
	last := true
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		if t.Name == ref {
			var others int
			row := tx.QueryRowContext(ctx, `SELECT count(*) FROM template_names WHERE digest = ? AND name <> ?`, t.Digest, ref)
			if err := row.Scan(&others); err != nil {
				return err
			}
			if last = others == 0; !last {
				_, err := tx.ExecContext(ctx, `DELETE FROM template_names WHERE name = ?`, ref)
				return err
			}
		}
		users, err := s.machinesOf(ctx, tx, t.Digest)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return fmt.Errorf("template %s is %w by %s: remove %s first", ref, ErrInUse, listed(users), them(len(users)))
		}
		_, err = tx.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ?`, t.Digest)
		return err
	})
	if err != nil || !last {
		return err
	}
	return s.dropTemplate(context.WithoutCancel(ctx), t.Digest)
}

// dropTemplate removes the file and then the row of a template whose state is
// not ready.
func (s *Store) dropTemplate(ctx context.Context, digest string) error {
	s.step("template file removed")
	if err := s.removeTemplateFile(digest); err != nil {
		return err
	}
	if err := syncPath(s.home.Templates()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("template row removed")
	_, err := s.db.ExecContext(ctx, `DELETE FROM templates WHERE digest = ? AND state <> 'ready'`, digest)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// listed names at most ten of list.
func listed(list []string) string {
	const most = 10
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

func them(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

// Intact says whether a template's file still is what was imported, as far as
// its size and time of change tell: it costs one stat. ErrChanged if not.
func (s *Store) Intact(ctx context.Context, digest string) error {
	var size, mtime int64
	var name string
	err := s.db.QueryRowContext(ctx, `SELECT file_size, file_mtime,
		coalesce((SELECT min(name) FROM template_names n WHERE n.digest = t.digest), t.digest)
		FROM templates t WHERE digest = ?`, digest).Scan(&size, &mtime, &name)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("template %.12s: %w", digest, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	path := s.home.TemplateDisk(digest)
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s: %w: put the file back, or remove its machines and `lamina template rm %s`, and import the image again", ErrChanged, name, err, name)
	case !st.Mode().IsRegular() || st.Size() != size || st.ModTime().UnixNano() != mtime:
		return fmt.Errorf("%w: %s: its file %s has %d bytes of %s, imported were %d of %s: `lamina template verify %s` tells whether the content is another one, and takes it back into use if not",
			ErrChanged, name, path, st.Size(), st.ModTime().Format(time.RFC3339Nano), size, time.Unix(0, mtime).Format(time.RFC3339Nano), name)
	}
	return nil
}

// Verify reads a template's whole file and compares it with its digest. An
// intact file whose time alone changed (a restored backup) counts as imported
// again. ErrChanged if the content differs.
func (s *Store) Verify(ctx context.Context, digest string) error {
	path := s.home.TemplateDisk(digest)
	before, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	got, err := hashFile(ctx, path)
	if err != nil {
		return err
	}
	if got != digest {
		return fmt.Errorf("%w: %s has SHA-256 %s: put the file back as it was; else what its machines read of it is wrong: remove them and the template, and import the image again", ErrChanged, path, got)
	}
	_, err = s.db.ExecContext(ctx, `UPDATE templates SET file_size = ?, file_mtime = ? WHERE digest = ?`,
		before.Size(), before.ModTime().UnixNano(), digest)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}
