package image

import (
	"iter"

	"github.com/lamina-vm/lamina/block"
)

// filtered puts what the options discard and detect-zeroes ask for over a
// writable node.
func filtered(node block.Node, o nodeOptions) block.Node {
	w, ok := node.(block.Writer)
	if !ok {
		return node
	}
	keep := o.discard == "ignore" || o.discard == "off"
	detect := o.detectZeroes == "on" || o.detectZeroes == "unmap"
	if !keep && !detect {
		return node
	}
	f := &filter{Writer: w, keep: keep, detect: detect}
	if o.detectZeroes == "unmap" {
		f.flags = block.ZeroMayUnmap
	}
	return f
}

// filter is a writable node that ignores discards, or that turns zeros which
// are written into zeros without data. All else passes through.
type filter struct {
	block.Writer
	keep   bool // discard=ignore
	detect bool // detect-zeroes
	flags  block.ZeroFlags
}

var (
	_ block.Wrapper   = (*filter)(nil)
	_ block.Zeroer    = (*filter)(nil)
	_ block.Discarder = (*filter)(nil)
)

// Unwrap implements [block.Wrapper].
func (f *filter) Unwrap() block.Node { return f.Writer }

// WriteAt implements [block.Writer].
func (f *filter) WriteAt(p []byte, off int64) (int, error) {
	z, ok := block.As[block.Zeroer](f.Writer)
	if !f.detect || !ok || len(p) == 0 || !isZero(p) {
		return f.Writer.WriteAt(p, off)
	}
	flags := f.flags
	if f.keep {
		flags = 0
	}
	if err := z.WriteZeroes(off, int64(len(p)), flags); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteZeroes implements [block.Zeroer].
func (f *filter) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	z, ok := block.As[block.Zeroer](f.Writer)
	if !ok {
		return block.ErrUnsupported
	}
	if f.keep {
		flags &^= block.ZeroMayUnmap
	}
	return z.WriteZeroes(off, n, flags)
}

// Discard implements [block.Discarder].
func (f *filter) Discard(off, n int64) error {
	d, ok := block.As[block.Discarder](f.Writer)
	if f.keep || !ok {
		return block.CheckRange(off, n, f.Size())
	}
	return d.Discard(off, n)
}

// nothing stands for the backing file of an image that is to be read without
// one: what is behind its end, all, reads as zeros.
type nothing struct{}

func (nothing) ReadAt(p []byte, off int64) (int, error) {
	return 0, block.CheckRange(off, int64(len(p)), 0)
}

func (nothing) Size() int64 { return 0 }

func (nothing) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		if err := block.CheckRange(off, n, 0); err != nil {
			yield(block.Extent{}, err)
		}
	}
}

func (nothing) Close() error { return nil }
