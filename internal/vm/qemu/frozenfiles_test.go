package qemu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFrozenFilesNamed: where the file system has no files without a name, those of a
// freeze that came to nothing go, and one that is there is not replaced.
func TestFrozenFilesNamed(t *testing.T) {
	was := openNameless
	defer func() { openNameless = was }()
	for _, errno := range []error{unix.EOPNOTSUPP, unix.EISDIR, unix.EINVAL, unix.ENOSYS} {
		openNameless = func(string) (int, error) { return -1, errno }
		dir := t.TempDir()
		ram, state := filepath.Join(dir, "ram"), filepath.Join(dir, "state")
		f, err := createFrozen(ram, state)
		if err != nil {
			t.Fatalf("%v: %v", errno, err)
		}
		if _, err := createFrozen(ram, state); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v: another freeze at once: %v", errno, err)
		}
		f.discard()
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("%v: left %v, %v", errno, list, err)
		}
		if f, err = createFrozen(ram, state); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.sync(), f.link(true)); err != nil {
			t.Errorf("%v: %v", errno, err)
		}
		f.discard() // of what is linked takes nothing away
		if list, err := os.ReadDir(dir); err != nil || len(list) != 2 {
			t.Errorf("%v: there are %v, %v", errno, list, err)
		}
	}
	openNameless = func(string) (int, error) { return -1, unix.ENOSPC }
	dir := t.TempDir()
	if _, err := createFrozen(filepath.Join(dir, "ram"), filepath.Join(dir, "state")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("no space: %v", err)
	}
}
