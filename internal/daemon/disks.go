package daemon

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// removableDisks are the disk images of a definition that a person may want to
// be removed with it: writable plain files. It is an error where another
// machine needs one of them.
func (m *machine) removableDisks(ctx context.Context) ([]string, error) {
	rec := m.known()
	if rec.Definition == nil {
		return nil, nil // all its own
	}
	var out []string
	for _, d := range rec.Spec.Disks {
		if d.ReadOnly || d.Path == "" || d.Device != vm.DeviceDisk || slices.Contains(out, d.Path) {
			continue
		}
		if st, err := os.Lstat(d.Path); err != nil || !st.Mode().IsRegular() {
			continue // a block device, or gone
		}
		if err := m.neededElsewhere(ctx, d.Path); err != nil {
			return nil, err
		}
		out = append(out, d.Path)
	}
	return out, nil
}

// neededElsewhere is the error where another machine has the image path, or
// one that it is a backing file of.
func (m *machine) neededElsewhere(ctx context.Context, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	list, err := m.d.store.Machines(ctx)
	if err != nil {
		return err
	}
	for _, other := range list {
		if other.ID == m.id {
			continue
		}
		disks := slices.Clone(other.Spec.Disks)
		if other.Definition != nil && other.Definition.Install != nil {
			disks = append(disks, other.Definition.Install.Spec.Disks...)
		}
		for _, d := range disks {
			for _, file := range chainFiles(ctx, d) {
				if o, err := os.Stat(file); err == nil && os.SameFile(st, o) {
					return fmt.Errorf("the disk %s is %w: machine %s needs it: remove %s first, or keep the disks", path, store.ErrInUse, other.Name, other.Name)
				}
			}
		}
	}
	return nil
}

// chainFiles are the files of a disk's backing chain, as far as they can be
// read; the disk's own file at least.
func chainFiles(ctx context.Context, d vm.Disk) []string {
	if d.Path == "" {
		return nil
	}
	im, err := image.Open(ctx, d.Path, image.Options{Format: d.Format, NoLock: true})
	if err != nil {
		return []string{d.Path}
	}
	defer func() { _ = im.Close() }() // only read
	var out []string
	for _, l := range im.Layers() {
		out = append(out, l.File())
		if l.DataFile() != "" {
			out = append(out, l.DataFile())
		}
	}
	return out
}
