package advice

import (
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
)

// BusFacts are what a disk bus is.
type BusFacts struct {
	Bus    vm.Bus `json:"bus"`
	Guests string `json:"guests"` // which systems have the driver as they come
	// UnitsPC and UnitsQ35 are the most drives on each machine type, 0 for
	// none.
	UnitsPC  int    `json:"unitsPc"`
	UnitsQ35 int    `json:"unitsQ35"`
	Hotplug  string `json:"hotplug"`
	Discard  bool   `json:"discard"` // the guest can give space back
	Boot     bool   `json:"boot"`    // BIOS and UEFI boot from it
	CDROM    bool   `json:"cdrom"`
	ReadOnly bool   `json:"readOnly"` // a disk can be read-only
	IOThread bool   `json:"ioThread"`
	Speed    string `json:"speed"`
	text     string
}

// Buses returns the facts of every bus.
func Buses() []BusFacts {
	facts := []BusFacts{
		{Bus: vm.BusVirtio, Guests: "Linux since 2.6.25, the BSDs; Windows with the virtio-win drivers", Hotplug: "yes (q35: on a free PCIe port)", Discard: true, Boot: true, ReadOnly: true, IOThread: true, Speed: "fastest",
			text: "virtio-blk: each disk is a PCI device. The least work for guest and host. CentOS 6's kernel knows it; Windows does not without the virtio-win drivers. Discard needs a guest's kernel of 5.0 or later."},
		{Bus: vm.BusVirtioSCSI, Guests: "Linux since 3.4 (not CentOS 6 before 6.3), FreeBSD; Windows with virtio-win", Hotplug: "yes", Discard: true, Boot: true, CDROM: true, ReadOnly: true, IOThread: true, Speed: "fast",
			text: "SCSI disks on one virtio controller: hundreds of disks and CD-ROM drives, hot plug without free PCI ports, discard in every guest that has the driver."},
		{Bus: vm.BusSATA, Guests: "every system since about 2007, Windows since Vista", Hotplug: "no", Discard: true, Boot: true, CDROM: true, Speed: "medium",
			text: "AHCI: q35 has a controller, pc gets one. The safe choice for Windows without drivers and for unknown systems. A disk on it cannot be read-only. Debian's cloud kernel lacks the driver."},
		{Bus: vm.BusIDE, Guests: "all", Hotplug: "no", Discard: true, Boot: true, CDROM: true, Speed: "slow",
			text: "The oldest, for what knows nothing else: machine type pc only, two channels of two drives. A disk on it cannot be read-only."},
		{Bus: vm.BusSCSI, Guests: "depends on the controller: lsilogic has no driver in today's Windows and many Linux kernels", Hotplug: "yes", Discard: true, Boot: true, CDROM: true, ReadOnly: true, Speed: "medium",
			text: "SCSI disks on an emulated controller (lsilogic, lsisas1068, vmpvscsi, ...). For machines that come from other hypervisors; new ones want virtio-scsi."},
		{Bus: vm.BusUSB, Guests: "every system with USB mass storage", Hotplug: "yes", Discard: false, Boot: true, CDROM: true, ReadOnly: true, Speed: "slow",
			text: "A USB stick or drive. It can come and go everywhere, which makes it good for carrying files in."},
		{Bus: vm.BusNVMe, Guests: "Linux since 3.3, Windows since 8.1", Hotplug: "q35: on a free PCIe port", Discard: true, Boot: true, ReadOnly: true, Speed: "fast",
			text: "Each disk is an NVMe controller with one namespace; it needs a serial number, and gets one. A modern Windows boots from it without drivers. Old BIOSes' option ROMs aside, SeaBIOS and OVMF both boot it."},
		{Bus: vm.BusFDC, Guests: "all, where somebody still wants one", Hotplug: "media only", Boot: true, ReadOnly: true, Speed: "that of a floppy",
			text: "Two floppy drives, for driver disks and old systems. q35 gets an ISA controller for it."},
	}
	for i := range facts {
		facts[i].UnitsPC = vm.MaxUnits(vm.MachinePC, facts[i].Bus)
		facts[i].UnitsQ35 = vm.MaxUnits(vm.MachineQ35, facts[i].Bus)
	}
	return facts
}

// Bus returns the facts of one bus; ok is false for an unknown one.
func Bus(bus vm.Bus) (f BusFacts, ok bool) {
	for _, b := range Buses() {
		if b.Bus == bus {
			return b, true
		}
	}
	return BusFacts{}, false
}

func busTable() Table {
	t := Table{
		Topic:   TopicBus,
		Summary: "How the guest sees a disk. The guest must have the driver, or it does not find its disk and stops in the boot.",
		Columns: []string{"bus", "guests with the driver", "drives (pc, q35)", "hot plug", "discard", "CD-ROM", "read-only disk", "I/O thread", "speed"},
		Notes: []string{
			"The guest's system decides the default (osinfo-db): virtio where it has the driver, else sata on q35 and ide on pc.",
			"Windows: install with the virtio-win ISO in a second CD-ROM drive to use virtio.",
			"A CD-ROM drive is on sata (q35) or ide (pc) unless told otherwise: installers look there first.",
		},
		Sources: []string{
			"QEMU, qemu-system-x86_64 -device help and -device NAME,help",
			"libvirt, formatdomain: disk target bus, controllers",
			"osinfo-db: the devices of each system",
		},
	}
	for _, b := range Buses() {
		t.Rows = append(t.Rows, Row{
			Name:    string(b.Bus),
			Cells:   []string{b.Guests, fmt.Sprintf("%s, %s", units(b.UnitsPC), units(b.UnitsQ35)), b.Hotplug, yesNo(b.Discard), yesNo(b.CDROM), yesNo(b.ReadOnly), yesNo(b.IOThread), b.Speed},
			Default: b.Bus == vm.BusVirtio,
			Text:    b.text,
		})
	}
	return t
}

func units(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}
