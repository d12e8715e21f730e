package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/names"
)

// FromMachine says what template to make of a machine.
type FromMachine struct {
	Machine string // id
	Name    string // "": one made of the machine's
	Move    bool   // as of Tag
	// Flatten makes one whole image; else it is a layer over what the machine lies over.
	Flatten  bool
	Compress string // as of Import
	// Disk is an image over the machine's own (see Scratch) whose content is taken
	// in place of it. "" is none.
	Disk string
	Info *api.ImageInfo // nil: that of the machine's template
	User string         // "": that of the machine's template
}

// TemplateFromMachine makes a template of a machine, which must not run and stays as
// it is.
func (s *Store) TemplateFromMachine(ctx context.Context, f FromMachine, progress func(done, total int64)) (t api.Template, err error) {
	m, err := s.stopped(ctx, f.Machine)
	if err != nil {
		return t, err
	}
	what := "template of machine " + m.Name
	if f.Compress, err = compression(f.Compress); err == nil && f.Name != "" {
		if err = names.CheckTemplate(f.Name); err != nil {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if err != nil {
		return t, fmt.Errorf("%s: %w", what, err)
	}
	below, err := s.freezeOrigin(ctx, m)
	if err != nil {
		return t, err
	}
	source := cmp.Or(f.Disk, s.Disk(m))
	d, err := s.images.Describe(ctx, source)
	if err != nil {
		return t, fmt.Errorf("%s: %w", what, err)
	}
	n := newLayer{parent: m.Digest, kind: api.LayerTemplate, source: "machine " + m.Name, origin: m.Name, size: d.Size,
		user: cmp.Or(f.User, below.User), compress: f.Compress, info: below.Info, at: time.Now()}
	if f.Info != nil {
		n.info = *f.Info
	}
	dir := s.home.Layers()
	if f.Flatten || m.Digest == "" {
		n.parent, dir = "", s.home.Templates()
	} else if err := s.notTooDeep(ctx, what, m.Digest, "make one whole image of it (--flatten)"); err != nil {
		return t, err
	}
	tmp, err := s.temporary(dir)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, s.removeTemporary(tmp)) }()
	s.step("template converted")
	switch {
	case n.parent == "":
		err = s.images.Convert(ctx, source, tmp, ConvertOptions{Compress: f.Compress}, progress)
	case f.Disk != "" || f.Compress != "none":
		err = s.images.Convert(ctx, source, tmp, ConvertOptions{Compress: f.Compress, Backing: backingName(below.Digest, below.Parent)}, progress)
	default:
		err = s.images.Copy(ctx, source, tmp)
	}
	if err != nil {
		return t, fmt.Errorf("%s: %w", what, err)
	}
	return s.publishLayer(ctx, tmp, n, func(ctx context.Context, tx *sql.Tx, digest string) (string, error) {
		return nameOfMachine(ctx, tx, digest, f.Name, m.Name, f.Move)
	})
}

// nameOfMachine gives a template its name, or one made of the machine's.
func nameOfMachine(ctx context.Context, tx *sql.Tx, digest, name, machine string, move bool) (string, error) {
	if name == "" {
		var failed error
		name = names.Free(machine, func(n string) bool {
			owner, err := nameOwner(ctx, tx, n)
			failed = errors.Join(failed, err)
			return err == nil && owner != "" && owner != digest || names.CheckTemplate(n) != nil
		})
		if failed != nil {
			return "", failed
		}
	}
	return name, setName(ctx, tx, digest, name, move)
}

// stopped returns a machine with an own disk that nothing writes to.
func (s *Store) stopped(ctx context.Context, id string) (Machine, error) {
	m, err := s.ownDisk(ctx, id)
	if err != nil {
		return m, err
	}
	if err := s.IntactDisk(ctx, m); err != nil {
		return m, err
	}
	return m, s.notWritten(m)
}

// notWritten refuses a machine whose disk a process has open to write to it.
func (s *Store) notWritten(m Machine) error {
	written, err := writtenByOther(s.Disk(m))
	if err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	if written {
		return fmt.Errorf("machine %s: its disk is %w by a process: stop the machine first", m.Name, ErrInUse)
	}
	return nil
}

// CommitMachine makes the own layer of a machine, which must not run, a template, over
// which it goes on with a new, empty layer. name "" is one made of the machine's; move
// is as of Tag.
func (s *Store) CommitMachine(ctx context.Context, id, name string, move bool) (api.Template, Machine, error) {
	if name != "" {
		if err := names.CheckTemplate(name); err != nil {
			return api.Template{}, Machine{}, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	shown := ""
	m, _, err := s.freezeStopped(ctx, id, api.LayerTemplate, nil, nil, func(tx *sql.Tx, m Machine, key string) (err error) {
		if shown, err = nameOfMachine(ctx, tx, key, name, m.Name, move); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE machines SET template = ? WHERE id = ?`, shown, m.ID)
		return err
	})
	if err != nil {
		return api.Template{}, m, err
	}
	t, err := s.Template(ctx, shown)
	return t, m, err
}

// CloneMachine makes the own layer of a machine, which must not run, a frozen one,
// over which it and the clones go on: all of them, or none. The clones that there are come
// with an error too.
func (s *Store) CloneMachine(ctx context.Context, id string, clones []NewMachine, made func(name string)) (Machine, []Machine, error) {
	return s.freezeStopped(ctx, id, api.LayerFrozen, clones, made, nil)
}

// freezeStopped makes the own layer of a machine one with the name of its digest. also
// is done in the transaction that decides.
func (s *Store) freezeStopped(ctx context.Context, id string, kind api.LayerKind, clones []NewMachine, made func(string),
	also func(tx *sql.Tx, m Machine, key string) error) (Machine, []Machine, error) {
	m, err := s.stopped(ctx, id)
	if err == nil {
		m, err = s.freezable(ctx, id)
	}
	if err != nil {
		return m, nil, err
	}
	digest, read, err := hashStill(ctx, s.Disk(m), nil)
	if err != nil {
		return m, nil, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	end, err := s.beginPublish(ctx, digest)
	if err != nil {
		return m, nil, err
	}
	defer end()
	if _, err := s.beginFreeze(ctx, m, newLayer{key: digest, kind: kind}, clones, made); err != nil {
		return m, nil, err
	}
	ctx = context.WithoutCancel(ctx)
	c, err := s.diskChange(ctx, m.ID)
	if err != nil {
		return m, nil, err
	}
	if err := read.same(s.Disk(m)); err != nil {
		return m, nil, errors.Join(fmt.Errorf("machine %s: %w", m.Name, err), s.undoFreeze(ctx, c))
	}
	err = s.commitFreeze(ctx, c, func(tx *sql.Tx) error {
		if also == nil {
			return nil
		}
		return also(tx, m, digest)
	})
	if err != nil {
		// Before its commit it is undone, after it finished.
		_, settled := s.SettleFreeze(ctx, m.ID, "")
		return m, s.Made(ctx, c.clones), errors.Join(err, settled)
	}
	return s.frozen(ctx, c)
}

// Made returns those of some machines that there are, by their ids: after an error, which
// may have come behind the commit.
func (s *Store) Made(ctx context.Context, ids []string) []Machine {
	var list []Machine
	for _, id := range ids {
		if m, err := s.Machine(context.WithoutCancel(ctx), id); err == nil && m.ID == id {
			list = append(list, m)
		}
	}
	return list
}

// Scratch makes an image over a machine's own, which must not run, in a folder of
// its own for a machine that is to run on it. Both are gone with RemoveScratch, and at
// the next start of the daemon ([Options.End] ends what runs there).
func (s *Store) Scratch(ctx context.Context, id string) (dir, disk string, err error) {
	m, err := s.stopped(ctx, id)
	if err != nil {
		return "", "", err
	}
	d, err := s.images.Describe(ctx, s.Disk(m))
	if err != nil {
		return "", "", fmt.Errorf("machine %s: %w", m.Name, err)
	}
	dir = filepath.Join(s.Dir(m.ID), home.ScratchDir)
	s.step("scratch folder")
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrExist) {
		return "", "", fmt.Errorf("machine %s is %w: a copy of it is being worked on", m.Name, ErrInUse)
	} else if err != nil {
		return "", "", fmt.Errorf("store: %w", err)
	}
	disk = filepath.Join(dir, home.DiskFile)
	if err := s.makeOverlay(ctx, disk, "../"+m.disk, d.Size, false); err != nil {
		return "", "", errors.Join(err, s.RemoveScratch(ctx, id))
	}
	return dir, disk, nil
}

// RemoveScratch removes what Scratch made, if it is there. Nothing may run on it.
func (s *Store) RemoveScratch(ctx context.Context, id string) error {
	if !machineIDPattern.MatchString(id) {
		return fmt.Errorf("store: %w: machine id %q", ErrInvalid, id)
	}
	return removeFolder(filepath.Join(s.home.Machine(id), home.ScratchDir))
}
