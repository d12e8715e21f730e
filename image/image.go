// Package image does what one does to virtual disks of any format: open one
// with its backing chain, make, describe, map, check, resize and convert.
//
// It plans and executes and prints nothing: what there is to say comes back
// as values and errors. Long operations take a context and stop when it is
// cancelled; what they were making is then removed.
//
// Names are file names, relative to the working directory, optionally with the
// prefix "file:", or block options as json:{...} (see [BlockOptions]). Names of other protocols ("nbd:...") are refused, so a file
// whose name has a colon before the first slash is written as "./a:b".
package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/protocol/file"
)

// CacheMode is how writes and reads go through the host's page cache.
type CacheMode string

// The cache modes of QEMU. The zero value means CacheWriteback.
const (
	// CacheWriteback: through the page cache; Flush makes writes durable.
	CacheWriteback CacheMode = "writeback"
	// CacheNone: O_DIRECT, past the page cache.
	CacheNone CacheMode = "none"
	// CacheWritethrough: every write is durable when it returns.
	CacheWritethrough CacheMode = "writethrough"
	// CacheDirectsync: O_DIRECT, and every write durable when it returns.
	CacheDirectsync CacheMode = "directsync"
	// CacheUnsafe: flushes are skipped. DANGER: a power loss leaves a
	// damaged image. For images that are made in one go and can be made again.
	CacheUnsafe CacheMode = "unsafe"
)

// ParseCacheMode returns the mode of that name ("off" is an old name of none).
func ParseCacheMode(name string) (CacheMode, error) {
	switch m := CacheMode(name); m {
	case CacheWriteback, CacheNone, CacheWritethrough, CacheDirectsync, CacheUnsafe:
		return m, nil
	case "off":
		return CacheNone, nil
	}
	return "", fmt.Errorf("cache mode %q: %w", name, block.ErrUnsupported)
}

// Options are the choices of [Open]. The zero value opens read-only, probes
// the format, takes QEMU's image locks and opens the whole backing chain.
type Options struct {
	// Format is the format's name; "" probes. DANGER: never probe an image
	// whose first bytes a guest could write and that may be raw.
	Format string
	// Writable opens the image itself for writing; backing files are always
	// read-only.
	Writable bool
	// Cache is the cache mode of the image itself and of its backing files.
	Cache CacheMode
	// NoLock neither takes nor heeds image locks (`-U`). DANGER: what is
	// read may be half of another process's change. Read-only.
	NoLock bool
	// NoBacking leaves the backing file closed: ranges that only it holds
	// fail to read.
	NoBacking bool
	// Untrusted refuses images that name other files, with an error that
	// matches block.ErrUntrusted.
	Untrusted bool
	// ForCheck opens a damaged image as far as Check needs it.
	ForCheck bool
	// Secrets resolves the names of keys of encrypted images. nil is none.
	Secrets format.Secrets
	// Fill opens an image that is going to be filled: with the first change
	// it is marked as unfinished, which it stays until [Image.Finish]. One
	// that an interrupted program left so is opened too. Needs Writable.
	Fill bool

	use use
	// commitTo is the depth of the layer that is written too, 0 for none.
	commitTo int
	// values are runtime options of the image's own format.
	values map[string]string
}

// use is what an image is opened for, which decides its locks.
type use uint8

const (
	useContent use = iota // read or write the guest's data
	useInfo               // only headers are read
	useSource             // read what nobody may change meanwhile
	useResize
	useCommit // the layers above Options.commitTo are written into it
)

type warnKey struct{}

// WithWarnings returns a context under which warn is told what is wrong with an
// image that is opened and no error: a line, and what to do about it.
func WithWarnings(ctx context.Context, warn func(text, hint string)) context.Context {
	return context.WithValue(ctx, warnKey{}, warn)
}

type damageKey struct{}

// WithDamage returns a context under which report is told, once for each image
// and from any goroutine, that an image that is open turned out to be damaged:
// a line in the stock tool's form.
func WithDamage(ctx context.Context, report func(line string)) context.Context {
	return context.WithValue(ctx, damageKey{}, report)
}

// Layer is one image of a backing chain.
type Layer struct {
	// Name is the file's path: the user's own for the first, resolved
	// against the overlay's folder for the others. Where block options decide
	// the content it is the json: name that says so.
	Name string
	// Format is the driver's name; Probed says that it was guessed.
	Format string
	Probed bool
	// Node is the disk from this layer down. It belongs to the Image.
	Node block.Node

	depth    int  // in the chain, 0 is the image itself
	writable bool // opened for writing

	file *file.File
	data *file.File // external data file, nil if there is none or it is closed
	// dataPath is where the data file is, "" without one.
	dataPath string
	path     string        // of the file
	opts     *BlockOptions // of a json: name, nil of a plain one
	// protocol says that the disk was to be the file itself, without a format.
	protocol bool
}

// holds reports whether f is one of the layer's files.
func (l *Layer) holds(f *file.File) bool {
	return l.file.SameFile(f) || l.data != nil && l.data.SameFile(f)
}

// fileName returns what stock calls the node in which the layer's own host
// offsets count.
func (l *Layer) fileName() string {
	if l.opts != nil && l.opts.File != nil && l.Format != rawName {
		return l.opts.File.Filename()
	}
	return l.path
}

// File returns the path of the layer's own file, also where Name is block options.
func (l *Layer) File() string { return l.file.Name() }

// DataFile returns the path of the external data file in which the layer keeps
// the guest's data, "" if it has none.
func (l *Layer) DataFile() string { return l.dataPath }

// ProbedRaw reports whether the layer was taken for raw only because it is
// nothing else. Its first sector is then protected against becoming the
// header of another format.
func (l *Layer) ProbedRaw() bool { return l.Probed && l.Format == rawName }

// DiskSize returns the bytes that the layer's file takes on the host.
func (l *Layer) DiskSize() (int64, error) { return l.file.DiskSize() }

// Image is an open disk image with its backing chain.
type Image struct {
	layers     []*Layer
	unfinished *unfinishedFile // nil unless opened with Options.Fill
}

// Node returns the disk that the guest sees. It belongs to the Image.
func (im *Image) Node() block.Node { return im.layers[0].Node }

// Layers returns the chain, the image itself first, its base last.
func (im *Image) Layers() []*Layer { return im.layers }

// Format returns the name of the image's own format.
func (im *Image) Format() string { return im.layers[0].Format }

// Finish says that an image opened with [Options].Fill is complete: everything
// is made durable (with CacheUnsafe: written) and then the mark goes.
func (im *Image) Finish() error {
	if w, ok := block.As[block.Writer](im.Node()); ok {
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if im.unfinished == nil {
		return nil
	}
	return im.unfinished.finish()
}

// Close closes the whole chain. What was not finished stays marked.
func (im *Image) Close() error { return im.layers[0].Node.Close() }

const rawName = "raw"

// Open opens a disk image. Errors match the sentinels of package block
// (ErrInUse, ErrNotFormat, ErrUnknownFormat, ErrBackingLoop, ErrCorrupt, ...)
// and those of package io/fs. Those about a file of the chain are, or wrap,
// an *[OpenError].
func Open(ctx context.Context, name string, opts Options) (*Image, error) {
	c := &chain{opts: opts}
	if _, err := c.open(ctx, name, opts.Format, true); err != nil {
		return nil, &OpenError{Name: name, Err: err}
	}
	return &Image{layers: c.layers, unfinished: c.unfinished}, nil
}

// chain is a backing chain while it is being opened.
type chain struct {
	opts       Options
	layers     []*Layer
	unfinished *unfinishedFile
}

// open opens one file of the chain, which opens those below it.
func (c *chain) open(ctx context.Context, name, formatName string, top bool) (*Layer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	loc, err := parseName(name)
	if err != nil {
		return nil, err
	}
	if formatName == "" {
		formatName = loc.format
	}
	return c.openAt(ctx, loc, formatName, top)
}

// openAt is open for a name that has been taken apart.
func (c *chain) openAt(ctx context.Context, loc location, formatName string, top bool) (*Layer, error) {
	l := &Layer{Name: loc.path, path: loc.path, opts: loc.opts, depth: len(c.layers)}
	l.writable = c.opts.Writable && (top || c.opts.use == useCommit && l.depth == c.opts.commitTo)
	plan, err := loc.opts.plan(c, l.writable)
	if err != nil {
		return nil, err
	}
	if plan.file.path == "" {
		plan.file.path = loc.path
	}
	drv, err := c.openFile(l, plan, formatName, top)
	if err != nil {
		return nil, err
	}
	if loc.opts != nil {
		l.protocol = isProtocol(loc.opts.Driver) && loc.format == drv.Name()
		if !isProtocol(loc.opts.Driver) {
			l.Name = loc.opts.withDriver(drv.Name()).Filename()
		}
	}
	for _, above := range c.layers {
		if above.holds(l.file) {
			_ = l.file.Close()
			return nil, fmt.Errorf("%s is in the chain already, as %s: %w", l.Name, above.Name, block.ErrBackingLoop)
		}
	}
	c.layers = append(c.layers, l)
	if err := c.openDisk(ctx, l, drv, plan, top); err != nil {
		_ = l.file.Close()
		return nil, err
	}
	return l, nil
}

// openFile opens and locks the layer's file and decides its format. Probing
// comes before the locks because they depend on the format: who reads a raw
// image does not mind a writer.
func (c *chain) openFile(l *Layer, plan nodePlan, formatName string, top bool) (format.Driver, error) {
	path := plan.file.path
	writable := l.writable
	var drv format.Driver
	if formatName != "" {
		if drv = all.Find(formatName); drv == nil {
			return nil, &UnknownFormatError{Format: formatName}
		}
	}
	opts := file.Options{
		Writable: writable,
		Direct:   plan.direct,
		Sync:     c.opts.Cache == CacheWritethrough || c.opts.Cache == CacheDirectsync,
		NoLock:   plan.noLock,
	}
	if drv == nil && len(plan.between) > 0 {
		return nil, &format.OptionError{Text: "The format over a node that is not a file has to be named (driver)"}
	}
	if drv == nil && writable {
		// Whether the file may grow by itself is decided when it is opened.
		var err error
		if drv, err = probeFile(path); err != nil {
			return nil, err
		}
		l.Probed = true
	}
	opts.Locks = &file.Locks{}
	if drv != nil {
		if !plan.file.unlocked {
			*opts.Locks = c.locks(l, drv.Name(), top)
		}
		opts.Growable = writable && (drv.Name() != rawName || plan.hasMetadata())
	}
	f, err := file.Open(path, opts)
	if err == nil {
		err = closeUnless(f, plan.file.check(f))
	}
	if err != nil {
		return nil, err
	}
	if drv == nil {
		l.Probed = true
		drv, err = probe(f, path)
		if locks := (file.Locks{}); err == nil && !plan.noLock && !plan.file.unlocked {
			if locks = c.locks(l, drv.Name(), top); locks != (file.Locks{}) {
				err = f.ChangeLocks(locks)
			}
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	l.file, l.Format = f, drv.Name()
	return drv, nil
}

// hasMetadata reports whether a format between has metadata, so that the file
// grows by itself.
func (p nodePlan) hasMetadata() bool {
	for _, o := range p.between {
		if o.Driver != rawName {
			return true
		}
	}
	return false
}

// locks returns the locks that stock QEMU takes for the same use.
func (c *chain) locks(l *Layer, formatName string, top bool) file.Locks {
	raw := formatName == rawName
	switch {
	case c.opts.use == useCommit && l.depth > 0 && l.depth <= c.opts.commitTo:
		return commitLocks(l.writable, raw)
	case !top && raw && c.opts.use != useSource && c.opts.use != useInfo:
		return file.SharedReadLocks()
	case !top:
		return file.StableReadLocks()
	case c.opts.use == useInfo && raw:
		return file.Locks{}
	case c.opts.use == useInfo:
		return file.Locks{NotShared: file.PermWrite | file.PermResize}
	case c.opts.use == useResize && raw:
		return file.RawResizeLocks()
	case c.opts.Writable:
		return file.WriteLocks()
	case raw && c.opts.use == useContent:
		return file.SharedReadLocks()
	}
	return file.StableReadLocks()
}

// openDisk opens the format inside the layer's file.
func (c *chain) openDisk(ctx context.Context, l *Layer, drv format.Driver, plan nodePlan, top bool) error {
	opts := format.OpenOptions{
		Writable:     l.writable,
		Filename:     l.Name,
		Untrusted:    c.opts.Untrusted,
		ForCheck:     top && c.opts.ForCheck,
		Unsafe:       plan.noFlush,
		Secrets:      c.opts.Secrets,
		NoData:       c.opts.use == useInfo,
		ForceBacking: l.opts != nil && (l.opts.Backing != nil || l.opts.backingReference() != ""),
	}
	if !l.protocol { // what a protocol has, the plan has dealt with
		opts.Values = plan.top.rest
	}
	if top && len(opts.Values) == 0 {
		opts.Values = c.opts.values
	}
	opts.Opener = &opener{c: c, l: l, path: l.path, opts: l.opts}
	opts.Warn, _ = ctx.Value(warnKey{}).(func(text, hint string))
	opts.Damage, _ = ctx.Value(damageKey{}).(func(line string))
	file, err := c.under(ctx, l, plan, opts.Writable)
	if err != nil {
		return err
	}
	// What lies beside a window is not to be marked.
	window := drv.Name() == rawName && len(opts.Values) > 0
	if opts.Writable && c.opts.Fill && !window {
		u, err := openUnfinished(file, drv, !opts.Unsafe)
		if err != nil {
			return err
		}
		if u != nil {
			file, c.unfinished = u, u
		}
	}
	node, err := drv.Open(ctx, file, opts)
	if err != nil {
		return notFormat(err, l.Name, drv)
	}
	if err := c.checkUnused(l.opts, l, drv); err != nil {
		_ = node.Close() // nothing was written
		return err
	}
	if l.ProbedRaw() && opts.Writable {
		node = &guardedRaw{Node: node, name: l.Name}
	}
	if opts.Writable {
		node = filtered(node, plan.top)
	}
	l.Node = node
	return nil
}

// notFormat says which file is not an image of the driver's format.
func notFormat(err error, name string, drv format.Driver) error {
	var backing *BackingError
	if errors.Is(err, block.ErrNotFormat) && !errors.As(err, &backing) {
		return &NotFormatError{Name: name, Format: drv.Name()}
	}
	return err
}

// opener opens what the image at path names, or what the block options name
// instead.
type opener struct {
	c    *chain
	l    *Layer
	path string
	opts *BlockOptions // of the image's node, nil for none
}

// OpenBacking implements [format.Opener].
func (o *opener) OpenBacking(ctx context.Context, name, formatName string) (block.Node, error) {
	switch {
	case o.c.opts.Untrusted:
		return nil, fmt.Errorf("%s: backing file %q: %w", o.path, name, block.ErrUntrusted)
	case o.c.opts.NoBacking:
		return nil, nil
	case o.opts != nil && o.opts.NoBacking:
		return nothing{}, nil
	}
	l, err := o.openBacking(ctx, name, formatName)
	if err != nil {
		return nil, &BackingError{Overlay: o.path, Name: name, Err: err}
	}
	return l.Node, nil
}

func (o *opener) openBacking(ctx context.Context, name, formatName string) (*Layer, error) {
	if node := o.opts.backingReference(); node != "" {
		return nil, &format.OptionError{Text: "Cannot find device='" + node + "' nor node-name='" + node + "'"}
	}
	if o.opts == nil || o.opts.Backing == nil {
		return o.c.open(ctx, combine(o.path, name), formatName, false)
	}
	loc, formatName, err := o.backingLocation(name, formatName)
	if err != nil {
		return nil, err
	}
	return o.c.openAt(ctx, loc, formatName, false)
}

// probeFile probes a file that is not open yet.
func probeFile(path string) (format.Driver, error) {
	f, err := file.Open(path, file.Options{NoLock: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return probe(f, path)
}

func probe(f *file.File, path string) (format.Driver, error) {
	prefix := make([]byte, min(format.ProbeSize, f.Size()))
	if _, err := f.ReadAt(prefix, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the beginning of %s to find its format: %w", path, err)
	}
	drv := all.Probe(prefix, path)
	if drv == nil {
		return nil, fmt.Errorf("%s: could not determine the format: %w", path, block.ErrUnknownFormat)
	}
	return drv, nil
}
