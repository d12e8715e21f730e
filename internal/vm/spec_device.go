package vm

// Devices are those that are neither disk, network card nor screen. A nil list
// is the default, which is none unless the field says otherwise.
type Devices struct {
	// Serials are the serial ports. nil is one with a socket and a log in the
	// machine's folder, as is a first one of type "" or "pty". A single one of type
	// "none" is no port.
	Serials   []Char `json:"serials,omitempty"`
	Parallels []Char `json:"parallels,omitempty"`
	// Consoles are virtio consoles (/dev/hvc0). The console that only repeats
	// the first serial port, as in libvirt's XML, is not listed.
	Consoles []Char    `json:"consoles,omitempty"`
	Channels []Channel `json:"channels,omitempty"`

	Inputs []Input `json:"inputs,omitempty"` // beside the PS/2 keyboard and mouse of the board
	Sounds []Sound `json:"sounds,omitempty"`
	// RNGs are beside Spec.RNG, which is one with a default source.
	RNGs      []RNG      `json:"rngs,omitempty"`
	Balloon   *Balloon   `json:"balloon,omitempty"`
	Watchdogs []Watchdog `json:"watchdogs,omitempty"`
	TPM       *TPM       `json:"tpm,omitempty"`
	VSock     *VSock     `json:"vsock,omitempty"`
	// Panic is the device by which a guest tells of its panic. nil is an
	// ISA pvpanic; model "none" is no device.
	Panic *Panic `json:"panic,omitempty"`
	IOMMU *IOMMU `json:"iommu,omitempty"`

	Controllers []Controller `json:"controllers,omitempty"`
	// HotplugPorts is how many PCIe ports are left free for devices that are added
	// while the machine runs: q35 takes virtio disks and cards on such ports
	// only; pc needs none.
	HotplugPorts int `json:"hotplugPorts,omitempty"`
	IOThreads    int `json:"ioThreads,omitempty"` // numbered from 1

	Filesystems []Filesystem  `json:"filesystems,omitempty"`
	HostDevices []HostDevice  `json:"hostDevices,omitempty"`
	Redirects   []USBRedirect `json:"redirects,omitempty"`

	QEMU QEMUOptions `json:"qemu,omitzero"`
}

// CharType is what the host has at the other end of a character device.
type CharType string

const (
	CharPTY  CharType = "pty"
	CharUnix CharType = "unix"
	CharTCP  CharType = "tcp"
	CharUDP  CharType = "udp"
	CharFile CharType = "file"
	CharPipe CharType = "pipe"
	CharDev  CharType = "dev" // a device of the host
	CharNull CharType = "null"
	CharLog  CharType = "log"      // null, with LogFile
	CharVMC  CharType = "spicevmc" // SPICE carries it
	CharPort CharType = "spiceport"
	CharNone CharType = "none" // no device at all
)

// Char is a character device: a serial or parallel port, a console.
type Char struct {
	Type CharType `json:"type,omitempty"` // "": pty
	// Path is of the socket, file, pipe or device; absolute. A socket whose path is
	// empty is in the machine's folder.
	Path   string `json:"path,omitempty"`
	Append bool   `json:"append,omitempty"` // file
	// Listen (unix, tcp): QEMU waits for a client; else it connects.
	Listen bool `json:"listen,omitempty"`
	// Host and Port are of tcp and udp; to listen, Host must be a loopback
	// address unless Insecure is set.
	Host     string `json:"host,omitempty"`
	Port     int    `json:"port,omitempty"`
	BindHost string `json:"bindHost,omitempty"` // udp
	BindPort int    `json:"bindPort,omitempty"`
	Telnet   bool   `json:"telnet,omitempty"`
	Insecure bool   `json:"insecure,omitempty"`
	// LogFile gets every byte; absolute. LogAppend keeps what is in it.
	LogFile   string `json:"logFile,omitempty"`
	LogAppend bool   `json:"logAppend,omitempty"`
	// Model is of a serial port: "isa-serial" (the default), "pci-serial",
	// "usb-serial", "isa-debugcon".
	Model string `json:"model,omitempty"`
	// Name is of a spiceport.
	Name string `json:"name,omitempty"`
}

// Names of channels.
const (
	ChannelAgent = "org.qemu.guest_agent.0"
	ChannelSpice = "com.redhat.spice.0"
	// ChannelLamina is that of our own agent (package guest/agent).
	ChannelLamina = "dev.lamina.agent.0"
)

// Channel is a virtio-serial port with a name: /dev/virtio-ports/NAME.
type Channel struct {
	Char
	Target string `json:"target"` // ChannelAgent, ChannelSpice, ...
}

// Input is an input device.
type Input struct {
	Type string `json:"type"`          // tablet, mouse, keyboard, passthrough, evdev
	Bus  string `json:"bus,omitempty"` // usb (the default), virtio, ps2
	Path string `json:"path,omitempty"`
}

// Sound is a sound card.
type Sound struct {
	Model string `json:"model"` // ich6, ich9, ac97, es1370, sb16, usb
	// Codecs are of ich6 and ich9: duplex (the default), micro, output.
	Codecs []string `json:"codecs,omitempty"`
	// Audio is "spice", or "none"; "" is spice where there is such a display.
	Audio string `json:"audio,omitempty"`
}

// RNG is a source of random numbers.
type RNG struct {
	Path string `json:"path,omitempty"` // "/dev/urandom" if empty
	// Builtin is QEMU's own generator.
	Builtin bool `json:"builtin,omitempty"`
	// RateBytes in each RatePeriod milliseconds, 0 is no bound.
	RateBytes  int64 `json:"rateBytes,omitempty"`
	RatePeriod int   `json:"ratePeriod,omitempty"`
}

// Balloon lets the host ask for memory back.
type Balloon struct {
	Model string `json:"model,omitempty"` // "virtio" if empty; "none"
	// Autodeflate gives memory back to a guest that has none left.
	Autodeflate       Toggle `json:"autodeflate,omitempty"`
	FreePageReporting Toggle `json:"freePageReporting,omitempty"`
	StatsPeriod       int    `json:"statsPeriod,omitempty"` // seconds
}

// Watchdog is a device that acts when the guest does not touch it any more.
type Watchdog struct {
	Model string `json:"model"` // i6300esb, ib700, itco (q35's own)
	// Action is reset (the default), shutdown, poweroff, pause, none,
	// inject-nmi. All watchdogs of a machine have the same.
	Action string `json:"action,omitempty"`
}

// TPM is a trusted platform module.
type TPM struct {
	Model string `json:"model,omitempty"` // tpm-crb (the default), tpm-tis
	// Type is "emulator" (swtpm, which keeps its state in the machine's folder;
	// the default) or "passthrough".
	Type    string `json:"type,omitempty"`
	Version string `json:"version,omitempty"` // "2.0" (the default), "1.2"
	Path    string `json:"path,omitempty"`    // passthrough: "/dev/tpm0" if empty
}

// VSock is a socket family between guest and host.
type VSock struct {
	CID  uint32 `json:"cid,omitempty"`  // 3 or more
	Auto bool   `json:"auto,omitempty"` // a free one is chosen at the start
}

// Panic is a device by which a guest tells of its panic.
type Panic struct {
	Model string `json:"model,omitempty"` // isa (the default), hyperv, none
}

// IOMMU protects memory from devices.
type IOMMU struct {
	Model       string `json:"model"` // intel; needs q35
	IntRemap    Toggle `json:"intremap,omitempty"`
	CachingMode Toggle `json:"cachingMode,omitempty"`
	IOTLB       Toggle `json:"iotlb,omitempty"`
	EIM         Toggle `json:"eim,omitempty"`
}

// Controller is a controller that others attach to. Those that are not named
// and needed are added.
type Controller struct {
	// Type is scsi, usb, sata, ide, virtio-serial, fdc or ccid; PCI bridges and
	// ports are not listed (see Devices.HotplugPorts).
	Type  string `json:"type"`
	Index int    `json:"index"`
	// Model is of scsi: virtio-scsi (the default), lsilogic, lsisas1068,
	// lsisas1078, vmpvscsi, am53c974, dc390; of usb: qemu-xhci (the default), nec-xhci,
	// ich9 (EHCI with three companions), ehci, piix3-uhci, piix4-uhci, pci-ohci,
	// none.
	Model string `json:"model,omitempty"`
	Ports int    `json:"ports,omitempty"` // usb (qemu-xhci, nec-xhci: 1-15), virtio-serial
	// Of virtio-scsi.
	IOThread   int `json:"ioThread,omitempty"` // number from 1
	Queues     int `json:"queues,omitempty"`
	CmdPerLUN  int `json:"cmdPerLun,omitempty"`
	MaxSectors int `json:"maxSectors,omitempty"`
}

// Filesystem is a folder of the host that the guest mounts.
type Filesystem struct {
	Driver string `json:"driver,omitempty"` // "9p" (the default), "virtiofs"
	Source string `json:"source"`           // absolute path of a folder
	Target string `json:"target"`           // the tag that the guest mounts by
	// Access is of 9p: mapped (the default: owners and modes are kept in extended
	// attributes), passthrough (as QEMU's user may), squash (passthrough,
	// without errors where it may not).
	Access   string `json:"access,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"` // 9p only
}

// HostDevice is a device of the host that the guest gets.
type HostDevice struct {
	Type string `json:"type"` // usb, pci
	// PCI is domain:bus:slot.function, as in 0000:01:00.0.
	PCI string `json:"pci,omitempty"`
	// USB: by place, or by identity (0x1234).
	USBBus    int    `json:"usbBus,omitempty"`
	USBDevice int    `json:"usbDevice,omitempty"`
	Vendor    string `json:"vendor,omitempty"`
	Product   string `json:"product,omitempty"`
	BootIndex int    `json:"bootIndex,omitempty"`
	ROMFile   string `json:"romFile,omitempty"`
	ROMBar    Toggle `json:"romBar,omitempty"`
}

// USBRedirect lets a viewer plug its own USB devices into the machine.
type USBRedirect struct {
	Char // spicevmc, tcp, unix
}

// QEMUOptions go to QEMU as they are: what they break is broken.
type QEMUOptions struct {
	Binary string            `json:"binary,omitempty"` // absolute path of the program; "" is found
	Args   []string          `json:"args,omitempty"`
	Env    map[string]string `json:"env,omitempty"`
}
