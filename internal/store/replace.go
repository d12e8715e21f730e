package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// Flatten gives a machine, which must not run, a disk that needs nothing below.
// What it lay over goes if nothing else needs it and it is no template. A crash
// leaves the machine as it was, or with its new disk.
func (s *Store) Flatten(ctx context.Context, id string, progress func(done, total int64)) (Machine, error) {
	m, err := s.replaceable(ctx, id, "flattened")
	if err != nil || m.Digest == "" {
		return m, err
	}
	return s.replaceDisk(ctx, m, replacement{template: m.Template, build: func(path string) error {
		return s.images.Convert(ctx, s.Disk(m), path, ConvertOptions{}, progress)
	}})
}

// Rebase puts a machine, which must not run, over another template. Its guest sees the
// same disk as before: what differs is kept in its own layer. A crash leaves the
// machine as it was, or over the new template.
func (s *Store) Rebase(ctx context.Context, id, template string, progress func(done, total int64)) (Machine, error) {
	m, err := s.replaceable(ctx, id, "rebased")
	if err != nil {
		return m, err
	}
	t, err := s.Template(ctx, template)
	if err != nil {
		return m, err
	}
	if t.Digest == m.Digest {
		return m, nil
	}
	what := fmt.Sprintf("rebase machine %s onto %s", m.Name, template)
	if err := s.Intact(ctx, t.Digest); err != nil {
		return m, fmt.Errorf("%s: %w", what, err)
	}
	n, err := s.depthOf(ctx, s.db, t.Digest)
	if err == nil && n > api.MaxDepth {
		err = fmt.Errorf("%w: it lies over %d images: export the template and import it again as one", ErrInvalid, n-1)
	}
	if err != nil {
		return m, fmt.Errorf("%s: %w", what, err)
	}
	name := t.Name
	if name == "" {
		name = t.Digest
	}
	return s.replaceDisk(ctx, m, replacement{base: t.Digest, template: name, build: func(path string) error {
		if err := s.images.Copy(ctx, s.Disk(m), path); err != nil {
			return err
		}
		s.step("disk copied")
		return s.images.Rebase(ctx, path, backingName(t.Digest, t.Parent), progress)
	}})
}

// replaceable returns a machine whose disk may be replaced by another one.
func (s *Store) replaceable(ctx context.Context, id, done string) (Machine, error) {
	m, err := s.stopped(ctx, id)
	if err != nil {
		return m, err
	}
	d, err := s.images.Describe(ctx, s.Disk(m))
	if err != nil {
		return m, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	if d.Snapshots > 0 {
		return m, fmt.Errorf("machine %s: %w: its disk has %d internal snapshots, which do not survive that it is %s: delete them first (`lamina img snapshot -d`)", m.Name, ErrInvalid, d.Snapshots, done)
	}
	return m, nil
}

// replacement is an image that takes the place of a machine's own.
type replacement struct {
	base     string // layer that it lies over, "" for none
	template string // what the machine is then said to be made of
	unit     string // warm unit that it is then made of, "" for none
	build    func(path string) error
}

// replaceDisk makes another image the machine's own.
func (s *Store) replaceDisk(ctx context.Context, m Machine, r replacement) (Machine, error) {
	c := diskChange{machine: m.ID, old: m.disk, generation: m.generation + 1, disk: home.DiskName(m.generation + 1)}
	if err := transact(ctx, s.db, func(tx *sql.Tx) error { return c.insert(ctx, tx) }); err != nil {
		return m, fmt.Errorf("state database: %w", err)
	}
	path := filepath.Join(s.Dir(m.ID), c.disk)
	s.step("new disk made")
	err := r.build(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = errors.Join(syncPath(path), syncPath(s.Dir(m.ID)))
	}
	if err != nil {
		return m, errors.Join(fmt.Errorf("machine %s: %w", m.Name, err), s.undoReplacement(context.WithoutCancel(ctx), c))
	}
	ctx = context.WithoutCancel(ctx)
	s.step("new disk committed")
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		if err := c.commit(ctx, tx, r.base); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE machines SET template = ?, unit = nullif(?, '') WHERE id = ?`, r.template, r.unit, m.ID)
		return err
	})
	if err != nil {
		_, settled := s.SettleFreeze(ctx, m.ID, "")
		return m, errors.Join(fmt.Errorf("state database: %w", err), settled)
	}
	c.done = true
	if err := s.finishChange(ctx, c); err != nil {
		return m, err
	}
	return s.Machine(ctx, m.ID)
}

// BeginStream records that QEMU is about to flatten the disk of a running machine
// (vm.DiskFlattener), so that the next daemon looks what became of it. A second time
// nothing happens.
func (s *Store) BeginStream(ctx context.Context, id string) error {
	m, err := s.Machine(ctx, id)
	if err != nil || m.streaming {
		return err
	}
	if m, err = s.ownDisk(ctx, id); err != nil {
		return err
	}
	if _, err := s.db.ExecContext(ctx, `UPDATE machines SET streaming = 1 WHERE id = ?`, m.ID); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// Streaming says whether a flattening of the machine's disk, while it runs, was
// begun and not ended yet.
func (m Machine) Streaming() bool { return m.streaming }

// EndStream records what QEMU's flattening came to. flat says that QEMU has done it, and
// that all of it is on stable storage ([vm.DiskFlattener] has returned without an error).
// Else the machine needs below what it needed before; while a QEMU still has the disk
// open of which that is not known, nothing is recorded.
func (s *Store) EndStream(ctx context.Context, id string, flat bool) (Machine, error) {
	ctx = context.WithoutCancel(ctx)
	m, err := s.Machine(ctx, id)
	if err != nil {
		return m, err
	}
	if !flat {
		return s.abandonStream(ctx, m)
	}
	d, err := s.images.Describe(ctx, s.Disk(m))
	if err == nil && d.Backing != "" {
		err = fmt.Errorf("its disk still needs %s below it", d.Backing)
	}
	if err == nil {
		err = syncPath(s.Disk(m))
	}
	if err != nil {
		return m, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	s.step("stream settled")
	var drop []string
	err = transact(ctx, s.db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE machines SET streaming = 0, digest = NULL WHERE id = ?`, m.ID)
		if err == nil && m.Digest != "" {
			drop, err = s.markUnneeded(ctx, tx, m.Digest)
		}
		return err
	})
	if err != nil {
		return m, fmt.Errorf("state database: %w", err)
	}
	if err := errors.Join(s.dropLinks(m), s.dropLayers(ctx, drop)); err != nil {
		return m, err
	}
	return s.Machine(ctx, m.ID)
}

// abandonStream puts a machine that was being flattened over what it lay over before. A
// header that names no backing file any more proves nothing: QEMU writes it before the
// tables of what it has copied, or the host may have. With its name put back the disk is
// right in both cases, as what was copied lies over it.
func (s *Store) abandonStream(ctx context.Context, m Machine) (Machine, error) {
	d, err := s.images.Describe(ctx, s.Disk(m))
	if err == nil && d.Backing == "" && m.Digest != "" {
		var written bool
		if written, err = writtenByOther(s.Disk(m)); err == nil && written {
			return m, nil // it can be asked, or will be gone
		}
		if err == nil {
			err = s.restoreBacking(ctx, m)
		}
	}
	if err != nil {
		return m, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	s.step("stream settled")
	if _, err := s.db.ExecContext(ctx, `UPDATE machines SET streaming = 0 WHERE id = ?`, m.ID); err != nil {
		return m, fmt.Errorf("state database: %w", err)
	}
	return s.Machine(ctx, m.ID)
}

func (s *Store) restoreBacking(ctx context.Context, m Machine) error {
	list, err := s.chain(ctx, s.db, m.Digest)
	if err != nil {
		return err
	}
	s.log.Warn("a machine was being flattened when its QEMU ended; it stays over its layers", "machine", m.Name)
	s.step("backing restored")
	if err := s.images.SetBacking(ctx, s.Disk(m), backingName(list[0].key, list[0].parent)); err != nil {
		return err
	}
	return syncPath(s.Disk(m))
}
