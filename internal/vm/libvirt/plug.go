package libvirt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domain"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

var (
	_ vm.Described      = (*machine)(nil)
	_ vm.DiskPlugger    = (*machine)(nil)
	_ vm.NICPlugger     = (*machine)(nil)
	_ vm.DiskResizer    = (*machine)(nil)
	_ vm.MediaChanger   = (*machine)(nil)
	_ vm.DiskThrottler  = (*machine)(nil)
	_ vm.PasswordSetter = (*machine)(nil)
)

// liveXML is the document of a domain as it runs.
func liveXML(ctx context.Context, dom *Domain, secure bool) (*domxml.Element, error) {
	text, err := dom.XML(ctx, XMLOptions{Secure: secure})
	if err != nil {
		return nil, err
	}
	return domxml.Parse([]byte(text))
}

// device finds a device of the running domain, nil where it has none such.
func (m *machine) device(ctx context.Context, kind string, is func(*domxml.Element) bool) (*domxml.Element, error) {
	root, err := liveXML(ctx, m.now().domain, true)
	if err != nil {
		return nil, m.asked(err)
	}
	for _, e := range root.Child("devices").All(kind) {
		if is(e) {
			return e, nil
		}
	}
	return nil, nil
}

func targetIs(name string) func(*domxml.Element) bool {
	return func(e *domxml.Element) bool { return e.Child("target").Attr("dev") == name }
}

func macIs(mac string) func(*domxml.Element) bool {
	return func(e *domxml.Element) bool { return strings.EqualFold(e.Child("mac").Attr("address"), mac) }
}

// keep makes a change of the spec that has been made to the domain, also for
// who adopts the machine.
func (m *machine) keep(change func(*vm.Spec)) error {
	spec := m.RunningSpec()
	change(&spec)
	m.mu.Lock()
	m.record.Spec = spec
	r := m.record
	m.mu.Unlock()
	return r.write(m.dir)
}

// PlugDisk implements [vm.DiskPlugger].
func (m *machine) PlugDisk(ctx context.Context, d vm.Disk) (vm.Disk, error) {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	if d.Bus == vm.BusIDE || d.Bus == vm.BusSATA || d.Bus == vm.BusFDC || d.Bus == vm.BusNVMe || d.Device == vm.DeviceCDROM && d.Bus == "" {
		return d, fmt.Errorf("a drive on %s: %w: use virtio, virtio-scsi or usb", d.Bus, vm.ErrNoHotplug)
	}
	spec := m.RunningSpec()
	i := len(spec.Disks)
	spec.Disks = append(spec.Disks, d)
	spec = spec.WithDefaults()
	d = spec.Disks[i]
	if err := errors.Join(spec.Validate(), vm.Spec{Disks: spec.Disks[i:]}.CheckFiles()); err != nil {
		return d, err
	}
	e, err := domain.MarshalDisk(spec, i, domain.Options{})
	if err != nil {
		return d, err
	}
	if (d.Bus == vm.BusVirtioSCSI || d.Bus == vm.BusSCSI) && d.Address == nil {
		if err := m.seat(ctx, e); err != nil {
			return d, err
		}
	}
	if err := m.asked(m.now().domain.AttachDevice(ctx, e.String(), AffectLive)); err != nil {
		return d, err
	}
	d.Target = spec.DiskNames()[i]
	return d, m.keep(func(s *vm.Spec) { s.Disks = append(s.Disks, d) })
}

// seat gives a SCSI disk a free place on the first controller: libvirt would
// count one from its name, and add controllers up to it.
func (m *machine) seat(ctx context.Context, disk *domxml.Element) error {
	for target := 1; target < 256; target++ {
		taken, err := m.device(ctx, "disk", func(e *domxml.Element) bool {
			a := e.Child("address")
			return a.Attr("type") == "drive" && a.Attr("target") == strconv.Itoa(target)
		})
		if err != nil {
			return err
		}
		if taken == nil {
			disk.Add(domxml.New("address", "type", "drive", "controller", "0", "bus", "0", "target", strconv.Itoa(target), "unit", "0"))
			return nil
		}
	}
	return fmt.Errorf("the SCSI controller has no free place: %w", vm.ErrNoHotplug)
}

// UnplugDisk implements [vm.DiskPlugger].
func (m *machine) UnplugDisk(ctx context.Context, name string) (vm.Disk, error) {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	spec := m.RunningSpec()
	i, err := spec.FindDisk(name)
	if err != nil {
		return vm.Disk{}, err
	}
	if err := m.detachDevice(ctx, "disk", targetIs(spec.DiskNames()[i])); err != nil {
		return vm.Disk{}, err
	}
	return spec.Disks[i], m.keep(func(s *vm.Spec) {
		for j, n := range s.DiskNames() { // the names of the others stay as they are
			s.Disks[j].Target = n
		}
		s.Disks = slices.Delete(s.Disks, i, i+1)
	})
}

// unplugPoll is between two looks whether a guest has let go of a device.
const unplugPoll = 50 * time.Millisecond

// detachDevice asks the guest to let go of a device, and waits until it is gone.
func (m *machine) detachDevice(ctx context.Context, kind string, is func(*domxml.Element) bool) error {
	for asked := false; ; {
		e, err := m.device(ctx, kind, is)
		if err != nil {
			return err
		}
		if e == nil {
			return nil
		}
		if !asked {
			err := m.now().domain.DetachDevice(ctx, e.String(), AffectLive)
			// One that the guest has been asked for before is on its way.
			if err != nil && !strings.Contains(err.Error(), "already in the process of unplug") && !errors.Is(err, ErrNotFound) {
				return m.asked(err)
			}
			asked = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest has not let go of the device: %w", ctx.Err())
		case <-m.ended:
			return vm.ErrNotRunning
		case <-time.After(unplugPoll):
		}
	}
}

// disk finds a drive by name: its place in the spec and its target.
func (m *machine) disk(name string) (d vm.Disk, i int, target string, err error) {
	spec := m.RunningSpec()
	if i, err = spec.FindDisk(name); err != nil {
		return vm.Disk{}, 0, "", err
	}
	return spec.Disks[i], i, spec.DiskNames()[i], nil
}

// ResizeDisk implements [vm.DiskResizer].
func (m *machine) ResizeDisk(ctx context.Context, name string, size int64) error {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	_, _, target, err := m.disk(name)
	if err != nil {
		return err
	}
	l := m.now()
	now, err := call(ctx, l.conn, l.domain.op("size of a disk of"), func(rpc *golibvirt.Libvirt) (int64, error) {
		_, capacity, _, err := rpc.DomainGetBlockInfo(l.domain.dom, target, 0)
		return int64(capacity), err
	})
	switch {
	case err != nil:
		return m.asked(err)
	case size < now:
		return fmt.Errorf("drive %s has %d bytes: %d are fewer, and what lies behind them would be lost", name, now, size)
	case size%512 != 0:
		return fmt.Errorf("drive %s: %d bytes are no whole number of sectors of 512", name, size)
	}
	return m.asked(l.domain.BlockResize(ctx, target, size))
}

// ThrottleDisk implements [vm.DiskThrottler].
func (m *machine) ThrottleDisk(ctx context.Context, name string, t vm.Throttle) error {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	_, i, target, err := m.disk(name)
	if err != nil {
		return err
	}
	var params []golibvirt.TypedParam
	values := domain.ThrottleValues(t)
	for _, k := range slices.Sorted(maps.Keys(values)) {
		// A length is of a burst that there is.
		if strings.HasSuffix(k, "_length") && values[k] == 0 {
			continue
		}
		params = append(params, golibvirt.TypedParam{Field: k, Value: *golibvirt.NewTypedParamValueUllong(uint64(values[k]))})
	}
	if t.Group != "" {
		params = append(params, golibvirt.TypedParam{Field: "group_name", Value: *golibvirt.NewTypedParamValueString(t.Group)})
	}
	dom := m.now().domain
	err = dom.do(ctx, "bound a disk of", func(l *golibvirt.Libvirt) error {
		return l.DomainSetBlockIOTune(dom.dom, target, params, uint32(AffectLive))
	})
	if err != nil {
		return m.asked(err)
	}
	return m.keep(func(s *vm.Spec) { s.Disks[i].Throttle = t })
}

// ChangeMedium implements [vm.MediaChanger].
func (m *machine) ChangeMedium(ctx context.Context, name string, medium vm.Medium, force bool) error {
	if _, err := os.Stat(medium.Path); err != nil {
		return fmt.Errorf("medium: %w", err)
	}
	return m.medium(ctx, name, medium, force)
}

// EjectMedium implements [vm.MediaChanger].
func (m *machine) EjectMedium(ctx context.Context, name string, force bool) error {
	return m.medium(ctx, name, vm.Medium{}, force)
}

// medium puts a medium into a drive, or none.
func (m *machine) medium(ctx context.Context, name string, medium vm.Medium, force bool) error {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	d, i, target, err := m.disk(name)
	if err != nil {
		return err
	}
	if d.Device != vm.DeviceCDROM && d.Device != vm.DeviceFloppy {
		return fmt.Errorf("drive %s has no medium that could be changed: it is a %s", name, d.Device)
	}
	spec := m.RunningSpec()
	change := func(d *vm.Disk) {
		d.Path = medium.Path
		if medium.Format != "" {
			d.Format = medium.Format
		}
		if d.Device == vm.DeviceFloppy {
			d.ReadOnly = medium.ReadOnly
		}
	}
	change(&spec.Disks[i])
	e, err := domain.MarshalDisk(spec, i, domain.Options{})
	if err != nil {
		return err
	}
	e.Child("target").SetAttr("dev", target)
	if err := m.asked(m.now().domain.UpdateDevice(ctx, e.String(), AffectLive, force)); err != nil {
		return err
	}
	return m.keep(func(s *vm.Spec) { change(&s.Disks[i]) })
}

// PlugNIC implements [vm.NICPlugger].
func (m *machine) PlugNIC(ctx context.Context, n vm.NIC) (vm.NIC, error) {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	spec := m.RunningSpec()
	i := len(spec.NICs)
	spec.NICs = append(spec.NICs, n)
	spec = spec.WithDefaults()
	n = spec.NICs[i]
	if err := spec.Validate(); err != nil {
		return n, err
	}
	e, err := domain.MarshalNIC(spec, i) // forwards are refused: no name of the new card is known to make them by
	if err != nil {
		return n, err
	}
	if err := m.asked(m.now().domain.AttachDevice(ctx, e.String(), AffectLive)); err != nil {
		return n, err
	}
	return n, m.keep(func(s *vm.Spec) { s.NICs = append(s.NICs, n) })
}

// UnplugNIC implements [vm.NICPlugger].
func (m *machine) UnplugNIC(ctx context.Context, name string) (vm.NIC, error) {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	spec := m.RunningSpec()
	i, err := spec.FindNIC(name)
	if err != nil {
		return vm.NIC{}, err
	}
	if err := m.detachDevice(ctx, "interface", macIs(spec.NICs[i].MAC)); err != nil {
		return vm.NIC{}, err
	}
	return spec.NICs[i], m.keep(func(s *vm.Spec) { s.NICs = slices.Delete(s.NICs, i, i+1) })
}

// SetLink implements [vm.NICPlugger].
func (m *machine) SetLink(ctx context.Context, name string, state vm.LinkState) error {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	spec := m.RunningSpec()
	i, err := spec.FindNIC(name)
	if err != nil {
		return err
	}
	e, err := m.device(ctx, "interface", macIs(spec.NICs[i].MAC))
	if err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("network card %s: %w", name, vm.ErrNoDevice)
	}
	e.Need("link").SetAttr("state", string(state))
	if err := m.asked(m.now().domain.UpdateDevice(ctx, e.String(), AffectLive, false)); err != nil {
		return err
	}
	return m.keep(func(s *vm.Spec) { s.NICs[i].Link = state })
}

// SetDisplayPassword implements [vm.PasswordSetter].
func (m *machine) SetDisplayPassword(ctx context.Context, d vm.DisplayType, password string) error {
	m.plugging.Lock()
	defer m.plugging.Unlock()
	e, err := m.device(ctx, "graphics", func(e *domxml.Element) bool { return e.Attr("type") == string(d) })
	if err != nil {
		return err
	}
	if e == nil {
		return fmt.Errorf("display %s: %w", d, vm.ErrNoDevice)
	}
	if d == vm.DisplayVNC && len(password) > vm.VNCPasswordLength {
		password = password[:vm.VNCPasswordLength]
	}
	e.SetAttr("passwd", password)
	return m.asked(m.now().domain.UpdateDevice(ctx, e.String(), AffectLive, false))
}
