package image

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
)

// Creation options of the file itself, whatever the format in it.
const (
	optNoCow      = "nocow"
	optExtentHint = "extent_size_hint"
)

// The kernel's interface for file attributes (linux/fs.h).
const (
	fsNoCowFlag   = 0x00800000 // FS_NOCOW_FL
	fsXExtSize    = 0x00000800 // FS_XFLAG_EXTSIZE
	fsIocFSGetX   = 0x801c581f // FS_IOC_FSGETXATTR
	fsIocFSSetX   = 0x401c5820 // FS_IOC_FSSETXATTR
	maxExtentHint = 1<<32 - 1
)

// fsXAttr is struct fsxattr of linux/fs.h.
type fsXAttr struct {
	flags, extentSize, extents, project, cowExtentSize uint32
	_                                                  [8]byte
}

// setAttributes applies the options that concern the file and takes them out
// of values. As with the stock tool, a file system without the attribute is
// no error: both are hints.
func setAttributes(path string, values map[string]string) error {
	noCow := values[optNoCow] == "on"
	hint, hasHint := values[optExtentHint]
	delete(values, optNoCow)
	delete(values, optExtentHint)
	if !noCow && !hasHint {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if noCow {
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			// Only btrfs has it; the stock tool ignores the rest too.
			_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|fsNoCowFlag)
		}
	}
	if !hasHint {
		return nil
	}
	n, err := strconv.ParseUint(hint, 10, 64)
	if err != nil || n > maxExtentHint {
		return fmt.Errorf("%s: extent size hint %q: %w", path, hint, block.ErrOutOfRange)
	}
	if n == 0 {
		return nil
	}
	return setExtentHint(f, uint32(n))
}

func setExtentHint(f *os.File, n uint32) error {
	var attr fsXAttr
	if err := ioctlXAttr(f, fsIocFSGetX, &attr); err != nil {
		return nil // the file system has no such attributes
	}
	attr.flags |= fsXExtSize
	attr.extentSize = n
	err := ioctlXAttr(f, fsIocFSSetX, &attr)
	if err == nil || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return &os.PathError{Op: "set extent size hint of", Path: f.Name(), Err: err}
}

func ioctlXAttr(f *os.File, request uintptr, attr *fsXAttr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(attr)))
	if errno != 0 {
		return errno
	}
	return nil
}
