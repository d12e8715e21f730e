package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
)

// RebaseOptions are the choices of [Rebase].
type RebaseOptions struct {
	Format string // of the overlay, as in Options
	// Backing is the new backing file as it is to be recorded: absolute,
	// relative to the folder of the overlay, or "" for none. BackingFormat is
	// its format, which must be known where there is a backing file.
	Backing, BackingFormat string
	// Cache is the overlay's cache mode, SourceCache the new backing file's.
	Cache, SourceCache CacheMode
	// Unsafe only records the new name and opens no backing file. DANGER:
	// where old and new backing file differ, the disk changes.
	Unsafe bool
	// Compress stores what is copied compressed.
	Compress bool
	// NoLock opens the new backing file without locks.
	NoLock bool
	// Secrets resolves the names of keys. nil is none.
	Secrets format.Secrets
	// Progress receives the bytes that are compared, of the disk's size, on
	// the calling goroutine, ascending. May be nil.
	Progress func(done, total int64)
	// Opened is called when the overlay is open; probedRaw says that its
	// format was guessed to be raw. May be nil.
	Opened func(probedRaw bool)
}

// Errors of [Rebase].
var (
	// ErrNoBackingChange: the format records no backing file.
	ErrNoBackingChange error = unsupported("changing the backing file")
	// ErrBackingFormatMissing: a backing file without its format.
	ErrBackingFormatMissing = errors.New("backing format must be specified")
)

// NewBackingError is for a new backing file that cannot be opened.
type NewBackingError struct {
	Name string // as the caller gave it
	Err  error
}

// Error names the file and the cause.
func (e *NewBackingError) Error() string {
	return fmt.Sprintf("new backing file %q: %v", e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *NewBackingError) Unwrap() error { return e.Err }

// ChangeBackingError is for a new backing file that cannot be recorded. What
// was copied stays in the overlay, whose content is the same.
type ChangeBackingError struct {
	Name string // as the caller gave it
	Err  error
}

// Error names the file and the cause.
func (e *ChangeBackingError) Error() string {
	return fmt.Sprintf("record %q as the backing file: %v", e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *ChangeBackingError) Unwrap() error { return e.Err }

// CopyStep is what a rebase was doing when it failed.
type CopyStep uint8

// The steps.
const (
	StepMap     CopyStep = iota // find out what the overlay holds
	StepReadOld                 // read through the old backing file
	StepReadNew                 // read the new backing file
	StepWrite                   // write to the overlay
)

// RebaseError says where a rebase stopped. The overlay still has its old
// backing file and its content.
type RebaseError struct {
	Step   CopyStep
	Offset int64 // guest offset in bytes
	Err    error
}

// Error names the step, the offset and the cause.
func (e *RebaseError) Error() string {
	what := []string{"map the overlay", "read the old backing file", "read the new backing file", "write the overlay"}[e.Step]
	return fmt.Sprintf("%s at guest offset %#x: %v", what, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *RebaseError) Unwrap() error { return e.Err }

// Rebase gives an overlay another backing file. Unless it is unsafe, what the
// overlay takes from the old one and the new one has otherwise is copied into
// the overlay first, so that the disk stays as it is; the new name is recorded
// when all that is durable. Whatever interrupts it, the overlay reads as
// before.
func Rebase(ctx context.Context, name string, opts RebaseOptions) (err error) {
	im, err := Open(ctx, name, Options{Format: opts.Format, Cache: opts.Cache, Secrets: opts.Secrets, Writable: true, NoBacking: opts.Unsafe})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	if opts.Opened != nil {
		opts.Opened(im.Layers()[0].ProbedRaw())
	}
	r := &rebasing{opts: opts, im: im}
	if err := r.check(); err != nil {
		return err
	}
	if !opts.Unsafe {
		if err := r.openNew(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.closeNew()) }()
	}
	change, ok := block.As[format.BackingChanger](im.Node())
	switch {
	case !ok:
		return &ChangeBackingError{opts.Backing, ErrNoBackingChange}
	case opts.Backing != "" && opts.BackingFormat == "":
		return &ChangeBackingError{opts.Backing, ErrBackingFormatMissing}
	}
	if err := r.refuseLoop(); err != nil {
		return err
	}
	if !opts.Unsafe {
		if err := r.copy(ctx); err != nil {
			return err
		}
	}
	if err := change.ChangeBacking(ctx, opts.Backing, opts.BackingFormat); err != nil {
		return &ChangeBackingError{opts.Backing, err}
	}
	if opts.Progress != nil {
		opts.Progress(im.Node().Size(), im.Node().Size())
	}
	return nil
}

// rebasing is a rebase under way.
type rebasing struct {
	opts RebaseOptions
	im   *Image
	// next is the new backing file; nil is none. opened is set where it is
	// not one of the chain's own layers.
	next   block.Node
	opened *Image
	// prefix is the depth of the chain's own layer that next is, 0 if it is
	// none: what no layer above it holds stays the same.
	prefix int
}

// check refuses what can be known to fail before another file is opened.
func (r *rebasing) check() error {
	if r.opts.Compress {
		if _, ok := block.As[block.CompressedWriter](r.im.Node()); !ok {
			return fmt.Errorf("%s: format %s: %w", r.im.Layers()[0].Name, r.im.Format(), ErrNoCompression)
		}
	}
	if f := r.opts.BackingFormat; f != "" && all.Find(f) == nil {
		return &UnknownFormatError{Format: f}
	}
	return nil
}

// openNew opens the new backing file, or finds it in the chain.
func (r *rebasing) openNew(ctx context.Context) error {
	if r.opts.Backing == "" {
		return nil
	}
	full := combine(r.im.layers[0].Name, r.opts.Backing)
	if r.prefix = r.findLayer(full); r.prefix > 0 {
		r.next = r.im.layers[r.prefix].Node
		return nil
	}
	next, err := Open(ctx, full, Options{Format: r.opts.BackingFormat, Cache: r.opts.SourceCache, NoLock: r.opts.NoLock, Secrets: r.opts.Secrets})
	if err != nil {
		var open *OpenError
		if errors.As(err, &open) {
			err = open.Err
		}
		return &NewBackingError{r.opts.Backing, err}
	}
	r.opened, r.next = next, next.Node()
	return nil
}

// refuseLoop refuses a new backing file that needs the overlay. Locks show that
// when it is opened, unless there are none.
func (r *rebasing) refuseLoop() error {
	if r.opened == nil {
		return nil
	}
	top := r.im.layers[0]
	for _, l := range r.opened.layers {
		if l.holds(top.file) {
			return &NewBackingError{r.opts.Backing, fmt.Errorf("%s is in its backing chain: %w", top.Name, block.ErrBackingLoop)}
		}
	}
	return nil
}

// findLayer returns the depth of the layer below the overlay that is the file
// of that name, opened in the format that is going to be recorded; 0 if there
// is none.
func (r *rebasing) findLayer(name string) int {
	loc, err := parseName(name)
	if err != nil {
		return 0
	}
	depth := layerOfFile(r.im.layers, loc.path)
	if depth > 0 && r.opts.BackingFormat != "" && r.im.layers[depth].Format != r.opts.BackingFormat {
		return 0
	}
	return depth
}

// layerOfFile returns the depth, from 1 on, of the layer in the file at path.
func layerOfFile(layers []*Layer, path string) int {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	for depth, l := range layers {
		if other, err := os.Stat(l.Name); depth > 0 && err == nil && os.SameFile(st, other) {
			return depth
		}
	}
	return 0
}

func (r *rebasing) closeNew() error {
	if r.opened == nil {
		return nil
	}
	return r.opened.Close()
}
