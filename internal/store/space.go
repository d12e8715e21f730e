package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/lamina-vm/lamina/internal/api"
)

// Limits returns the bounds of the home as they were set; zero values are those
// that never were.
func (s *Store) Limits(ctx context.Context) (l api.SpaceLimits, err error) {
	var value []byte
	err = s.db.QueryRowContext(ctx, `SELECT value FROM settings WHERE name = 'space'`).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(value, &l)
	}
	if err != nil {
		return l, fmt.Errorf("state database: the limits of space: %w", err)
	}
	return l, nil
}

// SetLimits sets the bounds of the home.
func (s *Store) SetLimits(ctx context.Context, l api.SpaceLimits) error {
	if l.MinFree < 0 || l.Quota < 0 {
		return fmt.Errorf("limits of space: %w: %d and %d bytes: they cannot be negative", ErrInvalid, l.MinFree, l.Quota)
	}
	value, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if _, err := s.db.ExecContext(ctx, `INSERT OR REPLACE INTO settings (name, value) VALUES ('space', ?)`, string(value)); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// Usage is what of the store takes how many bytes on the host.
type Usage struct {
	Templates int64 // with frozen layers, and what is half imported
	Warm      int64 // warm units, with the layers of their disks
	Machines  int64 // their folders
}

// Usage measures the store: it looks at each of its files.
func (s *Store) Usage(ctx context.Context) (u Usage, err error) {
	layers, err := all(ctx, s.db, scanText, `SELECT digest FROM templates WHERE kind = 'warm' AND parent IS NOT NULL`)
	if err != nil {
		return u, fmt.Errorf("state database: %w", err)
	}
	warm := int64(0)
	for _, key := range layers {
		warm += allocated(s.home.LayerDisk(key))
	}
	var frozen int64
	for _, k := range []struct {
		dir string
		sum *int64
	}{{s.home.Templates(), &u.Templates}, {filepath.Dir(s.home.Layers()), &frozen}, {s.home.Warm(), &u.Warm}, {s.home.Machines(), &u.Machines}} {
		if *k.sum, err = taken(ctx, k.dir); err != nil {
			return u, fmt.Errorf("store: %w", err)
		}
	}
	u.Templates += frozen
	u.Templates -= min(warm, u.Templates)
	u.Warm += warm
	return u, nil
}

// taken is what the files below a folder take, and it itself. What goes meanwhile is
// passed over; a file with several names counts as a part for each.
func taken(ctx context.Context, dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n := st.Blocks * 512
			if !d.IsDir() && st.Nlink > 1 {
				n /= int64(st.Nlink)
			}
			sum += n
		}
		return nil
	})
	return sum, err
}
