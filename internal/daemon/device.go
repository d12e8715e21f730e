package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// unplugPatience is how long a guest may take to let go of a drive.
const unplugPatience = 30 * time.Second

// device makes a handler of what changes a machine's devices: change has the
// machine's op, and the machine's run (nil if it does not run).
func device[T any](d *Daemon, change func(ctx context.Context, m *machine, r *run, req T) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		m, err := d.find(r.PathValue("name"))
		if err != nil {
			return err
		}
		req, err := request[T](w, r)
		if err != nil {
			return err
		}
		end, err := m.begin(r.Context())
		if err != nil {
			return err
		}
		defer end()
		if m.running() == nil && m.mayRun() {
			if err := m.adopt(r.Context()); err != nil {
				return err
			}
		}
		if err := change(r.Context(), m, m.running(), req); err != nil {
			return deviceError(m.name, err)
		}
		answer(w, m.describe())
		return nil
	}
}

// deviceError gives the errors of drivers and images their codes.
func deviceError(name string, err error) error {
	code := ""
	var invalid *vm.InvalidError
	switch {
	case errors.Is(err, vm.ErrNoDevice):
		code = api.CodeNotFound
	case errors.Is(err, block.ErrInUse):
		code = api.CodeInUse
	case errors.Is(err, vm.ErrNoHotplug), errors.As(err, &invalid), errors.Is(err, image.ErrNeedsShrink):
		code = api.CodeInvalid
	default:
		return fmt.Errorf("machine %s: %w", name, err)
	}
	return api.Errorf(code, "machine %s: %v", name, err)
}

// scope says what a request concerns of a machine.
func (m *machine) scope(s api.Scope, r *run) (live, config bool, err error) {
	rec := m.known()
	transient := rec.Definition != nil && rec.Definition.Transient
	switch {
	case s.Live && r == nil:
		return false, false, fmt.Errorf("%w: %s: leave out --live for its next start", vm.ErrNotRunning, m.name)
	case s.Config && transient:
		return false, false, api.Errorf(api.CodeInvalid, "machine %s is transient: it has no next start", m.name)
	}
	return r != nil && (s.Live || !s.Config), !transient && (s.Config || !s.Live), nil
}

// runningSpec is what a run has now, hot-plugged devices included.
func (r *run) runningSpec() vm.Spec {
	if d, ok := r.vm.(vm.Described); ok {
		return d.RunningSpec()
	}
	return r.spec
}

// named gives every drive of a spec the name that it goes by, so that it keeps
// it when another one comes or goes.
func named(s vm.Spec) vm.Spec {
	names := s.DiskNames()
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		s.Disks[i].Target = names[i]
	}
	return s
}

// setDisks records the drives that the machine's next start takes.
func (m *machine) setDisks(disks []vm.Disk) error {
	return m.setRecord(func(rec *store.Machine) { rec.Spec.Disks = disks })
}

// cannot is for what the machine's driver is not able to do.
func cannot(what string) error {
	return fmt.Errorf("%w: %s: stop the machine, or say --config to change its next start only", vm.ErrNoHotplug, what)
}

func attach(ctx context.Context, m *machine, r *run, req api.AttachRequest) error {
	live, config, err := m.scope(req.Scope, r)
	if err != nil {
		return err
	}
	disk := req.Disk
	spec := named(m.known().Spec)
	if r != nil && disk.Target == "" {
		disk.Target = freeTarget(disk, spec, r.runningSpec())
	}
	next := spec
	next.Disks = append(slices.Clone(spec.Disks), disk)
	next = named(next.WithDefaults())
	disk = next.Disks[len(next.Disks)-1]
	if err := next.Validate(); err != nil {
		return err
	}
	if err := (vm.Spec{Disks: []vm.Disk{disk}}).CheckFiles(); err != nil {
		return err
	}
	if live {
		plugger, ok := r.vm.(vm.DiskPlugger)
		if !ok {
			return cannot("drives cannot be added to it")
		}
		if disk, err = plugger.PlugDisk(ctx, disk); err != nil {
			return err
		}
		m.d.log.Info("drive attached", "machine", m.name, "drive", disk.Target, "path", disk.Path)
		next.Disks[len(next.Disks)-1] = disk
	}
	if !config {
		return nil
	}
	err = m.setDisks(next.Disks)
	if err != nil && live {
		// All or nothing, as far as that goes.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), unplugPatience)
		defer cancel()
		_, uerr := r.vm.(vm.DiskPlugger).UnplugDisk(undo, disk.Target)
		err = errors.Join(err, uerr)
	}
	return err
}

// freeTarget is a name for a drive that is free in both specs.
func freeTarget(d vm.Disk, a, b vm.Spec) string {
	both := named(a)
	for _, o := range named(b).Disks {
		if !slices.ContainsFunc(both.Disks, func(x vm.Disk) bool { return x.Target == o.Target }) {
			both.Disks = append(both.Disks, o)
		}
	}
	if d.Bus == "" {
		d.Bus = vm.Spec{Machine: a.Machine, Disks: []vm.Disk{d}}.WithDefaults().Disks[0].Bus
	}
	both.Disks = append(both.Disks, d)
	return both.DiskNames()[len(both.Disks)-1]
}

func detach(ctx context.Context, m *machine, r *run, req api.DetachRequest) error {
	live, config, err := m.scope(req.Scope, r)
	if err != nil {
		return err
	}
	rec := m.known()
	spec := named(rec.Spec)
	at, missing := spec.FindDisk(req.Disk)
	if missing == nil && rec.Definition == nil && (at == 0 || spec.Disks[at].Serial == "seed" && at == 1) {
		return api.Errorf(api.CodeInvalid, "machine %s: %s is the machine's own, made with it and removed with it: it cannot be detached", m.name, spec.Disks[at].Target)
	}
	if live {
		if gone, err := unplug(ctx, r, req.Disk, missing == nil && config); err != nil {
			return err
		} else if gone {
			m.d.log.Info("drive detached", "machine", m.name, "drive", req.Disk)
		}
		if missing != nil {
			return nil // it was there for this run only
		}
	}
	if !config {
		return nil
	}
	if missing != nil {
		return missing
	}
	return m.setDisks(slices.Delete(spec.Disks, at, at+1))
}

// unplug takes a drive away from a run. With mayMiss it need not be there: the
// next start has it.
func unplug(ctx context.Context, r *run, name string, mayMiss bool) (gone bool, err error) {
	plugger, ok := r.vm.(vm.DiskPlugger)
	if !ok {
		return false, cannot("drives cannot be taken from it")
	}
	ctx, cancel := context.WithTimeout(ctx, unplugPatience)
	defer cancel()
	_, err = plugger.UnplugDisk(ctx, name)
	if mayMiss && errors.Is(err, vm.ErrNoDevice) {
		return false, nil
	}
	return err == nil, err
}

func resize(ctx context.Context, m *machine, r *run, req api.ResizeRequest) error {
	if req.Size <= 0 || req.Size%block.SectorSize != 0 {
		return api.Errorf(api.CodeInvalid, "machine %s: a size of %d bytes: it is a multiple of %d above 0", m.name, req.Size, block.SectorSize)
	}
	if r != nil {
		resizer, ok := r.vm.(vm.DiskResizer)
		if !ok {
			return cannot("its disks cannot be resized")
		}
		return resizer.ResizeDisk(ctx, req.Disk, req.Size)
	}
	spec := m.known().Spec
	at, err := spec.FindDisk(req.Disk)
	if err != nil {
		return err
	}
	d := spec.Disks[at]
	if d.ReadOnly || d.Device == vm.DeviceCDROM || d.Device == vm.DeviceFloppy {
		return api.Errorf(api.CodeInvalid, "machine %s: %s is not written to: it cannot be resized", m.name, req.Disk)
	}
	_, err = image.Resize(ctx, d.Path, image.ResizeOptions{Format: d.Format, Size: req.Size, FixGPT: true})
	if errors.Is(err, image.ErrNeedsShrink) {
		err = fmt.Errorf("%w: a guest's file system would be cut; shrink it first, and then the image (lamina img resize --shrink)", err)
	}
	return err
}

func media(ctx context.Context, m *machine, r *run, req api.MediaRequest) error {
	live, config, err := m.scope(req.Scope, r)
	if err != nil {
		return err
	}
	rec := m.known()
	spec := named(rec.Spec)
	if live {
		running := named(r.runningSpec())
		name, err := trayName(running, req.Drive, rec.Definition == nil)
		if errors.Is(err, vm.ErrNoDevice) && config {
			// Its next start may have the drive.
			req.Config = true
			return media(ctx, m, nil, req)
		}
		if err != nil {
			return err
		}
		if err := changeMedium(ctx, r, name, req); err != nil {
			return err
		}
		m.d.log.Info("medium changed", "machine", m.name, "drive", name, "path", req.Path)
		if _, err := spec.FindDisk(name); err != nil {
			return nil // a drive of this run only, such as the install phase's
		}
	}
	if !config {
		return nil
	}
	name, err := trayName(spec, req.Drive, rec.Definition == nil)
	if err != nil {
		return err
	}
	at, err := spec.FindDisk(name)
	if err != nil {
		return err
	}
	spec.Disks[at].Path, spec.Disks[at].Format, spec.Disks[at].Tray = req.Path, cmp.Or(req.Format, "raw"), ""
	if !live && req.Path != "" {
		if err := spec.Validate(); err != nil {
			return err
		}
		if err := (vm.Spec{Disks: []vm.Disk{spec.Disks[at]}}).CheckFiles(); err != nil {
			return err
		}
	}
	return m.setDisks(spec.Disks)
}

// changeMedium puts a medium into a running machine's drive.
func changeMedium(ctx context.Context, r *run, name string, req api.MediaRequest) error {
	changer, ok := r.vm.(vm.MediaChanger)
	if !ok {
		return cannot("its media cannot be changed")
	}
	if req.Path == "" {
		return changer.EjectMedium(ctx, name, req.Force)
	}
	return changer.ChangeMedium(ctx, name, vm.Medium{Path: req.Path, Format: cmp.Or(req.Format, "raw")}, req.Force)
}

// trayName finds the drive of a medium by its name, or the only CD-ROM drive.
// The seed of a machine with a template is not one of those, where own is true.
func trayName(s vm.Spec, name string, own bool) (string, error) {
	var found []string
	for i, d := range s.Disks {
		if d.Device != vm.DeviceCDROM && d.Device != vm.DeviceFloppy || own && d.Serial == "seed" {
			continue
		}
		if d.Target == name && name != "" {
			return name, nil
		}
		if d.Device == vm.DeviceCDROM {
			found = append(found, s.Disks[i].Target)
		}
	}
	switch {
	case name != "":
		at, err := s.FindDisk(name)
		if err != nil {
			return "", err
		}
		if dev := s.Disks[at].Device; dev != vm.DeviceCDROM && dev != vm.DeviceFloppy {
			return "", api.Errorf(api.CodeInvalid, "%s is a %s, not a drive whose medium can be changed", name, dev)
		}
		if own && s.Disks[at].Serial == "seed" {
			return "", api.Errorf(api.CodeInvalid, "%s holds the machine's seed, which stays", name)
		}
		return s.Disks[at].Target, nil
	case len(found) == 0:
		return "", fmt.Errorf("CD-ROM drive: %w: give the machine one (lamina attach NAME --disk FILE.iso,device=cdrom)", vm.ErrNoDevice)
	case len(found) > 1:
		return "", api.Errorf(api.CodeInvalid, "there are %d CD-ROM drives (%v): say which one (--drive)", len(found), found)
	}
	return found[0], nil
}
