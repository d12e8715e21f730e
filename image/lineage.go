package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/block"
)

// Problems of a [LineageNode].
var (
	// ErrMissingImage: an image names a backing file that is not there.
	ErrMissingImage = errors.New("the file is missing")
	// ErrNotFollowed: an image names a backing file that is no plain file,
	// or may not be opened.
	ErrNotFollowed = errors.New("the link is not followed")
)

// LineageNode is an image and the images that lie over it.
type LineageNode struct {
	// Name is the file's path, as given or as the overlay's header leads to it.
	Name   string
	Format string
	// VirtualSize and DiskSize are in bytes.
	VirtualSize, DiskSize int64
	// BackingFile and BackingFormat are as the header records them.
	BackingFile, BackingFormat string
	// Err says why nothing more is known of the file, or what is wrong with
	// its link: it matches ErrMissingImage, ErrNotFollowed,
	// block.ErrBackingLoop, or is the error of opening it.
	Err error
	// Overlays are the images that have this one as their backing file, by
	// name.
	Overlays []*LineageNode

	key    string // the file's real path
	below  string // the backing file's full name
	parent *LineageNode
	// under is an image below, not always the next; nil in a base.
	under *LineageNode
}

// base returns the lowest image below n. What it finds out shortens the way
// for the next time.
func (n *LineageNode) base() *LineageNode {
	for n.under != nil {
		if n.under.under != nil {
			n.under = n.under.under
		}
		n = n.under
	}
	return n
}

// LineageOptions are the choices of [Lineage].
type LineageOptions struct {
	// Untrusted does not look at files that images name: they are
	// [ErrNotFollowed] unless they are among the given ones.
	Untrusted bool
}

// Lineage finds out which image lies over which. Each name is an image, whose
// whole backing chain is followed, or a folder, whose images (all but
// unrelated raw files that have no name of a disk) are taken with their
// chains. The result are the images without a backing file, and those whose
// link leads nowhere or in a circle, and folders that cannot be read, by name. Only headers are read,
// without locks: running machines are not disturbed, and an image that is
// being changed may show its old state.
func Lineage(ctx context.Context, names []string, opts LineageOptions) ([]*LineageNode, error) {
	l := &lineage{ctx: ctx, opts: opts, nodes: map[string]*LineageNode{}}
	for _, name := range names {
		st, err := os.Stat(name)
		switch {
		case err != nil:
			return nil, &OpenError{Name: name, Err: err}
		case st.IsDir():
			err = l.addFolder(name)
		default:
			_, err = l.add(name, "", true)
		}
		if err != nil {
			return nil, err
		}
	}
	// Linking finds more images to link.
	for i := 0; i < len(l.order); i++ {
		if err := l.link(l.order[i]); err != nil {
			return nil, err
		}
	}
	return l.roots(), nil
}

type lineage struct {
	ctx   context.Context
	opts  LineageOptions
	nodes map[string]*LineageNode
	order []*LineageNode
}

// addFolder adds the images of a folder and those below it.
func (l *lineage) addFolder(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			l.order = append(l.order, &LineageNode{Name: path, Err: err})
			return nil // the others are shown all the same
		case d.IsDir() || !d.Type().IsRegular():
			return nil // links would show a file twice
		}
		_, err = l.add(path, "", looksLikeDisk(path))
		return err
	})
}

// looksLikeDisk reports whether a raw file of that name is taken for a disk.
func looksLikeDisk(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".raw", ".img", ".iso", ".disk":
		return true
	}
	return false
}

// add describes a file. A raw file is only taken if raw is
// allowed. It returns nil for a file that was not taken.
func (l *lineage) add(name, formatName string, raw bool) (*LineageNode, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	n := &LineageNode{Name: name, key: realPath(name)}
	if have := l.nodes[n.key]; have != nil {
		return have, nil
	}
	infos, err := Inspect(l.ctx, name, InfoOptions{Format: formatName, NoLock: true})
	var info Info
	switch {
	case errors.Is(err, fs.ErrNotExist):
		n.Err = ErrMissingImage
	case err != nil:
		n.Err = err
	default:
		info = infos[0]
	}
	if info.Format == rawName && !raw {
		return nil, nil
	}
	n.Format, n.VirtualSize, n.DiskSize = info.Format, info.VirtualSize, info.DiskSize
	n.BackingFile, n.BackingFormat = info.BackingFile, info.BackingFormat
	n.below = info.FullBackingFile
	l.nodes[n.key] = n
	l.order = append(l.order, n)
	return n, nil
}

// link finds the image below n.
func (l *lineage) link(n *LineageNode) error {
	if n.below == "" {
		return nil
	}
	loc, err := parseName(n.below)
	if err != nil {
		n.Err = fmt.Errorf("%w: %w", ErrNotFollowed, err)
		return nil
	}
	if l.opts.Untrusted && l.nodes[realPath(loc.path)] == nil {
		n.Err = fmt.Errorf("%w: %w", ErrNotFollowed, block.ErrUntrusted)
		return nil
	}
	below, err := l.add(loc.path, n.BackingFormat, true)
	if err != nil {
		return err
	}
	if below.base() == n {
		n.Err = fmt.Errorf("%s is over it already: %w", below.Name, block.ErrBackingLoop)
		return nil
	}
	n.parent, n.under = below, below
	below.Overlays = append(below.Overlays, n)
	return nil
}

// roots returns the images without one below, and sorts.
func (l *lineage) roots() []*LineageNode {
	byName := func(a, b *LineageNode) int { return strings.Compare(a.Name, b.Name) }
	var roots []*LineageNode
	for _, n := range l.order {
		slices.SortFunc(n.Overlays, byName)
		if n.parent == nil {
			roots = append(roots, n)
		}
	}
	slices.SortFunc(roots, byName)
	return roots
}

// realPath is what two names of one file have in common.
func realPath(name string) string {
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		return real
	}
	return filepath.Clean(name)
}
