package vm

// FirmwareType is what starts the machine.
type FirmwareType string

const (
	FirmwareBIOS FirmwareType = "bios" // SeaBIOS; the default
	FirmwareEFI  FirmwareType = "efi"  // OVMF
)

// BootDevice is a kind of device to boot from, in libvirt's words.
type BootDevice string

const (
	BootDisk    BootDevice = "hd"
	BootCDROM   BootDevice = "cdrom"
	BootNetwork BootDevice = "network"
	BootFloppy  BootDevice = "fd"
)

// Boot says how the machine starts.
type Boot struct {
	Firmware FirmwareType `json:"firmware,omitempty"`
	// Loader is the absolute path of a firmware image; "" is found among the
	// host's (/usr/share/qemu/firmware). LoaderType is "pflash" (the default for
	// EFI) or "rom".
	Loader     string `json:"loader,omitempty"`
	LoaderType string `json:"loaderType,omitempty"`
	LoaderRW   bool   `json:"loaderReadWrite,omitempty"` // the guest may change it: it is its own copy
	// SecureBoot chooses a firmware with it, and with the vendors' keys unless
	// EnrolledKeys is off. "" takes one without where the host has that.
	SecureBoot   Toggle `json:"secureBoot,omitempty"`
	EnrolledKeys Toggle `json:"enrolledKeys,omitempty"`
	// NVRAM is the absolute path of the machine's own variables, "" a file in the
	// machine's folder. It is made from NVRAMTemplate ("": the firmware's) where
	// it does not exist.
	NVRAM         string `json:"nvram,omitempty"`
	NVRAMTemplate string `json:"nvramTemplate,omitempty"`

	// Kernel boots directly, with these absolute paths.
	Kernel  string `json:"kernel,omitempty"`
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
	DTB     string `json:"dtb,omitempty"`

	// Order boots the first device of each kind, in this order. It is for a
	// spec in which no device has a BootIndex: WithDefaults gives them theirs.
	Order []BootDevice `json:"order,omitempty"`
	// Menu lets a person choose, for MenuTimeout milliseconds.
	Menu        Toggle `json:"menu,omitempty"`
	MenuTimeout int    `json:"menuTimeout,omitempty"`
	// RebootTimeout in milliseconds is when the firmware tries again where nothing boots;
	// nil and -1 are never.
	RebootTimeout *int `json:"rebootTimeout,omitempty"`
	// Serial shows the firmware's messages on the first serial port.
	Serial Toggle `json:"serial,omitempty"`
}

// Features are what the board and the hypervisor offer.
type Features struct {
	ACPI Toggle `json:"acpi,omitempty"` // "": on
	APIC Toggle `json:"apic,omitempty"` // "": on
	PAE  Toggle `json:"pae,omitempty"`
	SMM  Toggle `json:"smm,omitempty"`
	PMU  Toggle `json:"pmu,omitempty"`
	// VMPort is VMware's port; "" is off.
	VMPort     Toggle `json:"vmport,omitempty"`
	VMCoreInfo Toggle `json:"vmcoreinfo,omitempty"`
	// KVMHidden hides KVM from the guest.
	KVMHidden  Toggle `json:"kvmHidden,omitempty"`
	PVSpinlock Toggle `json:"pvspinlock,omitempty"`
	// IOAPIC is "kvm" or "qemu" (split).
	IOAPIC string `json:"ioapic,omitempty"`
	EOI    Toggle `json:"eoi,omitempty"`
	HyperV HyperV `json:"hyperv,omitzero"`
	// Suspend says whether the guest is offered suspend to memory and to disk.
	SuspendToMem  Toggle `json:"suspendToMem,omitempty"`
	SuspendToDisk Toggle `json:"suspendToDisk,omitempty"`
}

// HyperV are what Microsoft's hypervisor offers and Windows likes to find.
type HyperV struct {
	Passthrough     bool   `json:"passthrough,omitempty"` // all that the host has
	Relaxed         Toggle `json:"relaxed,omitempty"`
	VAPIC           Toggle `json:"vapic,omitempty"`
	Spinlocks       Toggle `json:"spinlocks,omitempty"`
	SpinlockRetries int    `json:"spinlockRetries,omitempty"` // 4095 or more; 0 is 8191
	VPIndex         Toggle `json:"vpindex,omitempty"`
	Runtime         Toggle `json:"runtime,omitempty"`
	SynIC           Toggle `json:"synic,omitempty"`
	STimer          Toggle `json:"stimer,omitempty"`
	STimerDirect    Toggle `json:"stimerDirect,omitempty"`
	Reset           Toggle `json:"reset,omitempty"`
	VendorID        string `json:"vendorId,omitempty"` // up to 12 characters
	Frequencies     Toggle `json:"frequencies,omitempty"`
	Reenlightenment Toggle `json:"reenlightenment,omitempty"`
	TLBFlush        Toggle `json:"tlbflush,omitempty"`
	IPI             Toggle `json:"ipi,omitempty"`
	EVMCS           Toggle `json:"evmcs,omitempty"`
	AVIC            Toggle `json:"avic,omitempty"`
}

// Clock is the guest's clock.
type Clock struct {
	// Offset is "utc" (the default), "localtime", "timezone" or "variable".
	Offset string `json:"offset,omitempty"`
	// Timezone is its name ("Europe/Berlin") for offset timezone.
	Timezone string `json:"timezone,omitempty"`
	// Adjustment in seconds to Basis ("utc" or "localtime"), for offset variable.
	Adjustment int64   `json:"adjustment,omitempty"`
	Basis      string  `json:"basis,omitempty"`
	Timers     []Timer `json:"timers,omitempty"`
}

// Timer is one of the guest's timers.
type Timer struct {
	Name       string `json:"name"`                 // rtc, pit, hpet, kvmclock, hypervclock, tsc
	TickPolicy string `json:"tickPolicy,omitempty"` // delay, catchup, merge, discard
	Present    Toggle `json:"present,omitempty"`
	// Track is what the rtc follows: "guest" or "wall".
	Track     string `json:"track,omitempty"`
	Frequency int64  `json:"frequency,omitempty"` // Hz, of tsc
}

// SysInfo is what the firmware tells the guest of the machine (SMBIOS). The
// keys are libvirt's entry names: "vendor", "manufacturer", "serial", ...
type SysInfo struct {
	BIOS      map[string]string   `json:"bios,omitempty"`   // vendor, version, date, release
	System    map[string]string   `json:"system,omitempty"` // manufacturer, product, version, serial, uuid, sku, family
	BaseBoard []map[string]string `json:"baseBoard,omitempty"`
	Chassis   map[string]string   `json:"chassis,omitempty"`
	OEM       []string            `json:"oemStrings,omitempty"`
	// FWCfg are entries of the firmware's configuration, opt/NAME to a value or
	// to a file.
	FWCfg []FWCfg `json:"fwcfg,omitempty"`
}

// FWCfg is an entry that firmware and guest can read.
type FWCfg struct {
	Name  string `json:"name"`
	Value string `json:"value,omitempty"`
	File  string `json:"file,omitempty"` // absolute path
}
