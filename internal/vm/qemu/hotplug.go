package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

// noPort: where devices that come later could go, there is nothing.
func noPort(what string) error {
	return fmt.Errorf("%s: %w: there is no free PCIe port: start the machine with hotplugPorts, use virtio-scsi or usb, or machine type pc", what, vm.ErrNoHotplug)
}

// freePort returns the bus of a PCI device that is plugged: a free port of
// q35, "" on pc, whose bus takes all.
func (m *machine) freePort(ctx context.Context, what string) (string, error) {
	s := m.spec()
	if s.Chipset() != vm.MachineQ35 {
		return "", nil
	}
	var buses []struct {
		Devices []struct {
			QDevID string `json:"qdev_id"`
			Bridge *struct {
				Devices []struct{} `json:"devices"`
			} `json:"pci_bridge"`
		} `json:"devices"`
	}
	if err := m.execute(ctx, "query-pci", nil, &buses); err != nil {
		return "", err
	}
	for _, bus := range buses {
		for _, d := range bus.Devices {
			if strings.HasPrefix(d.QDevID, "hotplug") && d.Bridge != nil && len(d.Bridge.Devices) == 0 {
				return d.QDevID, nil
			}
		}
	}
	return "", noPort(what)
}

// peripherals are the ids of the devices that are there.
func (m *machine) peripherals(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name string `json:"name"`
	}
	if err := m.execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"}, &list); err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, o := range list {
		ids[o.Name] = true
	}
	return ids, nil
}

// nextID is a name that no device of a kind has, nor had at the start.
func nextID(kind string, have []string) string {
	most := -1
	for _, id := range have {
		if n, err := strconv.Atoi(strings.TrimPrefix(id, kind)); err == nil {
			most = max(most, n)
		}
	}
	return kind + strconv.Itoa(most+1)
}

// properties writes what a command line's option says as a command's
// arguments. The first property's key stays.
func properties(p []string) map[string]any {
	args := map[string]any{}
	for i := 0; i+1 < len(p); i += 2 {
		switch v := p[i+1]; v {
		case "":
		case noValue:
			args[p[i]] = ""
		default:
			args[p[i]] = v
		}
	}
	return args
}

// undo runs commands that take back what was done, in reverse, with a context of
// their own: what failed may have failed because its time was up.
type undo struct {
	m     *machine
	steps []func(context.Context) error
}

func (u *undo) add(command string, args any) {
	u.steps = append(u.steps, func(ctx context.Context) error { return u.m.execute(ctx, command, args, nil) })
}

func (u *undo) run(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	for i := len(u.steps) - 1; i >= 0; i-- {
		err = errors.Join(err, u.steps[i](ctx))
	}
	return err
}

// PlugDisk implements [vm.DiskPlugger].
func (m *machine) PlugDisk(ctx context.Context, d vm.Disk) (vm.Disk, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	s := m.spec()
	d = s.DiskWithDefaults(d)
	what := fmt.Sprintf("plug disk %s", d.Path)
	if err := errors.Join(s.ValidateDisk(d), vm.Spec{Disks: []vm.Disk{d}}.CheckFiles()); err != nil {
		return vm.Disk{}, fmt.Errorf("%s: %w", what, err)
	}
	d.Address = nil // the controller finds a place
	place, err := m.plugPlace(ctx, d, what)
	if err != nil {
		return vm.Disk{}, err
	}
	// Seen through whatever becomes of the caller: a device_add that is under way
	// cannot be taken back.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	m.mu.Lock()
	r := m.record
	r.fillIDs()
	m.mu.Unlock()
	id := nextID("disk", r.DiskIDs)
	c := config{spec: s, accel: r.Info.Accel, isBlockDevice: isBlockDevice}
	u := &undo{m: m}
	if secret := c.secret(d, id); secret != nil {
		if err := m.execute(ctx, "object-add", properties(secret), nil); err != nil {
			return vm.Disk{}, fmt.Errorf("%s: %w", what, err)
		}
		u.add("object-del", map[string]string{"id": id + "-secret"})
	}
	if err := m.execute(ctx, "blockdev-add", c.blockdev(d, id), nil); err != nil {
		return vm.Disk{}, u.run(fmt.Errorf("%s: %w", what, err))
	}
	u.add("blockdev-del", map[string]string{"node-name": id})
	if err := m.execute(ctx, "device_add", properties(driveDevices(d, id, seat{place: place})[0]), nil); err != nil {
		return vm.Disk{}, u.run(fmt.Errorf("%s: %w", what, err))
	}
	if d.Throttle.Bounded() {
		if err := m.throttle(ctx, id, d.Throttle); err != nil {
			// The guest may use the disk by now: it stays.
			d.Throttle = vm.Throttle{}
			return d, errors.Join(fmt.Errorf("%s: it is there without its bounds: %w", what, err), m.addDisk(d, id))
		}
	}
	return d, m.addDisk(d, id)
}

func (m *machine) addDisk(d vm.Disk, id string) error {
	return m.change(func(r *record) {
		r.Spec.Disks, r.DiskIDs = append(r.Spec.Disks, d), append(r.DiskIDs, id)
	})
}

// plugPlace is where a disk that is plugged goes, as device properties.
func (m *machine) plugPlace(ctx context.Context, d vm.Disk, what string) ([]string, error) {
	switch {
	case d.Bus == vm.BusVirtio || d.Bus == vm.BusNVMe:
		port, err := m.freePort(ctx, what)
		return []string{"bus", port}, err
	case d.Bus == vm.BusUSB && d.Device == vm.DeviceDisk, d.Bus == vm.BusVirtioSCSI, d.Bus == vm.BusSCSI:
	default:
		return nil, fmt.Errorf("%s: %w: a %s on %s cannot come while the machine runs: use virtio, virtio-scsi or usb", what, vm.ErrNoHotplug, d.Device, d.Bus)
	}
	ids, err := m.peripherals(ctx)
	if err != nil {
		return nil, err
	}
	controller, bus, remedy := "usb0", usbBus, "a usb controller"
	if d.Bus != vm.BusUSB {
		controller, bus, remedy = "scsi0", "scsi0.0", "a scsi controller"
		c := config{spec: m.spec()}
		model := c.scsiModel(0, scsiFallback(d.Bus))
		if d.Bus == vm.BusVirtioSCSI && model != "virtio-scsi" {
			return nil, fmt.Errorf("%s: %w: the machine's SCSI controller is a %s: use bus scsi", what, vm.ErrNoHotplug, model)
		}
	}
	if !ids[controller] {
		return nil, fmt.Errorf("%s: %w: the machine has no %s controller: start it with %s, or use another bus", what, vm.ErrNoHotplug, d.Bus, remedy)
	}
	return []string{"bus", bus}, nil
}

// UnplugDisk implements [vm.DiskPlugger].
func (m *machine) UnplugDisk(ctx context.Context, name string) (vm.Disk, error) {
	_, d, id, err := m.findDisk(name)
	if err != nil {
		return vm.Disk{}, err
	}
	what := fmt.Sprintf("unplug drive %q", name)
	switch {
	case d.Bus == vm.BusIDE, d.Bus == vm.BusSATA, d.Bus == vm.BusFDC, d.Bus == vm.BusUSB && d.Device == vm.DeviceCDROM:
		return vm.Disk{}, fmt.Errorf("%s: %w: a %s on %s stays until the machine is stopped; a CD-ROM or floppy can be ejected", what, vm.ErrNoHotplug, d.Device, d.Bus)
	}
	if err := m.unplug(ctx, id); err != nil {
		return vm.Disk{}, fmt.Errorf("%s: %w", what, err)
	}
	return d, nil
}

// unplug asks the guest to let go of a device and waits until it is gone.
func (m *machine) unplug(ctx context.Context, id string) error {
	events := m.monitor().Subscribe(eventBuffer)
	defer events.Close()
	err := m.execute(ctx, "device_del", map[string]string{"id": deviceID(id)}, nil)
	var refusal *qmp.Error
	switch {
	case errors.As(err, &refusal) && strings.Contains(refusal.Desc, "in the process of unplug"): // an earlier one waits
	case errors.As(err, &refusal) && strings.Contains(refusal.Desc, "does not support hotplugging"):
		return fmt.Errorf("%w: it is part of the machine's board: stop the machine first (devices that are to go are to be on virtio-scsi, usb or a hotplug port)", vm.ErrNoHotplug)
	case errors.As(err, &refusal) && refusal.Class == "DeviceNotFound": // gone already
		return m.forget(ctx, id)
	case err != nil:
		return err
	}
	for {
		select {
		case e, open := <-events.Events():
			if !open {
				return fmt.Errorf("%w: the monitor is gone", vm.ErrNotRunning)
			}
			switch kind, device := plugEvent(e); {
			case device != deviceID(id):
			case kind == eventRefused:
				return errors.New("the guest refuses to let go of it: stop using it in the guest (unmount it) and try again")
			case kind == eventDeleted:
				return m.forget(ctx, id)
			}
		case <-m.proc.done:
			return vm.ErrNotRunning
		case <-ctx.Done():
			return fmt.Errorf("the guest does not answer: it may not have booted yet, or have no driver for hot plug; the request stands, and the device goes when the guest lets go of it: %w", ctx.Err())
		}
	}
}

// forgetting bounds the work after a device is gone.
const forgetting = 10 * time.Second

// forget closes what the host had of a device that is gone and takes it out of
// the spec. It may be called twice.
func (m *machine) forget(ctx context.Context, id string) error {
	m.forgetMu.Lock()
	defer m.forgetMu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetting)
	defer cancel()
	m.mu.Lock()
	r := m.record
	r.fillIDs()
	m.mu.Unlock()
	for i, other := range r.DiskIDs {
		if other == id {
			if err := m.closeNodes(ctx, id, r.Spec.Disks[i]); err != nil {
				return err
			}
			return m.change(func(r *record) { r.dropDisk(id) })
		}
	}
	if !slices.Contains(r.NICIDs, id) {
		return nil
	}
	if err := m.execute(ctx, "netdev_del", map[string]string{"id": id}, nil); err != nil && !notFound(err) {
		return err
	}
	return m.change(func(r *record) { r.dropNIC(id) })
}

// noCommand reports whether this QEMU does not know a command.
func noCommand(err error) bool {
	var refusal *qmp.Error
	return errors.As(err, &refusal) && refusal.Class == "CommandNotFound"
}

func notFound(err error) bool {
	var refusal *qmp.Error
	return errors.As(err, &refusal) && (refusal.Class == "DeviceNotFound" || strings.Contains(refusal.Desc, "not found") || strings.Contains(refusal.Desc, "Cannot find") || strings.Contains(refusal.Desc, "Failed to find"))
}

// closeNodes closes a drive's image.
func (m *machine) closeNodes(ctx context.Context, id string, d vm.Disk) error {
	nodes, err := m.nodesOf(ctx, id)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if err := m.execute(ctx, "blockdev-del", map[string]string{"node-name": n}, nil); err != nil && !notFound(err) {
			return err
		}
	}
	if d.SecretFile == "" {
		return nil
	}
	if err := m.execute(ctx, "object-del", map[string]string{"id": id + "-secret"}, nil); err != nil && !notFound(err) {
		return err
	}
	return nil
}

// nodesOf are the nodes of a drive that were opened by name: its own, that of a
// medium that took its place, and its later layers, the topmost first.
func (m *machine) nodesOf(ctx context.Context, id string) ([]string, error) {
	var all []struct {
		NodeName string `json:"node-name"`
	}
	if err := m.execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &all); err != nil {
		return nil, err
	}
	var found []string
	for _, n := range all {
		if layerNumber(n.NodeName, id) >= 0 || strings.HasPrefix(n.NodeName, id+mediumMark) {
			found = append(found, n.NodeName)
		}
	}
	slices.SortStableFunc(found, func(a, b string) int { return layerNumber(b, id) - layerNumber(a, id) })
	return found, nil
}

func (r *record) dropDisk(id string) {
	for i, other := range r.DiskIDs {
		if other == id {
			for j, name := range r.Spec.DiskNames() { // those of the others stay as they are
				r.Spec.Disks[j].Target = name
			}
			r.DiskIDs = append(r.DiskIDs[:i:i], r.DiskIDs[i+1:]...)
			r.Spec.Disks = append(r.Spec.Disks[:i:i], r.Spec.Disks[i+1:]...)
			return
		}
	}
}

func (r *record) dropNIC(id string) {
	for i, other := range r.NICIDs {
		if other == id {
			r.NICIDs = append(r.NICIDs[:i:i], r.NICIDs[i+1:]...)
			r.Spec.NICs = append(r.Spec.NICs[:i:i], r.Spec.NICs[i+1:]...)
			return
		}
	}
}
