// Package osinfo knows what a guest operating system wants of a machine: which
// devices it has drivers for, how much memory it needs, and how its
// installation media are recognised.
//
// It reads the osinfo database (the package osinfo-db) of the host, in
// libosinfo's folders and with libosinfo's rules for layers and inheritance.
// The database is under the GPL, version 2 or later, so it cannot be part of
// Lamina, which is under the Apache licence: a host without it is served by a
// small table of our own (see builtin.go), which has the systems that people
// meet most.
//
// Nothing is read before it is asked for: a short id such as debian12 costs
// the listing of the folders and the documents of that system and its
// ancestors, some milliseconds; only [DB.List], [DB.Detect] and unknown names
// parse the whole database.
package osinfo

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/nearest"
)

// ErrUnknownOS is wrapped by what Lookup returns for a name that no system has.
var ErrUnknownOS = errors.New("unknown OS name")

// Generic is the short id of the system of which nothing is known.
const Generic = "generic"

// DB is the database. It is safe for concurrent use, and reads each document
// once: a document that changes afterwards is not seen.
type DB struct {
	dirs []string

	index   func() map[string]*entry // by key, see entityKey
	builtin func() bool
	byName  func() map[string]*entry // every short id; reads everything
	devices func() map[string]files
	texts   func() map[string]string // of the systems' documents, by path; some MiB

	mu       sync.Mutex // guards problems and known
	problems []error
	known    map[string]Device // devices that were read
}

// entry is one operating system, read when it is first needed.
type entry struct {
	key   string
	files files // none in the built-in table
	read  func() (*record, error)
}

// Open returns the database of the given layers, of which later ones override
// earlier ones: usually Open(Dirs()...). It reads nothing yet. Where no layer
// describes any operating system, the built-in table takes their place.
func Open(dirs ...string) *DB {
	db := &DB{dirs: slices.Clone(dirs), known: map[string]Device{}}
	host := sync.OnceValue(func() map[string]*entry {
		found, problems := readLayers(db.dirs, "os")
		db.report(problems...)
		index := make(map[string]*entry, len(found))
		for key, f := range found {
			index[key] = &entry{key, f, sync.OnceValues(func() (*record, error) {
				r, err := readRecord(key, f)
				if err != nil {
					db.report(err)
				}
				return r, err
			})}
		}
		return index
	})
	db.builtin = func() bool { return len(host()) == 0 }
	db.index = func() map[string]*entry {
		if db.builtin() {
			return builtinIndex()
		}
		return host()
	}
	db.byName = sync.OnceValue(db.readAll)
	db.texts = sync.OnceValue(db.readTexts)
	db.devices = sync.OnceValue(func() map[string]files {
		found, problems := readLayers(db.dirs, "device")
		db.report(problems...)
		return found
	})
	return db
}

func (db *DB) report(problems ...error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.problems = append(db.problems, problems...)
}

// Problems returns what could not be read so far, for a warning: a damaged
// document hides only the system that it describes.
func (db *DB) Problems() []error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return slices.Clone(db.problems)
}

// BuiltIn reports whether the host has no database, so that the built-in table
// answers.
func (db *DB) BuiltIn() bool { return db.builtin() }

// Lookup returns the system of that short id (debian12, win10, linux2022; any
// of its short ids will do), of that id (a URI, http://debian.org/debian/12),
// or [Generic]. Letters are compared exactly, as virt-install does. The error
// wraps [ErrUnknownOS] and names what is nearest, or says why the document of
// that system could not be read.
func (db *DB) Lookup(name string) (OS, error) {
	if name == Generic {
		return db.generic(), nil
	}
	if strings.Contains(name, "://") {
		if e := db.index()[entityKey("os", name)]; e != nil {
			r, err := e.read()
			if err != nil {
				return OS{}, err
			}
			if r.id == name {
				return db.os(r), nil
			}
		}
		return OS{}, fmt.Errorf("%w: no system has the id %q", ErrUnknownOS, name)
	}
	if r := db.lookupFast(name); r != nil {
		return db.os(r), nil
	}
	all, plain := db.shortIDs()
	if plain {
		return OS{}, db.unknown(name, all)
	}
	if e := db.byName()[name]; e != nil {
		r, err := e.read()
		if err != nil {
			return OS{}, err
		}
		return db.os(r), nil
	}
	return OS{}, db.unknown(name, slices.Collect(maps.Keys(db.byName())))
}

// lookupFast reads the document that is called after a short id, as most are:
// debian-12.xml holds debian12.
func (db *DB) lookupFast(name string) *record {
	for key, e := range db.index() {
		base := key[strings.LastIndexByte(key, '/')+1:]
		if len(base) < len(name) || strings.ReplaceAll(base, "-", "") != strings.ReplaceAll(name, "-", "") {
			continue
		}
		if r, err := e.read(); err == nil && slices.Contains(r.shortIDs, name) {
			return r
		}
	}
	return db.lookupText(name)
}

// lookupText looks for a short id in the documents' text, in the order of
// their keys, and parses only those that hold it, as parsing takes most of the
// time.
func (db *DB) lookupText(name string) *record {
	index, texts := db.index(), db.texts()
	for _, key := range slices.Sorted(maps.Keys(index)) {
		for _, path := range index[key].files.all() {
			if !strings.Contains(texts[path], ">"+name+"</short-id>") {
				continue // what cannot be read is reported where all is read
			}
			if r, err := index[key].read(); err == nil && slices.Contains(r.shortIDs, name) {
				return r
			}
		}
	}
	return nil
}

// readAll reads every document, with two readers, and returns the systems by
// each of their short ids. Where two claim one, the first key has it.
func (db *DB) readAll() map[string]*entry {
	index := db.index()
	keys := slices.Sorted(maps.Keys(index))
	inHalves(len(keys), func(i int) { _, _ = index[keys[i]].read() }) // reported by read
	names := make(map[string]*entry, 2*len(keys))
	for _, key := range keys {
		r, err := index[key].read()
		if err != nil {
			continue
		}
		for _, id := range r.shortIDs {
			if names[id] == nil {
				names[id] = index[key]
			}
		}
	}
	return names
}

// unknown is the error for a name that no system has; all are the short ids
// that there are.
func (db *DB) unknown(name string, all []string) error {
	// Of equally near ones the newest comes first.
	slices.SortFunc(all, compareNatural)
	ids := append(slices.Compact(all), Generic)
	hint := ""
	if near := nearestIDs(name, ids); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, ", ") + "?"
	}
	if problems := db.Problems(); len(problems) > 0 {
		hint += fmt.Sprintf(" (some of the database could not be read: %v)", problems[0])
	}
	return fmt.Errorf("%w %q%s", ErrUnknownOS, name, hint)
}

// nearestIDs returns up to three ids that the name may have been meant to be:
// the nearest by typing errors, then those that go on where the name stops,
// the newest (by their numbers) first.
func nearestIDs(name string, ids []string) []string {
	var near []string
	folded := strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "").Replace(name))
	for _, id := range []string{folded, nearest.Word(folded, ids)} {
		if id != "" && !slices.Contains(near, id) && slices.Contains(ids, id) {
			near = append(near, id)
		}
	}
	if len(folded) < 3 {
		return near
	}
	longer := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !strings.HasPrefix(id, folded) })
	slices.SortFunc(longer, compareNatural)
	for _, id := range longer {
		if len(near) < 3 && !slices.Contains(near, id) {
			near = append(near, id)
		}
	}
	return near
}

// List returns every system that could be read, and the generic one, in the
// order of `virt-install --osinfo list`: by the short id, numbers descending.
// See [DB.Problems] for what could not be read.
func (db *DB) List() []OS {
	db.byName()
	list := []OS{db.generic()}
	for _, e := range db.index() {
		if r, err := e.read(); err == nil && len(r.shortIDs) > 0 {
			list = append(list, db.os(r))
		}
	}
	slices.SortFunc(list, func(a, b OS) int {
		if c := compareNatural(a.ShortID, b.ShortID); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// compareNatural compares without regard to case, and runs of digits by their
// value, the larger first. At one place a run of digits goes before letters.
func compareNatural(a, b string) int {
	for a != "" && b != "" {
		at, an := digits(a)
		bt, bn := digits(b)
		switch {
		case at != "" && bt != "":
			x, y := strings.TrimLeft(at, "0"), strings.TrimLeft(bt, "0")
			if len(x) != len(y) {
				return len(y) - len(x)
			}
			if c := strings.Compare(y, x); c != 0 {
				return c
			}
			a, b = an, bn
		case at == "" && bt == "":
			i, j := strings.IndexAny(a+"0", "0123456789"), strings.IndexAny(b+"0", "0123456789")
			if c := strings.Compare(strings.ToLower(a[:i]), strings.ToLower(b[:j])); c != 0 {
				return c
			}
			a, b = a[i:], b[j:]
		case at != "":
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}

// digits splits off the digits that s starts with.
func digits(s string) (run, rest string) {
	rest = strings.TrimLeft(s, "0123456789")
	return s[:len(s)-len(rest)], rest
}

// OS is one operating system. It is a value; its methods look into the
// database that it came from and are safe for concurrent use.
type OS struct {
	ShortID  string   // the first short id: "debian12"
	ShortIDs []string // all of them, in the database's order
	ID       string   // "http://debian.org/debian/12"; "" for the generic system
	Name     string   // for people, in English: "Debian 12"
	Vendor   string
	Version  string
	Codename string
	Family   string // of kernels: "linux", "winnt", "freebsd", ...
	Distro   string // "debian", "win", ...
	Released time.Time
	EOL      time.Time // end of support; zero where it is not known
	// Status is "rolling", "prerelease" or "snapshot", else "".
	Status string
	// CloudUser is the user that the vendor's cloud images let in.
	CloudUser string

	db     *DB
	record *record
}

func (db *DB) os(r *record) OS {
	o := OS{
		ID: r.id, Name: r.name, Vendor: r.vendor, Version: r.version, Codename: r.codename,
		Family: r.family, Distro: r.distro, Released: date(r.released), EOL: date(r.eol),
		Status: r.status, CloudUser: r.cloudUser, db: db, record: r,
	}
	for _, id := range r.shortIDs {
		if !slices.Contains(o.ShortIDs, id) {
			o.ShortIDs = append(o.ShortIDs, id)
		}
	}
	if len(o.ShortIDs) > 0 {
		o.ShortID = o.ShortIDs[0]
	}
	return o
}

func (db *DB) generic() OS {
	return db.os(&record{shortIDs: []string{Generic}, name: "Generic or unknown OS. Usage is not recommended."})
}

// date reads YYYY-MM-DD; anything else is the zero time.
func date(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

// IsWindows reports whether the system is one of Microsoft's Windows.
func (o OS) IsWindows() bool {
	return o.Family == "win9x" || o.Family == "winnt" || o.Family == "win16"
}

// Supported reports whether the vendor still looks after the system at the
// given time: until its end of support, or else, unless it is a rolling
// release, for ten years from its release (virt-install's rule).
func (o OS) Supported(at time.Time) bool {
	switch {
	case !o.EOL.IsZero():
		return !at.After(o.EOL)
	case o.Status == "rolling", o.Released.IsZero():
		return true
	}
	return !at.After(o.Released.AddDate(0, 0, 3650))
}

// relation is how a system is related to an earlier one.
type relation int

const (
	derives relation = 1 << iota
	clones
	upgrades
)

// walk calls visit with the system's own record and with those of its
// ancestors, depth first, each once, the nearest relation before the next, as
// libosinfo inherits. It stops when visit returns false.
func (o OS) walk(kinds relation, visit func(*record) bool) {
	if o.record == nil {
		return
	}
	seen := map[string]bool{}
	var follow func(r *record) bool
	follow = func(r *record) bool {
		if seen[r.id] {
			return true
		}
		seen[r.id] = true
		if !visit(r) {
			return false
		}
		for _, related := range [][]string{pick(kinds&derives, r.derives), pick(kinds&upgrades, r.upgrades), pick(kinds&clones, r.clones)} {
			for _, id := range related {
				e := o.db.index()[entityKey("os", id)]
				if e == nil {
					continue
				}
				// The depth is bounded by the systems of the database.
				if next, err := e.read(); err == nil && next.id == id && !follow(next) {
					return false
				}
			}
		}
		return true
	}
	follow(o.record)
}

func pick(wanted relation, ids []string) []string {
	if wanted == 0 {
		return nil
	}
	return ids
}
