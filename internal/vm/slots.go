package vm

import (
	"fmt"
	"slices"
)

// maxSlots is how many PCI devices can be added to bus 0: 32 slots less the
// host bridge, the chipset's functions (slot 1 of pc, 31 of q35) and the VGA.
const maxSlots = 29

// validateSlots counts the PCI devices that the spec asks for.
func (s Spec) validateSlots(f *findings) {
	if n := s.slots(); n > maxSlots {
		f.add("disks", fmt.Sprintf("the machine needs %d PCI slots and has %d", n, maxSlots), "put disks on virtio-scsi, where 256 share one slot")
	}
}

func (s Spec) slots() int {
	n := s.driveSlots() + len(s.NICs) + len(s.RNGs) + len(s.Sounds) + len(s.Filesystems)
	n += s.usbSlots()
	for _, d := range s.HostDevices {
		n += count(d.Type == "pci")
	}
	for _, in := range s.Inputs {
		n += count(in.Bus == "virtio")
	}
	for _, c := range s.Serials {
		n += count(c.Model == "pci-serial")
	}
	for _, w := range s.Watchdogs {
		n += count(w.Model == "i6300esb")
	}
	if len(s.Videos) > 1 {
		n += len(s.Videos) - 1
	}
	n += count(s.RNG) + count(s.NeedsVirtioSerial()) + count(s.VSock != nil)
	n += count(s.Balloon != nil && s.Balloon.Model != "none")
	if s.Chipset() == MachineQ35 {
		n += s.HotplugPorts
	}
	return n
}

// driveSlots are those of disks and their controllers.
func (s Spec) driveSlots() int {
	n := 0
	used := map[Bus]bool{}
	for _, d := range s.Disks {
		n += count(d.Bus == BusVirtio || d.Bus == BusNVMe)
		used[d.Bus] = true
	}
	sata, scsi := s.controllerCount(BusSATA), s.controllerCount(BusSCSI)
	if used[BusSATA] {
		sata = max(sata, 1)
	}
	if used[BusSCSI] || used[BusVirtioSCSI] {
		scsi = max(scsi, s.controllerCount(BusVirtioSCSI), 1)
	}
	if s.Chipset() == MachineQ35 && sata > 0 {
		sata-- // its own
	}
	return n + sata + scsi
}

// usbSlots are those of USB controllers.
func (s Spec) usbSlots() int {
	n := 0
	for _, c := range s.Controllers {
		n += count(c.Type == "usb" && c.Model != "none")
	}
	return max(n, count(s.NeedsUSB()))
}

// NeedsUSB reports whether a device of the spec is on USB.
func (s Spec) NeedsUSB() bool {
	return len(s.Redirects) > 0 ||
		slices.ContainsFunc(s.Disks, func(d Disk) bool { return d.Bus == BusUSB }) ||
		slices.ContainsFunc(s.Inputs, func(i Input) bool { return (i.Bus == "" || i.Bus == "usb") && i.Type != "evdev" }) ||
		slices.ContainsFunc(s.Sounds, func(x Sound) bool { return x.Model == "usb" }) ||
		slices.ContainsFunc(s.Serials, func(c Char) bool { return c.Model == "usb-serial" }) ||
		slices.ContainsFunc(s.Controllers, func(c Controller) bool { return c.Type == "ccid" }) ||
		slices.ContainsFunc(s.HostDevices, func(h HostDevice) bool { return h.Type == "usb" })
}

// NeedsVirtioSerial reports whether a device of the spec is on a virtio-serial
// controller.
func (s Spec) NeedsVirtioSerial() bool {
	return len(s.Channels) > 0 || len(s.Consoles) > 0 ||
		slices.ContainsFunc(s.Controllers, func(c Controller) bool { return c.Type == "virtio-serial" })
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}
