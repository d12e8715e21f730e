package osinfo

import (
	"fmt"
	"slices"
	"strings"
)

// Device is a device that a system has a driver for.
type Device struct {
	ID    string // "http://pcisig.com/pci/1af4/1041"
	Name  string // "virtio1.0-net"; "" where the database has no name
	Class string // "net", "block", ...; "" where the database has none
}

// Feature is a kind of device, or an ability, that a guest may support. Its
// text is for messages.
type Feature string

// What a guest may support. Virtio means either the transitional or the
// version 1.0 device.
const (
	VirtioBlock   Feature = "virtio-blk"
	VirtioSCSI    Feature = "virtio-scsi"
	VirtioNet     Feature = "virtio-net"
	VirtioRNG     Feature = "virtio-rng"
	VirtioBalloon Feature = "virtio-balloon"
	VirtioSerial  Feature = "virtio-serial" // what the channel of the guest agent needs
	VirtioGPU     Feature = "virtio-gpu"
	VirtioInput   Feature = "virtio-input"
	VirtioFS      Feature = "virtio-fs"
	Virtio10      Feature = "virtio 1.0" // as virt-install decides it: by the NIC
	XHCI          Feature = "qemu-xhci"  // USB 3
	Q35           Feature = "q35"        // the chipset, and virtio 1.0 where there is virtio at all
	E1000         Feature = "e1000"
	E1000E        Feature = "e1000e"
	RTL8139       Feature = "rtl8139"
	QXL           Feature = "qxl"
	AC97          Feature = "ac97"
	HDAICH6       Feature = "ich6" // sound
	HDAICH9       Feature = "ich9" // sound
	HyperV        Feature = "hyperv"
)

const pci = "http://pcisig.com/pci/"

// deviceIDs are the devices that make a feature.
func (f Feature) deviceIDs() []string {
	switch f {
	case VirtioBlock:
		return []string{pci + "1af4/1001", pci + "1af4/1042"}
	case VirtioSCSI:
		return []string{pci + "1af4/1004", pci + "1af4/1048"}
	case VirtioNet:
		return []string{pci + "1af4/1000", pci + "1af4/1041"}
	case VirtioRNG:
		return []string{pci + "1af4/1005", pci + "1af4/1044"}
	case VirtioBalloon:
		return []string{pci + "1af4/1002", pci + "1af4/1045"}
	case VirtioSerial:
		return []string{pci + "1af4/1003", pci + "1af4/1043"}
	case VirtioGPU:
		return []string{pci + "1af4/1050"}
	case VirtioInput:
		return []string{pci + "1af4/1052"}
	case VirtioFS:
		return []string{pci + "1af4/105a"}
	case Virtio10:
		return []string{pci + "1af4/1041"}
	case XHCI:
		return []string{pci + "1b36/0004"}
	case Q35:
		return []string{"http://qemu.org/chipset/x86/q35"}
	case E1000:
		return []string{pci + "8086/100e"}
	case E1000E:
		return []string{pci + "8086/10d3"}
	case RTL8139:
		return []string{pci + "10ec/8139"}
	case QXL:
		return []string{pci + "1b36/0100"}
	case AC97:
		return []string{pci + "8086/2415"}
	case HDAICH6:
		return []string{pci + "8086/2668"}
	case HDAICH9:
		return []string{pci + "8086/293e"}
	}
	return nil
}

// Supports reports whether the system, as it comes, has the drivers that a
// feature needs. What the database does not say is not supported.
func (o OS) Supports(f Feature) bool {
	switch f {
	case HyperV:
		return o.IsWindows()
	case VirtioSerial:
		// The database forgot the port for RHEL 6 and what came of it;
		// virt-install knows, so do we.
		return o.hasDevice(f) || o.relatedTo("rhel6.0")
	case Q35:
		if o.Supports(VirtioNet) && !o.Supports(Virtio10) {
			return false
		}
	}
	return o.hasDevice(f)
}

func (o OS) hasDevice(f Feature) bool {
	return slices.ContainsFunc(o.deviceIDs(), func(id string) bool { return slices.Contains(f.deviceIDs(), id) })
}

// relatedTo reports whether the system, or one that it derives from, clones or
// upgrades, has that first short id.
func (o OS) relatedTo(shortID string) bool {
	found := false
	o.walk(derives|clones|upgrades, func(r *record) bool {
		found = len(r.shortIDs) > 0 && r.shortIDs[0] == shortID
		return !found
	})
	return found
}

// deviceIDs returns the devices that the system supports. The nearest document
// that names a device decides whether it is supported.
func (o OS) deviceIDs() []string {
	var ids []string
	decided := map[string]bool{}
	o.walk(derives|clones, func(r *record) bool {
		// Within one system the last link of a device counts.
		own := map[string]bool{}
		for _, l := range r.devices {
			own[l.id] = l.unsupported
		}
		for _, l := range r.devices {
			if !decided[l.id] {
				decided[l.id] = true
				if !own[l.id] {
					ids = append(ids, l.id)
				}
			}
		}
		return true
	})
	return ids
}

// Devices returns the devices that the system supports, its own and those it
// inherits, ordered by id.
func (o OS) Devices() []Device {
	ids := o.deviceIDs()
	slices.Sort(ids)
	devices := make([]Device, len(ids))
	for i, id := range ids {
		devices[i] = o.db.device(id)
	}
	return devices
}

// device reads what the database says of a device.
func (db *DB) device(id string) Device {
	db.mu.Lock()
	d, ok := db.known[id]
	db.mu.Unlock()
	if ok {
		return d
	}
	d = Device{ID: id}
	if db.builtin() {
		d.Name, d.Class = builtinDevice(id)
	} else if err := d.read(entityKey("device", id), db.devices()); err != nil {
		db.report(err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	db.known[id] = d
	return d
}

// read fills in name and class from the device's documents.
func (d *Device) read(key string, known map[string]files) error {
	f := known[key]
	for _, path := range f.all() {
		doc, err := readDocument(path)
		if err != nil {
			return fmt.Errorf("osinfo: %w", err)
		}
		root, err := parseXML(doc)
		if err != nil {
			return fmt.Errorf("osinfo: %s: %w", path, err)
		}
		for i := range root.children {
			e := &root.children[i]
			if e.name != "device" || e.attr("id") != d.ID {
				continue
			}
			if s := strings.TrimSpace(e.childText("name")); s != "" {
				d.Name = s
			}
			if s := strings.TrimSpace(e.childText("class")); s != "" {
				d.Class = s
			}
		}
	}
	return nil
}

// firmwareSupport says what the nearest document says of a firmware type.
func (o OS) firmwareSupport(kind, arch string, otherwise bool) bool {
	result := otherwise
	o.walk(derives|clones, func(r *record) bool {
		for _, f := range r.firmware {
			if f.kind == kind && f.arch == arch {
				result = !f.unsupported
				return false
			}
		}
		return true
	})
	return result
}

// NeedsUEFI reports whether the system starts with UEFI only: Windows 11, and
// what the database says no longer has a BIOS.
func (o OS) NeedsUEFI(arch string) bool {
	return o.ShortID == "win11" || o.firmwareSupport("efi", arch, false) && !o.firmwareSupport("bios", arch, true)
}

// KernelURLArg is the kernel argument that tells the system's installer where
// its files are ("inst.repo"), "" where it has none.
func (o OS) KernelURLArg() string {
	arg := ""
	o.walk(derives|clones, func(r *record) bool {
		arg = r.kernelURLArg
		return arg == ""
	})
	switch o.Distro {
	case "caasp", "sle", "sled", "sles", "opensuse":
		if arg == "" {
			return "install"
		}
	case "centos", "rhel", "fedora":
		if arg == "" {
			return "inst.repo"
		}
	}
	return arg
}
