package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// windowOf returns the part of file that the options offset and size choose,
// file itself without any. Texts are those of stock QEMU.
func windowOf(file block.Node, values map[string]string) (block.Node, error) {
	if len(values) == 0 {
		return file, nil
	}
	w := &window{Node: file, fixed: -1}
	var offset, size uint64
	hasSize := false
	for _, k := range slices.Sorted(maps.Keys(values)) {
		var err error
		switch k {
		case "offset":
			offset, err = format.OptionSize(k, values[k])
		case "size":
			size, err = format.OptionSize(k, values[k])
			hasSize = true
		default:
			err = format.UnknownOption("raw", k)
		}
		if err != nil {
			return nil, err
		}
	}
	have := uint64(file.Size())
	switch {
	case offset > have:
		return nil, optionErrorf("Offset (%d) cannot be greater than size of the containing file (%d)", offset, have)
	case hasSize && have-offset < size:
		return nil, optionErrorf("The sum of offset (%d) and size (%d) has to be smaller or equal to the  actual size of the containing file (%d)", offset, size, have)
	case hasSize && size%block.SectorSize != 0:
		return nil, optionErrorf("Specified size is not multiple of %d", block.SectorSize)
	}
	w.off = int64(offset)
	if hasSize {
		w.fixed = int64(size)
	}
	if wr, ok := file.(block.Writer); ok {
		return &writableWindow{window: w, wr: wr}, nil
	}
	return w, nil
}

// window is a part of another node: from off on, to its end or fixed bytes.
type window struct {
	block.Node
	off   int64
	fixed int64 // -1: to the end of the node
}

// Size implements [block.Node].
func (w *window) Size() int64 {
	if w.fixed >= 0 {
		return w.fixed
	}
	return max(w.Node.Size()-w.off, 0)
}

// ReadAt implements [block.Node].
func (w *window) ReadAt(p []byte, off int64) (int, error) {
	size := w.Size()
	if off < 0 || off >= size {
		if _, err := w.Node.ReadAt(nil, 0); err != nil && !errors.Is(err, io.EOF) {
			return 0, err // closed
		}
		if off < 0 {
			return 0, block.CheckRange(off, int64(len(p)), size)
		}
		if len(p) == 0 && off == size {
			return 0, nil
		}
		return 0, io.EOF
	}
	if int64(len(p)) <= size-off {
		return w.Node.ReadAt(p, off+w.off)
	}
	n, err := w.Node.ReadAt(p[:size-off], off+w.off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// Extents implements [block.Node]. Host offsets are those of the node.
func (w *window) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		if err := block.CheckRange(off, n, w.Size()); err != nil {
			yield(block.Extent{}, err)
			return
		}
		for e, err := range w.Node.Extents(off+w.off, n) {
			e.Start -= w.off
			if err != nil {
				e = block.Extent{}
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// DiskSize implements [block.DiskSizer]: of all of the node.
func (w *window) DiskSize() (int64, error) {
	if d, ok := block.As[block.DiskSizer](w.Node); ok {
		return d.DiskSize()
	}
	return w.Size(), nil
}

// writableWindow is a window that can be written.
type writableWindow struct {
	*window
	wr block.Writer
}

var (
	_ block.Writer    = (*writableWindow)(nil)
	_ block.Zeroer    = (*writableWindow)(nil)
	_ block.Discarder = (*writableWindow)(nil)
	_ block.Resizer   = (*writableWindow)(nil)
)

// check refuses what is not in the window; behind the end of one that is not
// fixed the node itself decides.
func (w *writableWindow) check(off, n int64) error {
	size := w.Size()
	if w.fixed < 0 && off >= 0 && n >= 0 {
		size = math.MaxInt64 - w.off
	}
	return block.CheckRange(off, n, size)
}

// WriteAt implements [block.Writer].
func (w *writableWindow) WriteAt(p []byte, off int64) (int, error) {
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return w.wr.WriteAt(p, off+w.off)
}

// Flush implements [block.Writer].
func (w *writableWindow) Flush() error { return w.wr.Flush() }

// WriteZeroes implements [block.Zeroer].
func (w *writableWindow) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	z, ok := block.As[block.Zeroer](w.wr)
	if !ok {
		return block.ErrUnsupported
	}
	if err := w.check(off, n); err != nil {
		return err
	}
	return z.WriteZeroes(off+w.off, n, flags)
}

// Discard implements [block.Discarder].
func (w *writableWindow) Discard(off, n int64) error {
	if err := w.check(off, n); err != nil {
		return err
	}
	d, ok := block.As[block.Discarder](w.wr)
	if !ok {
		return nil
	}
	return d.Discard(off+w.off, n)
}

// Resize implements [block.Resizer].
func (w *writableWindow) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if w.fixed >= 0 {
		return optionErrorf("Cannot resize fixed-size raw disks")
	}
	if size < 0 {
		return block.CheckRange(size, 0, 0)
	}
	if size > math.MaxInt64-w.off {
		return optionErrorf("Disk size too large for the chosen offset")
	}
	r, ok := block.As[block.Resizer](w.wr)
	if !ok {
		return block.ErrUnsupported
	}
	return r.Resize(ctx, size+w.off, opts)
}

func optionErrorf(text string, args ...any) error {
	return &format.OptionError{Text: fmt.Sprintf(text, args...)}
}
