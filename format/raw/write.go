package raw

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lamina-vm/lamina/block"
)

// zeroes is what zeros are written from where the file has no faster way.
var zeroes [64 << 10]byte

// WriteAt implements [block.Writer].
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	unlock, err := d.begin("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer unlock()
	return d.wr.WriteAt(p, off)
}

// Flush implements [block.Writer].
func (d *Disk) Flush() error {
	if d.wr == nil || d.unsafe {
		_, err := d.file.ReadAt(nil, 0) // closed?
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	}
	return d.wr.Flush()
}

// WriteZeroes implements [block.Zeroer].
func (d *Disk) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	unlock, err := d.begin("zero", off, n)
	if err != nil {
		return err
	}
	defer unlock()
	if z, ok := block.As[block.Zeroer](d.wr); ok {
		return z.WriteZeroes(off, n, flags)
	}
	if flags&block.ZeroNoFallback != 0 {
		return fmt.Errorf("zero %s: the file has no fast way: %w", d.name, block.ErrUnsupported)
	}
	for n > 0 {
		k, err := d.wr.WriteAt(zeroes[:min(n, int64(len(zeroes)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// Discard implements [block.Discarder]. Where the file cannot give space back
// it does nothing.
func (d *Disk) Discard(off, n int64) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.check("discard", off, n); err != nil {
		return err
	}
	// What the file lacks of its last sector is a hole already.
	n = min(n, max(0, d.file.Size()-off))
	if dis, ok := block.As[block.Discarder](d.wr); ok && n > 0 {
		return dis.Discard(off, n)
	}
	return nil
}

// Resize implements [block.Resizer]. The file gets exactly size bytes.
func (d *Disk) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check("resize", 0, 0); err != nil {
		return err
	}
	if opts.Prealloc == block.PreallocMetadata {
		return unsupported("Unsupported preallocation mode 'metadata'")
	}
	r, ok := block.As[block.Resizer](d.wr)
	if !ok {
		return fmt.Errorf("resize %s: the storage has a fixed size: %w", d.name, block.ErrUnsupported)
	}
	return r.Resize(ctx, size, opts)
}

// check refuses a change that cannot be made.
func (d *Disk) check(op string, off, n int64) error {
	if _, err := d.file.ReadAt(nil, 0); errors.Is(err, block.ErrClosed) {
		return err
	}
	if d.wr == nil {
		return fmt.Errorf("%s %s: %w", op, d.name, block.ErrReadOnly)
	}
	if err := block.CheckRange(off, n, d.Size()); err != nil {
		return fmt.Errorf("%s %s: %w", op, d.name, err)
	}
	return nil
}

// begin checks a change of [off, off+n), appends to the file what it lacks of
// its last sector if the change reaches there, and holds mu shared until
// unlock is called.
func (d *Disk) begin(op string, off, n int64) (unlock func(), err error) {
	d.mu.RLock()
	if err := d.check(op, off, n); err != nil {
		d.mu.RUnlock()
		return nil, err
	}
	if off+n <= d.file.Size() {
		return d.mu.RUnlock, nil
	}
	d.mu.RUnlock()
	if err := d.complete(); err != nil {
		return nil, err
	}
	d.mu.RLock()
	return d.mu.RUnlock, nil
}

// complete appends zeros up to the end of the last sector.
func (d *Disk) complete() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file.Size() == d.Size() {
		return nil
	}
	r, ok := block.As[block.Resizer](d.wr)
	if !ok {
		return fmt.Errorf("write %s: the last sector is not whole in the file: %w", d.name, block.ErrUnsupported)
	}
	return r.Resize(context.Background(), d.Size(), block.ResizeOptions{})
}
