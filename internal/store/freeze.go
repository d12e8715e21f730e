package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// Freeze is the own layer of a machine on its way to become a layer that others lie
// over, while the machine goes on over it with a new, empty one.
//
// Before anything changes for the machine, its image has a second name where the
// layer will be, and the new layer, over that name, is there. So both ways on
// are open at each instant:
//
//	undone:  the second name and the new layer go; the image stays the machine's own
//	done:    the rows say that it is a layer, its first name goes (or leads there,
//	         while a QEMU knows it by that), it is sealed
//
// Which of the two is right is decided by what QEMU does, which outlives the daemon:
// see SettleFreeze.
type Freeze struct {
	Machine Machine
	Layer   string // key of the layer to be
	// Disk is the machine's present image, Overlay the new one: what
	// vm.FreezeRequest.Layers wants. Absolute paths.
	Disk, Overlay string
	// RAM and State are where the memory of a fork may be kept, in the machine's
	// folder. They are not there, and go with EndFreeze.
	RAM, State string
	// Clones are machines over the layer to be: their files are there, and they
	// are nobody's before CommitFreeze.
	Clones []Machine
}

// BeginFreeze prepares the freezing of a running machine, and clones that are to
// lie over the layer (their Size 0 is the machine's own). No other change of the
// machine's disk may be under way. CommitFreeze, AbortFreeze or
// SettleFreeze must follow.
func (s *Store) BeginFreeze(ctx context.Context, id string, clones []NewMachine, made func(name string)) (Freeze, error) {
	m, err := s.freezable(ctx, id)
	if err != nil {
		return Freeze{}, err
	}
	return s.beginFreeze(ctx, m, newLayer{key: newFrozenKey(), kind: api.LayerFrozen}, clones, made)
}

// freezable returns a machine whose disk can become a layer.
func (s *Store) freezable(ctx context.Context, id string) (Machine, error) {
	m, err := s.ownDisk(ctx, id)
	if err != nil {
		return m, err
	}
	for i, d := range m.Spec.Disks {
		if i > 0 && d.Device == vm.DeviceDisk && !d.ReadOnly {
			return m, fmt.Errorf("machine %s: %w: it writes to the disk %s too, which its copies cannot share: detach it first", m.Name, ErrInvalid, d.Path)
		}
	}
	return m, s.notTooDeep(ctx, "machine "+m.Name, m.Digest, "`lamina flatten "+m.Name+"` first")
}

// ownDisk returns a machine that has a layer of its own which no change is under
// way of, and whose layers are what they were.
func (s *Store) ownDisk(ctx context.Context, id string) (Machine, error) {
	m, err := s.unchanging(ctx, id)
	if err != nil {
		return m, err
	}
	return m, s.Intact(ctx, m.Digest)
}

// unchanging is ownDisk without a look at the layers below.
func (s *Store) unchanging(ctx context.Context, id string) (Machine, error) {
	m, err := s.Machine(ctx, id)
	if err != nil {
		return m, err
	}
	if m.Definition != nil {
		return m, fmt.Errorf("machine %s: %w: it was made of a description and its disks are not the store's: import its disk as a template, and make machines of that", m.Name, ErrInvalid)
	}
	if m.streaming {
		return m, fmt.Errorf("machine %s: its disk is %w: it is just being flattened", m.Name, ErrInUse)
	}
	c, err := s.diskChange(ctx, m.ID)
	if err == nil {
		return m, fmt.Errorf("machine %s: its disk is %w: it is just becoming %s", m.Name, ErrInUse, c.what())
	}
	if !errors.Is(err, ErrNotFound) {
		return m, err
	}
	return m, nil
}

// beginFreeze makes the rows and files of a freeze. n has key and kind, and what else
// is not the machine's. A layer with that key that is there already is used as it is.
func (s *Store) beginFreeze(ctx context.Context, m Machine, n newLayer, clones []NewMachine, made func(string)) (f Freeze, err error) {
	disk, err := s.images.Describe(ctx, s.Disk(m))
	if err != nil {
		return f, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	if err := s.overBase(ctx, m, disk); err != nil { // else the layer names another base than its row
		return f, err
	}
	t, err := s.freezeOrigin(ctx, m)
	if err != nil {
		return f, err
	}
	// The machine's own image goes where there is such a layer: only for one that is whole.
	if err := s.Intact(ctx, n.key); err != nil && !errors.Is(err, ErrNotFound) {
		return f, fmt.Errorf("machine %s: its disk is the same as a layer that is there: %w", m.Name, err)
	}
	n.parent, n.size, n.at, n.source, n.origin, n.user, n.info = m.Digest, disk.Size, time.Now(), "machine "+m.Name, m.Name, t.User, t.Info
	c := diskChange{machine: m.ID, layer: n.key, old: m.disk, generation: m.generation + 1, disk: home.DiskName(m.generation + 1)}
	dir := s.Dir(m.ID)
	f = Freeze{Machine: m, Layer: n.key, Disk: s.Disk(m), Overlay: filepath.Join(dir, c.disk),
		RAM: filepath.Join(dir, home.RAMFile), State: filepath.Join(dir, home.StateFile)}
	shown := t
	shown.Digest, shown.VirtualSize, shown.Name = n.key, disk.Size, m.Template
	if f.Clones, err = s.newMachines(shown, clones); err != nil {
		return f, err
	}
	c.clones = ids(f.Clones)
	isNew := false
	s.step("layer row")
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		var there int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM templates WHERE digest = ? AND state = 'ready'`, n.key).Scan(&there)
		if err != nil {
			return err
		}
		if isNew = there == 0; isNew {
			if err := insertLayer(ctx, tx, n); err != nil {
				return err
			}
		}
		if err := c.insert(ctx, tx); err != nil {
			return err
		}
		return insertMachines(ctx, tx, f.Clones)
	})
	if err != nil {
		return f, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	if err := s.makeFreeze(ctx, f, n, isNew, disk.Size, clones, made); err != nil {
		return f, errors.Join(fmt.Errorf("machine %s: %w", m.Name, err), s.undoFreeze(context.WithoutCancel(ctx), c))
	}
	return f, nil
}

// freezeOrigin is the layer that a machine lies over, or nothing.
func (s *Store) freezeOrigin(ctx context.Context, m Machine) (api.Template, error) {
	if m.Digest == "" {
		return api.Template{User: m.User}, nil
	}
	return s.Template(ctx, m.Digest)
}

// makeFreeze makes the files of a freeze.
func (s *Store) makeFreeze(ctx context.Context, f Freeze, n newLayer, isNew bool, size int64, clones []NewMachine, made func(string)) error {
	path := s.layerPath(n.key, n.parent)
	if isNew {
		s.step("layer linked")
		// A file of that name that the database does not know: see placeLayer. With
		// a random key there is none.
		if digestPattern.MatchString(n.key) {
			if err := s.removeLayerFile(n.key, n.parent); err != nil {
				return err
			}
		}
		if err := os.Link(f.Disk, path); err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if err := s.syncLayers(n.parent); err != nil {
			return err
		}
	}
	s.step("overlay made")
	backing := backingName(n.key, n.parent)
	if err := s.makeOverlay(ctx, f.Overlay, backing, size, true); err != nil {
		return err
	}
	if len(clones) == 0 {
		return nil
	}
	return s.makeMachineFiles(ctx, map[string]base{"": {n.key, backing}}, f.Clones, clones, made)
}

// CommitFreeze makes the machine's former image a layer, the overlay its own
// image, and the clones machines. QEMU writes to the overlay by now, or does not run.
// It returns the machine as it is then, and its clones. The files of RAM
// and state, if there are such, stay until EndFreeze.
func (s *Store) CommitFreeze(ctx context.Context, id string) (Machine, []Machine, error) {
	ctx = context.WithoutCancel(ctx)
	c, err := s.diskChange(ctx, id)
	if err != nil {
		return Machine{}, nil, err
	}
	if c.layer == "" || c.done {
		return Machine{}, nil, fmt.Errorf("machine %s: %w: it is not being frozen", id, ErrInvalid)
	}
	if err := s.commitFreeze(ctx, c, nil); err != nil {
		return Machine{}, nil, err
	}
	return s.frozen(ctx, c)
}

// frozen returns a machine whose freeze is committed, and its clones.
func (s *Store) frozen(ctx context.Context, c diskChange) (Machine, []Machine, error) {
	m, err := s.Machine(ctx, c.machine)
	if err != nil {
		return Machine{}, nil, err
	}
	made := make([]Machine, 0, len(c.clones))
	for _, clone := range c.clones {
		n, err := s.Machine(ctx, clone)
		if err != nil {
			return m, nil, err
		}
		made = append(made, n)
	}
	return m, made, nil
}

// commitFreeze is CommitFreeze; also is done in the transaction that decides.
func (s *Store) commitFreeze(ctx context.Context, c diskChange, also func(*sql.Tx) error) error {
	parent, isNew, err := s.layerToBe(ctx, c.layer)
	if err != nil {
		return err
	}
	path := s.layerPath(c.layer, parent)
	if err := errors.Join(syncPath(path), syncPath(filepath.Join(s.Dir(c.machine), c.disk))); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	p, err := look(path)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("freeze committed")
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		if isNew {
			// Its ctime is not what it will be: 0 is looked at when it is sealed.
			if _, err := tx.ExecContext(ctx, `UPDATE templates SET state = 'ready', used_at = ?, file_size = ?, file_mtime = ?, file_ctime = 0 WHERE digest = ?`,
				time.Now().UnixNano(), p.Size, p.Mtime, c.layer); err != nil {
				return err
			}
		}
		if err := c.commit(ctx, tx, c.layer); err != nil {
			return err
		}
		for _, clone := range c.clones {
			if _, err := tx.ExecContext(ctx, `UPDATE machines SET state = 'ready' WHERE id = ? AND state = 'creating'`, clone); err != nil {
				return err
			}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	c.done = true
	s.step("freeze is committed")
	return s.finishChange(ctx, c)
}

// layerToBe returns the parent of a layer, and whether it is not one yet.
func (s *Store) layerToBe(ctx context.Context, key string) (parent string, isNew bool, err error) {
	var state string
	err = s.db.QueryRowContext(ctx, `SELECT coalesce(parent, ''), state FROM templates WHERE digest = ?`, key).Scan(&parent, &state)
	return parent, state != "ready", noRows(err, "layer "+key)
}

// AbortFreeze undoes BeginFreeze, where QEMU goes on with the image that it had,
// and removes the clones, RAM and state. After an error of vm.Freezer call SettleFreeze
// with the path that vm.Described tells in its place: it may have stayed with the overlay.
func (s *Store) AbortFreeze(ctx context.Context, id string) error {
	c, err := s.diskChange(ctx, id)
	if err != nil {
		return err
	}
	if c.layer == "" || c.done {
		return fmt.Errorf("machine %s: %w: it is not being frozen", id, ErrInvalid)
	}
	written, err := writtenByOther(filepath.Join(s.Dir(id), c.disk))
	if errors.Is(err, os.ErrNotExist) { // taken off again
		err = nil
	}
	if err != nil || written {
		return errors.Join(err, fmt.Errorf("machine %s: %w: a process writes to its new disk %s: the freeze cannot be undone any more", id, ErrInUse, c.disk))
	}
	return s.undoFreeze(context.WithoutCancel(ctx), c)
}

// undoFreeze removes what a freeze has made.
func (s *Store) undoFreeze(ctx context.Context, c diskChange) error {
	if err := s.dropMachines(ctx, c.clones); err != nil {
		return err
	}
	if err := s.removeInFolder(c.machine, c.disk, home.RAMFile, home.StateFile); err != nil {
		return err
	}
	s.step("freeze undone")
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		if err := c.delete(ctx, tx); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE templates SET state = 'removing' WHERE digest = ? AND state = 'creating'`, c.layer)
		return err
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.dropLayer(ctx, c.layer)
}

// EndFreeze removes a fork's RAM and state, when all that go on from them have
// mapped them. Without a freeze nothing happens.
func (s *Store) EndFreeze(ctx context.Context, id string) error {
	c, err := s.diskChange(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !c.done {
		return fmt.Errorf("machine %s: %w: its freeze is neither committed nor aborted", id, ErrInvalid)
	}
	return s.endChange(context.WithoutCancel(ctx), c)
}

// SettleFreeze decides what became of a change of a machine's disk that the last
// daemon did not finish, and finishes or undoes it. The daemon calls it when it
// has adopted the machine, with the path that QEMU now writes its own layer to, as
// QEMU itself says, not a record; with "" when it knows that none runs, and so before
// each start. It returns the machine as it is then. Where nothing is to be settled it
// costs a query.
//
// Where none runs, the content decides: a new layer that stores nothing may go, as
// nothing was written to it; one that stores something is what the machine
// went on with. One that it does not use any more vm.Freezer has removed, before the
// guest wrote to anything else.
func (s *Store) SettleFreeze(ctx context.Context, id, running string) (Machine, error) {
	ctx = context.WithoutCancel(ctx)
	c, err := s.diskChange(ctx, id)
	if err == nil {
		s.log.Info("settling a change of a machine's disk that was broken off", "machine", id, "layer", c.layer, "done", c.done)
		err = s.settle(ctx, c, running)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Machine{}, err
	}
	m, err := s.Machine(ctx, id)
	if err == nil && running == "" {
		err = s.dropLinks(m)
	}
	if err == nil && m.streaming && running == "" { // else QEMU may still be at it
		return s.abandonStream(ctx, m)
	}
	return m, err
}

// Unsettled lists the ids of the machines for which SettleFreeze has something to do.
func (s *Store) Unsettled(ctx context.Context) ([]string, error) {
	list, err := all(ctx, s.db, scanText, `SELECT machine FROM disk_changes UNION SELECT id FROM machines WHERE streaming = 1`)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	return list, nil
}

func (s *Store) settle(ctx context.Context, c diskChange, running string) error {
	if c.done {
		if err := s.finishChange(ctx, c); err != nil {
			return err
		}
		return s.endChange(ctx, c)
	}
	if c.layer == "" {
		return s.undoReplacement(ctx, c)
	}
	switched, err := s.switched(ctx, c, running)
	if err != nil {
		return err
	}
	if !switched {
		return s.undoFreeze(ctx, c)
	}
	// Whoever asked for the clones has no answer.
	if err := s.dropMachines(ctx, c.clones); err != nil {
		return err
	}
	if err := s.commitFreeze(ctx, c, nil); err != nil {
		return err
	}
	return s.endChange(ctx, c)
}

// switched says whether the machine went on with its new layer.
func (s *Store) switched(ctx context.Context, c diskChange, running string) (bool, error) {
	dir := s.Dir(c.machine)
	before, after := filepath.Join(dir, c.old), filepath.Join(dir, c.disk)
	if _, err := os.Lstat(after); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	written, err := writtenByOther(after)
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	switch {
	case running == after:
		return true, nil
	case running == before && written:
		// Open, and not in use, by all that QEMU says. Its end will tell.
		return false, fmt.Errorf("machine %s: %w: it writes to its disk %s, and has %s open too: stop it, which settles that", c.machine, ErrInUse, running, after)
	case running == before:
		return false, nil
	case running != "":
		return false, fmt.Errorf("machine %s: %w: it runs with the disk %s, and %s or %s is what it has", c.machine, ErrInvalid, running, before, after)
	case written:
		return false, fmt.Errorf("machine %s: its disk %s is %w by a process: end that first", c.machine, after, ErrInUse)
	}
	empty, err := s.images.Empty(ctx, after)
	if err != nil {
		s.log.Warn("a machine's new layer cannot be read; it is kept", "path", after, "error", err)
		return true, nil
	}
	return !empty, nil
}
