package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// NewMachine says what to make.
type NewMachine struct {
	Name   string
	User   string
	Config api.MachineConfig // Password and UserData are not kept
	// Spec is complete but for the paths of Disks[0], the machine's own
	// layer, and Disks[1], the seed if there is one.
	Spec vm.Spec
	// Size is the virtual size of its disk; 0 means the template's.
	Size int64
	// Start says that it is made to be started: Last.Wanted.
	Start bool
	// Exit says why it does not run, for one that is made to be started by other means;
	// its first start clears that (Last.Next). nil: nothing.
	Exit *vm.Exit
	// Seed returns the content of the seed image. nil means that it has none, or
	// that it is made later ([Store.MakeSeed]): a thousand seeds take more room than
	// the layers of their machines, and most of the time that those take.
	Seed func() ([]byte, error)
	// Secrets are kept, for a seed that is made later, in a file of mode 0600 and
	// nowhere else. Machines that are made together share it if it is the same.
	Secrets []byte
	// Unit is the warm unit that it is made of: it lies over the layer of that one's
	// disk. "" for none.
	Unit string
}

// Making a machine is file work with a few waits for the disk in between:
// more at once than there are processors, but not a number that grows.
const makersAtOnce = 8

// Above this many machines their files are made durable by one syncfs instead
// of four fsyncs each. syncfs also waits for what other programs have written
// to the file system, which a single machine should not have to.
const syncEach = 4

// CreateMachines makes machines of a template, or of any other layer: all of
// them, or none. They are on stable storage when it returns. made, if not nil, is
// called with each name as its files are there, one call at a time.
func (s *Store) CreateMachines(ctx context.Context, template api.Template, list []NewMachine, made func(name string)) ([]Machine, error) {
	bases, err := s.bases(ctx, template, list)
	if err != nil {
		return nil, err
	}
	machines, err := s.newMachines(template, list)
	if err != nil {
		return nil, err
	}
	for i := range machines {
		if u := list[i].Unit; u != "" {
			machines[i].Digest, machines[i].Unit = bases[u].key, u
		}
	}
	if err := s.insertMachines(ctx, machines); err != nil {
		return nil, err
	}
	if err := s.makeMachines(ctx, bases, machines, list, made); err != nil {
		// What cannot be undone now is undone at the next start.
		return nil, errors.Join(err, s.removeMachines(context.WithoutCancel(ctx), ids(machines)))
	}
	return machines, nil
}

// base is what a new machine lies over.
type base struct{ key, backing string }

// bases finds the layers that machines are made of, by warm unit, and checks that
// they are what they were.
func (s *Store) bases(ctx context.Context, template api.Template, list []NewMachine) (map[string]base, error) {
	keys := map[string]string{}
	for _, n := range list {
		if keys[n.Unit] != "" {
			continue
		}
		keys[n.Unit] = template.Digest
		if n.Unit != "" {
			u, err := s.unit(ctx, n.Unit, "ready")
			if err != nil {
				return nil, err
			}
			keys[n.Unit] = u.Layer
		}
	}
	out := map[string]base{}
	for unit, key := range keys {
		if err := s.Intact(ctx, key); err != nil {
			return nil, err
		}
		c, err := s.chain(ctx, s.db, key)
		if err != nil {
			return nil, err
		}
		if len(c) > api.MaxDepth {
			return nil, fmt.Errorf("template %s: %w: it lies over %d images, and a machine may have %d: export it and import it again as one", c[0].name, ErrInvalid, len(c)-1, api.MaxDepth)
		}
		out[unit] = base{key, backingName(key, c[0].parent)}
	}
	return out, nil
}

func ids(machines []Machine) []string {
	list := make([]string, len(machines))
	for i, m := range machines {
		list[i] = m.ID
	}
	return list
}

// newMachines are the records of machines that are to be made.
func (s *Store) newMachines(template api.Template, list []NewMachine) ([]Machine, error) {
	machines := make([]Machine, 0, len(list))
	now := time.Now()
	name := template.Name
	if name == "" {
		name = template.Digest
	}
	for i := range list {
		n := &list[i]
		if n.Size == 0 {
			n.Size = template.VirtualSize
		}
		if n.Size < template.VirtualSize {
			return nil, fmt.Errorf("%w: machine %s: a disk of %d bytes is smaller than its template %s with %d", ErrInvalid, n.Name, n.Size, name, template.VirtualSize)
		}
		m := Machine{ID: newID(), Name: n.Name, Digest: template.Digest, Template: name,
			User: n.User, CreatedAt: now, Config: n.Config, Spec: n.Spec, Last: Last{Wanted: n.Start, Exit: n.Exit}}
		m.Config.Password, m.Config.VNCPassword, m.Config.UserData = "", "", nil
		m.disk = home.DiskFile
		s.place(&m, true)
		machines = append(machines, m)
	}
	return machines, nil
}

// randomNumber is not negative.
func randomNumber() int64 { return mathrand.Int64() }

func newID() string {
	id := make([]byte, 6)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
}

// insertMachines commits rows in the state creating: all, or none where a name
// is taken.
func (s *Store) insertMachines(ctx context.Context, machines []Machine) error {
	if err := transact(ctx, s.db, func(tx *sql.Tx) error { return insertMachines(ctx, tx, machines) }); err != nil {
		return fmt.Errorf("new machine: %w", err)
	}
	return nil
}

func insertMachines(ctx context.Context, tx *sql.Tx, machines []Machine) error {
	taken, err := tx.PrepareContext(ctx, `SELECT count(*) FROM machines WHERE name = ?`)
	if err != nil {
		return err
	}
	defer func() { _ = taken.Close() }()
	insert, err := tx.PrepareContext(ctx, `INSERT INTO machines
		(id, name, digest, template, user, created_at, config, spec, last, definition, unit, state)
		VALUES (?,?,nullif(?, ''),?,?,?,?,?,?,nullif(?, 'null'),nullif(?, ''),'creating')`)
	if err != nil {
		return err
	}
	defer func() { _ = insert.Close() }()
	var clash []string
	for _, m := range machines {
		var n int
		if err := taken.QueryRowContext(ctx, m.Name).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			clash = append(clash, m.Name)
			continue
		}
		config, err1 := json.Marshal(m.Config)
		spec, err2 := json.Marshal(m.Spec)
		last, err3 := json.Marshal(m.Last)
		definition, err4 := json.Marshal(m.Definition)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		_, err = insert.ExecContext(ctx, m.ID, m.Name, m.Digest, m.Template, m.User, m.CreatedAt.UnixNano(),
			string(config), string(spec), string(last), string(definition), m.Unit)
		if err != nil {
			return err
		}
	}
	used := map[string]bool{}
	for _, m := range machines {
		if m.Digest == "" || used[m.Digest] {
			continue
		}
		used[m.Digest] = true
		// The template of a warm unit's layer, too.
		if _, err := tx.ExecContext(ctx, `UPDATE templates SET used_at = ?1 WHERE digest = ?2
			OR digest = (SELECT parent FROM templates WHERE digest = ?2 AND kind = 'warm')`, m.CreatedAt.UnixNano(), m.Digest); err != nil {
			return err
		}
	}
	if len(clash) > 0 {
		return clashError(clash)
	}
	return nil
}

// clashError is the ErrExists of names of machines.
type clashError []string

func (e clashError) Error() string {
	if len(e) == 1 {
		return fmt.Sprintf("machine %s %v: choose another name or remove it", e[0], ErrExists)
	}
	return fmt.Sprintf("machines %s exist already: choose other names or remove them", listed(e))
}

func (e clashError) Unwrap() error { return ErrExists }

// makeMachines makes the files of reserved machines, several at a time, brings
// them to stable storage, and commits the rows as ready.
func (s *Store) makeMachines(ctx context.Context, bases map[string]base, machines []Machine, list []NewMachine, made func(string)) error {
	if err := s.makeMachineFiles(ctx, bases, machines, list, made); err != nil {
		return err
	}
	s.step("machine rows ready")
	return s.commitMachines(context.WithoutCancel(ctx), machines)
}

// makeMachineFiles makes the files of reserved machines, durably.
func (s *Store) makeMachineFiles(ctx context.Context, bases map[string]base, machines []Machine, list []NewMachine, made func(string)) error {
	var (
		next  atomic.Int64
		group sync.WaitGroup
		mu    sync.Mutex // guards first and calls of made
		first error
	)
	like := &alike{}
	s.step("machine files")
	for range min(makersAtOnce, len(machines)) {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(machines) {
					return
				}
				err := ctx.Err()
				if err == nil {
					err = s.makeMachine(ctx, bases[list[i].Unit], machines[i], list[i], like, len(machines) <= syncEach)
				}
				mu.Lock()
				if err != nil {
					if first == nil {
						first = fmt.Errorf("machine %s: %w", machines[i].Name, err)
					}
					next.Store(int64(len(machines)))
				} else if made != nil {
					made(machines[i].Name)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if first != nil {
		return first
	}
	s.step("machine files synced")
	sync := syncPath
	if len(machines) > syncEach {
		sync = syncFileSystem
	}
	if err := sync(s.home.Machines()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

func (s *Store) commitMachines(ctx context.Context, machines []Machine) error {
	err := transact(ctx, s.db, func(tx *sql.Tx) error {
		ready, err := tx.PrepareContext(ctx, `UPDATE machines SET state = 'ready' WHERE id = ?`)
		if err != nil {
			return err
		}
		defer func() { _ = ready.Close() }()
		for _, m := range machines {
			if _, err := ready.ExecContext(ctx, m.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("state database: %w", err)
	}
	s.step("machine rows committed")
	return nil
}

// makeMachine makes the folder and files of one machine.
func (s *Store) makeMachine(ctx context.Context, on base, m Machine, n NewMachine, like *alike, durable bool) error {
	dir := s.home.Machine(m.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.step("machine disk")
	disk := filepath.Join(dir, m.disk)
	if err := like.overlay(disk, on.backing, n.Size, func() error { return s.makeOverlay(ctx, disk, on.backing, n.Size, false) }); err != nil {
		return err
	}
	files := []string{disk}
	if n.Seed != nil {
		s.step("machine seed")
		content, err := n.Seed()
		if err != nil {
			return err
		}
		path := filepath.Join(dir, home.SeedFile)
		if err := writeSparse(path, content); err != nil {
			return err
		}
		files = append(files, path)
	}
	if len(n.Secrets) > 0 {
		s.step("machine secrets")
		path := filepath.Join(dir, home.SecretsFile)
		if err := like.secrets(path, n.Secrets); err != nil {
			return err
		}
		files = append(files, path)
	}
	if !durable {
		return nil // the caller's syncfs covers all machines at once
	}
	for _, f := range append(files, dir) {
		if err := syncPath(f); err != nil {
			return err
		}
	}
	return nil
}
