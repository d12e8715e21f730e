package file

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
)

// zeroes is what zeros are written from.
var zeroes [256 << 10]byte

// deviceSector is the unit in which block devices zero and discard.
const deviceSector = 4096

// WriteZeroes implements [block.Zeroer]: by a hole with [block.ZeroMayUnmap],
// else by zeroing the range in the file system, which keeps its space; where
// neither is possible by writing zeros, unless [block.ZeroNoFallback].
func (f *File) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if err := f.checkChange("zero", off, n, f.opts.Growable); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if end := off + n; end > f.Size() {
		if err := f.growTo(end); err != nil {
			return err
		}
	}
	head, tail := int64(0), int64(0)
	if f.device {
		// Devices zero whole sectors only.
		head, tail = edges(off, n)
	}
	inner := n - head - tail
	done, err := f.zeroRange(off+head, inner, flags&block.ZeroMayUnmap != 0)
	if err != nil {
		return f.wrap("zero", err)
	}
	if !done {
		if flags&block.ZeroNoFallback != 0 {
			return fmt.Errorf("zero %s: the file system has no fast way: %w", f.name, block.ErrUnsupported)
		}
		return f.writeZeros(off, n)
	}
	if err := f.writeZeros(off, head); err != nil {
		return err
	}
	return f.writeZeros(off+n-tail, tail)
}

// Discard implements [block.Discarder] by a hole: the range reads as zeros.
// Where the file system has no holes it does nothing.
func (f *File) Discard(off, n int64) error {
	if err := f.checkChange("discard", off, n, false); err != nil {
		return err
	}
	if f.device {
		head, tail := edges(off, n)
		off, n = off+head, n-head-tail
	}
	if _, err := f.punch(off, n); err != nil {
		return f.wrap("discard", err)
	}
	return nil
}

// edges returns the bytes before the first and behind the last whole device
// sector of a range; all of it is head where there is none.
func edges(off, n int64) (head, tail int64) {
	first := (off + deviceSector - 1) / deviceSector * deviceSector
	last := (off + n) / deviceSector * deviceSector
	if last <= first {
		return n, 0
	}
	return first - off, off + n - last
}

// zeroRange makes the file system zero a range; false means that it cannot.
func (f *File) zeroRange(off, n int64, unmap bool) (bool, error) {
	if n <= 0 {
		return true, nil
	}
	if unmap {
		if done, err := f.punch(off, n); done || err != nil {
			return done, err
		}
	}
	if f.noZeroRange.Load() {
		return false, nil
	}
	err := f.fallocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if cannot(err) {
		f.noZeroRange.Store(true)
		return false, nil
	}
	return err == nil, err
}

// punch makes a hole; false means that the file system cannot.
func (f *File) punch(off, n int64) (bool, error) {
	if n <= 0 {
		return true, nil
	}
	if f.noPunch.Load() {
		return false, nil
	}
	err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if cannot(err) {
		f.noPunch.Store(true)
		return false, nil
	}
	return err == nil, err
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	return withFD(f.f, func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
}

// cannot says whether an error of fallocate means that the file system or
// device does not do this at all.
func cannot(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL, unix.ENODEV, unix.ENOTTY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// writeZeros writes zeros over a range.
func (f *File) writeZeros(off, n int64) error {
	for n > 0 {
		k, err := f.write(zeroes[:min(n, int64(len(zeroes)))], off)
		if err != nil {
			return f.wrap("zero", err)
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}
