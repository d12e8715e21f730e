// Package memory is a disk whose bytes lie in memory: the model that other
// nodes are compared with, and a file for format drivers in tests.
package memory

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/lamina-vm/lamina/block"
)

// chunkSize is the unit in which memory is taken; a chunk that was never
// written takes none and is a hole.
const chunkSize = 64 << 10

// Disk is a sparse disk in memory. All methods are safe for concurrent use,
// Resize included.
type Disk struct {
	readOnly bool
	growable bool

	// mu guards everything below. Writers hold it exclusively, so that
	// overlapping writes never mix.
	mu     sync.RWMutex
	size   int64
	chunks map[int64]*[chunkSize]byte // by offset / chunkSize; all-hole chunks are absent
	closed bool
}

var (
	_ block.Writer    = (*Disk)(nil)
	_ block.Zeroer    = (*Disk)(nil)
	_ block.Discarder = (*Disk)(nil)
	_ block.Resizer   = (*Disk)(nil)
)

// New returns a writable disk of size bytes that reads as zeros and takes no
// memory yet. A negative size counts as 0.
func New(size int64) *Disk {
	return &Disk{size: max(size, 0), chunks: map[int64]*[chunkSize]byte{}}
}

// NewBytes returns a writable disk that holds a copy of p.
func NewBytes(p []byte) *Disk {
	d := New(int64(len(p)))
	d.put(p, 0)
	return d
}

// NewFile returns a writable disk of 0 bytes that grows as a file does: a
// write past the end extends it, and what lies between reads as zeros.
func NewFile() *Disk {
	d := New(0)
	d.growable = true
	return d
}

// ReadOnly returns a read-only disk with a copy of d's bytes.
func (d *Disk) ReadOnly() *Disk {
	c := d.Clone()
	c.readOnly = true
	return c
}

// Clone returns an independent, open copy of d, writable and growable as d is.
func (d *Disk) Clone() *Disk {
	d.mu.RLock()
	defer d.mu.RUnlock()
	c := &Disk{size: d.size, readOnly: d.readOnly, growable: d.growable, chunks: make(map[int64]*[chunkSize]byte, len(d.chunks))}
	for i, p := range d.chunks {
		q := *p
		c.chunks[i] = &q
	}
	return c
}

// Bytes returns a copy of the whole content. It works on a closed disk too.
func (d *Disk) Bytes() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	p := make([]byte, d.size)
	d.get(p, 0)
	return p
}

// Size returns the size in bytes.
func (d *Disk) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.size
}

// ReadAt implements [block.Node].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return 0, fmt.Errorf("read memory disk: %w", block.ErrClosed)
	}
	if off < 0 {
		return 0, fmt.Errorf("read memory disk: %w", block.CheckRange(off, int64(len(p)), d.size))
	}
	if off >= d.size {
		if len(p) == 0 && off == d.size {
			return 0, nil
		}
		return 0, io.EOF
	}
	var err error
	if int64(len(p)) > d.size-off {
		p, err = p[:d.size-off], io.EOF
	}
	d.get(p, off)
	return len(p), err
}

// WriteAt implements [block.Writer].
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	end := d.size
	if d.growable && off >= 0 {
		end = max(end, off+int64(len(p)))
	}
	if err := d.checkChange("write", off, int64(len(p)), end); err != nil {
		return 0, err
	}
	d.size = end
	d.put(p, off)
	return len(p), nil
}

// Flush implements [block.Writer]; memory has nothing to flush.
func (d *Disk) Flush() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return fmt.Errorf("flush memory disk: %w", block.ErrClosed)
	}
	return nil
}

// WriteZeroes implements [block.Zeroer]. Whole chunks become holes with
// [block.ZeroMayUnmap]; otherwise what holds memory keeps it.
func (d *Disk) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	end := d.size
	if d.growable && off >= 0 {
		end = max(end, off+n)
	}
	if err := d.checkChange("zero", off, n, end); err != nil {
		return err
	}
	d.size = end
	d.zero(off, n, flags&block.ZeroMayUnmap != 0)
	return nil
}

// Discard implements [block.Discarder]: whole chunks become holes, the rest of
// the range keeps its bytes.
func (d *Disk) Discard(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkChange("discard", off, n, d.size); err != nil {
		return err
	}
	first := (off + chunkSize - 1) / chunkSize
	last := (off + n) / chunkSize
	d.drop(first, last)
	return nil
}

// Resize implements [block.Resizer]. Preallocation other than off is not
// supported: memory is taken when it is written.
func (d *Disk) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkChange("resize", 0, 0, d.size); err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("resize memory disk: size %d: %w", size, block.ErrOutOfRange)
	}
	if opts.Prealloc != "" && opts.Prealloc != block.PreallocOff {
		return fmt.Errorf("resize memory disk: preallocation %s: %w", opts.Prealloc, block.ErrUnsupported)
	}
	if size < d.size {
		if !opts.AllowShrink {
			return fmt.Errorf("resize memory disk from %d to %d bytes: shrinking was not allowed: %w", d.size, size, block.ErrOutOfRange)
		}
		// Grown space must read as zeros later.
		d.zero(size, d.size-size, true)
	}
	d.size = size
	return nil
}

// Extents implements [block.Node]. Written chunks are data at their own
// offset, the others zero.
func (d *Disk) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		runs, err := d.runs(off, n)
		if err != nil {
			yield(block.Extent{}, err)
			return
		}
		for _, e := range runs {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Close implements [block.Node]. The bytes stay readable by Bytes.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

// Reopen returns an open disk that takes over d's bytes (no copy), as opening
// the same file again would. d must not be used afterwards.
func (d *Disk) Reopen() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return &Disk{size: d.size, readOnly: d.readOnly, growable: d.growable, chunks: d.chunks}
}

// runs collects the extents under the lock, so that the iteration itself can
// call any method.
func (d *Disk) runs(off, n int64) ([]block.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return nil, fmt.Errorf("map memory disk: %w", block.ErrClosed)
	}
	if err := block.CheckRange(off, n, d.size); err != nil {
		return nil, fmt.Errorf("map memory disk: %w", err)
	}
	var runs []block.Extent
	for end := off + n; off < end; {
		e := block.Extent{Start: off, Kind: block.Zero, HostOffset: off}
		e.Length = min((off/chunkSize+1)*chunkSize, end) - off
		if d.chunks[off/chunkSize] != nil {
			e.Kind = block.Data
		}
		off = e.End()
		if k := len(runs); k > 0 && e.Follows(runs[k-1]) {
			runs[k-1].Length += e.Length
			continue
		}
		runs = append(runs, e)
	}
	return runs, nil
}

// checkChange says whether a change of [off, off+n) is allowed. The caller
// holds mu.
func (d *Disk) checkChange(op string, off, n, size int64) error {
	var err error
	switch {
	case d.closed:
		err = block.ErrClosed
	case d.readOnly:
		err = block.ErrReadOnly
	default:
		err = block.CheckRange(off, n, size)
	}
	if err != nil {
		return fmt.Errorf("%s memory disk: %w", op, err)
	}
	return nil
}

// get fills p from off. The caller holds mu.
func (d *Disk) get(p []byte, off int64) {
	for len(p) > 0 {
		in := off % chunkSize
		n := min(int64(len(p)), chunkSize-in)
		if c := d.chunks[off/chunkSize]; c != nil {
			copy(p[:n], c[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// put stores p at off. The caller holds mu.
func (d *Disk) put(p []byte, off int64) {
	for len(p) > 0 {
		in := off % chunkSize
		c := d.chunks[off/chunkSize]
		if c == nil {
			c = new([chunkSize]byte)
			d.chunks[off/chunkSize] = c
		}
		n := copy(c[in:], p)
		p, off = p[n:], off+int64(n)
	}
}

// zero makes a range read as zeros; unmap frees the chunks that it covers
// wholly. The caller holds mu.
func (d *Disk) zero(off, n int64, unmap bool) {
	end := off + n
	// Only chunks that exist are visited where the range is larger than the
	// disk's memory.
	if n/chunkSize > int64(len(d.chunks)) {
		for i := range d.chunks {
			lo, hi := max(off, i*chunkSize), min(end, (i+1)*chunkSize)
			if lo < hi {
				d.zeroChunk(i, lo-i*chunkSize, hi-i*chunkSize, unmap)
			}
		}
		return
	}
	for off < end {
		i := off / chunkSize
		hi := min(end, (i+1)*chunkSize)
		d.zeroChunk(i, off-i*chunkSize, hi-i*chunkSize, unmap)
		off = hi
	}
}

func (d *Disk) zeroChunk(i, from, to int64, unmap bool) {
	c := d.chunks[i]
	switch {
	case c == nil:
	case unmap && from == 0 && to == chunkSize:
		delete(d.chunks, i)
	default:
		clear(c[from:to])
	}
}

// drop frees the chunks [first, last). The caller holds mu.
func (d *Disk) drop(first, last int64) {
	if last-first > int64(len(d.chunks)) {
		for i := range d.chunks {
			if i >= first && i < last {
				delete(d.chunks, i)
			}
		}
		return
	}
	for i := first; i < last; i++ {
		delete(d.chunks, i)
	}
}
