package qemuimg

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/protocol/file"
)

// openText says in the stock tool's words why an image could not be opened.
func openText(err error) string {
	var open *image.OpenError
	if errors.As(err, &open) {
		return "Could not open '" + open.Name + "': " + causeText(open.Err)
	}
	return causeText(err)
}

// causeText is openText without the name in front.
func causeText(err error) string {
	var (
		backing *image.BackingError
		lock    *file.LockError
		regular *file.NotRegularError
		device  *file.DeviceSizeError
		direct  *file.DirectError
		unknown *image.UnknownFormatError
		not     *image.NotFormatError
		proto   *image.ProtocolError
		path    *fs.PathError
	)
	switch {
	case errors.As(err, &backing):
		return "Could not open backing file: " + causeText(backing.Err)
	case errors.As(err, &lock):
		return lock.Error()
	case errors.As(err, &regular):
		return regular.Error()
	case errors.As(err, &device):
		return device.Error()
	case errors.As(err, &direct):
		return "Could not open '" + direct.File + "': filesystem does not support O_DIRECT"
	case errors.As(err, &unknown):
		return "Unknown driver '" + unknown.Format + "'"
	case errors.As(err, &not):
		return "Image is not in " + not.Format + " format"
	case errors.As(err, &proto):
		return "Unknown protocol '" + proto.Protocol + "'"
	case errors.As(err, &path) && path.Op == "open" && path.Path == "":
		return "The 'file' block driver requires a file name"
	case errors.As(err, &path) && path.Op == "open":
		return "Could not open '" + path.Path + "': " + errnoText(path.Err)
	}
	return plainText(err)
}

// createText says why an image could not be made; prealloc is the option's
// value.
func createText(err error, formatName, prealloc string) string {
	var (
		path    *fs.PathError
		regular *file.NotRegularError
	)
	clusters := hasClusters(formatName)
	text, sized := sizeText(err)
	switch {
	case errors.As(err, &regular):
		switch st, err := os.Stat(regular.File); {
		case err == nil && st.IsDir():
			return "Could not create '" + regular.File + "': " + errnoText(syscall.EISDIR)
		case err == nil && st.Mode()&fs.ModeNamedPipe != 0:
			return "Could not resize file: " + errnoText(syscall.EINVAL)
		}
		return causeText(err)
	case sized && clusters:
		return "Could not resize image: " + underlying(err) + text
	case sized:
		return text
	case errors.Is(err, syscall.EFBIG):
		if clusters {
			return "The image size is too large for file format '" + formatName + "' (try using a larger cluster size)"
		}
		return "The image size is too large for file format '" + formatName + "'"
	case noSpace(err) && clusters && prealloc != "" && prealloc != string(block.PreallocOff):
		return "Could not resize image: Allocating clusters failed: " + reasonText(err)
	case noSpace(err) && clusters:
		return "Could not write " + formatName + " header: " + reasonText(err)
	case errors.As(err, &path) && path.Op == "open":
		return "Could not create '" + path.Path + "': " + errnoText(path.Err)
	}
	return causeText(err)
}

// sizeText says why a file did not get its size or its space; false is for
// other errors.
func sizeText(err error) (string, bool) {
	var (
		device   *file.DeviceSizeError
		prealloc *file.PreallocError
	)
	switch {
	case errors.As(err, &device):
		return device.Error(), true
	case errors.As(err, &prealloc):
		return preallocText(prealloc.Mode) + reasonText(prealloc.Err), true
	}
	return "", false
}

// underlying is what stock puts before [sizeText] where the file is that of an
// image with clusters: where it only had to grow it says nothing.
func underlying(err error) string {
	var device *file.DeviceSizeError
	if errors.As(err, &device) && device.Prealloc == "" {
		return ""
	}
	return failedUnderlying
}

const failedUnderlying = "Failed to resize underlying file: "

// preallocText is what stock was doing when it could not reserve space.
func preallocText(mode block.Preallocation) string {
	if mode == block.PreallocFull {
		return "Could not write zeros for preallocation: "
	}
	return "Could not preallocate new data: "
}

// noSpace reports whether the disk is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func isDirectory(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}

// errnoText is the C library's text for a system error: Go's begins in lower case.
func errnoText(err error) string {
	s := err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		s = errno.Error()
	}
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// plainText is an error's own text; a system error at its end is written as
// the C library does.
func plainText(err error) string {
	var errno syscall.Errno
	s := err.Error()
	if errors.As(err, &errno) {
		if head, ok := strings.CutSuffix(s, errno.Error()); ok {
			return head + errnoText(errno)
		}
	}
	return s
}

// reasonText is the short reason of an I/O error: what strerror says of the
// number that the stock tool would have for it.
func reasonText(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errnoText(errno)
	case errors.Is(err, block.ErrCorrupt):
		return errnoText(syscall.EIO)
	case errors.Is(err, block.ErrReadOnly):
		return errnoText(syscall.EACCES)
	}
	return err.Error()
}

// stockf returns an error in the stock tool's words, which begin as sentences do.
func stockf(format string, args ...any) error { return fmt.Errorf(format, args...) }
