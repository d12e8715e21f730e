// Package raw is the format without metadata: the disk is the file's bytes.
package raw

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math"
	"sync"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// Driver is the raw format.
type Driver struct{}

var (
	_ format.Driver        = Driver{}
	_ format.CreateChecker = Driver{}
	_ format.Unfinished    = Driver{}
)

// Name implements [format.Driver].
func (Driver) Name() string { return "raw" }

// Probe implements [format.Driver]: any file can be raw, so every other
// format wins.
func (Driver) Probe([]byte, string) int { return 1 }

// Open implements [format.Driver].
func (Driver) Open(ctx context.Context, file block.Node, opts format.OpenOptions) (block.Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var err error
	if file, err = windowOf(file, opts.Values); err != nil {
		return nil, err
	}
	if n := file.Size(); n > math.MaxInt64-(block.SectorSize-1) {
		// Rounded up to sectors it would be negative.
		return nil, fmt.Errorf("open %s: a file of %d bytes: %w", opts.Filename, n, syscall.EFBIG)
	}
	if err := refuseUnfinished(file); err != nil {
		return nil, err
	}
	d := &Disk{file: file, name: opts.Filename, unsafe: opts.Unsafe}
	if opts.Writable {
		w, ok := file.(block.Writer)
		if !ok {
			return nil, fmt.Errorf("open %s for writing: %w", opts.Filename, block.ErrReadOnly)
		}
		d.wr = w
	}
	return d, nil
}

// Disk is an open raw image. Its size is the file's, rounded up to
// [block.SectorSize]; what the file lacks to that reads as zeros and is
// appended when it is first written.
type Disk struct {
	file   block.Node
	wr     block.Writer // nil if read-only
	name   string
	unsafe bool

	// mu is held shared by every request and exclusively by what changes
	// the file's size, which must not happen beside another request.
	mu sync.RWMutex
}

var (
	_ block.Writer    = (*Disk)(nil)
	_ block.Zeroer    = (*Disk)(nil)
	_ block.Discarder = (*Disk)(nil)
	_ block.Resizer   = (*Disk)(nil)
	_ block.Wrapper   = (*Disk)(nil)
	_ format.Informer = (*Disk)(nil)
)

// Unwrap returns the file, whose abilities are those of the disk.
func (d *Disk) Unwrap() block.Node { return d.file }

// ImageInfo implements [format.Informer].
func (d *Disk) ImageInfo() (format.Info, error) { return format.Info{Format: "raw"}, nil }

// Size implements [block.Node].
func (d *Disk) Size() int64 { return roundUp(d.file.Size()) }

func roundUp(n int64) int64 {
	return (n + block.SectorSize - 1) / block.SectorSize * block.SectorSize
}

// ReadAt implements [block.Node].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	have, size := d.file.Size(), d.Size()
	if have == size || off < 0 || off >= size || int64(len(p)) <= have-off {
		return d.file.ReadAt(p, off)
	}
	// The read reaches into what the file lacks of its last sector.
	n := 0
	if off < have {
		k, err := d.file.ReadAt(p[:have-off], off)
		if int64(k) < have-off {
			return k, err
		}
		n = k
	} else if _, err := d.file.ReadAt(p[:0], 0); err != nil {
		return 0, err // closed
	}
	end := min(int64(len(p)), size-off)
	clear(p[n:end])
	if end < int64(len(p)) {
		return int(end), io.EOF
	}
	return int(end), nil
}

// Extents implements [block.Node].
func (d *Disk) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		have := d.file.Size()
		if d.Size() == have || off < 0 || n < 0 || n <= have-off {
			for e, err := range d.file.Extents(off, n) {
				if !yield(e, err) {
					return
				}
			}
			return
		}
		if err := block.CheckRange(off, n, d.Size()); err != nil {
			yield(block.Extent{}, fmt.Errorf("map %s: %w", d.name, err))
			return
		}
		d.extentsToEnd(off, off+n, have, yield)
	}
}

// extentsToEnd adds the missing rest of the last sector to the file's extents.
func (d *Disk) extentsToEnd(off, end, have int64, yield func(block.Extent, error) bool) {
	tail := block.Extent{Start: max(off, have), Kind: block.Zero, HostOffset: max(off, have)}
	tail.Length = end - tail.Start
	var last block.Extent
	for e, err := range d.file.Extents(min(off, have), max(0, have-off)) {
		if err != nil {
			yield(block.Extent{}, err)
			return
		}
		if last.Length > 0 && !yield(last, nil) {
			return
		}
		last = e
	}
	if tail.Length == 0 {
		if last.Length > 0 {
			yield(last, nil)
		}
		return
	}
	if last.Length > 0 && tail.Follows(last) {
		last.Length += tail.Length
		yield(last, nil)
		return
	}
	if last.Length > 0 && !yield(last, nil) {
		return
	}
	yield(tail, nil)
}

// Close implements [block.Node].
func (d *Disk) Close() error { return d.file.Close() }
