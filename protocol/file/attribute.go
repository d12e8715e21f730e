package file

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/fs.h; x/sys does not have them.
const (
	fsIocFSGetXattr = 0x801c581f
	fsIocFSSetXattr = 0x401c5820
	fsXflagExtSize  = 0x800
	fsNoCowFlag     = 0x00800000
)

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags, extSize, nextents, projID, cowExtSize uint32
	_                                             [8]byte
}

// SetExtentHint asks the file system (XFS) to allocate in units of n bytes; 0
// withdraws the wish. It is a hint: most file systems answer with an error.
// It has to be set while the file is empty.
func (f *File) SetExtentHint(n int64) error {
	err := withFD(f.f, func(fd int) error {
		var a fsxattr
		if err := ioctlPointer(fd, fsIocFSGetXattr, unsafe.Pointer(&a)); err != nil {
			return err
		}
		a.xflags &^= fsXflagExtSize
		a.extSize = 0
		if n > 0 {
			a.xflags |= fsXflagExtSize
			a.extSize = uint32(min(n, 1<<32-1))
		}
		return ioctlPointer(fd, fsIocFSSetXattr, unsafe.Pointer(&a))
	})
	if err != nil {
		return f.wrap("set the extent size hint of", err)
	}
	return nil
}

// SetNoCow turns copy-on-write off for an empty file (btrfs). Other file
// systems answer with an error.
func (f *File) SetNoCow() error {
	err := withFD(f.f, func(fd int) error {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|fsNoCowFlag)
	})
	if err != nil {
		return f.wrap("turn copy-on-write off for", err)
	}
	return nil
}

func ioctlPointer(fd int, req uintptr, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}
