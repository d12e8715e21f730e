package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TryDirect opens path with O_DIRECT, or a nameless file in its nearest
// existing folder where it does not exist yet. Only a refusal of O_DIRECT
// itself is an error.
func TryDirect(path string) error {
	for p, flags := path, unix.O_RDONLY; ; flags = unix.O_TMPFILE | unix.O_RDWR {
		fd, err := unix.Open(p, flags|unix.O_DIRECT|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
		if err == nil {
			return unix.Close(fd)
		}
		if errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "open with O_DIRECT", Path: p, Err: err}
		}
		parent := filepath.Dir(p)
		if !errors.Is(err, unix.ENOENT) || parent == p {
			return nil // another trouble, which opening the disk will tell
		}
		p = parent
	}
}

// CheckFiles tries to open every disk as the machine will, so that a missing
// or unreadable one is named before anything is started. It writes nothing.
func (s Spec) CheckFiles() error {
	var errs []error
	for i, d := range s.Disks {
		if err := d.checkFile(); err != nil {
			errs = append(errs, fmt.Errorf("disks[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (d Disk) checkFile() error {
	if d.Path == "" && (d.Device == DeviceCDROM || d.Device == DeviceFloppy) {
		return nil // an empty drive
	}
	flags, how := os.O_RDWR, "for writing"
	if d.ReadOnly {
		flags, how = os.O_RDONLY, "for reading"
	}
	st, err := os.Stat(d.Path)
	if err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	if m := st.Mode(); !m.IsRegular() && (m&os.ModeDevice == 0 || m&os.ModeCharDevice != 0) {
		return fmt.Errorf("disk image %s is neither a file nor a block device", d.Path)
	}
	if d.Device == DeviceLUN && st.Mode().IsRegular() {
		return fmt.Errorf("disk image %s is a file, and a lun is a SCSI block device of the host: use device disk", d.Path)
	}
	f, err := os.OpenFile(d.Path, flags, 0)
	if err != nil {
		return fmt.Errorf("disk image cannot be opened %s: %w", how, err)
	}
	return f.Close()
}
