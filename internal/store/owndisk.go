package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// IntactDisk says whether a machine's own disk, to which nothing writes, still lies over
// what the store has put it over: a name of a backing file that somebody changed by hand
// (qemu-img rebase -u) has a guest read another disk than its own, or a file of the host.
// [ErrDiskChanged] if not. It reads a header. What is below is [Store.Intact]'s.
func (s *Store) IntactDisk(ctx context.Context, m Machine) error {
	if m.Definition != nil {
		return nil
	}
	d, err := s.images.Describe(ctx, s.Disk(m))
	if err != nil {
		return fmt.Errorf("machine %s: its %w: %s: %w: put it back as it was; without it the machine is lost (`lamina rm %s`)", m.Name, ErrDiskChanged, s.Disk(m), err, m.Name)
	}
	return s.overBase(ctx, m, d)
}

// overBase is IntactDisk of a header that was read.
func (s *Store) overBase(ctx context.Context, m Machine, d Disk) error {
	path := s.Disk(m)
	changed := func(what, remedy string) error {
		return fmt.Errorf("machine %s: its %w: %s %s: %s", m.Name, ErrDiskChanged, path, what, remedy)
	}
	if d.DataFile != "" {
		return changed(fmt.Sprintf("keeps its data in another file, %q", d.DataFile), "convert it to one image (`lamina img convert -O qcow2`), and put that in its place")
	}
	if m.Digest == "" {
		if d.Backing == "" {
			return nil
		}
		return changed(fmt.Sprintf("names a backing file, %q, and had none", d.Backing), fmt.Sprintf("`lamina img rebase -u -b '' %s` puts that back", path))
	}
	list, err := s.chain(ctx, s.db, m.Digest)
	if err != nil {
		return err
	}
	base := list[0]
	remedy := fmt.Sprintf("`lamina img rebase -u -b %s -F qcow2 %s` puts that back where only the name was changed; leave out -u where the image was really rebased", backingName(base.key, base.parent), path)
	switch {
	case d.Backing == "":
		return changed(fmt.Sprintf("names no backing file, and lay over %s", base.name), remedy)
	case !sameBacking(path, d.Backing, base.path(s)):
		return changed(fmt.Sprintf("names the backing file %q, and lay over %s", d.Backing, base.name), remedy)
	case d.BackingFormat != "qcow2":
		return changed(fmt.Sprintf("has its backing file read as %q, which is qcow2", d.BackingFormat), remedy)
	}
	return nil
}

// sameBacking says whether an image that calls its backing file name means the file want.
func sameBacking(image, name, want string) bool {
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(image), name)
	}
	if filepath.Clean(name) == filepath.Clean(want) {
		return true
	}
	// By another way to the same folder.
	a, err := os.Lstat(name)
	if err != nil {
		return false
	}
	b, err := os.Lstat(want)
	return err == nil && os.SameFile(a, b)
}
