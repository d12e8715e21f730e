package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
)

// diskChange is the journal of a change of a machine's own image: begun, the old
// one is the machine's and the new one may go; done, it is the other way round.
type diskChange struct {
	machine string // id
	layer   string // that the old image becomes; "" for none: it is replaced
	done    bool
	// old and disk name the images in the machine's folder.
	old, disk  string
	generation int      // of disk
	clones     []string // ids of machines that are made with it
}

func (c diskChange) what() string {
	if c.layer == "" {
		return "another image"
	}
	return "a layer for others"
}

// diskChange returns the change of a machine's disk; ErrNotFound for none.
func (s *Store) diskChange(ctx context.Context, id string) (c diskChange, err error) {
	row := s.db.QueryRowContext(ctx, `SELECT `+changeColumns+` FROM disk_changes WHERE machine = ?`, id)
	c, err = scanChange(row)
	return c, noRows(err, "change of the disk of machine "+id)
}

const changeColumns = `machine, coalesce(layer, ''), state = 'done', old_disk, new_disk, generation, clones`

func scanChange(r scanner) (c diskChange, err error) {
	var clones []byte
	if err := r.Scan(&c.machine, &c.layer, &c.done, &c.old, &c.disk, &c.generation, &clones); err != nil {
		return c, err
	}
	if err := errors.Join(checkDisk(c.old), checkDisk(c.disk)); err != nil {
		return c, fmt.Errorf("change of the disk of machine %s: %w", c.machine, err)
	}
	return c, json.Unmarshal(clones, &c.clones)
}

// checkDisk refuses the name of an image which is none that the store gives: files of
// such names are removed.
func checkDisk(name string) error {
	if !home.IsDisk(name) {
		return fmt.Errorf("%w: the state database calls its disk %q", ErrInvalid, name)
	}
	return nil
}

// insert makes the intent.
func (c diskChange) insert(ctx context.Context, tx *sql.Tx) error {
	clones, err := json.Marshal(c.clones)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO disk_changes (machine, layer, state, old_disk, new_disk, generation, clones)
		VALUES (?, nullif(?, ''), 'begun', ?, ?, ?, ?)`, c.machine, c.layer, c.old, c.disk, c.generation, string(clones))
	return err
}

func (c diskChange) delete(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM disk_changes WHERE machine = ?`, c.machine)
	return err
}

// commit makes the new image the machine's, over the layer base.
func (c diskChange) commit(ctx context.Context, tx *sql.Tx, base string) error {
	_, err := tx.ExecContext(ctx, `UPDATE machines SET digest = nullif(?, ''), disk = ?, generation = ?, streaming = 0 WHERE id = ?`,
		base, c.disk, c.generation, c.machine)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE disk_changes SET state = 'done' WHERE machine = ?`, c.machine)
	return err
}

// finishChange takes the old image from a machine whose change is done: it
// is the layer, which is sealed then, or nothing any more. The journal goes
// unless a fork's memory is there. To finish it again does no harm.
func (s *Store) finishChange(ctx context.Context, c diskChange) error {
	s.step("old disk removed")
	if !frozenPattern.MatchString(c.layer) {
		if err := s.removeInFolder(c.machine, c.old); err != nil {
			return err
		}
	}
	if c.layer != "" {
		list, err := s.chain(ctx, s.db, c.layer)
		if err != nil {
			return err
		}
		if frozenPattern.MatchString(c.layer) {
			if err := s.leaveLink(c, list[0]); err != nil {
				return err
			}
		}
		if l := list[0]; l.print.Ctime == 0 {
			p, err := s.seal(l.path(s))
			if err != nil {
				return err
			}
			if how := l.print.differs(p); how != "" {
				return fmt.Errorf("%w: %s: %s %s while it was frozen", ErrChanged, l.name, l.path(s), how)
			}
			s.step("frozen layer sealed")
			if err := s.setPrint(ctx, l.key, p); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{home.RAMFile, home.StateFile} {
		if _, err := os.Lstat(filepath.Join(s.Dir(c.machine), name)); !errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	return s.endChange(ctx, c)
}

// leaveLink puts a symbolic link to a layer in the place of the name that it had as a
// running machine's own: QEMU, which has the image open by that name, opens it again
// when what it does with it changes (block-stream). A second name of the file
// would not do, as it could not go without a change to the layer's times.
func (s *Store) leaveLink(c diskChange, l layer) error {
	dir := s.home.Machine(c.machine)
	next := filepath.Join(dir, ".link.new")
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	if err := os.Symlink(backingName(l.key, l.parent), next); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("old disk replaced by a link")
	if err := os.Rename(next, filepath.Join(dir, c.old)); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if err := syncPath(dir); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Linked says whether the folder of a machine may hold links that its QEMU needs,
// which [Store.SettleFreeze] removes when none runs.
func (m Machine) Linked() bool { return m.generation > 0 && m.Definition == nil }

// dropLinks removes what leaveLink has left in the folder of a machine which no QEMU
// has open any more.
func (s *Store) dropLinks(m Machine) error {
	if !m.Linked() {
		return nil
	}
	entries, err := os.ReadDir(s.Dir(m.ID))
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for _, e := range entries {
		if !home.IsDisk(e.Name()) || e.Type() != os.ModeSymlink {
			continue
		}
		if err := os.Remove(filepath.Join(s.Dir(m.ID), e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("store: %w", err)
		}
	}
	return nil
}

// endChange forgets a change that is finished, with the files of a fork, and what
// layers nothing needs after it.
func (s *Store) endChange(ctx context.Context, c diskChange) error {
	if err := s.removeInFolder(c.machine, home.RAMFile, home.StateFile); err != nil {
		return err
	}
	s.step("change forgotten")
	var drop []string
	err := transact(ctx, s.db, func(tx *sql.Tx) (err error) {
		if err := c.delete(ctx, tx); err != nil {
			return err
		}
		drop, err = s.markUnneeded(ctx, tx, "")
		return err
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.dropLayers(ctx, drop)
}

// forgetChange undoes or finishes the change of a machine that is going anyway, so
// that nothing holds it.
func (s *Store) forgetChange(ctx context.Context, id string) error {
	c, err := s.diskChange(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case c.done:
		if err := s.finishChange(ctx, c); err != nil {
			return err
		}
		return s.endChange(ctx, c)
	case c.layer == "":
		return s.undoReplacement(ctx, c)
	}
	return s.undoFreeze(ctx, c)
}

// undoReplacement removes the image that was to take the place of a machine's own.
func (s *Store) undoReplacement(ctx context.Context, c diskChange) error {
	if err := s.removeInFolder(c.machine, c.disk); err != nil {
		return err
	}
	s.step("replacement undone")
	if err := transact(ctx, s.db, func(tx *sql.Tx) error { return c.delete(ctx, tx) }); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// removeInFolder removes files of a machine's folder, durably.
func (s *Store) removeInFolder(id string, names ...string) error {
	if !machineIDPattern.MatchString(id) {
		return fmt.Errorf("store: %w: machine id %q", ErrInvalid, id)
	}
	dir := s.home.Machine(id)
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("store: %w", err)
		}
	}
	if err := syncPath(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// lockWrite is the byte of an image file that QEMU, and this program, hold a lock on
// while they may write to the image (QEMU's block/file-posix.c: 100 + permission).
const lockWrite = 101

// writtenByOther reports whether another process has an image open to write to it.
func writtenByOther(path string) (bool, error) {
	// A pipe that somebody has put there is not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: lockWrite, Len: 1}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK, errors.Join(err, f.Close())
}
