package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// Machine is a machine as the store keeps it.
type Machine struct {
	ID   string // names its folder
	Name string
	// Digest is the key of the layer that its own lies over, "" for a machine with a
	// definition, or with a disk that needs nothing below.
	Digest    string
	Template  string // the name that it was asked for by
	Unit      string // the warm unit that it was made of, while that is there
	User      string // to log in as
	CreatedAt time.Time
	Config    api.MachineConfig // without Password and UserData
	// Spec is, in the end, what the machine is. With a template Disks[0] is
	// its own layer and Disks[1] the seed if it has one; with a definition
	// the disks lie elsewhere and are not the store's.
	Spec vm.Spec
	Last Last
	// Definition is set for a machine that was made by Define. It is
	// replaced as a whole, never changed in place.
	Definition *api.Definition
	// Warmth is how it was started warm last, Identity what its guest has
	// confirmed. nil for none.
	Warmth   *api.Warmth
	Identity *api.Identity

	// disk is the name of its own layer in its folder, generation what
	// home.DiskName made it of.
	disk       string
	generation int
	streaming  bool
}

// Disk is the path of a machine's own layer, "" for one with a definition.
func (s *Store) Disk(m Machine) string {
	if m.Definition != nil {
		return ""
	}
	return filepath.Join(s.Dir(m.ID), m.disk)
}

// Last is what is known of a machine's last run.
type Last struct {
	// Started is true from just before the machine is started for the first
	// time, Running while it is meant to run: after a restart such a
	// machine is looked for.
	Started bool `json:"started,omitempty"`
	Running bool `json:"running,omitempty"`
	Wanted  bool `json:"wanted,omitempty"` // made to be started, which has not been done yet
	// Autostart: it is started when the daemon starts for the first time after
	// the host has.
	Autostart bool `json:"autostart,omitempty"`
	// Fresh: its first start has not come to anything yet. Who asked for the
	// machine has no answer; the next daemon undoes it.
	Fresh bool `json:"fresh,omitempty"`
	// Paused is why it was paused for lack of space, from before it is until after
	// it goes on; "" for one that is not.
	Paused string `json:"paused,omitempty"`
	// Stopping: a person ends it.
	Stopping bool `json:"stopping,omitempty"`

	Exit    *vm.Exit      `json:"exit,omitempty"`
	Stage   boot.Stage    `json:"stage"`
	LoginIn time.Duration `json:"loginIn,omitempty"`
	Problem *boot.Problem `json:"problem,omitempty"`
}

// Next is what is recorded when a next run begins.
func (l Last) Next() Last {
	return Last{Started: true, Running: true, Wanted: l.Wanted, Autostart: l.Autostart, Fresh: l.Fresh}
}

const machineColumns = `id, name, coalesce(digest, ''), template, user, created_at, config, spec, last, coalesce(definition, 'null'),
	coalesce(unit, ''), disk, generation, streaming, coalesce(warmth, 'null'), coalesce(identity, 'null')`

// Machines lists all machines by name.
func (s *Store) Machines(ctx context.Context) ([]Machine, error) {
	list, err := all(ctx, s.db, s.scanMachine, `SELECT `+machineColumns+` FROM machines WHERE state = 'ready' ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	return list, nil
}

// Machine returns the machine with this name or id.
func (s *Store) Machine(ctx context.Context, ref string) (Machine, error) {
	row := s.db.QueryRowContext(ctx, `SELECT `+machineColumns+` FROM machines
		WHERE state = 'ready' AND (name = ?1 OR id = ?1) ORDER BY name <> ?1 LIMIT 1`, ref)
	m, err := s.scanMachine(row)
	if errors.Is(err, sql.ErrNoRows) {
		return m, fmt.Errorf("machine %q: %w", ref, ErrNotFound)
	}
	if err != nil {
		return m, fmt.Errorf("state database: %w", err)
	}
	return m, nil
}

// Taken says whether a machine has the name, also one that is being made or
// removed.
func (s *Store) Taken(ctx context.Context, name string) (bool, error) {
	var n int
	if err := s.db.QueryRowContext(ctx, `SELECT count(*) FROM machines WHERE name = ?`, name).Scan(&n); err != nil {
		return false, fmt.Errorf("state database: %w", err)
	}
	return n > 0, nil
}

func (s *Store) scanMachine(r scanner) (m Machine, err error) {
	var created int64
	var config, spec, last, definition, warmth, identity []byte
	err = r.Scan(&m.ID, &m.Name, &m.Digest, &m.Template, &m.User, &created, &config, &spec, &last, &definition,
		&m.Unit, &m.disk, &m.generation, &m.streaming, &warmth, &identity)
	if err != nil {
		return m, err
	}
	if definition == nil || string(definition) == "null" {
		if err := checkDisk(m.disk); err != nil {
			return m, fmt.Errorf("machine %s: %w", m.Name, err)
		}
	}
	m.CreatedAt = time.Unix(0, created)
	err = errors.Join(json.Unmarshal(config, &m.Config), json.Unmarshal(spec, &m.Spec), json.Unmarshal(last, &m.Last),
		json.Unmarshal(definition, &m.Definition), json.Unmarshal(warmth, &m.Warmth), json.Unmarshal(identity, &m.Identity))
	if err != nil {
		return m, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	s.place(&m, false)
	return m, nil
}

// place puts the paths of the machine's own disks into its spec. They follow
// from the home, so that a home can be moved. fresh says that they have never had
// one.
func (s *Store) place(m *Machine, fresh bool) {
	if m.Definition != nil {
		return
	}
	dir := s.home.Machine(m.ID)
	for i, name := range []string{m.disk, home.SeedFile} {
		if i >= len(m.Spec.Disks) {
			break
		}
		// A disk that was attached later may stand in the seed's place.
		if p := &m.Spec.Disks[i].Path; i == 0 || fresh || filepath.Base(*p) == name && filepath.Base(filepath.Dir(*p)) == m.ID {
			*p = filepath.Join(dir, name)
		}
	}
}

// Dir is the machine's folder.
func (s *Store) Dir(id string) string { return s.home.Machine(id) }

// DiskSize returns the bytes that the machine's own layer, or the writable
// images of its definition, take on the host.
func (s *Store) DiskSize(m Machine) (size int64) {
	if m.Definition == nil {
		return allocated(s.Disk(m))
	}
	for _, d := range m.Spec.Disks {
		if !d.ReadOnly {
			size += allocated(d.Path)
		}
	}
	return size
}

// SetLast records what is known of a machine's last run. It is on stable
// storage when SetLast returns.
func (s *Store) SetLast(ctx context.Context, id string, last Last) error {
	b, err := json.Marshal(last)
	if err != nil {
		return err
	}
	_, err = s.db.ExecContext(ctx, `UPDATE machines SET last = ? WHERE id = ?`, string(b), id)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// SetRun records what is known of a machine's last run, how it was started warm, and
// what its guest has confirmed, all at once. It is on stable storage when SetRun returns.
func (s *Store) SetRun(ctx context.Context, id string, last Last, w *api.Warmth, i *api.Identity) error {
	l, err1 := json.Marshal(last)
	warmth, err2 := json.Marshal(w)
	identity, err3 := json.Marshal(i)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	_, err := s.db.ExecContext(ctx, `UPDATE machines SET last = ?, warmth = nullif(?, 'null'), identity = nullif(?, 'null') WHERE id = ?`,
		string(l), string(warmth), string(identity), id)
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return nil
}

// RemoveMachine removes a machine, which must not run, with everything that
// it has and, if it has a definition, the files of also; frozen layers that only
// it needed go with it. Once begun it ends, also when ctx does.
func (s *Store) RemoveMachine(ctx context.Context, id string, also ...string) error {
	row := s.db.QueryRowContext(ctx, `SELECT `+machineColumns+` FROM machines WHERE id = ?`, id)
	m, err := s.scanMachine(row)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("machine %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	if len(also) > 0 && m.Definition == nil {
		return fmt.Errorf("machine %s: %w: it has no definition, its files are all its own", m.Name, ErrInvalid)
	}
	ctx = context.WithoutCancel(ctx)
	if err := s.forgetChange(ctx, id); err != nil {
		return err
	}
	return s.removeMachines(ctx, []string{id}, also...)
}

// RemoveMachines is RemoveMachine for many at once, which costs little more than one.
func (s *Store) RemoveMachines(ctx context.Context, ids []string) error {
	ctx = context.WithoutCancel(ctx)
	for _, id := range ids {
		if err := s.forgetChange(ctx, id); err != nil {
			return err
		}
	}
	return s.removeMachines(ctx, ids)
}

// removeMachines commits the intent, also with what else is to go, and carries
// it out.
func (s *Store) removeMachines(ctx context.Context, ids []string, also ...string) error {
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		for _, id := range ids {
			if err := addOwned(ctx, tx, id, also); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `UPDATE machines SET state = 'removing' WHERE id = ?`, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	s.step("machine rows removing")
	return s.dropMachines(ctx, ids)
}

// dropMachines removes the folders and then the rows of machines whose state
// is not ready. The journal row goes last: what is left after a crash is
// found by it.
func (s *Store) dropMachines(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	for _, id := range ids {
		if err := s.removeOwned(ctx, id); err != nil {
			return err
		}
		s.step("machine folder removed")
		if err := s.removeMachineFolder(id); err != nil {
			return err
		}
	}
	if err := syncPath(s.home.Machines()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	s.step("machine rows removed")
	var layers []string
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		free := map[string]bool{}
		for _, id := range ids {
			var layer string
			err := tx.QueryRowContext(ctx, `DELETE FROM machines WHERE id = ? AND state <> 'ready' RETURNING coalesce(digest, '')`, id).Scan(&layer)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if layer != "" && err == nil {
				free[layer] = true
			}
		}
		for layer := range free {
			list, err := s.markUnneeded(ctx, tx, layer)
			if err != nil {
				return err
			}
			layers = append(layers, list...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	return s.dropLayers(ctx, layers)
}
