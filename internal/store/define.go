package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// NewDefinition says what machine to make of a whole description.
type NewDefinition struct {
	Spec       vm.Spec // complete
	Definition api.Definition
	Last       Last // Fresh and Autostart
}

// Define makes a machine of a whole description: its row and its folder. Nothing
// else is made; a failure leaves the files that the definition owns alone.
func (s *Store) Define(ctx context.Context, n NewDefinition) (Machine, error) {
	m := Machine{ID: newID(), Name: n.Spec.Name, CreatedAt: time.Now(), Spec: n.Spec, Definition: &n.Definition, Last: n.Last}
	if err := s.reserveDefinition(ctx, m); err != nil {
		return Machine{}, err
	}
	if err := s.makeFolder(ctx, m); err != nil {
		// What cannot be undone now is undone at the next start.
		return Machine{}, errors.Join(err, s.dropMachines(context.WithoutCancel(ctx), []string{m.ID}))
	}
	return m, nil
}

// reserveDefinition commits the row of a definition as creating.
func (s *Store) reserveDefinition(ctx context.Context, m Machine) error {
	// No other definition may come between the look and the commit.
	s.publish.Lock()
	defer s.publish.Unlock()
	if err := s.freeFor(ctx, m); err != nil {
		return err
	}
	return s.insertMachines(ctx, []Machine{m})
}

// makeFolder makes a definition's folder and commits its row as ready.
func (s *Store) makeFolder(ctx context.Context, m Machine) error {
	s.step("machine folder")
	if err := os.Mkdir(s.home.Machine(m.ID), 0o700); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	if err := syncPath(s.home.Machines()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("definition ready")
	return s.commitMachines(context.WithoutCancel(ctx), []Machine{m})
}

// freeFor checks that what must be a machine's alone is.
func (s *Store) freeFor(ctx context.Context, m Machine) error {
	list, err := s.Machines(ctx)
	if err != nil {
		return err
	}
	mine := OwnFiles(m)
	for _, o := range list {
		if o.Spec.UUID == m.Spec.UUID && o.Name != m.Name {
			return fmt.Errorf("machine %s: %w: the UUID %s is that of machine %s: leave it out to have one made", m.Name, ErrExists, m.Spec.UUID, o.Name)
		}
		theirs := OwnFiles(o)
		for _, path := range mine {
			if slices.Contains(theirs, path) || hasDisk(o, path) {
				return fmt.Errorf("machine %s: %w: the file %s belongs to machine %s", m.Name, ErrInUse, path, o.Name)
			}
		}
	}
	return nil
}

// OwnFiles are the files that go with a machine that has a definition.
func OwnFiles(m Machine) []string {
	if m.Definition == nil {
		return nil
	}
	list := slices.Clone(m.Definition.Owned)
	if m.Definition.Install != nil {
		list = append(list, m.Definition.Install.Owned...)
	}
	return list
}

func hasDisk(m Machine, path string) bool {
	return slices.ContainsFunc(m.Spec.Disks, func(d vm.Disk) bool { return d.Path == path })
}

// Record is what changes of a machine in one step.
type Record struct {
	Spec       vm.Spec
	Last       Last
	Definition *api.Definition
}

// SetRecord replaces what is recorded of a machine as one step, which is on
// stable storage when SetRecord returns.
func (s *Store) SetRecord(ctx context.Context, id string, r Record) error {
	spec, err1 := json.Marshal(r.Spec)
	last, err2 := json.Marshal(r.Last)
	definition, err3 := json.Marshal(r.Definition)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	s.step("record")
	_, err := s.db.ExecContext(ctx, `UPDATE machines SET spec = ?, last = ?, definition = nullif(?, 'null') WHERE id = ?`,
		string(spec), string(last), string(definition), id)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// UndoDefinition removes a machine that was just defined, and leaves the files
// alone that it owns.
func (s *Store) UndoDefinition(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx)
	_, err := s.db.ExecContext(ctx, `UPDATE machines SET state = 'creating' WHERE id = ? AND definition IS NOT NULL`, id)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	s.step("definition undone")
	return s.dropMachines(ctx, []string{id})
}

// EndInstall removes what only the install phase of a machine needed, once
// SetRecord has made it api.Installed, and then forgets it. The new definition is
// returned.
func (s *Store) EndInstall(ctx context.Context, m Machine) (*api.Definition, error) {
	d := m.Definition
	if d == nil || d.Install == nil || d.Phase != api.Installed {
		return d, nil
	}
	if err := s.removeFiles(d.Install.Owned); err != nil {
		return d, err
	}
	done := *d
	done.Install = nil
	b, err := json.Marshal(done)
	if err != nil {
		return d, err
	}
	s.step("install forgotten")
	if _, err := s.db.ExecContext(ctx, `UPDATE machines SET definition = ? WHERE id = ?`, string(b), m.ID); err != nil {
		return d, fmt.Errorf("state database: %w", err)
	}
	return &done, nil
}

// endInstalls finishes what EndInstall left half done.
func (s *Store) endInstalls(ctx context.Context) error {
	list, err := s.Machines(ctx)
	if err != nil {
		return err
	}
	for _, m := range list {
		if _, err := s.EndInstall(ctx, m); err != nil {
			s.log.Error("files of an install are not cleaned up yet", "machine", m.Name, "error", err)
		}
	}
	return nil
}

// addOwned makes files a part of a definition, so that they go with it also
// when the removal is broken off.
func addOwned(ctx context.Context, tx *sql.Tx, id string, also []string) error {
	if len(also) == 0 {
		return nil
	}
	var text []byte
	if err := tx.QueryRowContext(ctx, `SELECT definition FROM machines WHERE id = ?`, id).Scan(&text); err != nil {
		return err
	}
	var d api.Definition
	if err := json.Unmarshal(text, &d); err != nil {
		return err
	}
	d.Owned = append(d.Owned, also...)
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE machines SET definition = ? WHERE id = ?`, string(text), id)
	return err
}

// removeOwned removes the files that a machine owns, if it is being removed and
// not merely undone.
func (s *Store) removeOwned(ctx context.Context, id string) error {
	row := s.db.QueryRowContext(ctx, `SELECT `+machineColumns+` FROM machines WHERE id = ? AND state = 'removing' AND definition IS NOT NULL`, id)
	m, err := s.scanMachine(row)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.removeFiles(OwnFiles(m))
}

// removeFiles removes files that a machine owned. What is not there, and what
// is no plain file (any more), is passed over, and so is what may not be
// removed: kept for later, it would be removed when nobody thinks of it any
// more, and until then the machine's name would be taken by nothing to be seen.
func (s *Store) removeFiles(paths []string) error {
	var folders []string
	for _, path := range paths {
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if refused(err) {
			s.log.Warn("a machine's file may not be removed; it is left alone", "path", path, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if !st.Mode().IsRegular() {
			s.log.Warn("a machine's file has become something else; it is left alone", "path", path)
			continue
		}
		s.step("owned file removed")
		err = os.Remove(path)
		if refused(err) {
			s.log.Warn("a machine's file may not be removed; it is left alone", "path", path, "error", err)
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("store: %w", err)
		}
		if dir := filepath.Dir(path); !slices.Contains(folders, dir) {
			folders = append(folders, dir)
		}
	}
	for _, dir := range folders {
		if err := syncPath(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("store: %w", err)
		}
	}
	return nil
}

// refused reports whether a file may not be removed, now or as long as nobody
// does something about it.
func refused(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EBUSY)
}
