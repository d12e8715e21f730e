package vm

import (
	"crypto/rand"
	"fmt"
	"slices"
)

// The defaults of a machine.
const (
	DefaultCPUs   = 1
	DefaultMemory = 1 << 30 // bytes
)

// WithDefaults returns a copy of s with every zero field filled in that has a
// default of ours. It makes up a UUID and MAC addresses where there are none, so
// call it once, when a machine is defined, and keep the result. On a complete spec
// it changes nothing. The name and the paths of the disks have no default.
func (s Spec) WithDefaults() Spec {
	if s.UUID == "" {
		s.UUID = NewUUID()
	}
	if s.CPUs == 0 {
		s.CPUs = DefaultCPUs
	}
	if s.Memory == 0 {
		s.Memory = DefaultMemory
	}
	if s.Machine == "" {
		s.Machine = defaultMachine(s.Disks)
	}
	if s.Accel == "" {
		s.Accel = AccelAuto
	}
	if s.Graphics.VNC == "" {
		s.Graphics.VNC = VNCUnix
		if len(s.Displays) > 0 {
			s.Graphics.VNC = VNCNone
		}
	}
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		s.Disks[i] = s.Disks[i].withDefaults(s.Machine, i)
	}
	s.NICs = slices.Clone(s.NICs)
	for i := range s.NICs {
		s.NICs[i] = s.NICs[i].WithDefaults()
	}
	s.HostDevices = slices.Clone(s.HostDevices)
	s.bootOrder()
	return s
}

// DiskWithDefaults returns a drive with the defaults that it gets in this
// machine, beside those that are there.
func (s Spec) DiskWithDefaults(d Disk) Disk { return d.withDefaults(s.Machine, len(s.Disks)) }

// defaultMachine is q35, the modern chipset, unless a disk wants IDE, which
// q35 does not have.
func defaultMachine(disks []Disk) string {
	if slices.ContainsFunc(disks, func(d Disk) bool { return d.Bus == BusIDE }) {
		return MachinePC
	}
	return MachineQ35
}

func (d Disk) withDefaults(machine string, index int) Disk {
	if d.Device == "" {
		d.Device = DeviceDisk
		if d.Bus == BusFDC {
			d.Device = DeviceFloppy
		}
	}
	if d.Bus == "" {
		d.Bus = defaultBus(d.Device, machine)
	}
	if d.Cache == "" {
		d.Cache = CacheWriteback
	}
	if d.Device == DeviceCDROM {
		d.ReadOnly = true
	}
	if d.Bus == BusNVMe && d.Serial == "" { // the controller cannot be without
		d.Serial = fmt.Sprintf("nvme%d-%s", index, NewUUID()[:8]) // two with the same one are one to the guest
	}
	return d
}

// defaultBus is virtio for disks; a CD-ROM drive goes to the chipset's own
// controller, the one that installers look at first.
func defaultBus(dev DiskDevice, machine string) Bus {
	switch {
	case dev == DeviceFloppy:
		return BusFDC
	case dev == DeviceLUN:
		return BusVirtioSCSI
	case dev != DeviceCDROM:
		return BusVirtio
	case Chipset(machine) == MachinePC:
		return BusIDE
	}
	return BusSATA
}

// bootOrder fills in the boot order where no device has a place in it: from
// Boot.Order, else with the first disk.
func (s *Spec) bootOrder() {
	disk := func(d Disk) bool { return d.BootIndex != 0 }
	nic := func(n NIC) bool { return n.BootIndex != 0 }
	host := func(h HostDevice) bool { return h.BootIndex != 0 }
	if slices.ContainsFunc(s.Disks, disk) || slices.ContainsFunc(s.NICs, nic) || slices.ContainsFunc(s.HostDevices, host) {
		return
	}
	if len(s.Boot.Order) > 0 {
		s.bootKinds()
		return
	}
	i := slices.IndexFunc(s.Disks, func(d Disk) bool { return d.Device == DeviceDisk })
	if i < 0 && len(s.Disks) > 0 {
		i = 0
	}
	if i >= 0 {
		s.Disks[i].BootIndex = 1
	}
}

// bootKinds gives the first device of each kind of Boot.Order its place.
func (s *Spec) bootKinds() {
	next := 1
	for _, kind := range s.Boot.Order {
		if kind == BootNetwork {
			if len(s.NICs) > 0 && s.NICs[0].BootIndex == 0 {
				s.NICs[0].BootIndex = next
				next++
			}
			continue
		}
		i := slices.IndexFunc(s.Disks, func(d Disk) bool { return d.bootKind() == kind })
		if i >= 0 && s.Disks[i].BootIndex == 0 {
			s.Disks[i].BootIndex = next
			next++
		}
	}
}

func (d Disk) bootKind() BootDevice {
	switch d.Device {
	case DeviceCDROM:
		return BootCDROM
	case DeviceFloppy:
		return BootFloppy
	}
	return BootDisk
}

// WithDefaults returns a copy of n with every zero field filled in that has a
// default.
func (n NIC) WithDefaults() NIC {
	if n.Model == "" || n.Model == "virtio" {
		n.Model = "virtio-net-pci"
	}
	if n.MAC == "" {
		n.MAC = NewMAC()
	}
	n.Forwards = slices.Clone(n.Forwards)
	for i := range n.Forwards {
		n.Forwards[i] = n.Forwards[i].withDefaults()
	}
	return n
}

func (f Forward) withDefaults() Forward {
	if f.Proto == "" {
		f.Proto = "tcp"
	}
	if f.HostAddr == "" {
		f.HostAddr = "127.0.0.1"
	}
	return f
}

// SeedDisk returns the drive for a NoCloud seed beside a main disk on the
// given bus ("" is the default bus). The drive sits where any guest that can
// boot from the main disk can read it: on the same controller, so that no
// second driver is needed. Debian's cloud kernel, for one, has no AHCI driver,
// so a SATA CD-ROM beside a virtio disk would never be seen. On ide and sata it
// is a CD-ROM, as those disks cannot be read-only; on virtio and virtio-scsi it is
// a read-only disk, which needs no CD-ROM driver.
func SeedDisk(path string, main Bus) Disk {
	if main == "" {
		main = BusVirtio
	}
	d := Disk{Path: path, Format: "raw", Device: DeviceDisk, Bus: main, Cache: CacheWriteback, ReadOnly: true, Serial: "seed"}
	if main == BusIDE || main == BusSATA {
		d.Device = DeviceCDROM
	}
	return d
}

// NewUUID returns a random UUID (RFC 9562, version 4) in its usual form.
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// NewMAC returns a random address in 52:54:00, the prefix that QEMU's cards
// are known by.
func NewMAC() string {
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}
