package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Bounds of what one look reads, whatever the image claims.
const (
	pageSize   = 64 << 10  // read at once; a cluster of most images
	maxPages   = 64        // kept
	maxReading = 128 << 20 // bytes of the image, pages read again included
)

// errBudget is the error of a look that reads too much: the image makes readers
// go in circles.
var errBudget = errors.New("the image asks for too much reading")

// errOutside is wrapped by the error of a read outside of the image.
var errOutside = errors.New("outside of the image")

// disk reads an image in pages, which it keeps, up to a bound. It ends with its
// context. It is not safe for concurrent use.
type disk struct {
	ctx   context.Context
	r     io.ReaderAt
	size  int64
	left  int64 // bytes that may still be read
	pages map[int64][]byte
	order []int64 // of pages, the oldest first
	last  error   // of the image itself, not of what was asked for
}

func newDisk(ctx context.Context, r io.ReaderAt, size int64) *disk {
	return &disk{ctx: ctx, r: r, size: size, left: maxReading, pages: map[int64][]byte{}}
}

// ReadAt implements [io.ReaderAt] without short reads: what does not lie in the
// image as a whole is an error.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > d.size-int64(len(p)) {
		return 0, fmt.Errorf("%d bytes at %d: %w", len(p), off, errOutside)
	}
	// Also for pages at hand: over few of them, much can be asked.
	if d.ctx.Err() != nil {
		return 0, context.Cause(d.ctx)
	}
	n := 0
	for n < len(p) {
		at := (off + int64(n)) / pageSize * pageSize
		page, err := d.page(at)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], page[off+int64(n)-at:])
	}
	return n, nil
}

func (d *disk) page(at int64) ([]byte, error) {
	if page, ok := d.pages[at]; ok {
		return page, nil
	}
	page := make([]byte, min(pageSize, d.size-at))
	if d.left -= int64(len(page)); d.left < 0 {
		return nil, errBudget
	}
	if _, err := d.r.ReadAt(page, at); err != nil && !errors.Is(err, io.EOF) {
		d.last = fmt.Errorf("read the image at %d: %w", at, err)
		return nil, d.last
	}
	if len(d.order) == maxPages {
		delete(d.pages, d.order[0])
		d.order = d.order[1:]
	}
	d.pages[at] = page
	d.order = append(d.order, at)
	return page, nil
}

// part is a range of the image as a disk of its own.
type part struct {
	d         *disk
	off, size int64
}

// ReadAt implements [io.ReaderAt], as the disk's.
func (p part) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > p.size-int64(len(b)) {
		return 0, fmt.Errorf("%d bytes at %d: %w", len(b), off, errOutside)
	}
	return p.d.ReadAt(b, p.off+off)
}

// bytes returns n bytes at off, nil where there are not so many or they cannot
// be read, of which the disk keeps the reason.
func (p part) bytes(off, n int64) []byte {
	b := make([]byte, n)
	if _, err := p.ReadAt(b, off); err != nil {
		return nil
	}
	return b
}
