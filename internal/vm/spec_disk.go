package vm

// Bus is how a disk is attached.
type Bus string

// The disk buses.
const (
	BusIDE        Bus = "ide"
	BusSATA       Bus = "sata"
	BusVirtio     Bus = "virtio"      // virtio-blk
	BusVirtioSCSI Bus = "virtio-scsi" // a SCSI disk on a virtio-scsi controller
	// BusSCSI is a SCSI disk on the SCSI controller that Controllers names
	// with the disk's controller number; lsilogic where it names none.
	BusSCSI Bus = "scsi"
	BusUSB  Bus = "usb"
	BusNVMe Bus = "nvme" // each disk is a controller of its own
	BusFDC  Bus = "fdc"  // floppy drives
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

// IO is how QEMU hands a disk's requests to the host's kernel.
type IO string

const (
	IOThreads IO = "threads" // a pool of threads; the default
	IONative  IO = "native"  // Linux AIO; needs CacheNone or CacheDirectsync
	IOURing   IO = "io_uring"
)

// ErrorPolicy is what QEMU does when the host fails a request.
type ErrorPolicy string

const (
	ErrorStop   ErrorPolicy = "stop"   // the machine pauses
	ErrorReport ErrorPolicy = "report" // the guest is told
	ErrorIgnore ErrorPolicy = "ignore" // the guest is told that all is well
	ErrorENOSPC ErrorPolicy = "enospc" // stop where the host has no space, else report; QEMU's default for writes
)

// DiskDevice is what the guest sees.
type DiskDevice string

const (
	DeviceDisk   DiskDevice = "disk"
	DeviceCDROM  DiskDevice = "cdrom"
	DeviceFloppy DiskDevice = "floppy"
	// DeviceLUN passes a host's SCSI block device through, with the guest's
	// own SCSI commands.
	DeviceLUN DiskDevice = "lun"
)

// Disk is one drive.
type Disk struct {
	// Path is absolute; "" is an empty CD-ROM or floppy drive.
	Path      string     `json:"path"`
	Format    string     `json:"format"` // never probed: "raw", "qcow2", "vmdk", ...; see Formats
	Device    DiskDevice `json:"device"`
	Bus       Bus        `json:"bus"`
	Cache     Cache      `json:"cache"`
	ReadOnly  bool       `json:"readOnly,omitempty"`
	Serial    string     `json:"serial,omitempty"`
	BootIndex int        `json:"bootIndex,omitempty"` // 0: not in the boot order
	// Discard passes the guest's discards on to the image.
	Discard bool `json:"discard,omitempty"`

	// Target is the drive's name, unique in the machine, as in libvirt: vda,
	// sdb, hdc, fda. "" is the next one: see [Spec.DiskNames]. The guest does not
	// see it.
	Target string `json:"target,omitempty"`
	// DetectZeroes is what becomes of zeros that the guest writes: "off",
	// "on" (written the short way), "unmap" (given back too, which needs
	// Discard). "" is unmap with Discard, else off.
	DetectZeroes string `json:"detectZeroes,omitempty"`
	IO           IO     `json:"io,omitempty"`
	// IOThread is the number, from 1, of the thread that serves the disk (see
	// Spec.IOThreads); 0 is QEMU's main loop. For virtio; a virtio-scsi disk has
	// its controller's.
	IOThread int `json:"ioThread,omitempty"`
	// Shareable lets other machines write the image at the same time: raw
	// only, for guests with a cluster file system.
	Shareable bool `json:"shareable,omitempty"`
	// Removable is what a USB or SCSI disk says of its medium.
	Removable Toggle `json:"removable,omitempty"`
	// WWN is 16 hexadecimal digits (IDE, SATA, SCSI); Vendor (8 characters) and
	// Product (16) are for SCSI.
	WWN     string `json:"wwn,omitempty"`
	Vendor  string `json:"vendor,omitempty"`
	Product string `json:"product,omitempty"`
	// RotationRate in rpm is for IDE, SATA and SCSI; 1 is an SSD.
	RotationRate int `json:"rotationRate,omitempty"`

	WriteError ErrorPolicy `json:"writeError,omitempty"` // "": enospc
	ReadError  ErrorPolicy `json:"readError,omitempty"`  // "": report

	LogicalBlock  int `json:"logicalBlock,omitempty"`  // bytes, a power of 2 of 512 or more
	PhysicalBlock int `json:"physicalBlock,omitempty"` // bytes
	Queues        int `json:"queues,omitempty"`        // of virtio and nvme; 0 is the default
	// CopyOnRead keeps what is read of the backing files in the image.
	CopyOnRead bool `json:"copyOnRead,omitempty"`

	Throttle Throttle `json:"throttle,omitzero"`
	// SecretFile is the absolute path of a file with the passphrase of an
	// encrypted image (luks, or qcow2 with luks inside), without a newline at its end.
	SecretFile string `json:"secretFile,omitempty"`

	// Controller is the number, from 0, of the controller among those of the
	// bus, and Unit the place on it; nil is the next free one.
	Address *DriveAddress `json:"address,omitempty"`
	// Tray is "open" for a drive whose medium is out while Path keeps its name.
	Tray string `json:"tray,omitempty"`
}

// DriveAddress is a place on a bus with places: IDE (bus 0-1, unit 0-1), SATA
// (unit 0-5), SCSI (target 0-255, unit 0: its LUN), floppy (unit 0-1).
type DriveAddress struct {
	Controller int `json:"controller"`
	Bus        int `json:"bus"`
	Target     int `json:"target"`
	Unit       int `json:"unit"`
}

// Throttle bounds a disk's traffic. 0 is no bound. Total excludes Read and
// Write of the same kind.
type Throttle struct {
	TotalBytes int64 `json:"totalBytes,omitempty"` // per second
	ReadBytes  int64 `json:"readBytes,omitempty"`
	WriteBytes int64 `json:"writeBytes,omitempty"`
	TotalIOPS  int64 `json:"totalIops,omitempty"` // requests per second
	ReadIOPS   int64 `json:"readIops,omitempty"`
	WriteIOPS  int64 `json:"writeIops,omitempty"`

	// Bursts: the rate that is allowed for a while.
	TotalBytesMax int64 `json:"totalBytesMax,omitempty"`
	ReadBytesMax  int64 `json:"readBytesMax,omitempty"`
	WriteBytesMax int64 `json:"writeBytesMax,omitempty"`
	TotalIOPSMax  int64 `json:"totalIopsMax,omitempty"`
	ReadIOPSMax   int64 `json:"readIopsMax,omitempty"`
	WriteIOPSMax  int64 `json:"writeIopsMax,omitempty"`

	// How long a burst may last, in seconds; 0 is 1.
	TotalBytesMaxLength int64 `json:"totalBytesMaxLength,omitempty"`
	ReadBytesMaxLength  int64 `json:"readBytesMaxLength,omitempty"`
	WriteBytesMaxLength int64 `json:"writeBytesMaxLength,omitempty"`
	TotalIOPSMaxLength  int64 `json:"totalIopsMaxLength,omitempty"`
	ReadIOPSMaxLength   int64 `json:"readIopsMaxLength,omitempty"`
	WriteIOPSMaxLength  int64 `json:"writeIopsMaxLength,omitempty"`

	// SizeIOPS in bytes: a larger request counts as several.
	SizeIOPS int64 `json:"sizeIops,omitempty"`
	// Group shares the bounds with the other disks of that group.
	Group string `json:"group,omitempty"`
}
