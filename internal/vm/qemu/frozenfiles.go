package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm"
)

// frozenFiles are the files of a frozen machine while they are written. They have
// no name until they are complete, so that a process that dies leaves nothing;
// but where the file system has no such files (NFS, FUSE, old overlays). Such a leftover
// lies at a name that is the store's to remove: in the folder of a unit that is not
// committed, or in that of a machine whose disk is on record as just being frozen.
type frozenFiles struct {
	ram, state *os.File
	paths      [2]string
	named      [2]bool // has its name already
}

func createFrozen(ram, state string) (*frozenFiles, error) {
	f := &frozenFiles{paths: [2]string{ram, state}}
	for i, dst := range []**os.File{&f.ram, &f.state} {
		file, named, err := createNameless(f.paths[i])
		if err != nil {
			f.discard()
			return nil, err
		}
		*dst, f.named[i] = file, named
	}
	return f, nil
}

// createNameless makes a file that is to be called path, where nothing is.
func createNameless(path string) (f *os.File, named bool, err error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, false, &os.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	fd, err := openNameless(filepath.Dir(path))
	switch {
	case err == nil:
		return os.NewFile(uintptr(fd), path), false, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		return f, true, err
	}
	return nil, false, &os.PathError{Op: "create", Path: path, Err: err}
}

// openNameless opens a file without a name; another one in tests.
var openNameless = func(dir string) (int, error) {
	return unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
}

// sync makes what is in the files survive a power loss.
func (f *frozenFiles) sync() error {
	if err := f.ram.Sync(); err != nil {
		return err
	}
	return f.state.Sync()
}

// link gives the files their names.
func (f *frozenFiles) link(durable bool) error {
	for i, file := range []*os.File{f.ram, f.state} {
		if f.named[i] {
			continue
		}
		from := fmt.Sprintf("/proc/self/fd/%d", file.Fd())
		if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, f.paths[i], unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.PathError{Op: "create", Path: f.paths[i], Err: err}
		}
		f.named[i] = true
	}
	if durable {
		for _, p := range f.paths {
			if err := syncPath(filepath.Dir(p)); err != nil {
				return err
			}
		}
	}
	f.close()
	return nil
}

// unlink takes their names away again.
func (f *frozenFiles) unlink() {
	for i, p := range f.paths {
		if f.named[i] {
			_ = os.Remove(p)
			f.named[i] = false
		}
	}
}

func (f *frozenFiles) close() {
	for _, file := range []**os.File{&f.ram, &f.state} {
		if *file != nil {
			_ = (*file).Close()
			*file = nil
		}
	}
}

// discard ends what was not linked.
func (f *frozenFiles) discard() {
	if f.ram != nil || f.state != nil {
		f.unlink()
	}
	f.close()
}

// syncPath makes a file or folder survive a power loss.
func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncImages has the host write out what it holds of the images. QEMU does so
// itself when the guest stops; what is done before takes no time then.
func syncImages(layers []layer) {
	for _, l := range layers {
		if l.disk.Cache != vm.CacheUnsafe {
			_ = syncPath(l.disk.Path)
		}
	}
}

// syncDisks is the same for all that a machine could write to.
func syncDisks(s vm.Spec) error {
	for _, d := range s.Disks {
		if d.Path == "" || d.ReadOnly {
			continue
		}
		if err := syncPath(d.Path); err != nil {
			return err
		}
	}
	return nil
}
