package osinfo

import "slices"

// Request is what of a machine is decided before its defaults are. Its zero
// value asks for an x86_64 machine without graphics on a host that has
// everything.
type Request struct {
	Arch     string // "x86_64" if empty; i686, aarch64, armv7l, ppc64, ppc64le, s390x, riscv32, riscv64
	Machine  string // a machine type that was asked for; "" to choose
	Graphics string // "spice", "vnc", ...; "" or "none" is no graphics
	GL       bool   // the SPICE display uses OpenGL
	UEFI     bool   // UEFI was asked for
	Host     Host
}

// Host is what the host's QEMU lacks of what the defaults would choose.
type Host struct {
	NoQ35, NoXHCI, NoQXL, NoVirtioGPU, NoBochs, NoTPM bool
}

// Machine holds the defaults for a machine: virt-install 4.1's, for QEMU.
// Names are libvirt's. "" means that there is no such device.
type Machine struct {
	Type      string // "pc", "q35", "virt", "pseries", "s390-ccw-virtio"
	UEFI      bool
	TPM       string // "tpm-crb"
	DiskBus   string // "virtio", "sata", "ide"
	CDROMBus  string // "sata", "ide", "scsi"
	SCSIModel string // of the controller that a disk on the scsi bus gets: "virtio-scsi" or "" for QEMU's own
	NIC       string // "virtio", "e1000e", "e1000", "rtl8139", ...; "" leaves it to QEMU
	Video     string // "virtio", "qxl", "bochs", "vga"
	USB       string // "qemu-xhci"; "ich9" is EHCI with its three companions; "" leaves it to QEMU
	USBPorts  int    // of qemu-xhci
	RootPorts int    // PCIe root ports, on machines that have PCIe
	Inputs    []Input
	RNG       bool // virtio, fed by /dev/urandom
	Balloon   bool // virtio; without it none is asked for
	Agent     bool // the guest agent's channel
	// With SPICE graphics:
	Sound          string // "ich9", "ich6"
	SpiceChannel   bool
	USBRedirects   int
	VMPortDisabled bool

	ClockOffset string // "utc", "localtime"
	Timers      []Timer
	HyperV      bool // relaxed timing, vapic, spinlocks with 8191 retries
	ACPI, APIC  bool
	SuspendOff  bool // suspend to memory and disk are not offered

	CPUs    int64 // 1 where nothing is known
	Memory  int64 // bytes; 0 where nothing is known: it must be given
	Storage int64 // bytes; 0 where nothing is known
	// MinimumMemory in bytes is what one should be warned below; 0 where
	// nothing is known.
	MinimumMemory int64
}

// Input is an input device.
type Input struct {
	Type string // "tablet", "keyboard"
	Bus  string // "usb", "virtio"
}

// Timer is one of the guest's timers.
type Timer struct {
	Name       string // "rtc", "pit", "hpet", "hypervclock"
	TickPolicy string // "catchup", "delay"; "" where it has none
	Present    string // "yes", "no"; "" where it is not said
}

const (
	usbPorts  = 15 // of qemu-xhci, its most
	rootPorts = 14 // QEMU 6.1 failed with more
)

// Defaults returns the machine that a guest of that system gets where the
// person decided nothing else.
func Defaults(o OS, want Request) Machine {
	if want.Arch == "" {
		want.Arch = "x86_64"
	}
	b := &builder{os: o, want: want}
	b.chipset()
	b.firmware()
	b.disks()
	b.m.NIC = b.nic()
	b.usb()
	b.m.Video = b.video()
	b.virtioDevices()
	b.spice()
	b.clock()
	b.sizes()
	return b.m
}

// builder fills in a machine. Later steps use what earlier ones decided.
type builder struct {
	os   OS
	want Request
	m    Machine
}

func (b *builder) x86() bool { return b.want.Arch == "x86_64" || b.want.Arch == "i686" }

// virtioOnly reports whether the machine type has no other devices, whatever
// the system is said to support.
func (b *builder) virtioOnly() bool {
	return slices.Contains([]string{"virt", "pseries", "s390-ccw-virtio"}, b.m.Type)
}

func (b *builder) virtio(f Feature) bool {
	return b.virtioOnly() || b.x86() && b.os.Supports(f)
}

func (b *builder) graphics() bool { return b.want.Graphics != "" && b.want.Graphics != "none" }

func (b *builder) chipset() {
	switch b.want.Arch {
	case "x86_64", "i686":
		b.m.Type = "pc"
		if !b.want.Host.NoQ35 && b.os.Supports(Q35) {
			b.m.Type = "q35"
		}
	case "ppc64", "ppc64le":
		b.m.Type = "pseries"
	case "s390x":
		b.m.Type = "s390-ccw-virtio"
	default:
		b.m.Type = "virt"
	}
	if b.want.Machine != "" {
		b.m.Type = b.want.Machine
	}
}

// pcie reports whether the machine has PCIe.
func (b *builder) pcie() bool { return b.m.Type == "q35" || b.m.Type == "virt" }

func (b *builder) firmware() {
	arm := b.want.Arch == "aarch64" || b.want.Arch == "armv7l"
	b.m.UEFI = b.want.UEFI || arm && b.m.Type == "virt" || b.x86() && b.os.NeedsUEFI(b.want.Arch)
	// A guest with UEFI is a modern one, which wants a TPM too.
	if b.m.UEFI && !b.want.Host.NoTPM {
		b.m.TPM = "tpm-crb"
	}
	if b.pcie() {
		b.m.RootPorts = rootPorts
	}
}

func (b *builder) disks() {
	plain := "ide"
	if b.m.Type == "q35" {
		plain = "sata"
	}
	b.m.DiskBus, b.m.CDROMBus = plain, plain
	if b.virtio(VirtioBlock) {
		b.m.DiskBus = "virtio"
	}
	if b.virtio(VirtioSCSI) {
		b.m.SCSIModel = "virtio-scsi"
		if !b.x86() {
			b.m.CDROMBus = "scsi"
		}
	}
}

func (b *builder) nic() string {
	switch {
	case b.virtio(VirtioNet):
		return "virtio"
	case b.m.Type == "q35":
		return "e1000e"
	case !b.x86():
		return ""
	}
	var known []string
	for _, d := range b.os.Devices() {
		if d.Class == "net" {
			known = append(known, d.Name)
		}
	}
	for _, model := range []string{"e1000", "rtl8139", "ne2k_pci", "pcnet"} {
		if slices.Contains(known, model) {
			return model
		}
	}
	return "e1000"
}

func (b *builder) usb() {
	switch {
	case b.want.Arch == "s390x": // has none
	case b.x86() && (b.want.Host.NoXHCI || !b.os.Supports(XHCI)):
		b.m.USB = "ich9"
	case !b.want.Host.NoXHCI:
		b.m.USB, b.m.USBPorts = "qemu-xhci", usbPorts
	}
	if !b.graphics() {
		return
	}
	switch {
	case b.want.Arch == "s390x":
		if b.os.Supports(VirtioInput) {
			b.m.Inputs = []Input{{"tablet", "virtio"}, {"keyboard", "virtio"}}
		}
	case b.x86():
		b.m.Inputs = []Input{{"tablet", "usb"}}
	default:
		b.m.Inputs = []Input{{"tablet", "usb"}, {"keyboard", "usb"}}
	}
}

func (b *builder) video() string {
	spice := b.want.Graphics == "spice"
	switch {
	case !b.graphics():
		return ""
	case b.m.Type == "pseries":
		return "vga"
	case b.virtioOnly(), spice && b.want.GL:
		return "virtio"
	case !b.want.Host.NoVirtioGPU && b.os.Supports(VirtioGPU):
		return "virtio"
	case b.x86() && spice && !b.want.Host.NoQXL:
		return "qxl"
	case b.m.UEFI && !b.want.Host.NoBochs:
		return "bochs"
	}
	return "vga"
}

func (b *builder) virtioDevices() {
	b.m.Agent = b.virtio(VirtioSerial)
	b.m.RNG = b.os.Supports(VirtioRNG)
	b.m.Balloon = b.os.Supports(VirtioBalloon)
}

func (b *builder) spice() {
	if b.want.Graphics != "spice" {
		return
	}
	b.m.SpiceChannel = true
	b.m.Sound = "ich6"
	if b.pcie() {
		b.m.Sound = "ich9"
	}
	if b.x86() {
		b.m.USBRedirects = 2
		b.m.VMPortDisabled = true
	}
}

func (b *builder) clock() {
	b.m.ClockOffset = "utc"
	if b.os.IsWindows() || b.os.Family == "solaris" {
		b.m.ClockOffset = "localtime"
	}
	b.m.HyperV = b.os.Supports(HyperV)
	b.m.ACPI = b.x86() || b.want.Arch == "aarch64"
	if !b.x86() {
		return
	}
	b.m.APIC, b.m.SuspendOff = true, true
	b.m.Timers = []Timer{
		{Name: "rtc", TickPolicy: "catchup"},
		{Name: "pit", TickPolicy: "delay"},
		{Name: "hpet", Present: "no"},
	}
	if b.m.HyperV {
		b.m.Timers = append(b.m.Timers, Timer{Name: "hypervclock", Present: "yes"})
	}
}

func (b *builder) sizes() {
	r := b.os.Recommended(b.want.Arch)
	b.m.CPUs, b.m.Memory, b.m.Storage = max(r.CPUs, 1), r.Memory, r.Storage
	b.m.MinimumMemory = b.os.Minimum(b.want.Arch).Memory
}
