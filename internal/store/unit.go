package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// Unit is a warm unit: a template that has booted, as RAM, devices and disk of one
// instant.
type Unit struct {
	ID       string
	Template string // digest
	Layer    string // key of its disk's layer
	// Dir is its folder, where the machine that is being warmed has its runtime
	// files. Disk, RAM and State are absolute paths.
	Dir, Disk, RAM, State string
	Key                   vm.FrozenKey
	// Frozen is the machine at the instant, with these paths.
	Frozen    vm.Frozen
	BootTime  time.Duration
	Agent     string   // "lamina", "qemu"
	Machines  []string // names of those that were made of it
	CreatedAt time.Time
	UsedAt    time.Time // zero: not used yet
	// RAMSize is what RAM and State take on the host, DiskSize what the layer
	// does, in bytes.
	RAMSize, DiskSize int64

	files unitFiles
}

// unitFiles are a unit's own files as they were made.
type unitFiles struct {
	RAM       print  `json:"ram"`
	State     print  `json:"state"`
	RAMHash   string `json:"ramHash"` // SHA-256
	StateHash string `json:"stateHash"`
}

// UnitFacts is what is known of a unit when it has been frozen.
type UnitFacts struct {
	Frozen   vm.Frozen // as it came out; the paths are the unit's
	BootTime time.Duration
	Agent    string
}

// BeginUnit makes a warm unit's folder and its disk, an empty overlay of size
// bytes (0: the template's) over the template, for a machine that is to boot
// on it. Nobody finds the unit before CommitUnit; without it, it is gone at the
// next start of the daemon, with what runs in Unit.Dir ([Options.End]).
func (s *Store) BeginUnit(ctx context.Context, template string, size int64) (Unit, error) {
	if err := s.Intact(ctx, template); err != nil {
		return Unit{}, err
	}
	t, err := s.Template(ctx, template)
	if err != nil {
		return Unit{}, err
	}
	if size == 0 {
		size = t.VirtualSize
	}
	if size < t.VirtualSize {
		return Unit{}, fmt.Errorf("warm unit of template %s: %w: a disk of %d bytes is smaller than the template's %d", t.Name, ErrInvalid, size, t.VirtualSize)
	}
	if err := s.notTooDeep(ctx, "warm unit of template "+t.Name, t.Digest, "export the template and import it again as one image"); err != nil {
		return Unit{}, err
	}
	u := Unit{ID: newID(), Template: t.Digest, Layer: newFrozenKey(), CreatedAt: time.Now()}
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		err := insertLayer(ctx, tx, newLayer{key: u.Layer, parent: t.Digest, kind: api.LayerWarm, source: "warm unit " + u.ID,
			size: size, user: t.User, info: t.Info, origin: "", at: u.CreatedAt})
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO units (id, state, template, layer, key, key_hash, frozen, files, boot_time, agent, created_at, used_at)
			VALUES (?, 'creating', ?, ?, 'null', '', 'null', 'null', 0, '', ?, 0)`, u.ID, u.Template, u.Layer, u.CreatedAt.UnixNano())
		return err
	})
	if err != nil {
		return Unit{}, fmt.Errorf("state database: %w", err)
	}
	s.placeUnit(&u)
	if err := s.makeUnit(ctx, u, t, size); err != nil {
		return Unit{}, errors.Join(err, s.dropUnit(context.WithoutCancel(ctx), u.ID))
	}
	return u, nil
}

func (s *Store) makeUnit(ctx context.Context, u Unit, t api.Template, size int64) error {
	s.step("unit folder")
	if err := os.Mkdir(u.Dir, 0o700); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("unit disk")
	return s.makeOverlay(ctx, u.Disk, backingName(t.Digest, t.Parent), size, true)
}

// makeOverlay makes an empty overlay, mode 0600.
func (s *Store) makeOverlay(ctx context.Context, path, backing string, size int64, durable bool) error {
	if err := s.images.Overlay(ctx, path, backing, size); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if !durable {
		return nil
	}
	if err := errors.Join(syncPath(path), syncPath(filepath.Dir(path))); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// placeUnit puts the paths into a unit; they follow from the home.
func (s *Store) placeUnit(u *Unit) {
	u.Dir = s.home.Unit(u.ID)
	u.RAM, u.State = filepath.Join(u.Dir, home.RAMFile), filepath.Join(u.Dir, home.StateFile)
	u.Disk = s.home.LayerDisk(u.Layer)
	u.Frozen.RAM, u.Frozen.State, u.Frozen.Key = u.RAM, u.State, u.Key
	if len(u.Frozen.Spec.Disks) > 0 {
		u.Frozen.Spec.Disks[0].Path = u.Disk
	}
}

// CommitUnit makes a begun unit whole: its files, which nothing may write to any
// more, are read once for their digests, sealed and recorded. From then on it is found.
func (s *Store) CommitUnit(ctx context.Context, id string, f UnitFacts) (Unit, error) {
	u, err := s.unit(ctx, id, "creating")
	if err != nil {
		return Unit{}, err
	}
	u.Frozen, u.Key = f.Frozen, f.Frozen.Key
	u.Frozen.Spec = f.Frozen.Spec.Clone()
	s.placeUnit(&u)
	var files unitFiles
	var ram, state print
	disk, diskWas, err := hashStill(ctx, u.Disk, nil)
	if err == nil {
		files.RAMHash, ram, err = hashStill(ctx, u.RAM, nil)
	}
	if err == nil {
		files.StateHash, state, err = hashStill(ctx, u.State, nil)
	}
	if err != nil {
		return Unit{}, fmt.Errorf("warm unit %s: %w", id, err)
	}
	s.step("unit sealed")
	layer, err := s.seal(u.Disk)
	if err == nil {
		files.State, err = s.seal(u.State)
	}
	if err == nil {
		files.RAM, err = s.sealRAM(u)
	}
	if err == nil { // nothing was written between the look and the seal
		err = errors.Join(diskWas.same(u.Disk), ram.same(u.RAM), state.same(u.State))
	}
	if err == nil {
		err = errors.Join(syncPath(u.Dir), syncPath(s.home.Warm()), syncPath(s.home.Layers()))
	}
	if err != nil {
		return Unit{}, fmt.Errorf("warm unit %s: %w", id, err)
	}
	key, err1 := json.Marshal(u.Key)
	frozen, err2 := json.Marshal(u.Frozen)
	prints, err3 := json.Marshal(files)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Unit{}, err
	}
	s.step("unit row ready")
	err = transact(context.WithoutCancel(ctx), s.db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE templates SET state = 'ready', sha256 = ?, file_size = ?, file_mtime = ?, file_ctime = ?, file_inode = ? WHERE digest = ?`,
			disk, layer.Size, layer.Mtime, layer.Ctime, layer.Inode, u.Layer)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE units SET state = 'ready', key = ?, key_hash = ?, frozen = ?, files = ?, boot_time = ?, agent = ? WHERE id = ? AND state = 'creating'`,
			string(key), hashKey(u.Key), string(frozen), string(prints), int64(f.BootTime), f.Agent, id)
		return err
	})
	if err != nil {
		return Unit{}, fmt.Errorf("state database: %w", err)
	}
	s.step("unit ready")
	return s.Unit(ctx, id)
}

// sealRAM is seal for a unit's RAM. A QEMU before 8.2 opens a file that it maps
// privately for writing all the same, which neither mode 0444 (but for root) nor the
// flag allow: its print has to do.
func (s *Store) sealRAM(u Unit) (print, error) {
	var major, minor int
	if n, _ := fmt.Sscanf(u.Key.QEMU, "%d.%d", &major, &minor); n == 2 && (major > 8 || major == 8 && minor >= 2) {
		return s.seal(u.RAM)
	}
	if err := s.thaw(u.RAM); err != nil {
		return print{}, err
	}
	st, err := os.Lstat(u.RAM)
	if err == nil && st.Mode() != 0o600 { // else its ctime would move for nothing
		err = os.Chmod(u.RAM, 0o600)
	}
	if err != nil {
		return print{}, fmt.Errorf("store: %w", err)
	}
	if err := syncPath(u.RAM); err != nil {
		return print{}, fmt.Errorf("store: %w", err)
	}
	return look(u.RAM)
}

// DiscardUnit removes a unit that was begun and not committed. Nothing may run
// on it.
func (s *Store) DiscardUnit(ctx context.Context, id string) error {
	if _, err := s.unit(ctx, id, "creating"); err != nil {
		return err
	}
	return s.dropUnit(context.WithoutCancel(ctx), id)
}

// RemoveUnit removes a warm unit. Machines that were made of it go on: those that run
// have its RAM mapped, and its layer stays until the last one is gone.
func (s *Store) RemoveUnit(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx)
	res, err := s.db.ExecContext(ctx, `UPDATE units SET state = 'removing' WHERE id = ? AND state = 'ready'`, id)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, fmt.Errorf("warm unit %s: %w", id, ErrNotFound))
	}
	s.step("unit row removing")
	return s.dropUnit(ctx, id)
}

// dropUnit removes the folder and the row of a unit that is not ready, and its layer
// if nothing else needs it.
func (s *Store) dropUnit(ctx context.Context, id string) error {
	if !machineIDPattern.MatchString(id) {
		return fmt.Errorf("store: %w: warm unit %q", ErrInvalid, id)
	}
	dir := s.home.Unit(id)
	if err := s.end(ctx, dir); err != nil {
		return fmt.Errorf("warm unit %s: %w", id, err)
	}
	s.step("unit folder removed")
	for _, name := range []string{home.StateFile, home.RAMFile} {
		if err := s.thaw(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := removeFolder(dir); err != nil {
		return err
	}
	if err := syncPath(s.home.Warm()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("unit row removed")
	var layer string
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx, `DELETE FROM units WHERE id = ? AND state <> 'ready' RETURNING layer`, id).Scan(&layer)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ? AND state = 'creating'`, layer); err != nil {
			return err
		}
		_, err = s.markUnneeded(ctx, tx, layer)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.dropLayer(ctx, layer)
}

// TouchUnit records that the unit was used.
func (s *Store) TouchUnit(ctx context.Context, id string) error {
	if _, err := s.db.ExecContext(ctx, `UPDATE units SET used_at = ? WHERE id = ?`, time.Now().UnixNano(), id); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// newFrozenKey names a layer whose content is not known yet.
func newFrozenKey() string { return "f" + newID() + newID() }

func hashKey(k vm.FrozenKey) string {
	b, err := json.Marshal(k)
	if err != nil {
		panic(err) // strings and integers
	}
	return hashText(b)
}

func hashText(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
