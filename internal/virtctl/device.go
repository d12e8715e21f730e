package virtctl

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// unplugPatience is how long a guest may take to let go of a drive.
const unplugPatience = 30 * time.Second

// affect says what a change concerns.
func affect(ctx context.Context, d *libvirt.Domain, s api.Scope) (libvirt.Affect, error) {
	state, _, err := d.State(ctx)
	if err != nil {
		return 0, err
	}
	persistent, err := d.Persistent(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case s.Live && !state.Active():
		return 0, api.Errorf(api.CodeInvalid, "machine %s does not run: leave out --live for its next start", d.Name())
	case s.Config && !persistent:
		return 0, api.Errorf(api.CodeInvalid, "machine %s is transient: it has no next start", d.Name())
	}
	var a libvirt.Affect
	if state.Active() && !s.Config {
		a |= libvirt.AffectLive
	}
	if persistent && !s.Live {
		a |= libvirt.AffectConfig
	}
	return a, nil
}

// Attach gives a domain another drive.
func (v *Machines) Attach(ctx context.Context, name string, req api.AttachRequest) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	a, err := affect(ctx, d, req.Scope)
	if err != nil {
		return api.Machine{}, refusal(err)
	}
	e, err := v.newDisk(ctx, d, req.Disk)
	if err != nil {
		return api.Machine{}, refusal(err)
	}
	if err := d.AttachDevice(ctx, e.String(), a); err != nil {
		return api.Machine{}, refusal(err)
	}
	return v.Machine(ctx, name)
}

// newDisk is the element of a new drive, with a name that is free both in the
// domain as it runs and in its next start.
func (v *Machines) newDisk(ctx context.Context, d *libvirt.Domain, disk vm.Disk) (*domxml.Element, error) {
	if disk.Device == "" {
		disk.Device = vm.DeviceDisk
	}
	if disk.Bus == "" {
		disk.Bus = vm.BusVirtio
		if disk.Device != vm.DeviceDisk {
			disk.Bus = vm.BusSATA
		}
	}
	bus := disk.Bus
	if bus == vm.BusVirtioSCSI {
		bus = vm.BusSCSI // libvirt's name: the controller says which
	}
	if disk.Target == "" {
		var both vm.Spec
		for _, inactive := range []bool{false, true} {
			root, err := document(ctx, d, inactive)
			if err != nil {
				return nil, err
			}
			both.Disks = append(both.Disks, readSpec(root).Disks...)
		}
		both.Disks = append(both.Disks, disk)
		disk.Target = both.DiskNames()[len(both.Disks)-1]
	}
	e := domxml.New("disk", "type", "file", "device", string(disk.Device))
	source := "file"
	if len(disk.Path) > 5 && disk.Path[:5] == "/dev/" {
		e.SetAttr("type", "block")
		source = "dev"
	}
	driver := e.Add(domxml.New("driver", "name", "qemu", "type", cmp.Or(disk.Format, "raw")))
	for _, o := range []struct{ name, value string }{
		{"cache", string(disk.Cache)}, {"io", string(disk.IO)}, {"detect_zeroes", disk.DetectZeroes},
	} {
		if o.value != "" {
			driver.SetAttr(o.name, o.value)
		}
	}
	if disk.Discard {
		driver.SetAttr("discard", "unmap")
	}
	if disk.IOThread > 0 {
		driver.SetAttr("iothread", strconv.Itoa(disk.IOThread))
	}
	if disk.Path != "" {
		e.Add(domxml.New("source", source, disk.Path))
	}
	e.Add(domxml.New("target", "dev", disk.Target, "bus", string(bus)))
	if disk.ReadOnly || disk.Device == vm.DeviceCDROM {
		e.Add(domxml.New("readonly"))
	}
	if disk.Shareable {
		e.Add(domxml.New("shareable"))
	}
	if disk.BootIndex > 0 {
		e.Add(domxml.New("boot", "order", strconv.Itoa(disk.BootIndex)))
	}
	if disk.Serial != "" {
		e.AddText("serial", disk.Serial)
	}
	if disk.WWN != "" {
		e.AddText("wwn", disk.WWN)
	}
	return e, nil
}

// drive finds the element of a drive: its target, path or serial number.
func drive(root *domxml.Element, name string) (*domxml.Element, error) {
	at, err := readSpec(root).FindDisk(name)
	if err != nil {
		return nil, &api.Error{Code: api.CodeNotFound, Message: err.Error()}
	}
	return root.Child("devices").All("disk")[at], nil
}

// Detach takes a drive from a domain, and returns when the guest has let go.
func (v *Machines) Detach(ctx context.Context, name string, req api.DetachRequest) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	a, err := affect(ctx, d, req.Scope)
	if err != nil {
		return api.Machine{}, refusal(err)
	}
	if a&libvirt.AffectLive != 0 {
		if err := v.unplug(ctx, d, req.Disk, a&libvirt.AffectConfig != 0); err != nil {
			return api.Machine{}, refusal(err)
		}
	}
	if a&libvirt.AffectConfig != 0 {
		root, err := document(ctx, d, true)
		if err != nil {
			return api.Machine{}, refusal(err)
		}
		e, err := drive(root, req.Disk)
		if err != nil && a&libvirt.AffectLive != 0 {
			return v.Machine(ctx, name) // it was there for this run only
		}
		if err == nil {
			err = d.DetachDevice(ctx, e.String(), libvirt.AffectConfig)
		}
		if err != nil {
			return api.Machine{}, refusal(err)
		}
	}
	return v.Machine(ctx, name)
}

// unplug takes a drive from a running domain. With mayMiss it need not be there,
// but then the next start must have it.
func (v *Machines) unplug(ctx context.Context, d *libvirt.Domain, name string, mayMiss bool) error {
	root, err := document(ctx, d, false)
	if err != nil {
		return err
	}
	e, err := drive(root, name)
	if err != nil && mayMiss {
		next, derr := document(ctx, d, true)
		if derr == nil {
			_, derr = drive(next, name)
		}
		return derr
	}
	if err != nil {
		return err
	}
	if err := d.DetachDevice(ctx, e.String(), libvirt.AffectLive); err != nil {
		return err
	}
	target := e.Get("./target/@dev")
	// libvirt has told the guest; the drive is gone when its document says so.
	for end := time.Now().Add(unplugPatience); ; {
		root, err := document(ctx, d, false)
		if err != nil {
			return err
		}
		if _, err := drive(root, target); err != nil {
			return nil
		}
		if time.Now().After(end) {
			return api.Errorf(api.CodeFailed, "machine %s: the guest did not let go of %s within %s: let it unmount the disk, and try again", d.Name(), target, unplugPatience)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Resize grows a disk: by libvirt while the domain runs, else the image itself.
func (v *Machines) Resize(ctx context.Context, name string, req api.ResizeRequest) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	state, _, err := d.State(ctx)
	if err != nil {
		return api.Machine{}, refusal(err)
	}
	root, err := document(ctx, d, false)
	if err != nil {
		return api.Machine{}, refusal(err)
	}
	e, err := drive(root, req.Disk)
	if err != nil {
		return api.Machine{}, err
	}
	if err := v.resize(ctx, d, readDisk(e), req.Size, state.Active()); err != nil {
		return api.Machine{}, refusal(err)
	}
	return v.Machine(ctx, name)
}

func (v *Machines) resize(ctx context.Context, d *libvirt.Domain, disk vm.Disk, size int64, active bool) error {
	if active {
		// libvirt would cut an image without asking.
		info, err := d.BlockInfo(ctx, disk.Target)
		if err != nil {
			return err
		}
		if size < info.Capacity {
			return api.Errorf(api.CodeInvalid, "machine %s: %s has %d bytes, %d are fewer: a guest's file system would be cut", d.Name(), disk.Target, info.Capacity, size)
		}
		return d.BlockResize(ctx, disk.Target, size)
	}
	if err := v.local("disk " + disk.Path); err != nil {
		return err
	}
	if disk.ReadOnly || disk.Path == "" {
		return api.Errorf(api.CodeInvalid, "machine %s: %s is not written to: it cannot be resized", d.Name(), disk.Target)
	}
	_, err := image.Resize(ctx, disk.Path, image.ResizeOptions{Format: cmp.Or(disk.Format, "raw"), Size: size, FixGPT: true})
	if errors.Is(err, image.ErrNeedsShrink) {
		return api.Errorf(api.CodeInvalid, "machine %s: %v; a guest's file system would be cut", d.Name(), err)
	}
	return err
}

// Media changes the medium of a drive.
func (v *Machines) Media(ctx context.Context, name string, req api.MediaRequest) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	a, err := affect(ctx, d, req.Scope)
	if err != nil {
		return api.Machine{}, refusal(err)
	}
	for _, one := range []libvirt.Affect{libvirt.AffectLive, libvirt.AffectConfig} {
		if a&one == 0 {
			continue
		}
		root, err := document(ctx, d, one == libvirt.AffectConfig)
		if err != nil {
			return api.Machine{}, refusal(err)
		}
		e, err := tray(root, req.Drive)
		if err != nil {
			return api.Machine{}, err
		}
		if err := d.UpdateDevice(ctx, withMedium(e, req).String(), one, req.Force); err != nil {
			return api.Machine{}, refusal(err)
		}
	}
	return v.Machine(ctx, name)
}

// tray is the element of a drive with a tray: by its name, or the only CD-ROM.
func tray(root *domxml.Element, name string) (*domxml.Element, error) {
	if name != "" {
		e, err := drive(root, name)
		if err == nil && e.Attr("device") != "cdrom" && e.Attr("device") != "floppy" {
			return nil, api.Errorf(api.CodeInvalid, "%s is a %s, not a drive whose medium can be changed", name, e.Attr("device"))
		}
		return e, err
	}
	var found []*domxml.Element
	for _, e := range root.Child("devices").All("disk") {
		if e.Attr("device") == "cdrom" {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return nil, api.Errorf(api.CodeNotFound, "there is no CD-ROM drive: give the machine one (lamina attach NAME --disk FILE.iso,device=cdrom --config)")
	case 1:
		return found[0], nil
	}
	return nil, api.Errorf(api.CodeInvalid, "there are %d CD-ROM drives: say which one (--drive)", len(found))
}

// withMedium is a drive's element with another medium in it.
func withMedium(e *domxml.Element, req api.MediaRequest) *domxml.Element {
	out := e.Clone()
	for _, name := range []string{"source", "backingStore"} {
		for c := out.Child(name); c != nil; c = out.Child(name) {
			out.Drop(c)
		}
	}
	out.SetAttr("type", "file")
	if req.Path == "" {
		return out
	}
	source := domxml.New("source", "file", req.Path)
	if len(req.Path) > 5 && req.Path[:5] == "/dev/" {
		out.SetAttr("type", "block")
		source = domxml.New("source", "dev", req.Path)
	}
	if driver := out.Child("driver"); driver != nil {
		driver.SetAttr("type", cmp.Or(req.Format, "raw"))
	}
	out.Add(source)
	return out
}
