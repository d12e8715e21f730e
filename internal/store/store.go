// Package store keeps templates, layers, warm units and machines on disk, and the
// state database that says what of it is real.
//
// # What lies where
//
// A layer is an immutable qcow2 image with a row in the table templates. Whole images
// lie in home.Templates, those that name a base in home.Layers; a machine's own
// layer, the only image that is written to, in its folder. A base is named
// relative to the image that names it, and home.Layers is as deep as a machine's
// folder, so an own layer becomes a layer for others without a change to it.
// What was imported, or made of a stopped machine, is named by the SHA-256 of its
// file; a layer frozen while its machine ran, or of a warm unit, by a random id, with
// the digest recorded when it has been computed.
//
// # What survives what
//
// The database is the truth and the journal in one: a row in the state
// "creating" or "removing" is an intent. Files are made or removed only while
// such a row stands, and a row becomes "ready" only after its files are on
// stable storage:
//
//	create: commit the row as creating; make the files; sync them and their
//	        folders; commit the row as ready
//	remove: commit the row as removing; remove the files; sync the folder;
//	        delete the row
//	change: commit the intent (disk_changes); make the machine's next image
//	        beside the present one; commit which is the machine's; remove the
//	        other one, or seal it as a layer; delete the intent
//
// So a process that is killed, or a host that loses power, at any instant
// leaves either nothing, or a row that [Open] undoes (creating, a change that was
// begun) or finishes (removing, a change that was decided). A change of the
// disk of a machine that may run is settled by [Store.SettleFreeze], as QEMU, which
// outlives the daemon, decides it. SQLite runs with a write-ahead log that is
// synced at each commit. Triggers keep a layer that a machine, layer or warm unit
// needs from being removed; frozen layers go with the last that needs them.
// A file that no row names is never removed, except the store's own temporary
// files: with a database lost or restored from an old copy, the disks of
// machines are worth more than the space. [Open] reports such files.
//
// # Who may change a layer
//
// Nobody. Its file has mode 0444 and, where the file system has that and the
// process the right to it, the immutable flag. Its size, times and inode are recorded
// after the last change of those, and compared, along the whole chain, before
// anything is made of it or started over it.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/lamina-vm/lamina/internal/home"
)

// Sentinels. The wrapping errors name the template or machine and the remedy.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
	ErrInUse    = errors.New("in use")
	ErrInvalid  = errors.New("not valid")
	// ErrChanged: a template's file is not what was imported.
	ErrChanged = errors.New("template was changed behind the store's back")
	// ErrUnitChanged: a file of a warm unit is not what was frozen. The template
	// below may be intact, so that a cold start is left.
	ErrUnitChanged = errors.New("warm unit was changed behind the store's back")
	// ErrDiskChanged: a machine's own disk does not lie over what the store has put it
	// over. What a guest reads through it would be another machine's.
	ErrDiskChanged = errors.New("disk was changed behind the store's back")
)

// Store is the templates and machines of one home. One process at a time may
// have it open (the daemon holds home.Lock). Its methods are safe for
// concurrent use.
type Store struct {
	home   home.Home
	db     *sql.DB
	log    *slog.Logger
	images Images
	// immutable and end are Options'.
	immutable bool
	end       func(ctx context.Context, dir string) error

	// sources serialises imports of the same file, so that the second one
	// finds what the first one made.
	sources keyed
	// publish is held from the look whether a digest is known to the commit
	// that makes it so, while a template is removed, and from the look
	// whether a definition has what it names for itself to its commit.
	publish sync.Mutex
	// publishing is the digest that s.publish is held for, if it is for one: a layer of
	// that digest does not go by itself. Read within transactions that write.
	publishing atomic.Pointer[string]
	// dropping is held while a layer's file and row are removed. After publish, if both.
	dropping sync.Mutex

	// temps are the temporary files that are being written.
	temps pathSet

	// hook is called before each step that changes anything on disk; the
	// crash tests end the process in it.
	hook func(step string)
}

// Options are the choices of Open.
type Options struct {
	Log    *slog.Logger // nil discards
	Images Images       // nil means package image
	// Immutable says whether layers get the file system's immutable flag.
	Immutable Immutable
	// End ends the machine that may run in a folder, and returns when it is gone,
	// before the folder is removed of a warm unit that was not finished. nil:
	// nothing runs there.
	End func(ctx context.Context, dir string) error
}

// Immutable is a choice of Options.
type Immutable int

const (
	// ImmutableDefault sets the flag, but not in a home that is one folder
	// (LAMINA_HOME): who names a folder is to be able to remove it.
	ImmutableDefault Immutable = iota
	ImmutableAlways
	ImmutableNever
)

// Open opens the store of h, makes what is missing, and undoes or finishes
// what an earlier process left half done.
func Open(ctx context.Context, h home.Home, o Options) (*Store, error) {
	return open(ctx, h, o, nil)
}

func open(ctx context.Context, h home.Home, o Options, hook func(string)) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Images == nil {
		o.Images = diskImages{}
	}
	if o.End == nil {
		o.End = func(context.Context, string) error { return nil }
	}
	for _, dir := range []string{h.Data, h.Templates(), h.Layers(), h.Machines(), h.Warm()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	private(h, o.Log)
	if err := syncPath(h.Data); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	db, err := openDatabase(ctx, h.Database())
	if err != nil {
		return nil, err
	}
	s := &Store{home: h, db: db, log: o.Log, images: o.Images, hook: hook, end: o.End,
		immutable: o.Immutable == ImmutableAlways || o.Immutable == ImmutableDefault && !h.OneFolder()}
	if err := s.recover(ctx); err != nil {
		_ = db.Close()
		return nil, err
	}
	return s, nil
}

// private takes from others what they may do in the store's folders: seeds hold
// passwords, and an earlier version or another program may have made a folder
// that all can read. A folder that a person named keeps its mode, as it may
// hold other things.
func private(h home.Home, log *slog.Logger) {
	dirs := []string{h.Templates(), h.Layers(), h.Machines(), h.Warm()}
	if !h.OneFolder() {
		dirs = append(dirs, h.Data)
	}
	for _, dir := range dirs {
		st, err := os.Stat(dir)
		if err == nil && st.Mode().Perm()&0o077 != 0 {
			err = os.Chmod(dir, 0o700)
		}
		if err != nil {
			log.Warn("others may read the store's folder", "folder", dir, "error", err)
		}
	}
}

// Close closes the database. No other method may run or be called after it.
func (s *Store) Close() error { return s.db.Close() }

// Home is the home that the store lies in.
func (s *Store) Home() home.Home { return s.home }

func (s *Store) step(name string) {
	if s.hook != nil {
		s.hook(name)
	}
}

// keyed is a set of locks by name.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for the lock of key, or for ctx.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = make(map[string]chan struct{})
		}
		busy, taken := k.held[key]
		if !taken {
			done := make(chan struct{})
			k.held[key] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// pathSet is a set of paths.
type pathSet struct {
	mu  sync.Mutex
	set map[string]bool
}

func (p *pathSet) add(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set == nil {
		p.set = make(map[string]bool)
	}
	p.set[path] = true
}

func (p *pathSet) remove(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.set, path)
}

func (p *pathSet) has(path string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.set[path]
}
