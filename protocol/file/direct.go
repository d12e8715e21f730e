package file

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bounceSize is the size of one buffer for unaligned direct I/O.
const bounceSize = 1 << 20

// directIO makes requests of any alignment on a file opened with O_DIRECT.
//
// A write that does not cover whole blocks reads the blocks, changes them and
// writes them back, so no other write may run at that time.
type directIO struct {
	f     *os.File
	align int64 // of offset, length and memory, a power of two

	mu sync.RWMutex // shared by aligned writes, exclusive for unaligned ones

	tailMu sync.Mutex // guards buffered
	// buffered is a second description of the file without O_DIRECT, for
	// the last, partial block, which direct I/O could only write by making
	// the file longer. nil until needed.
	buffered *os.File
}

// bounce holds aligned buffers of bounceSize.
var bounce = sync.Pool{New: func() any {
	b := make([]byte, bounceSize+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	b = b[skip : skip+bounceSize : skip+bounceSize]
	return &b
}}

func newDirectIO(f *os.File, device bool) *directIO {
	d := &directIO{f: f, align: 4096}
	var st unix.Statx_t
	err := withFD(f, func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	})
	if a := int64(max(st.Dio_offset_align, st.Dio_mem_align)); err == nil && st.Mask&unix.STATX_DIOALIGN != 0 && a >= 512 && a <= 4096 && a&(a-1) == 0 {
		d.align = a
	} else if device {
		if n, err := ioctlSectorSize(f); err == nil && n >= 512 && n <= 4096 {
			d.align = int64(n)
		}
	}
	return d
}

func ioctlSectorSize(f *os.File) (n int, err error) {
	err = withFD(f, func(fd int) error {
		n, err = unix.IoctlGetInt(fd, unix.BLKSSZGET)
		return err
	})
	return n, err
}

// aligned says whether the request can go to the kernel as it is.
func (d *directIO) aligned(p []byte, off int64) bool {
	return len(p) == 0 || (off|int64(len(p))|int64(uintptr(unsafe.Pointer(&p[0]))))&(d.align-1) == 0
}

// readAt is like os.File.ReadAt.
func (d *directIO) readAt(p []byte, off int64) (int, error) {
	if d.aligned(p, off) {
		return d.f.ReadAt(p, off)
	}
	bp := bounce.Get().(*[]byte)
	defer bounce.Put(bp)
	buf, done := *bp, 0
	for done < len(p) {
		at := off + int64(done)
		start := at &^ (d.align - 1)
		end := min(roundUp(off+int64(len(p)), d.align), start+bounceSize)
		n, err := d.f.ReadAt(buf[:end-start], start)
		// At the end of the file the last block is short.
		if have := int64(n) - (at - start); have > 0 {
			done += copy(p[done:], buf[at-start:at-start+have])
		}
		if err != nil && done < len(p) {
			return done, err
		}
	}
	return done, nil
}

// writeAt is like os.File.WriteAt; size is the size of the file.
func (d *directIO) writeAt(p []byte, off, size int64) (int, error) {
	if off&(d.align-1) == 0 && int64(len(p))&(d.align-1) == 0 {
		d.mu.RLock()
		defer d.mu.RUnlock()
		if d.aligned(p, off) {
			return d.f.WriteAt(p, off)
		}
		return d.writeBounced(p, off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if roundUp(off+int64(len(p)), d.align) > size {
		return d.writeBuffered(p, off)
	}
	return d.writeBounced(p, off)
}

// writeBounced copies p into aligned buffers, with what surrounds it in the
// first and last block. The caller holds mu, exclusively if anything does.
func (d *directIO) writeBounced(p []byte, off int64) (int, error) {
	bp := bounce.Get().(*[]byte)
	defer bounce.Put(bp)
	buf, done := *bp, 0
	for done < len(p) {
		at := off + int64(done)
		start := at &^ (d.align - 1)
		end := min(roundUp(off+int64(len(p)), d.align), start+bounceSize)
		n := min(int64(len(p)-done), end-at)
		if at > start {
			if err := d.readBlock(buf[:d.align], start); err != nil {
				return done, err
			}
		}
		if last := end - d.align; at+n < end && (last > start || at == start) {
			if err := d.readBlock(buf[last-start:end-start], last); err != nil {
				return done, err
			}
		}
		copy(buf[at-start:], p[done:done+int(n)])
		if _, err := d.f.WriteAt(buf[:end-start], start); err != nil {
			return done, err
		}
		done += int(n)
	}
	return done, nil
}

func (d *directIO) readBlock(b []byte, off int64) error {
	n, err := d.f.ReadAt(b, off)
	// Behind a short block at the end some file systems say EINVAL instead of
	// the end, because what is left is not aligned.
	if err == io.EOF || n > 0 && errors.Is(err, unix.EINVAL) {
		clear(b[n:])
		return nil
	}
	return err
}

// writeBuffered writes through the page cache and makes it clean again, so
// that a later direct write finds nothing to lose. The caller holds mu
// exclusively.
func (d *directIO) writeBuffered(p []byte, off int64) (int, error) {
	f, err := d.tail()
	if err != nil {
		return 0, err
	}
	n, err := f.WriteAt(p, off)
	if err == nil {
		err = withFD(f, unix.Fdatasync)
	}
	return n, err
}

func (d *directIO) tail() (*os.File, error) {
	d.tailMu.Lock()
	defer d.tailMu.Unlock()
	if d.buffered != nil {
		return d.buffered, nil
	}
	var err error
	err2 := withFD(d.f, func(fd int) error {
		// Through /proc, so that it is this file whatever the name is now.
		d.buffered, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
		return err
	})
	return d.buffered, err2
}

func (d *directIO) close() {
	d.tailMu.Lock()
	defer d.tailMu.Unlock()
	if d.buffered != nil {
		_ = d.buffered.Close()
	}
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
