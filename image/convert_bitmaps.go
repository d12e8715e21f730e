package image

import (
	"errors"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// Errors of [Convert] with Bitmaps.
var (
	// ErrBitmapSources: bitmaps are those of one disk.
	ErrBitmapSources = errors.New("copying bitmaps is only possible with a single source")
)

// Errors of [Convert] with Bitmaps that match [block.ErrUnsupported].
const (
	ErrSourceBitmaps = unsupported("bitmaps of the source")
	ErrTargetBitmaps = unsupported("bitmaps in the target")
)

// CopyBitmapError says which bitmap could not be copied. Populate says that it
// could be added to the target, and then not be filled.
type CopyBitmapError struct {
	Bitmap   string
	Populate bool
	Err      error
}

// Error names the bitmap.
func (e *CopyBitmapError) Error() string { return "copy bitmap " + e.Bitmap + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *CopyBitmapError) Unwrap() error { return e.Err }

// sourceBitmaps looks, before there is a target, whether the source's bitmaps
// can be copied.
func (c *conversion) sourceBitmaps() error {
	if !c.opts.Bitmaps {
		return nil
	}
	if len(c.srcs) > 1 {
		return ErrBitmapSources
	}
	k, ok := bitmapKeeper(c.srcs[0].im.Node())
	if !ok || !k.KeepsBitmaps() {
		return ErrSourceBitmaps
	}
	// The stock tool meets them from the last to the first.
	for _, b := range slices.Backward(k.Bitmaps()) {
		if b.Inconsistent && !c.opts.SkipBrokenBitmaps {
			return &CopyBitmapError{Bitmap: b.Name, Err: &format.InconsistentBitmapError{Name: b.Name}}
		}
	}
	return nil
}

// copyBitmaps copies the source's bitmaps to the target, in their order.
func (c *conversion) copyBitmaps(dst block.Node) error {
	if !c.opts.Bitmaps {
		return nil
	}
	src := c.srcs[0].im.Node()
	from, _ := bitmapKeeper(src)
	to, ok := bitmapKeeper(dst)
	if !ok {
		return ErrTargetBitmaps
	}
	// The stock tool begins with the last one: what is in the way is found in
	// that order.
	var list []format.Bitmap
	var failed error
	for _, b := range slices.Backward(from.Bitmaps()) {
		if b.Inconsistent {
			if c.opts.SkippedBitmap != nil {
				c.opts.SkippedBitmap(b.Name)
			}
			continue
		}
		if hasBitmap(to, b.Name) {
			failed = &CopyBitmapError{Bitmap: b.Name, Err: errors.New("Bitmap already exists: " + b.Name)}
			break
		}
		if src.Size() != dst.Size() {
			failed = &CopyBitmapError{Bitmap: b.Name, Populate: true, Err: &BitmapSizeError{dst.Size(), src.Size()}}
			break
		}
		list = append(list, b)
	}
	for _, b := range slices.Backward(list) {
		err := to.AddBitmap(b.Name, format.BitmapOptions{Granularity: b.Granularity, Disabled: !b.Enabled})
		if err != nil {
			return &CopyBitmapError{Bitmap: b.Name, Err: err}
		}
		if err := mergeBitmap(dst, src, b.Name, b.Name); err != nil {
			_ = to.RemoveBitmap(b.Name) // it would be a wrong one
			return &CopyBitmapError{Bitmap: b.Name, Populate: true, Err: err}
		}
	}
	return errors.Join(failed, to.StoreBitmaps())
}
