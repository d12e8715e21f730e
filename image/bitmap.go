package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// BitmapOp is what is done to a bitmap.
type BitmapOp string

// The operations, with the names that messages use.
const (
	BitmapAdd     BitmapOp = "add"
	BitmapRemove  BitmapOp = "remove"
	BitmapClear   BitmapOp = "clear"
	BitmapEnable  BitmapOp = "enable"
	BitmapDisable BitmapOp = "disable"
	BitmapMerge   BitmapOp = "merge"
)

// BitmapAction is one step of [ChangeBitmap].
type BitmapAction struct {
	Op BitmapOp
	// Source is, of BitmapMerge, the bitmap whose dirty runs are added.
	Source string
}

// BitmapOptions are the choices of [ChangeBitmap].
type BitmapOptions struct {
	Format  string         // as in Options
	Cache   CacheMode      // as in Options
	Secrets format.Secrets // as in Options.Secrets
	// Granularity of an added bitmap, in bytes; 0 is the format's default.
	Granularity int64
	// SourceFile is the image that has the bitmaps to merge; "" is the image
	// itself. SourceFormat is its format, "" probes.
	SourceFile, SourceFormat string
	// Warn is told that an image without a given format was taken for raw.
	Warn      func(name string)
	Untrusted bool // refuses images that name other files, as in Options
}

// BitmapError says which operation on which bitmap failed. Those before it
// were carried out.
type BitmapError struct {
	Op     BitmapOp
	Bitmap string
	Err    error
}

// Error names operation and bitmap.
func (e *BitmapError) Error() string {
	return fmt.Sprintf("operation %s on bitmap %q: %v", e.Op, e.Bitmap, e.Err)
}

// Unwrap returns the cause.
func (e *BitmapError) Unwrap() error { return e.Err }

// ErrNoBitmaps matches [block.ErrUnsupported]: the format cannot hold bitmaps.
const ErrNoBitmaps = unsupported("persistent bitmaps in an image of this format")

// NoBitmapError is for a bitmap that an image does not have.
type NoBitmapError struct{ Bitmap string }

// Error names the bitmap, in the stock tool's words.
func (e *NoBitmapError) Error() string { return "Dirty bitmap '" + e.Bitmap + "' not found" }

// BitmapSizeError is for a merge of bitmaps of disks of different sizes.
type BitmapSizeError struct{ Target, Source int64 } // bytes

// Error names the sizes, in the stock tool's words.
func (e *BitmapSizeError) Error() string {
	return fmt.Sprintf("Bitmaps are of different sizes (destination size is %d, source size is %d) and can't be merged", e.Target, e.Source)
}

// ChangeBitmap carries out actions on one bitmap of an image, in order. The
// result is durable when it returns; power loss meanwhile leaves the image's
// bitmaps as they were or as they are then.
func ChangeBitmap(ctx context.Context, name, bitmap string, actions []BitmapAction, opts BitmapOptions) (err error) {
	open := func(name, formatName string, writable bool) (*Image, error) {
		im, err := Open(ctx, name, Options{Format: formatName, Cache: opts.Cache, Writable: writable, NoBacking: true, Untrusted: opts.Untrusted, Secrets: opts.Secrets})
		if err == nil && writable && im.layers[0].ProbedRaw() && opts.Warn != nil {
			opts.Warn(name)
		}
		return im, err
	}
	im, err := open(name, opts.Format, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	from := im
	if opts.SourceFile != "" {
		if from, err = open(opts.SourceFile, opts.SourceFormat, false); err != nil {
			return err
		}
		defer func() { _ = from.Close() }() // nothing was written
	}
	for _, a := range actions {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := changeBitmap(im.Node(), from.Node(), bitmap, a, opts.Granularity); err != nil {
			return &BitmapError{Op: a.Op, Bitmap: bitmap, Err: err}
		}
	}
	if k, ok := bitmapKeeper(im.Node()); ok {
		return k.StoreBitmaps()
	}
	return nil
}

// bitmapKeeper returns the side of a node that holds bitmaps. The node of a
// backing file is not looked at.
func bitmapKeeper(n block.Node) (format.BitmapKeeper, bool) { return block.As[format.BitmapKeeper](n) }

func changeBitmap(n, from block.Node, bitmap string, a BitmapAction, granularity int64) error {
	k, ok := bitmapKeeper(n)
	switch {
	case ok:
	case a.Op != BitmapAdd:
		return &NoBitmapError{bitmap}
	default:
		return ErrNoBitmaps
	}
	switch a.Op {
	case BitmapAdd:
		return k.AddBitmap(bitmap, format.BitmapOptions{Granularity: granularity})
	case BitmapRemove:
		return k.RemoveBitmap(bitmap)
	case BitmapClear:
		return k.ClearBitmap(bitmap)
	case BitmapEnable:
		return k.SetBitmapEnabled(bitmap, true)
	case BitmapDisable:
		return k.SetBitmapEnabled(bitmap, false)
	case BitmapMerge:
		return mergeBitmap(n, from, bitmap, a.Source)
	}
	return fmt.Errorf("bitmap operation %q: %w", a.Op, block.ErrUnsupported)
}

// mergeBitmap adds the dirty runs of a bitmap of from to one of n.
func mergeBitmap(n, from block.Node, bitmap, source string) error {
	to, ok := bitmapKeeper(n)
	if !ok || !hasBitmap(to, bitmap) {
		return &NoBitmapError{bitmap}
	}
	src, ok := bitmapKeeper(from)
	if !ok || !hasBitmap(src, source) {
		return &NoBitmapError{source}
	}
	if err := usableBitmap(src, source); err != nil {
		return err
	}
	if n.Size() != from.Size() {
		return &BitmapSizeError{n.Size(), from.Size()}
	}
	return to.MarkDirty(bitmap, src.DirtyRuns(source, 0, from.Size()))
}

func hasBitmap(k format.BitmapKeeper, name string) bool {
	return slices.ContainsFunc(k.Bitmaps(), func(b format.Bitmap) bool { return b.Name == name })
}

func usableBitmap(k format.BitmapKeeper, name string) error {
	for _, b := range k.Bitmaps() {
		if b.Name == name && b.Inconsistent {
			return &format.InconsistentBitmapError{Name: name}
		}
	}
	return nil
}
