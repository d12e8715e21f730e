// Package tree finds files by path in a file system that is read piece by
// piece, without a mount: what a reader of a file system has to offer, and the
// walk along paths and symbolic links over it.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// ErrDamaged is wrapped by what a reader returns for a structure that cannot be
// right.
var ErrDamaged = errors.New("damaged file system")

// ErrUnsupported is wrapped by what a reader returns for a feature of the file
// system that it cannot read.
var ErrUnsupported = errors.New("not supported")

// ID is a file of one file system: an inode number, or what the reader of a
// system without inodes takes for one.
type ID uint64

// Stat is what a walk needs to know of a file. Type has only the type bits of
// [fs.FileMode].
type Stat struct {
	Type fs.FileMode
	Size int64 // bytes, not negative
}

// FS reads one file system. Its methods do bounded work, whatever the disk
// holds, and allocate no more than what they are asked for and a few blocks.
// They need not be safe for concurrent use.
type FS interface {
	// Root is the root folder.
	Root() ID
	// Stat describes a file.
	Stat(ID) (Stat, error)
	// Lookup returns the file of that name in a folder; the error matches
	// [fs.ErrNotExist] where there is none.
	Lookup(dir ID, name string) (ID, error)
	// List calls visit with the entries of a folder, without "." and "..", in
	// the disk's order, until it returns false.
	List(dir ID, visit func(name string, id ID) bool) error
	// Read returns the first max bytes of a file, or of a link's target; fewer
	// where it is shorter.
	Read(id ID, max int) ([]byte, error)
}

// Bounds of a walk.
const (
	maxLinks   = 40   // Linux's own
	maxNames   = 1000 // looked up in one walk, links included
	maxTarget  = 4096 // of a link, bytes
	maxEntries = 20_000
)

// A Tree is a file system with paths. Paths are relative to the root; a leading
// slash changes nothing.
type Tree struct{ FS }

// Find returns the file at a path, following symbolic links also in its last
// part. Links cannot lead out of the root. The error matches [fs.ErrNotExist]
// where there is none.
func (t Tree) Find(name string) (ID, Stat, error) { return t.walk(name, true) }

// Lstat is Find but for a link in the last part, which it describes itself.
func (t Tree) Lstat(name string) (Stat, error) {
	_, st, err := t.walk(name, false)
	return st, err
}

func (t Tree) walk(name string, followLast bool) (ID, Stat, error) {
	fail := func(err error) (ID, Stat, error) {
		return 0, Stat{}, &fs.PathError{Op: "look up", Path: name, Err: err}
	}
	type place struct {
		id ID
		st Stat
	}
	st, err := t.Stat(t.Root())
	if err != nil {
		return fail(err)
	}
	stack := []place{{t.Root(), st}} // from the root down
	rest := split(name)
	links := 0
	for n := 0; len(rest) > 0; n++ {
		if n == maxNames {
			return fail(fmt.Errorf("more than %d parts: %w", maxNames, ErrDamaged))
		}
		part := rest[0]
		rest = rest[1:]
		if part == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		dir := stack[len(stack)-1]
		if !dir.st.Type.IsDir() {
			return fail(fs.ErrNotExist)
		}
		id, err := t.Lookup(dir.id, part)
		if err != nil {
			return fail(err)
		}
		if st, err = t.Stat(id); err != nil {
			return fail(err)
		}
		if st.Type != fs.ModeSymlink || len(rest) == 0 && !followLast {
			stack = append(stack, place{id, st})
			continue
		}
		if links++; links > maxLinks {
			return fail(fmt.Errorf("more than %d symbolic links: %w", maxLinks, fs.ErrNotExist))
		}
		target, err := t.Read(id, maxTarget)
		if err != nil {
			return fail(err)
		}
		if strings.HasPrefix(string(target), "/") {
			stack = stack[:1]
		}
		rest = append(split(string(target)), rest...)
		if len(rest) > maxNames {
			return fail(fmt.Errorf("more than %d parts: %w", maxNames, ErrDamaged))
		}
	}
	last := stack[len(stack)-1]
	return last.id, last.st, nil
}

// split cuts a path into its parts.
func split(name string) []string {
	return strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
}

// IsFile says that there is a regular file at a path, links followed. What
// cannot be read counts as not there, but for err.
func (t Tree) IsFile(name string) (bool, error) {
	_, st, err := t.Find(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Type.IsRegular(), err
}

// ReadFile returns the first max bytes of the regular file at a path.
func (t Tree) ReadFile(name string, max int) ([]byte, error) {
	id, st, err := t.Find(name)
	if err != nil {
		return nil, err
	}
	if !st.Type.IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	b, err := t.Read(id, max)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// Match returns the paths in a folder whose names match a pattern of
// [path.Match], in the disk's order; none where there is no such folder. At
// most 20,000 entries are looked at.
func (t Tree) Match(dir, pattern string) ([]string, error) {
	id, st, err := t.Find(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Type.IsDir() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	n := 0
	var bad error
	err = t.List(id, func(name string, _ ID) bool {
		ok, err := path.Match(pattern, name)
		if ok {
			out = append(out, path.Join("/", dir, name))
		}
		bad = errors.Join(bad, err)
		n++
		return n < maxEntries && err == nil
	})
	return out, errors.Join(err, bad)
}
