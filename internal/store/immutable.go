package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// The inode flag of chattr +i (linux/fs.h).
const flagImmutable = 0x10

// setImmutable sets or clears a file's immutable flag, which keeps also root from
// changing, renaming and removing it. Where the file system has no such flag, or
// this process no right to it, nothing happens: the mode has to do.
func setImmutable(path string, on bool) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.ELOOP) {
			return nil
		}
		return err
	}
	defer func() { _ = f.Close() }()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return ignoreNoFlags("get the flags of", path, err)
	}
	wanted := flags &^ uint32(flagImmutable)
	if on {
		wanted |= flagImmutable
	}
	if wanted == flags {
		return nil
	}
	return ignoreNoFlags("set the flags of", path, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(wanted)))
}

func ignoreNoFlags(op, path string, err error) error {
	for _, none := range []error{unix.ENOTTY, unix.ENOTSUP, unix.EOPNOTSUPP, unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL, unix.EROFS} {
		if errors.Is(err, none) {
			return nil
		}
	}
	if err != nil {
		return &os.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// isImmutable reports whether the flag is set.
func isImmutable(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&flagImmutable != 0
}
