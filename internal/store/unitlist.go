package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

const unitColumns = `id, template, layer, key, key_hash, frozen, files, boot_time, agent, created_at, used_at`

// errUnitRow: the row of a unit is damaged, or was edited. It is an ErrUnitChanged too.
var errUnitRow = errors.New("state database")

func (s *Store) scanUnit(r scanner) (u Unit, err error) {
	var key, frozen, files []byte
	var hash string
	var boot, created, used int64
	if err := r.Scan(&u.ID, &u.Template, &u.Layer, &key, &hash, &frozen, &files, &boot, &u.Agent, &created, &used); err != nil {
		return u, err
	}
	damaged := func(err error) error {
		return fmt.Errorf("%w: %w: the row of warm unit %s: %w: %s", ErrUnitChanged, errUnitRow, u.ID, err, unitRemedy)
	}
	if hash != "" && hash != hashText(key) { // "" is one that is being made
		return u, damaged(errors.New("what it says of the QEMU that made it was edited"))
	}
	for text, v := range map[*[]byte]any{&key: &u.Key, &frozen: &u.Frozen, &files: &u.files} {
		if err := json.Unmarshal(*text, v); err != nil {
			return u, damaged(err)
		}
	}
	u.BootTime, u.CreatedAt = time.Duration(boot), time.Unix(0, created)
	if used != 0 {
		u.UsedAt = time.Unix(0, used)
	}
	s.placeUnit(&u)
	return u, nil
}

// unit returns a unit in some state.
func (s *Store) unit(ctx context.Context, id, state string) (Unit, error) {
	row := s.db.QueryRowContext(ctx, `SELECT `+unitColumns+` FROM units WHERE id = ? AND state = ?`, id, state)
	u, err := s.scanUnit(row)
	return u, noRows(err, "warm unit "+id)
}

// Unit returns the warm unit with this id.
func (s *Store) Unit(ctx context.Context, id string) (Unit, error) {
	u, err := s.unit(ctx, id, "ready")
	if err != nil {
		return u, err
	}
	list, err := s.completeUnits(ctx, []Unit{u})
	if err != nil {
		return u, err
	}
	return list[0], nil
}

// Units lists the warm units, oldest first.
func (s *Store) Units(ctx context.Context) ([]Unit, error) {
	return s.units(ctx, ``)
}

// FindUnit returns the units of a template that fit a key, newest first.
func (s *Store) FindUnit(ctx context.Context, template string, key vm.FrozenKey) ([]Unit, error) {
	list, err := s.units(ctx, ` AND template = ? AND key_hash = ?`, template, hashKey(key))
	slices.Reverse(list)
	return list, err
}

// UnitsOf lists the units of a template, oldest first.
func (s *Store) UnitsOf(ctx context.Context, template string) ([]Unit, error) {
	return s.units(ctx, ` AND template = ?`, template)
}

func (s *Store) units(ctx context.Context, where string, args ...any) ([]Unit, error) {
	list, damaged, err := s.unitRows(ctx, where, args...)
	if err != nil {
		return nil, err
	}
	for id, why := range damaged {
		s.log.Error("a warm unit is passed over", "unit", id, "error", why)
	}
	return s.completeUnits(ctx, list)
}

// DamagedUnit is why a warm unit of a template is passed over by [Store.UnitsOf], nil where
// none is: its row is damaged, or was edited.
func (s *Store) DamagedUnit(ctx context.Context, template string) error {
	_, damaged, err := s.unitRows(ctx, ` AND template = ?`, template)
	for _, id := range slices.Sorted(maps.Keys(damaged)) {
		return damaged[id]
	}
	return err
}

// unitRows reads the rows of units. One that is damaged is not to keep all others from
// being used: why, by id.
func (s *Store) unitRows(ctx context.Context, where string, args ...any) (list []Unit, damaged map[string]error, err error) {
	damaged = map[string]error{}
	scan := func(r scanner) (Unit, error) {
		u, err := s.scanUnit(r)
		if errors.Is(err, errUnitRow) {
			damaged[u.ID] = err
			return Unit{}, nil
		}
		return u, err
	}
	list, err = all(ctx, s.db, scan, `SELECT `+unitColumns+` FROM units WHERE state = 'ready'`+where+` ORDER BY created_at, id`, args...)
	if err != nil {
		return nil, nil, fmt.Errorf("state database: %w", err)
	}
	return slices.DeleteFunc(list, func(u Unit) bool { return u.ID == "" }), damaged, nil
}

// completeUnits adds what other tables and the file system tell.
func (s *Store) completeUnits(ctx context.Context, list []Unit) ([]Unit, error) {
	for i := range list {
		u := &list[i]
		made, err := all(ctx, s.db, scanText, `SELECT name FROM machines WHERE unit = ? AND state = 'ready' ORDER BY name`, u.ID)
		if err != nil {
			return nil, fmt.Errorf("state database: %w", err)
		}
		u.Machines = made
		u.RAMSize, u.DiskSize = allocated(u.RAM)+allocated(u.State), allocated(u.Disk)
	}
	return list, nil
}

// IntactUnit says whether a unit's files and the layers of its disk still are what
// they were when it was made, as far as size, times and inode tell. ErrUnitChanged if
// not: a cold start of the template is left. ErrChanged if it is the template.
func (s *Store) IntactUnit(ctx context.Context, id string) error {
	u, err := s.unit(ctx, id, "ready")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		what, path string
		was        print
	}{{"RAM", u.RAM, u.files.RAM}, {"state", u.State, u.files.State}} {
		now, err := look(f.path)
		if err != nil {
			return fmt.Errorf("%w: the %s file of warm unit %s is gone (%w): %s", ErrUnitChanged, f.what, id, err, unitRemedy)
		}
		if how := f.was.differs(now); how != "" {
			return fmt.Errorf("%w: the %s file %s of warm unit %s %s: %s", ErrUnitChanged, f.what, f.path, id, how, unitRemedy)
		}
	}
	list, err := s.chain(ctx, s.db, u.Layer)
	if err != nil {
		return err
	}
	if err := s.intact(ctx, list[0]); err != nil {
		return fmt.Errorf("%w: the disk of warm unit %s: %s: %s", ErrUnitChanged, id, err, unitRemedy)
	}
	return s.Intact(ctx, u.Template)
}

const unitRemedy = "start cold (--cold), and make the unit again (`lamina template warm --again`; `lamina prune` removes this one); `lamina template verify` tells whether it can still be used"

// verifyUnit compares a unit's files, and its layer, with their digests.
func (s *Store) verifyUnit(ctx context.Context, u Unit, read func(int)) error {
	files := u.files
	for _, f := range []struct {
		what, path, want string
		p                *print
		seal             func() (print, error)
	}{
		{"RAM", u.RAM, files.RAMHash, &files.RAM, func() (print, error) { return s.sealRAM(u) }},
		{"state", u.State, files.StateHash, &files.State, func() (print, error) { return s.seal(u.State) }},
	} {
		got, _, err := hashStill(ctx, f.path, read)
		if err != nil {
			return fmt.Errorf("%w: the %s file of warm unit %s: %w: %s", ErrUnitChanged, f.what, u.ID, err, unitRemedy)
		}
		if got != f.want {
			return fmt.Errorf("%w: the %s file %s of warm unit %s has SHA-256 %s: %s", ErrUnitChanged, f.what, f.path, u.ID, got, unitRemedy)
		}
		if *f.p, err = f.seal(); err != nil {
			return err
		}
		// Not behind the last of them: what breaks off in between leaves a unit of which the
		// record is right.
		if err := s.setUnitFiles(ctx, u.ID, files); err != nil {
			return err
		}
	}
	list, err := s.chain(ctx, s.db, u.Layer)
	if err != nil {
		return err
	}
	if err := s.verifyLayer(ctx, list[0], func(int) {}); err != nil {
		return fmt.Errorf("%w: the disk of warm unit %s: %w: %s", ErrUnitChanged, u.ID, err, unitRemedy)
	}
	return nil
}

// setUnitFiles records the prints of a unit's files, also for a caller that has gone.
func (s *Store) setUnitFiles(ctx context.Context, id string, files unitFiles) error {
	text, err := json.Marshal(files)
	if err != nil {
		return err
	}
	if _, err := s.db.ExecContext(context.WithoutCancel(ctx), `UPDATE units SET files = ? WHERE id = ?`, string(text), id); err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}
