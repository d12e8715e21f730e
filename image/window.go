package image

import (
	"fmt"
	"io"
	"iter"

	"github.com/lamina-vm/lamina/block"
)

// Part is a range of a disk, in bytes.
type Part struct{ Offset, Length int64 }

// window is a part of a disk as a disk that can only be read.
type window struct {
	node   block.Node
	off, n int64
}

// newWindow returns what the disk has of part, which may be nothing.
func newWindow(node block.Node, part Part) (*window, error) {
	if part.Offset < 0 || part.Length < 0 {
		return nil, fmt.Errorf("part of %d bytes at %d: %w", part.Length, part.Offset, block.ErrOutOfRange)
	}
	w := &window{node: node, off: min(part.Offset, node.Size())}
	w.n = min(part.Length, node.Size()-w.off)
	return w, nil
}

// Size implements [block.Node].
func (w *window) Size() int64 { return w.n }

// ReadAt implements [block.Node].
func (w *window) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, block.ErrOutOfRange)
	}
	if off >= w.n {
		return 0, io.EOF
	}
	if int64(len(p)) <= w.n-off {
		return w.node.ReadAt(p, w.off+off)
	}
	k, err := w.node.ReadAt(p[:w.n-off], w.off+off)
	if err == nil {
		err = io.EOF
	}
	return k, err
}

// Extents implements [block.Node].
func (w *window) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		if err := block.CheckRange(off, n, w.n); err != nil {
			yield(block.Extent{}, err)
			return
		}
		for e, err := range w.node.Extents(w.off+off, n) {
			e.Start -= w.off
			if !yield(e, err) {
				return
			}
		}
	}
}

// Close implements [block.Node].
func (w *window) Close() error { return w.node.Close() }
