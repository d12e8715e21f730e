// Package vm says what a machine is: plain data that both back ends (QEMU's
// command line, libvirt's XML) are derived from, its defaults, and the rules
// that a machine must keep to be able to work.
package vm

// Bus is how a disk is attached.
type Bus string

// The disk buses.
const (
	BusIDE        Bus = "ide"
	BusSATA       Bus = "sata"
	BusVirtio     Bus = "virtio"      // virtio-blk
	BusVirtioSCSI Bus = "virtio-scsi" // a SCSI disk on a virtio-scsi controller
)

// Cache is a disk's cache mode on the host.
type Cache string

// The cache modes, with QEMU's meaning.
const (
	CacheNone         Cache = "none"         // O_DIRECT, guest flushes honoured
	CacheWriteback    Cache = "writeback"    // host page cache, guest flushes honoured
	CacheWritethrough Cache = "writethrough" // host page cache, every write flushed
	CacheDirectsync   Cache = "directsync"   // O_DIRECT, every write flushed
	CacheUnsafe       Cache = "unsafe"       // host page cache, flushes ignored: data lost on power loss
)

// Accel is what runs the guest's instructions.
type Accel string

const (
	AccelAuto Accel = "auto" // KVM where it really works, else TCG
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// Machine types.
const (
	MachinePC  = "pc"
	MachineQ35 = "q35"
)

// Spec describes a machine. The zero value of each field means the default
// that [Spec.WithDefaults] fills in.
type Spec struct {
	Name    string `json:"name"`
	UUID    string `json:"uuid"`
	CPUs    int    `json:"cpus"`    // at least 1
	Memory  int64  `json:"memory"`  // bytes
	Machine string `json:"machine"` // MachinePC or MachineQ35
	Accel   Accel  `json:"accel"`
	CPU     string `json:"cpu,omitempty"` // CPU model; "" is host for KVM, max for TCG

	Disks []Disk `json:"disks"`
	NICs  []NIC  `json:"nics"`

	Graphics Graphics `json:"graphics"`
	RNG      bool     `json:"rng"` // a virtio-rng device fed from the host
	// NoReboot makes a guest's reboot end the machine.
	NoReboot bool `json:"noReboot,omitempty"`
}

// DiskDevice is what the guest sees.
type DiskDevice string

const (
	DeviceDisk  DiskDevice = "disk"
	DeviceCDROM DiskDevice = "cdrom"
)

// Disk is one drive.
type Disk struct {
	Path      string     `json:"path"`   // absolute
	Format    string     `json:"format"` // never probed: "raw", "qcow2"
	Device    DiskDevice `json:"device"`
	Bus       Bus        `json:"bus"`
	Cache     Cache      `json:"cache"`
	ReadOnly  bool       `json:"readOnly,omitempty"`
	Serial    string     `json:"serial,omitempty"`
	BootIndex int        `json:"bootIndex,omitempty"` // 0: not in the boot order
	// Discard passes the guest's discards on to the image.
	Discard bool `json:"discard,omitempty"`
}

// NIC is a network card on QEMU's user-mode network.
type NIC struct {
	Model    string    `json:"model"` // "virtio-net-pci", "e1000", ...
	MAC      string    `json:"mac"`
	Forwards []Forward `json:"forwards,omitempty"`
}

// Forward makes a port of the guest reachable on the host.
type Forward struct {
	Proto     string `json:"proto"`    // "tcp" or "udp"
	HostAddr  string `json:"hostAddr"` // "127.0.0.1" if empty
	HostPort  int    `json:"hostPort"` // 0: chosen at the start
	GuestPort int    `json:"guestPort"`
}

// Graphics is the machine's screen.
type Graphics struct {
	// VNC is "unix" (a socket in the machine's folder, the default),
	// "none", or HOST:DISPLAY on a loopback address.
	VNC string `json:"vnc"`
}
