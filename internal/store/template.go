package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
)

// Templates lists the templates, by creation: what people keep. Layers that
// come and go with machines and warm units are among [Store.Layers].
func (s *Store) Templates(ctx context.Context) ([]api.Template, error) {
	return s.list(ctx, func(n *node) bool { return n.Kind == api.LayerTemplate })
}

// Layers lists all layers, those below first.
func (s *Store) Layers(ctx context.Context) ([]api.Template, error) {
	return s.list(ctx, func(*node) bool { return true })
}

func (s *Store) list(ctx context.Context, want func(*node) bool) ([]api.Template, error) {
	g, err := s.graph(ctx, s.db)
	if err != nil {
		return nil, err
	}
	var list []api.Template
	for _, n := range g.layers {
		if want(n) {
			list = append(list, s.template(n, ""))
		}
	}
	return list, nil
}

// Template returns the template, or other layer, that ref means: a name, a digest or
// id, or the first 12 or more digits of one.
func (s *Store) Template(ctx context.Context, ref string) (api.Template, error) {
	g, err := s.graph(ctx, s.db)
	if err != nil {
		return api.Template{}, err
	}
	n, err := g.find(ref, names.IsDigest(ref))
	if err != nil {
		return api.Template{}, err
	}
	return s.template(n, ref), nil
}

// SetInfo records what looking into a layer's image has found.
func (s *Store) SetInfo(ctx context.Context, key string, info api.ImageInfo) error {
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return s.changeTemplate(ctx, key, `UPDATE templates SET info = ? WHERE digest = ? AND state = 'ready'`, string(b), key)
}

// SetUser records the default user of a layer's machines.
func (s *Store) SetUser(ctx context.Context, key, user string) error {
	return s.changeTemplate(ctx, key, `UPDATE templates SET user = ? WHERE digest = ? AND state = 'ready'`, user, key)
}

func (s *Store) changeTemplate(ctx context.Context, key, query string, args ...any) error {
	res, err := s.db.ExecContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, fmt.Errorf("template %.12s: %w", key, ErrNotFound))
	}
	return nil
}

// Tag gives the layer that ref means one more name; a frozen layer is a template from
// then on, which is kept until it is removed. A name that another template has is
// ErrExists unless move is set: then it is taken from there, and that one stays without it.
func (s *Store) Tag(ctx context.Context, ref, name string, move bool) (api.Template, error) {
	if err := names.CheckTemplate(name); err != nil {
		return api.Template{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s.publish.Lock()
	defer s.publish.Unlock()
	t, err := s.Template(ctx, ref)
	if err != nil {
		return t, err
	}
	err = transact(ctx, s.db, func(tx *sql.Tx) error { return setName(ctx, tx, t.Digest, name, move) })
	if err != nil {
		return t, err
	}
	return s.Template(ctx, name)
}

// setName gives a layer a name and makes it a template.
func setName(ctx context.Context, tx *sql.Tx, key, name string, move bool) error {
	owner, err := nameOwner(ctx, tx, name)
	if err != nil {
		return err
	}
	if owner != "" && owner != key && !move {
		return fmt.Errorf("template %s %w with other content (%.12s): choose another name, or move it (--move)", name, ErrExists, owner)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO template_names (name, digest) VALUES (?, ?)
		ON CONFLICT (name) DO UPDATE SET digest = excluded.digest`, name, key); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE templates SET kind = 'template' WHERE digest = ? AND kind <> 'template'`, key)
	return err
}

// RemoveTemplate forgets the name ref, and removes the template when that was
// its last one or ref is a digest. It fails with ErrInUse, and names the
// machines, layers and warm units, while they need the template. Frozen layers
// that nothing else needs go with it.
func (s *Store) RemoveTemplate(ctx context.Context, ref string) error {
	s.publish.Lock()
	defer s.publish.Unlock()
	last := true
	var key string
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		g, err := s.graph(ctx, tx)
		if err != nil {
			return err
		}
		n, err := g.find(ref, names.IsDigest(ref))
		if err != nil {
			return err
		}
		key = n.Digest
		if s.template(n, ref).Name == ref && len(n.Names) > 1 {
			last = false
			_, err := tx.ExecContext(ctx, `DELETE FROM template_names WHERE name = ?`, ref)
			return err
		}
		if err := n.free(ref); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ?`, key)
		return err
	})
	if err != nil || !last {
		return err
	}
	return s.dropLayer(context.WithoutCancel(ctx), key)
}

// free says why a layer cannot be removed.
func (n *node) free(ref string) error {
	if users := n.needing(); len(users) > 0 {
		return fmt.Errorf("template %s is %w by %s: remove %s first", ref, ErrInUse, listed(users), them(len(users)))
	}
	var kept []string
	for _, c := range n.children {
		kept = append(kept, c.title())
	}
	if len(kept) > 0 {
		return fmt.Errorf("template %s is %w: over it are %s (`lamina template tree` shows all): remove %s first", ref, ErrInUse, listed(kept), them(len(kept)))
	}
	if units := append(n.units, n.Warm...); len(units) > 0 {
		return fmt.Errorf("template %s is %w by warm unit %s: remove %s first", ref, ErrInUse, listed(units), them(len(units)))
	}
	return nil
}

// dropLayer removes the file and then the row of a layer that is to be removed, and of
// frozen ones below that nothing else needs. One that is not to be (any more), as
// another call was quicker, is left alone.
func (s *Store) dropLayer(ctx context.Context, key string) (err error) {
	for key != "" && err == nil {
		key, err = s.dropOne(ctx, key)
	}
	return err
}

func (s *Store) dropOne(ctx context.Context, key string) (below string, err error) {
	// The look and the removal are one, as an import could make a layer of that
	// name again.
	s.dropping.Lock()
	defer s.dropping.Unlock()
	var parent string
	err = s.db.QueryRowContext(ctx, `SELECT coalesce(parent, '') FROM templates WHERE digest = ? AND state = 'removing'`, key).Scan(&parent)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("state database: %w", err)
	}
	s.step("layer file removed")
	if err := s.removeLayerFile(key, parent); err != nil {
		return "", err
	}
	s.step("layer row removed")
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM templates WHERE digest = ? AND state = 'removing'`, key); err != nil {
			return err
		}
		if parent == "" {
			return nil
		}
		list, err := s.markUnneeded(ctx, tx, parent)
		if len(list) > 0 {
			below = list[0]
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("state database: %w", err)
	}
	return below, nil
}

// dropHalf is dropLayer for a layer that was half made.
func (s *Store) dropHalf(ctx context.Context, key string) error {
	if _, err := s.db.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ? AND state = 'creating'`, key); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.dropLayer(ctx, key)
}

// unneeded is what tells of a row of templates (t) that it goes by itself.
const unneeded = `t.state = 'ready' AND t.kind <> 'template'
	AND NOT EXISTS (SELECT 1 FROM machines WHERE digest = t.digest)
	AND NOT EXISTS (SELECT 1 FROM templates c WHERE c.parent = t.digest)
	AND NOT EXISTS (SELECT 1 FROM disk_changes WHERE layer = t.digest)
	AND NOT EXISTS (SELECT 1 FROM units WHERE template = t.digest OR layer = t.digest)`

// markUnneeded makes a frozen or warm layer that nothing needs one to be removed.
// Of "" it takes all of them. It returns what is to be dropped once the
// transaction is committed. One that is just being published stays: see beginPublish.
func (s *Store) markUnneeded(ctx context.Context, tx *sql.Tx, key string) ([]string, error) {
	busy := ""
	if p := s.publishing.Load(); p != nil {
		busy = *p
	}
	return all(ctx, tx, scanText, `UPDATE templates AS t SET state = 'removing'
		WHERE (?1 = '' OR t.digest = ?1) AND t.digest <> ?2 AND `+unneeded+` RETURNING digest`, key, busy)
}

// dropUnneeded removes the frozen and warm layers that nothing needs any more.
func (s *Store) dropUnneeded(ctx context.Context) error { return s.dropUnused(ctx, "") }

// dropUnused is dropUnneeded of one layer, or of all for "".
func (s *Store) dropUnused(ctx context.Context, key string) error {
	var list []string
	err := transact(ctx, s.db, func(tx *sql.Tx) (err error) {
		list, err = s.markUnneeded(ctx, tx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.dropLayers(ctx, list)
}

// dropIfUnneeded removes one layer, or says that it is needed by now. One that is gone
// already, with what lay over it, is no error.
func (s *Store) dropIfUnneeded(ctx context.Context, key string) error {
	var list []string
	left := 0
	err := transact(ctx, s.db, func(tx *sql.Tx) (err error) {
		if list, err = s.markUnneeded(ctx, tx, key); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT count(*) FROM templates WHERE digest = ? AND state = 'ready'`, key).Scan(&left)
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	if left > 0 {
		return fmt.Errorf("layer %.12s is %w by now", key, ErrInUse)
	}
	return s.dropLayers(ctx, list)
}

func (s *Store) dropLayers(ctx context.Context, keys []string) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, s.dropLayer(ctx, key))
	}
	return errors.Join(errs...)
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

// removeLayerFile removes the image of a layer.
func (s *Store) removeLayerFile(key, parent string) error {
	if !digestPattern.MatchString(key) && !frozenPattern.MatchString(key) {
		return fmt.Errorf("store: %w: layer %q", ErrInvalid, key)
	}
	path := s.layerPath(key, parent)
	if err := s.thaw(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	dir := s.home.Templates()
	if parent != "" {
		dir = s.home.Layers()
	}
	if err := syncPath(dir); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}
