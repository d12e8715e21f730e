package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
)

// ConvertOptions are the choices of [Convert]. The zero value makes a sparse
// raw file of a probed source.
type ConvertOptions struct {
	// SourceFormat is the format of every source; "" probes each.
	SourceFormat string
	SourceCache  CacheMode
	// SourceNoLock reads sources that may be in use. DANGER: the copy may
	// be of no one point in time.
	SourceNoLock bool
	// SourceUntrusted refuses sources that name other files.
	SourceUntrusted bool
	// Snapshot copies an internal snapshot of the first source, with the
	// size that the disk had then, instead of its present content.
	Snapshot *SnapshotRef
	// Part copies only that part, as far as it lies in the disk, of the one
	// source, which may meanwhile be written as far as its format allows
	// that. Not with BackingFile. nil is all.
	Part *Part

	// Format of the target; "" is raw, or what block options (a json: name
	// with NoCreate) say. Values are its creation options.
	Format string
	Values map[string]string
	Cache  CacheMode // of the target; CacheUnsafe skips the final flush
	// BackingFile becomes the target's backing file: what reads the same
	// through it is not copied. BackingFormat must be given with it.
	BackingFile, BackingFormat string
	// NoCreate writes into an existing target of at least the sources'
	// size; with BackingFile, only where it does not read the same already.
	// TargetZero promises that all of it reads as zeros.
	NoCreate, TargetZero bool
	// Compress stores compressed clusters.
	Compress bool

	// Secrets resolves the names of keys of encrypted sources and targets. nil is none.
	Secrets format.Secrets
	// Sparse is the least number of zero bytes that become a hole; 0 means
	// 4096. NoSparse writes everything, zeros too.
	Sparse   int64
	NoSparse bool
	// Workers is the number of requests under way, 1 to 16; 0 means 8.
	Workers int
	// OutOfOrder lets writes happen as reads finish, which is faster and
	// scatters the target. Compressed clusters always do.
	OutOfOrder bool
	// CopyRange lets the kernel copy, where it can, without the data
	// passing through this process; zeros are then not looked for.
	CopyRange bool
	// Bitmaps copies the source's dirty bitmaps, with name, granularity and
	// state. An inconsistent one is an error, before anything is made; with
	// SkipBrokenBitmaps it is left out, and SkippedBitmap told its name.
	Bitmaps, SkipBrokenBitmaps bool
	SkippedBitmap              func(name string)
	// Salvage puts zeros where the source cannot be read, and reports each
	// place to Unreadable (from any goroutine, one call at a time).
	Salvage    bool
	Unreadable func(off int64, err error)
	// RateLimit is in bytes written a second, 0 for none.
	RateLimit int64
	// Progress receives the bytes of the disk that are done, of the total,
	// from any goroutine, one call at a time, ascending. May be nil.
	Progress func(done, total int64)
}

// Errors of [Convert].
var (
	ErrTargetTooSmall = errors.New("output file is smaller than input file")
	ErrSourceIsTarget = errors.New("source and target are the same file")
)

// ErrNoCompression of [Convert] matches [block.ErrUnsupported]: the target's
// format does not store compressed data.
const ErrNoCompression = unsupported("compressed data in an image of this format")

// ErrCompressEncrypted of [Convert] matches [block.ErrUnsupported]: compressed
// clusters are not encrypted.
const ErrCompressEncrypted = unsupported("compression of an encrypted image")

// CopyError says where in the disk a conversion stopped.
type CopyError struct {
	Writing bool
	// Status says that it was not known what is there.
	Status bool
	Offset int64 // guest offset of the request, in bytes
	Err    error
}

// Error names the offset and the cause.
func (e *CopyError) Error() string {
	verb := "reading"
	if e.Writing {
		verb = "writing"
	}
	if e.Status {
		return fmt.Sprintf("finding what is at byte %d: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("%s at byte %d: %v", verb, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *CopyError) Unwrap() error { return e.Err }

// TargetError says that the target could not be made.
type TargetError struct {
	Name, Format string
	Err          error
}

// Error names target and cause.
func (e *TargetError) Error() string {
	return fmt.Sprintf("%s: error while converting %s: %v", e.Name, e.Format, e.Err)
}

// Unwrap returns the cause.
func (e *TargetError) Unwrap() error { return e.Err }

// Convert copies the sources, one behind the other, to target. A target that
// it made is removed when it fails or ctx is cancelled.
func Convert(ctx context.Context, sources []string, target string, opts ConvertOptions) (err error) {
	if len(sources) == 0 {
		return fmt.Errorf("convert to %s: no source", target)
	}
	drv, err := targetDriver(target, opts)
	if err != nil {
		return err
	}
	c := &conversion{opts: opts, targetFormat: opts.Format}
	if opts.Format == "" && !strings.HasPrefix(target, "json:") {
		c.targetFormat = rawName
	}
	c.opts.Format = drv.Name()
	defer func() { err = errors.Join(err, c.closeSources()) }()
	if err := c.openSources(ctx, sources); err != nil {
		return err
	}
	if err := c.sourceBitmaps(); err != nil {
		return err
	}
	if err := c.checkTarget(drv, target); err != nil {
		return err
	}
	var made madeFile
	if !opts.NoCreate {
		if made, err = c.create(ctx, drv, target); err != nil {
			return &TargetError{Name: target, Format: drv.Name(), Err: err}
		}
	}
	return c.copyTo(ctx, target, made)
}

// targetDriver returns the driver of the target's format. Block options name
// it themselves, or it is probed.
func targetDriver(target string, opts ConvertOptions) (format.Driver, error) {
	name := opts.Format
	if name == "" && opts.NoCreate && strings.HasPrefix(target, "json:") {
		loc, err := parseName(target)
		if err != nil {
			return nil, &OpenError{Name: target, Err: err}
		}
		if name = loc.format; name == "" {
			drv, err := probeFile(loc.path)
			if err != nil {
				return nil, &OpenError{Name: target, Err: err}
			}
			return drv, nil
		}
	}
	if name == "" {
		name = rawName
	}
	drv := all.Find(name)
	if drv == nil {
		return nil, &UnknownFormatError{Format: name}
	}
	return drv, nil
}

// copyTo opens the target, which exists now, and fills it. What was made for it
// goes with an error.
func (c *conversion) copyTo(ctx context.Context, target string, made madeFile) (err error) {
	im, err := Open(ctx, target, Options{Format: c.targetFormat, Writable: true, Cache: c.opts.Cache, Fill: true, Secrets: c.opts.Secrets, values: c.keyNames()})
	if err != nil {
		// Whoever took the file since it was made has made it anew.
		if !errors.Is(err, block.ErrInUse) {
			made.undo()
		}
		return err
	}
	defer func() { err = made.close(im.Node(), err) }()
	if err := c.refuseSource(target, im.layers[0].dataPath); err != nil {
		return err
	}
	if err := c.setTarget(im); err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	bitmapErr := c.copyBitmaps(im.Node())
	if bitmapErr != nil && !c.opts.NoCreate {
		return bitmapErr
	}
	// An existing target has the guest's data all the same.
	if err := im.Finish(); err != nil {
		return fmt.Errorf("%s: %w", target, err)
	}
	return bitmapErr
}

// keyNames returns the options of a new target that name keys: with them it is
// opened again to be filled.
func (c *conversion) keyNames() map[string]string {
	if c.opts.NoCreate {
		return nil
	}
	var names map[string]string
	for _, k := range []string{"key-secret", "encrypt.key-secret"} {
		if v, ok := c.opts.Values[k]; ok {
			if names == nil {
				names = map[string]string{}
			}
			names[k] = v
		}
	}
	return names
}

// source is one image to copy, and where in the target it begins. node is its
// disk, or that of an internal snapshot.
type source struct {
	im          *Image
	node        block.Node
	start, size int64
}

func (c *conversion) openSources(ctx context.Context, names []string) error {
	locks := useSource
	if c.opts.Part != nil {
		locks = useContent
	}
	for _, name := range names {
		im, err := Open(ctx, name, Options{
			Format: c.opts.SourceFormat, Cache: c.opts.SourceCache, NoLock: c.opts.SourceNoLock,
			Untrusted: c.opts.SourceUntrusted, Secrets: c.opts.Secrets, use: locks,
		})
		if err != nil {
			return err
		}
		c.srcs = append(c.srcs, source{im: im, node: im.Node()})
	}
	if ref := c.opts.Snapshot; ref != nil {
		if len(c.srcs) > 1 && ref.ID == nil && ref.Name == nil {
			return ErrManySnapshots
		}
		node, err := c.srcs[0].im.OpenSnapshot(ctx, *ref)
		if err != nil {
			return err
		}
		c.srcs[0].node = node
	}
	if part := c.opts.Part; part != nil {
		if len(c.srcs) > 1 || c.opts.BackingFile != "" {
			return fmt.Errorf("a part of several sources, or for a target with a backing file: %w", block.ErrUnsupported)
		}
		w, err := newWindow(c.srcs[0].node, *part)
		if err != nil {
			return err
		}
		c.srcs[0].node = w
	}
	for i := range c.srcs {
		s := &c.srcs[i]
		s.start = c.total
		s.size = (s.node.Size() + block.SectorSize - 1) / block.SectorSize * block.SectorSize
		c.total += s.size
	}
	return nil
}

func (c *conversion) closeSources() error {
	var err error
	for _, s := range c.srcs {
		if s.node != s.im.Node() {
			err = errors.Join(err, s.node.Close())
		}
		err = errors.Join(err, s.im.Close())
	}
	return err
}

// checkTarget refuses what cannot work before anything is touched.
func (c *conversion) checkTarget(drv format.Driver, target string) error {
	switch {
	case c.opts.Compress && (c.opts.Values["encryption"] == "on" || c.opts.Values["encrypt.format"] != ""):
		return ErrCompressEncrypted
	case c.opts.Compress && !hasOption(drv, "compression_type"):
		return ErrNoCompression
	case c.opts.NoCreate: // the target has the backing file that it has
	case c.opts.BackingFile != "" && !hasOption(drv, "backing_file"):
		return &NoBackingSupportError{Format: drv.Name()}
	case c.opts.BackingFile != "" && c.opts.BackingFormat == "":
		return &NoBackingFormatError{}
	}
	loc, err := parseName(target)
	if err != nil {
		if c.opts.NoCreate {
			err = &OpenError{Name: target, Err: err}
		}
		return err
	}
	if err := c.refuseSource(target, loc.path); err != nil {
		return err
	}
	if name, ok := c.opts.Values["data_file"]; ok && !c.opts.NoCreate {
		if loc, err := parseName(name); err == nil {
			return c.refuseSource(target, loc.path)
		}
	}
	return nil
}

// refuseSource refuses to write to the file at path, "" for none, where it is
// one of the sources'. The locks find this out too, but not where they are left
// out, or shared as those of a raw image of which a part is copied.
func (c *conversion) refuseSource(target, path string) error {
	st, err := os.Stat(path)
	if err != nil || !c.opts.SourceNoLock && c.opts.Part == nil {
		return nil
	}
	for _, s := range c.srcs {
		for _, l := range s.im.Layers() {
			if !c.opts.SourceNoLock && l.Format != rawName {
				continue
			}
			for _, name := range []string{l.file.Name(), l.dataPath} {
				if same, err := os.Stat(name); err == nil && os.SameFile(st, same) {
					return fmt.Errorf("convert %s to %s: %w", l.Name, target, ErrSourceIsTarget)
				}
			}
		}
	}
	return nil
}

// create makes the target.
func (c *conversion) create(ctx context.Context, drv format.Driver, target string) (madeFile, error) {
	p, err := PlanCreate(ctx, target, CreateOptions{
		Format: drv.Name(), Size: c.total, Values: c.opts.Values,
		BackingFile: c.opts.BackingFile, BackingFormat: c.opts.BackingFormat,
		Unchecked: true, NoFlush: true, Fill: true, unsafe: c.opts.Cache == CacheUnsafe, Secrets: c.opts.Secrets,
	})
	if err != nil {
		return madeFile{}, err
	}
	return p.create(ctx)
}
