package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
)

// firstBlock is how much of a file that grows from nothing is really written,
// as stock qemu-img does: a tool that opens the file with O_DIRECT later can
// then find out its alignment.
const firstBlock = 4096

// Resize implements [block.Resizer]. Preallocation falloc reserves the blocks
// of the grown area, full writes zeros to them and syncs; metadata is not
// supported. A resize that fails or is cancelled leaves the old size. A
// resize that grows may run concurrently with every other method.
func (f *File) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if err := f.checkChange("resize", 0, 0, false); err != nil {
		return err
	}
	if size < 0 {
		return fmt.Errorf("resize %s: size %d: %w", f.name, size, block.ErrOutOfRange)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f.sizeMu.Lock()
	defer f.sizeMu.Unlock()
	old := f.Size()
	none := opts.Prealloc == "" || opts.Prealloc == block.PreallocOff
	switch {
	case f.device && !none:
		return &DeviceSizeError{File: f.name, Prealloc: opts.Prealloc}
	case f.device && (size > old || opts.Exact && size != old):
		return &DeviceSizeError{File: f.name, Exact: opts.Exact}
	case f.device:
		return nil // what is behind the end is not used
	case size < old && !opts.AllowShrink:
		return fmt.Errorf("resize %s from %d to %d bytes: shrinking was not allowed: %w", f.name, old, size, block.ErrOutOfRange)
	case size < old && !none:
		return fmt.Errorf("resize %s: preallocation cannot be used for shrinking: %w", f.name, block.ErrUnsupported)
	}
	err := f.resize(ctx, old, size, opts.Prealloc)
	if err != nil && size > old {
		if back := f.truncate(old); back != nil {
			err = errors.Join(err, back)
		}
	}
	return err
}

func (f *File) resize(ctx context.Context, old, size int64, prealloc block.Preallocation) error {
	switch prealloc {
	case "", block.PreallocOff:
		if err := f.truncate(size); err != nil {
			return err
		}
		return f.writeFirst(old, size)
	case block.PreallocFalloc:
		if size == old {
			return nil
		}
		err := f.fallocate(0, old, size-old)
		if cannot(err) {
			// What the C library's posix_fallocate does, by our own means.
			return f.fill(ctx, old, size, prealloc)
		}
		if err != nil {
			return &PreallocError{File: f.name, Mode: prealloc, Err: err}
		}
		f.size.Store(size)
		return f.writeFirst(old, size)
	case block.PreallocFull:
		return f.fill(ctx, old, size, prealloc)
	}
	return fmt.Errorf("resize %s: preallocation mode '%s': %w", f.name, prealloc, block.ErrUnsupported)
}

// writeFirst writes the first block of a file that grew from nothing. It only
// helps: a file of holes alone is as good on a disk without space for it.
func (f *File) writeFirst(old, size int64) error {
	n := int64(firstBlock)
	switch {
	case old > 0:
		return nil
	case size < firstBlock:
		n = min(size, block.SectorSize)
	}
	err := f.writeZeros(0, n)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return err
}

// fill grows the file by writing zeros, as mode asks for, and syncs it.
func (f *File) fill(ctx context.Context, old, size int64, mode block.Preallocation) error {
	if err := f.truncate(size); err != nil {
		return err
	}
	for at := old; at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(size-at, int64(len(zeroes)))
		if err := f.writeZeros(at, n); err != nil {
			return &PreallocError{File: f.name, Mode: mode, Err: err}
		}
		at += n
	}
	if err := withFD(f.f, unix.Fdatasync); err != nil {
		return f.wrap("flush", err)
	}
	return nil
}

// growTo makes the file at least size bytes long.
func (f *File) growTo(size int64) error {
	f.sizeMu.Lock()
	defer f.sizeMu.Unlock()
	if size <= f.Size() {
		return nil
	}
	return f.truncate(size)
}

func (f *File) truncate(size int64) error {
	if err := f.f.Truncate(size); err != nil {
		return f.wrap("resize", err)
	}
	f.size.Store(size)
	return nil
}

// CopyFrom implements [block.RangeCopier] with copy_file_range between two
// regular files; on file systems with reflinks the storage is shared.
func (f *File) CopyFrom(src block.Node, srcOff, off, n int64) error {
	if err := f.checkChange("copy", off, n, f.opts.Growable); err != nil {
		return err
	}
	s, ok := block.As[*File](src)
	if !ok || f.device || s.device {
		return fmt.Errorf("copy to %s: not between regular files: %w", f.name, block.ErrUnsupported)
	}
	if err := block.CheckRange(srcOff, n, s.Size()); err != nil {
		return s.wrap("copy", err)
	}
	if off+n > f.Size() {
		f.sizeMu.Lock()
		defer f.sizeMu.Unlock()
	}
	for first := true; n > 0; first = false {
		k, err := s.copyTo(f, srcOff, off, n)
		if first && (cannot(err) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM)) {
			return fmt.Errorf("copy %s to %s: the file system does not do it: %w", s.name, f.name, block.ErrUnsupported)
		}
		if err != nil {
			return f.wrap("copy", err)
		}
		srcOff, off, n = srcOff+k, off+k, n-k
		if off > f.Size() {
			f.size.Store(off)
		}
	}
	return nil
}

// copyTo copies at most n bytes to t and returns how many, at least 1.
func (f *File) copyTo(t *File, from, to, n int64) (int64, error) {
	copied := 0
	err := withFD(f.f, func(src int) error {
		return withFD(t.f, func(dst int) error {
			var err error
			copied, err = unix.CopyFileRange(src, &from, dst, &to, int(min(n, 1<<30)), 0)
			return err
		})
	})
	if err == nil && copied == 0 {
		err = &fs.PathError{Op: "copy", Path: f.name, Err: errors.New("file is shorter than it was")}
	}
	return int64(copied), err
}

// Reflink makes the empty file f share all storage of src (FICLONE). It fails
// with [block.ErrUnsupported] where the file system cannot.
func (f *File) Reflink(src *File) error {
	if err := f.checkChange("clone", 0, 0, false); err != nil {
		return err
	}
	f.sizeMu.Lock()
	defer f.sizeMu.Unlock()
	err := withFD(src.f, func(from int) error {
		return withFD(f.f, func(to int) error { return unix.IoctlFileClone(to, from) })
	})
	switch {
	case cannot(err) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM):
		return fmt.Errorf("clone %s to %s: the file system does not do it: %w", src.name, f.name, block.ErrUnsupported)
	case err != nil:
		return f.wrap("clone", err)
	}
	f.size.Store(src.Size())
	return nil
}
