package file

import (
	"errors"
	"io"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
)

// ReadAt implements [block.Node].
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if f.closed.Load() {
		return 0, f.wrap("read", block.ErrClosed)
	}
	size := f.Size()
	if off < 0 {
		return 0, f.wrap("read", block.CheckRange(off, int64(len(p)), size))
	}
	if off >= size {
		if len(p) == 0 && off == size {
			return 0, nil
		}
		return 0, io.EOF
	}
	atEnd := int64(len(p)) > size-off
	if atEnd {
		p = p[:size-off]
	}
	n, err := f.read(p, off)
	switch {
	case errors.Is(err, io.EOF):
		// The size says that there is more: somebody cut the file.
		return n, f.wrap("read", io.ErrUnexpectedEOF)
	case err != nil:
		return n, f.wrap("read", err)
	case atEnd:
		return n, io.EOF
	}
	return n, nil
}

func (f *File) read(p []byte, off int64) (int, error) {
	if f.direct != nil {
		return f.direct.readAt(p, off)
	}
	return f.f.ReadAt(p, off)
}

// WriteAt implements [block.Writer].
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.checkChange("write", off, int64(len(p)), f.opts.Growable); err != nil {
		return 0, err
	}
	if off+int64(len(p)) > f.Size() {
		// A change of size at the same time could cut what is written here.
		f.sizeMu.Lock()
		defer f.sizeMu.Unlock()
	}
	n, err := f.write(p, off)
	if end := off + int64(n); n > 0 && f.opts.Growable && end > f.Size() {
		f.size.Store(end)
	}
	if err != nil {
		return n, f.wrap("write", err)
	}
	return n, nil
}

func (f *File) write(p []byte, off int64) (int, error) {
	if f.direct != nil {
		return f.direct.writeAt(p, off, f.Size())
	}
	if f.opts.Sync {
		return f.f.WriteAt(p, off) // each piece would be a flush
	}
	done := 0
	for {
		end := min(done+writePiece, len(p))
		n, err := f.f.WriteAt(p[done:end], off+int64(done))
		done += n
		if err != nil || done == len(p) {
			return done, err
		}
	}
}

// writePiece is how much of a buffered write goes to the kernel at once. For
// an aligned write as long as a huge page (2 MiB) Linux looks for one in the
// page cache: unless one is free it moves other pages out of the way first, and
// in a virtual machine the memory may have to come from the host. Copies of
// disks took up to five times as long.
const writePiece = 256 << 10

// checkChange says whether [off, off+n) may be changed.
func (f *File) checkChange(op string, off, n int64, grow bool) error {
	switch {
	case f.closed.Load():
		return f.wrap(op, block.ErrClosed)
	case !f.opts.Writable:
		return f.wrap(op, block.ErrReadOnly)
	}
	size := f.Size()
	switch {
	case !grow || off < 0 || n < 0:
	case f.device && off+n > size:
		return f.wrap(op, unix.ENOSPC) // as the kernel would
	case !f.device:
		size = max(size, off+n) // an overflow leaves size, and the check refuses
	}
	if err := block.CheckRange(off, n, size); err != nil {
		return f.wrap(op, err)
	}
	return nil
}

// Extents implements [block.Node]: holes, as the file system tells them
// (SEEK_DATA), are zero with a host offset, everything else is data. Where it
// does not tell, all is data.
func (f *File) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		if f.closed.Load() {
			yield(block.Extent{}, f.wrap("map", block.ErrClosed))
			return
		}
		if err := block.CheckRange(off, n, f.Size()); err != nil {
			yield(block.Extent{}, f.wrap("map", err))
			return
		}
		at, end := off, off+n
		var run block.Extent // not yielded yet
		for at < end {
			kind, to, err := f.runAt(at, end)
			if err != nil {
				yield(block.Extent{}, f.wrap("map", err))
				return
			}
			e := block.Extent{Start: at, Length: to - at, Kind: kind, HostOffset: at}
			at = to
			// The system may split one run of data into several.
			if run.Length > 0 && e.Follows(run) {
				run.Length += e.Length
				continue
			}
			if run.Length > 0 && !yield(run, nil) {
				return
			}
			run = e
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}

// runAt returns the kind of the byte at off and where the run ends, at most
// limit.
func (f *File) runAt(off, limit int64) (block.Kind, int64, error) {
	if f.device {
		return block.Data, limit, nil
	}
	data, err := f.seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data up to the end
		return block.Zero, limit, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return block.Data, limit, nil
	case err != nil:
		return 0, 0, err
	case data > off:
		return block.Zero, min(data, limit), nil
	}
	hole, err := f.seek(off, unix.SEEK_HOLE)
	if errors.Is(err, unix.ENXIO) || err == nil && hole <= off {
		hole, err = limit, nil // cut or changed meanwhile
	}
	return block.Data, min(hole, limit), err
}

func (f *File) seek(off int64, whence int) (at int64, err error) {
	err = withFD(f.f, func(fd int) error {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}
