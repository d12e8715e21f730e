package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/file"
)

// CommitOptions are the choices of [Commit].
type CommitOptions struct {
	Format string // of the overlay, as in Options
	Cache  CacheMode
	// Base, with HasBase set, names the layer of the chain that is written
	// to, as the chain names it or as a file name relative to the overlay;
	// otherwise it is the overlay's backing file. DANGER: the layers between
	// read differently afterwards and are of no use.
	Base    string
	HasBase bool
	// Keep leaves the overlay as it is; otherwise it is emptied. With layers
	// between it and the base it is never emptied, as it would read through
	// them.
	Keep bool
	// RateLimit is in bytes written a second, 0 for none.
	RateLimit int64
	// Secrets resolves the names of keys. nil is none.
	Secrets format.Secrets
	// Progress receives the bytes done, of the disk's size, on the calling
	// goroutine, ascending. May be nil.
	Progress func(done, total int64)
	// Opened is called when the chain is open; probedRaw says that the
	// overlay's format was guessed to be raw. May be nil.
	Opened func(probedRaw bool)
}

// ErrNoBacking: the image has no backing file to commit to.
var ErrNoBacking = errors.New("image does not have a backing file")

// NoBaseError is for a base that is not in the backing chain.
type NoBaseError struct {
	Base string // as the caller gave it
	Name string // of the overlay
}

// Error names both.
func (e *NoBaseError) Error() string {
	return fmt.Sprintf("%s is not in the backing chain of %s", e.Base, e.Name)
}

// BaseError is for a base that cannot be opened for writing, or be given the
// overlay's size. Nothing was changed.
type BaseError struct {
	Name string
	Err  error
}

// Error names the base and the cause.
func (e *BaseError) Error() string { return fmt.Sprintf("base %s: %v", e.Name, e.Err) }

// Unwrap returns the cause.
func (e *BaseError) Unwrap() error { return e.Err }

// Commit writes what an overlay holds, with the layers between, into a layer
// below it, which grows to the overlay's size if it is smaller. When all that
// is durable there the overlay is emptied. At every instant, also after power
// loss, the overlay reads as before; a commit that was interrupted is finished
// by another one.
func Commit(ctx context.Context, name string, opts CommitOptions) error {
	depth, below, err := findBase(ctx, name, opts)
	if err != nil {
		return err
	}
	im, err := Open(ctx, name, Options{
		Format: opts.Format, Cache: opts.Cache, Secrets: opts.Secrets, Writable: true, use: useCommit, commitTo: depth,
	})
	if err != nil {
		var backing *BackingError
		if errors.As(err, &backing) {
			return &BaseError{below, backing.Err}
		}
		return err
	}
	c := &committing{opts: opts, top: im.Node(), depth: depth}
	if len(im.layers) <= depth || im.layers[depth].Name != below {
		return errors.Join(fmt.Errorf("%s: its backing chain has changed meanwhile: %w", name, block.ErrInUse), im.Close())
	}
	c.base = im.layers[depth].Node
	return errors.Join(c.run(ctx), im.Close())
}

// findBase opens the chain, as it is before the base is opened for writing,
// and returns the base's depth and file.
func findBase(ctx context.Context, name string, opts CommitOptions) (depth int, file string, err error) {
	im, err := Open(ctx, name, Options{Format: opts.Format, Cache: opts.Cache, Secrets: opts.Secrets, Writable: true})
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	if opts.Opened != nil {
		opts.Opened(im.Layers()[0].ProbedRaw())
	}
	depth = 1
	if opts.HasBase {
		if depth = findBacking(im, opts.Base); depth == 0 {
			return 0, "", &NoBaseError{opts.Base, name}
		}
	}
	if len(im.layers) <= depth {
		return 0, "", fmt.Errorf("%s: %w", name, ErrNoBacking)
	}
	return depth, im.layers[depth].Name, nil
}

// findBacking returns the depth of the layer that a name means: the name that
// the layer above records, or a file name relative to it; 0 for none.
func findBacking(im *Image, name string) int {
	for depth := 1; depth < len(im.layers); depth++ {
		above := im.layers[depth-1]
		if inf, ok := block.As[format.Informer](above.Node); ok {
			if info, err := inf.ImageInfo(); err == nil && name != "" && info.BackingFile == name {
				return depth
			}
		}
		loc, err := parseName(combine(above.Name, name))
		if err == nil && name != "" && layerOfFile(im.layers, loc.path) == depth {
			return depth
		}
	}
	return 0
}

// commitLocks returns the locks that stock QEMU takes on the base of a commit
// and on the layers between, which nobody may go on reading.
func commitLocks(base, raw bool) file.Locks {
	switch {
	case !base:
		return file.Locks{Held: file.PermRead, NotShared: file.PermRead | file.PermWrite | file.PermResize}
	case raw:
		return file.Locks{Held: file.PermRead | file.PermWrite | file.PermResize, NotShared: file.PermResize}
	}
	return file.WriteLocks()
}

// committing is a commit under way.
type committing struct {
	opts  CommitOptions
	top   block.Node
	base  block.Node
	depth int // of the base

	from time.Time
	sent int64 // bytes written, for the rate limit
}

func (c *committing) run(ctx context.Context) error {
	w, ok := c.base.(block.Writer)
	if !ok {
		return fmt.Errorf("the base cannot be written: %w", block.ErrReadOnly)
	}
	if c.base.Size() < c.top.Size() {
		if err := c.growBase(ctx); err != nil {
			return err
		}
	}
	if err := c.copy(ctx, w); err != nil {
		return err
	}
	// The overlay keeps everything until the base has it for good.
	if err := w.Flush(); err != nil {
		return err
	}
	e, ok := block.As[format.Emptier](c.top)
	if c.opts.Keep || c.opts.HasBase || !ok {
		return nil
	}
	if err := e.MakeEmpty(ctx); err != nil {
		return err
	}
	if top, ok := block.As[block.Writer](c.top); ok {
		return top.Flush()
	}
	return nil
}

// growBase gives the base the overlay's size; what is new reads as zeros, as
// it does in the overlay.
func (c *committing) growBase(ctx context.Context) error {
	r, ok := block.As[block.Resizer](c.base)
	if !ok {
		return fmt.Errorf("the base has %d bytes, the overlay %d, and the base cannot grow: %w", c.base.Size(), c.top.Size(), block.ErrUnsupported)
	}
	return r.Resize(ctx, c.top.Size(), block.ResizeOptions{})
}

// copy writes to the base what the layers above it hold.
func (c *committing) copy(ctx context.Context, w block.Writer) error {
	buf := make([]byte, rebaseBuffer)
	c.from = time.Now()
	size := c.top.Size()
	for off := int64(0); off < size; {
		if c.opts.Progress != nil {
			c.opts.Progress(off, size)
		}
		n := min(rebaseWindow-off%rebaseWindow, size-off)
		var list []block.Extent
		next := off + n
		for e, err := range c.top.Extents(off, n) {
			if err != nil {
				return err
			}
			if e.Depth >= c.depth {
				continue
			}
			if list = addExtent(list, e, size); len(list) >= rebaseRanges {
				next = e.End()
				break
			}
		}
		for _, e := range list {
			if err := c.extent(ctx, w, e, buf); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		off = next
	}
	if c.opts.Progress != nil {
		c.opts.Progress(size, size)
	}
	return nil
}

// extent writes one range to the base.
func (c *committing) extent(ctx context.Context, w block.Writer, e block.Extent, buf []byte) error {
	if z, ok := block.As[block.Zeroer](c.base); ok && e.IsZero() {
		if done, err := c.zero(z, e.Start, e.Length); done || err != nil {
			return err
		}
	}
	for off := e.Start; off < e.End(); {
		p := buf[:min(int64(len(buf)), e.End()-off)]
		if err := c.wait(ctx, int64(len(p))); err != nil {
			return err
		}
		if err := readFull(c.top, p, off); err != nil {
			return err
		}
		if _, err := w.WriteAt(p, off); err != nil {
			return err
		}
		off += int64(len(p))
		if c.opts.Progress != nil {
			c.opts.Progress(off, c.top.Size())
		}
	}
	return nil
}

// zero makes a range of the base read as zeros. Where the base has a backing
// file it holds them itself; else nothing is done to what is zero already.
func (c *committing) zero(z block.Zeroer, off, n int64) (done bool, err error) {
	flags := block.ZeroMayUnmap
	if b, ok := block.As[block.Backed](c.base); ok && b.Backing() != nil {
		flags |= block.ZeroExplicit
	} else if zero, length, err := zeroRun(c.base, off, n); err == nil && zero && length == n {
		return true, nil
	}
	if err := z.WriteZeroes(off, n, flags); !errors.Is(err, block.ErrUnsupported) {
		return err == nil, err
	}
	return false, nil
}

// commitGrain is the least part of data that is looked at for zeros.
const commitGrain = 64 << 10

// addExtent adds an extent to list. Data that is a hole of its file counts as
// zeros by whole grains only: else it is data with what lies beside it.
func addExtent(list []block.Extent, e block.Extent, size int64) []block.Extent {
	if !e.ReadsZero {
		return append(list, e)
	}
	from, to := (e.Start+commitGrain-1)/commitGrain*commitGrain, e.End()/commitGrain*commitGrain
	if e.End() == size {
		to = size
	}
	part := func(from, to int64, zero bool) {
		if from < to {
			list = append(list, block.Extent{Start: from, Length: to - from, Kind: block.Data, Depth: e.Depth, ReadsZero: zero})
		}
	}
	if from >= to {
		part(e.Start, e.End(), false)
		return list
	}
	part(e.Start, from, false)
	part(from, to, true)
	part(to, e.End(), false)
	return list
}

// wait waits until n more bytes may be written.
func (c *committing) wait(ctx context.Context, n int64) error {
	if c.opts.RateLimit > 0 {
		due := c.from.Add(time.Duration(float64(c.sent) / float64(c.opts.RateLimit) * float64(time.Second)))
		c.sent += n
		if d := time.Until(due); d > 0 {
			timer := time.NewTimer(d)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
	}
	return ctx.Err()
}
