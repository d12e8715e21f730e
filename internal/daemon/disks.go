package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// removableDisks are the disk images of a definition that a person may want to
// be removed with it: writable plain files. It is an error where another
// machine needs one of them, or where one cannot be removed.
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
		if err := unix.Access(filepath.Dir(d.Path), unix.W_OK|unix.X_OK); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "the disk %s cannot be removed: its folder: %v: keep the disks, or make its folder writable", d.Path, err)
		}
		if err := m.neededElsewhere(ctx, d.Path); err != nil {
			return nil, err
		}
		out = append(out, d.Path)
	}
	return out, nil
}

// neededElsewhere is the error where another machine has the image path, or
// one that it is a backing file of, or where that cannot be found out.
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
		for _, d := range m.d.disksOf(other) {
			files, err := chainFiles(ctx, d)
			if err != nil {
				return fmt.Errorf("the disk %s is kept: whether machine %s needs it cannot be found out: %w: put that in order, or keep the disks", path, other.Name, err)
			}
			for _, file := range files {
				if o, err := os.Stat(file); err == nil && os.SameFile(st, o) {
					return fmt.Errorf("the disk %s is %w: machine %s needs it: remove %s first, or keep the disks", path, store.ErrInUse, other.Name, other.Name)
				}
			}
		}
	}
	return nil
}

// disksOf are all disks that a machine has: those of its next start, of its
// install phase, and those that are plugged in now.
func (d *Daemon) disksOf(rec store.Machine) []vm.Disk {
	disks := slices.Clone(rec.Spec.Disks)
	if rec.Definition != nil && rec.Definition.Install != nil {
		disks = append(disks, rec.Definition.Install.Spec.Disks...)
	}
	// One that is not known any more has been removed since it was listed.
	if m, err := d.find(rec.ID); err == nil {
		if r := m.running(); r != nil {
			disks = append(disks, r.runningSpec().Disks...)
		}
	}
	return disks
}

// chainFiles are the files of a disk's backing chain; none of a disk that is
// not there.
func chainFiles(ctx context.Context, d vm.Disk) ([]string, error) {
	if d.Path == "" {
		return nil, nil
	}
	if d.Format == "raw" || d.Format == "luks" {
		return []string{d.Path}, nil // nothing is below it
	}
	files, err := image.Files(ctx, d.Path, d.Format)
	if err != nil {
		if _, e := os.Stat(d.Path); errors.Is(e, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	return files, nil
}
