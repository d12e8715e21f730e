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

// WithDefaults returns a copy of s with every zero field filled in. It makes
// up a UUID and MAC addresses where there are none, so call it once, when a
// machine is defined, and keep the result. On a complete spec it changes
// nothing. The name and the paths of the disks have no default.
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
	}
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		s.Disks[i] = s.Disks[i].withDefaults(s.Machine)
	}
	bootFirstDisk(s.Disks)
	s.NICs = slices.Clone(s.NICs)
	for i := range s.NICs {
		s.NICs[i] = s.NICs[i].withDefaults()
	}
	return s
}

// defaultMachine is q35, the modern chipset, unless a disk wants IDE, which
// q35 does not have.
func defaultMachine(disks []Disk) string {
	if slices.ContainsFunc(disks, func(d Disk) bool { return d.Bus == BusIDE }) {
		return MachinePC
	}
	return MachineQ35
}

func (d Disk) withDefaults(machine string) Disk {
	if d.Device == "" {
		d.Device = DeviceDisk
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
	return d
}

// defaultBus is virtio for disks; a CD-ROM drive goes to the chipset's own
// controller, the one that installers look at first.
func defaultBus(dev DiskDevice, machine string) Bus {
	switch {
	case dev != DeviceCDROM:
		return BusVirtio
	case machine == MachinePC:
		return BusIDE
	}
	return BusSATA
}

// bootFirstDisk puts the first disk into the boot order where nothing is.
func bootFirstDisk(disks []Disk) {
	if slices.ContainsFunc(disks, func(d Disk) bool { return d.BootIndex != 0 }) {
		return
	}
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Device == DeviceDisk })
	if i < 0 && len(disks) > 0 {
		i = 0
	}
	if i >= 0 {
		disks[i].BootIndex = 1
	}
}

func (n NIC) withDefaults() NIC {
	if n.Model == "" {
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
