package virtctl

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// Remove forgets a domain with what libvirt itself keeps of it: NVRAM, TPM
// state, a saved state, the names of its snapshots. Its disks stay.
func (v *Machines) Remove(ctx context.Context, name string, force bool) error {
	return v.remove(ctx, name, force, false, nil)
}

// RemoveDisks is Remove, and then removes the domain's writable images, unless
// another domain has one of them: then nothing is removed. A disk that stays
// because it is no file is told on.
func (v *Machines) RemoveDisks(ctx context.Context, name string, force bool, on client.EventFunc) error {
	return v.remove(ctx, name, force, true, on)
}

func (v *Machines) remove(ctx context.Context, name string, force, disks bool, on client.EventFunc) error {
	d, err := v.find(ctx, name)
	if err != nil {
		return err
	}
	state, _, err := d.State(ctx)
	if err != nil {
		return refusal(err)
	}
	if state.Active() && !force {
		return api.Errorf(api.CodeInUse, "machine %s is running: stop it first, or remove it by force", name)
	}
	var images []string
	if disks {
		if images, err = v.removable(ctx, d); err != nil {
			return refusal(err)
		}
	}
	if state.Active() {
		err := d.Destroy(ctx, false)
		if err != nil && !errors.Is(err, libvirt.ErrInvalid) && !errors.Is(err, libvirt.ErrNotFound) {
			return refusal(err)
		}
	}
	if err := v.undefine(ctx, d); err != nil {
		return refusal(err)
	}
	var errs []error
	for _, path := range images {
		removed, err := v.removeImage(ctx, path)
		if err == nil && !removed && on != nil {
			on(api.Event{Machine: d.Name(), Warning: "the disk " + path + " is no image file: it stays"})
		}
		errs = append(errs, err)
	}
	return refusal(errors.Join(errs...))
}

// undefine forgets a domain that does not run; a transient one is gone already.
func (v *Machines) undefine(ctx context.Context, d *libvirt.Domain) error {
	err := d.Undefine(ctx, libvirt.UndefineOptions{ManagedSave: true, SnapshotsMetadata: true, NVRAM: true, TPM: true})
	if errors.Is(err, libvirt.ErrUnsupported) {
		// Before libvirt 8.9 the TPM's state goes without being asked.
		err = d.Undefine(ctx, libvirt.UndefineOptions{ManagedSave: true, SnapshotsMetadata: true, NVRAM: true})
	}
	if errors.Is(err, libvirt.ErrNotFound) {
		return nil
	}
	return err
}

// removable lists the writable images of a domain, or says which other domain
// needs one of them.
func (v *Machines) removable(ctx context.Context, d *libvirt.Domain) ([]string, error) {
	root, err := document(ctx, d, true)
	if err != nil {
		return nil, err
	}
	var own []string
	for _, disk := range readSpec(root).Disks {
		if disk.Path != "" && !disk.ReadOnly && disk.Device == vm.DeviceDisk && !slices.Contains(own, disk.Path) {
			own = append(own, disk.Path)
		}
	}
	if len(own) == 0 {
		return nil, nil
	}
	others, err := v.conn.Domains(ctx)
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other.UUID() == d.UUID() {
			continue
		}
		files, err := v.filesOf(ctx, other)
		if errors.Is(err, errGone) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, api.Errorf(api.CodeInUse, "whether machine %s needs a disk of %s cannot be found out: %v: put that in order, or keep the disks", other.Name(), d.Name(), err)
		}
		for _, path := range files {
			if i := slices.IndexFunc(own, func(o string) bool { return sameFile(o, path) }); i >= 0 {
				return nil, api.Errorf(api.CodeInUse, "machine %s needs the disk %s: remove %s first, or keep the disks", other.Name(), own[i], other.Name())
			}
		}
	}
	return own, nil
}

// removeImage removes an image: the volume of a pool by libvirt, another file
// by ourselves. What is no file (a logical volume, a partition) is nobody's
// image that was made for the domain: it stays, and removed is false.
func (v *Machines) removeImage(ctx context.Context, path string) (removed bool, err error) {
	vol, err := v.conn.LookupVolume(ctx, path)
	if err == nil {
		file, err := v.isFile(ctx, vol, path)
		if err != nil || !file {
			return false, err
		}
		return true, vol.Delete(ctx)
	}
	if !errors.Is(err, libvirt.ErrNotFound) {
		return false, err
	}
	if err := v.local("disk " + path); err != nil {
		return false, err
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	case !st.Mode().IsRegular():
		return false, nil
	}
	return true, os.Remove(path)
}

// isFile reports whether a volume is a plain file. One of which nobody says so
// is none.
func (v *Machines) isFile(ctx context.Context, vol *libvirt.Volume, path string) (bool, error) {
	root, err := volumeDocument(ctx, vol)
	if err != nil {
		return false, err
	}
	if kind := root.Attr("type"); kind != "" {
		return kind == "file", nil
	}
	if v.conn.Remote() {
		return false, nil
	}
	st, err := os.Lstat(path)
	return err == nil && st.Mode().IsRegular(), nil
}
