package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// newLayer is what the row of a new layer says.
type newLayer struct {
	key, parent    string
	kind           api.LayerKind
	source, origin string
	size           int64 // virtual
	user, compress string
	info           api.ImageInfo
	at             time.Time
}

// insertLayer commits nothing by itself: the row is an intent, in the state creating.
func insertLayer(ctx context.Context, tx *sql.Tx, n newLayer) error {
	info, err := json.Marshal(n.info)
	if err != nil {
		return err
	}
	if n.compress == "" {
		n.compress = "none"
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO templates
		(digest, parent, kind, state, source, origin, virtual_size, user, compress, info, created_at, file_size, file_mtime)
		VALUES (?, nullif(?, ''), ?, 'creating', ?, ?, ?, ?, ?, ?, ?, 0, 0)`,
		n.key, n.parent, n.kind, n.source, n.origin, n.size, n.user, n.compress, string(info), n.at.UnixNano())
	return err
}

// temporary makes an empty file of the store's own, which is gone at the next
// start whatever happens.
func (s *Store) temporary(dir string) (path string, err error) {
	s.step("temporary file")
	for try := 0; ; try++ {
		// Known before it is there: prune removes those that are not.
		path := filepath.Join(dir, strings.Replace(temporaryName, "*", fmt.Sprint(randomNumber()), 1))
		s.temps.add(path)
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			s.temps.remove(path)
			if errors.Is(err, os.ErrExist) && try < 10 {
				continue
			}
			return "", fmt.Errorf("store: %w", err)
		}
		if err := f.Close(); err != nil {
			return "", errors.Join(fmt.Errorf("store: %w", err), s.removeTemporary(path))
		}
		return path, nil
	}
}

// removeTemporary removes what was not published.
func (s *Store) removeTemporary(path string) error {
	defer s.temps.remove(path)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// naming gives a layer its name in the transaction that makes the row, and
// returns what it is to be shown by.
type naming func(ctx context.Context, tx *sql.Tx, digest string) (string, error)

// publishLayer makes a finished image a layer by the name of its digest, or finds
// the one that has it. The row is committed as creating before the file gets
// its name, so that a crash leaves no image without a row.
func (s *Store) publishLayer(ctx context.Context, tmp string, n newLayer, name naming) (api.Template, error) {
	s.step("layer synced")
	if err := os.Chmod(tmp, 0o444); err != nil {
		return api.Template{}, fmt.Errorf("store: %w", err)
	}
	if err := syncPath(tmp); err != nil {
		return api.Template{}, fmt.Errorf("store: %w", err)
	}
	digest, err := hashFile(ctx, tmp, nil)
	if err != nil {
		return api.Template{}, err
	}
	n.key = digest
	end, err := s.beginPublish(ctx, digest)
	if err != nil {
		return api.Template{}, err
	}
	defer end()
	ctx = context.WithoutCancel(ctx)
	if err := s.repairLayer(ctx, tmp, n); err != nil {
		return api.Template{}, err
	}
	isNew, shown := false, ""
	s.step("layer row")
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		var there int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM templates WHERE digest = ?`, digest).Scan(&there); err != nil {
			return err
		}
		if isNew = there == 0; isNew {
			if err := insertLayer(ctx, tx, n); err != nil {
				return err
			}
		} else if _, err := tx.ExecContext(ctx, `UPDATE templates SET kind = 'template' WHERE digest = ? AND kind = 'frozen'`, digest); err != nil {
			return err
		}
		shown, err = name(ctx, tx, digest)
		return err
	})
	if err != nil {
		return api.Template{}, err
	}
	s.step("layer row committed")
	if !isNew {
		return s.Template(ctx, shown)
	}
	if err := s.placeLayer(ctx, tmp, n); err != nil {
		// The last commit may have gone through for all its error: the row
		// is made an intent again before the file goes.
		_, e := s.db.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ?`, digest)
		if e == nil {
			e = s.dropLayer(ctx, digest)
		}
		return api.Template{}, errors.Join(err, e)
	}
	return s.Template(ctx, shown)
}

// repairLayer puts a finished image in the place of the layer with its digest, if there is
// one and it is not what it was. What else is wrong below a layer that is there is an
// error, before a name moves to it. The caller holds s.publish.
func (s *Store) repairLayer(ctx context.Context, tmp string, n newLayer) error {
	list, err := s.chain(ctx, s.db, n.key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.intact(ctx, list[0]); err != nil {
		if !errors.Is(err, ErrChanged) || list[0].parent != n.parent {
			return err
		}
		s.log.Warn("a layer that was changed is replaced by an image with its digest", "layer", list[0].name, "why", err)
		if err := s.placeLayer(ctx, tmp, n); err != nil {
			return err
		}
	}
	return s.Intact(ctx, n.key)
}

// beginPublish takes s.publish to make a layer of this digest, or to use the one that is
// there, which from then on is whole, and does not go by itself, until end. The
// removal, or the making, of one that failed half way is finished first (nobody is at
// it): its row would be taken for that of a whole one.
func (s *Store) beginPublish(ctx context.Context, digest string) (end func(), err error) {
	s.publish.Lock()
	// Before the statement of dropHalf, which waits for the transactions that
	// have not seen it.
	s.publishing.Store(&digest)
	ctx = context.WithoutCancel(ctx)
	end = func() {
		s.publishing.Store(nil)
		s.publish.Unlock()
		// The last that needed it may have gone meanwhile.
		if err := s.dropUnused(ctx, digest); err != nil {
			s.log.Error("a layer that nothing needs is not removed yet", "layer", digest, "error", err)
		}
	}
	if err := s.dropHalf(ctx, digest); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

func (s *Store) placeLayer(ctx context.Context, tmp string, n newLayer) error {
	path := s.layerPath(n.key, n.parent)
	// A file of that name that the database does not know has the same
	// content, or should have: to replace it is right in both cases.
	if err := s.thaw(path); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("layer renamed")
	p, err := s.seal(path)
	if err != nil {
		return err
	}
	if err := s.syncLayers(n.parent); err != nil {
		return err
	}
	s.step("layer sealed")
	_, err = s.db.ExecContext(ctx, `UPDATE templates SET state = 'ready', file_size = ?, file_mtime = ?, file_ctime = ?, file_inode = ? WHERE digest = ?`,
		p.Size, p.Mtime, p.Ctime, p.Inode, n.key)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	s.step("layer ready")
	return nil
}

// syncLayers makes the names in the folder of layers with, or without, a parent durable.
func (s *Store) syncLayers(parent string) error {
	dir := s.home.Templates()
	if parent != "" {
		dir = s.home.Layers()
	}
	if err := syncPath(dir); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}
