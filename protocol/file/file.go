// Package file gives the bytes of a regular file or block device as a disk,
// under QEMU's image locks.
package file

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
)

// defaultMode is the permission of new images, as stock qemu-img makes them.
const defaultMode fs.FileMode = 0o644

// File is the bytes of an open file. All methods are safe for concurrent use;
// beyond the contract of [block.Resizer], so is a Resize that grows.
type File struct {
	f      *os.File
	name   string // as the caller gave it
	opts   Options
	device bool         // a block device
	size   atomic.Int64 // bytes; changes by Resize, and by writes if growable
	closed atomic.Bool

	direct *directIO // nil unless Options.Direct

	noPunch, noZeroRange atomic.Bool // the file system said so

	// flushMu makes flushes one at a time and guards the two below.
	flushMu  sync.Mutex
	flushErr error  // the first failed flush
	newDir   string // directory to sync with the first flush, for a new file

	// sizeMu is held by everything that changes the size.
	sizeMu sync.Mutex

	lockMu sync.Mutex // guards locks
	locks  Locks      // what is held now
}

var (
	_ block.Writer      = (*File)(nil)
	_ block.Zeroer      = (*File)(nil)
	_ block.Discarder   = (*File)(nil)
	_ block.Resizer     = (*File)(nil)
	_ block.DiskSizer   = (*File)(nil)
	_ block.RangeCopier = (*File)(nil)
)

// NotRegularError is for a path that is neither a regular file nor a block
// device. Its text is stock QEMU's; it matches [block.ErrUnsupported].
type NotRegularError struct{ File string }

// Error returns QEMU's wording.
func (e *NotRegularError) Error() string {
	return fmt.Sprintf("'file' driver requires '%s' to be a regular file", e.File)
}

// Is makes the error match [block.ErrUnsupported].
func (e *NotRegularError) Is(target error) bool { return target == block.ErrUnsupported }

// DirectError is for a file system or device that cannot bypass the page cache.
// It matches [block.ErrUnsupported].
type DirectError struct{ File string }

// Error says what to do instead.
func (e *DirectError) Error() string {
	return fmt.Sprintf("open %s: the file system does not do direct I/O (O_DIRECT), use a cache mode other than none and directsync: %v", e.File, block.ErrUnsupported)
}

// Is makes the error match [block.ErrUnsupported].
func (e *DirectError) Is(target error) bool { return target == block.ErrUnsupported }

// DeviceSizeError is for a size, or a preallocation, that a device cannot get.
// Its text is stock QEMU's; it matches [block.ErrUnsupported].
type DeviceSizeError struct {
	File     string
	Exact    bool                // another size was asked for, not only a larger one
	Prealloc block.Preallocation // what cannot be done, "" if that is the size
}

// Error returns QEMU's wording.
func (e *DeviceSizeError) Error() string {
	switch {
	case e.Prealloc != "":
		return fmt.Sprintf("Preallocation mode '%s' unsupported for this non-regular file", e.Prealloc)
	case e.Exact:
		return "Cannot resize device files"
	}
	return "Cannot grow device files"
}

// Is makes the error match [block.ErrUnsupported].
func (e *DeviceSizeError) Is(target error) bool { return target == block.ErrUnsupported }

// PreallocError says that the space of a file could not be reserved.
type PreallocError struct {
	File string
	Mode block.Preallocation
	Err  error
}

// Error names the file and the cause.
func (e *PreallocError) Error() string {
	return fmt.Sprintf("preallocate %s (%s): %v", e.File, e.Mode, e.Err)
}

// Unwrap returns the cause.
func (e *PreallocError) Unwrap() error { return e.Err }

// Open opens an existing file and takes its locks. The error matches
// [block.ErrInUse] (and is a *[LockError]) where somebody else's lock is in
// the way, and wraps the system's where the file cannot be opened.
func Open(path string, opts Options) (*File, error) {
	if opts.NoLock && opts.Writable {
		return nil, fmt.Errorf("open %s: writing without locks: %w", path, block.ErrUnsupported)
	}
	return open(path, 0, opts)
}

// Create makes a file, or takes an existing one, and makes it empty once its
// locks say that nobody uses it, unless Options.Keep. A block device is not
// changed.
func Create(path string, opts Options) (*File, error) {
	opts.Writable = true
	if opts.NoLock {
		return nil, fmt.Errorf("create %s: writing without locks: %w", path, block.ErrUnsupported)
	}
	_, err := os.Lstat(path)
	isNew := errors.Is(err, fs.ErrNotExist)
	f, err := open(path, unix.O_CREAT, opts)
	if err != nil {
		return nil, err
	}
	if isNew {
		f.newDir = filepath.Dir(path)
	}
	if !f.device && !opts.Keep && f.size.Load() > 0 {
		if err := f.truncate(0); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

func open(path string, flags int, opts Options) (*File, error) {
	// Looking first keeps a FIFO or a tape from being opened at all.
	if st, err := os.Stat(path); err == nil && !usable(st) {
		return nil, &NotRegularError{File: path}
	}
	flags |= unix.O_CLOEXEC | unix.O_NONBLOCK
	if opts.Writable {
		flags |= unix.O_RDWR
	}
	if opts.Sync && opts.Writable {
		flags |= unix.O_DSYNC
	}
	mode := opts.Mode.Perm()
	if mode == 0 {
		mode = defaultMode
	}
	osf, err := openFD(path, flags, mode, opts.Direct)
	if err != nil {
		return nil, err
	}
	f := &File{f: osf, name: path, opts: opts}
	if err := f.setup(); err != nil {
		_ = osf.Close()
		return nil, err
	}
	return f, nil
}

func openFD(path string, flags int, mode fs.FileMode, direct bool) (*os.File, error) {
	try := flags
	if direct {
		try |= unix.O_DIRECT
	}
	for {
		fd, err := unix.Open(path, try, uint32(mode))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case direct && errors.Is(err, unix.EINVAL):
			return nil, &DirectError{File: path}
		case err != nil:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		// O_NONBLOCK was only to not wait in open.
		if err := unix.SetNonblock(fd, false); err != nil {
			_ = unix.Close(fd)
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// setup takes the locks and learns type and size. The order matters: a size
// read before the lock could be of another time.
func (f *File) setup() error {
	st, err := f.f.Stat()
	if err != nil {
		return err
	}
	if !usable(st) {
		return &NotRegularError{File: f.name}
	}
	f.device = st.Mode()&fs.ModeDevice != 0
	if err := f.ChangeLocks(f.opts.locks()); err != nil {
		return err
	}
	// Seeking to the end gives the size of a block device too.
	size, err := f.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	f.size.Store(size)
	if f.opts.Direct {
		f.direct = newDirectIO(f.f, f.device)
	}
	return nil
}

// usable says whether a file is one that holds bytes: a regular file, a block
// device or, as stock QEMU takes any character device, one of the kernel's
// memory devices (null, zero, full, random, urandom), which are disks of 0
// bytes. Others are not opened: that alone rewinds a tape or arms a watchdog.
func usable(st fs.FileInfo) bool {
	m := st.Mode()
	if m&fs.ModeCharDevice == 0 {
		return m.IsRegular() || m&fs.ModeDevice != 0
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || unix.Major(sys.Rdev) != memoryMajor {
		return false
	}
	switch unix.Minor(sys.Rdev) {
	case 3, 5, 7, 8, 9:
		return true
	}
	return false
}

// memoryMajor is the number of the kernel's memory devices (Linux,
// Documentation/admin-guide/devices.txt).
const memoryMajor = 1

// Name returns the path as it was given.
func (f *File) Name() string { return f.name }

// IsDevice reports whether the file is a block device.
func (f *File) IsDevice() bool { return f.device }

// Size returns the size in bytes: of a regular file to the byte.
func (f *File) Size() int64 { return f.size.Load() }

// DiskSize returns the bytes that the file takes in its file system.
func (f *File) DiskSize() (int64, error) {
	var st unix.Stat_t
	err := withFD(f.f, func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return 0, f.wrap("stat", err)
	}
	return st.Blocks * 512, nil
}

// SameFile reports whether both are the same file, by whatever names.
func (f *File) SameFile(g *File) bool {
	a, errA := f.f.Stat()
	b, errB := g.f.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// Stat describes the open file, whatever its path leads to now.
func (f *File) Stat() (fs.FileInfo, error) { return f.f.Stat() }

// Flush implements [block.Writer] by fdatasync. The first failure stays.
func (f *File) Flush() error {
	f.flushMu.Lock()
	defer f.flushMu.Unlock()
	if f.closed.Load() {
		return f.wrap("flush", block.ErrClosed)
	}
	if f.flushErr != nil {
		return fmt.Errorf("an earlier flush failed, the file may have lost writes: %w", f.flushErr)
	}
	if !f.opts.Writable {
		return nil
	}
	err := withFD(f.f, unix.Fdatasync)
	if f.device && f.Size() == 0 && errors.Is(err, unix.EINVAL) {
		err = nil // a memory device keeps nothing
	}
	if err != nil {
		f.flushErr = f.wrap("flush", err)
		return f.flushErr
	}
	if f.newDir != "" {
		if err := syncDir(f.newDir); err != nil {
			f.flushErr = err
			return err
		}
		f.newDir = ""
	}
	return nil
}

// syncDir makes a new file's name survive power loss. File systems that
// cannot sync a directory say EINVAL.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		// A directory that may be written but not read cannot be opened;
		// the file is then as safe as its system makes it by itself.
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// Close gives up the locks and the file.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.dropLocks()
	if f.direct != nil {
		f.direct.close()
	}
	return f.f.Close()
}

// wrap names operation and file, once, and turns the runtime's "closed" into
// the contract's.
func (f *File) wrap(op string, err error) error {
	if errors.Is(err, os.ErrClosed) {
		err = block.ErrClosed
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("%s %s: %w", op, f.name, err)
}
