package vm

import (
	"fmt"
	"math/bits"
	"path/filepath"
	"slices"
	"strings"
)

// Formats returns the image formats that a machine's disks may have.
func Formats() []string { return slices.Concat(writableFormats, readOnlyFormats) }

// QEMU's drivers (qemu-block-drivers(7)).
var (
	writableFormats = []string{"qcow2", "raw", "luks", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"}
	readOnlyFormats = []string{"dmg", "cloop", "bochs"}
)

// buses are all there are.
var buses = []Bus{BusVirtio, BusVirtioSCSI, BusSATA, BusIDE, BusSCSI, BusUSB, BusNVMe, BusFDC}

// MaxUnits is how many drives a bus takes on a machine type without controllers
// of one's own, 0 where it has no such bus.
func MaxUnits(machine string, bus Bus) int {
	switch bus {
	case BusIDE:
		if Chipset(machine) == MachinePC {
			return 4 // two channels of two drives
		}
		return 0
	case BusSATA:
		return 6 // one ICH9 AHCI controller
	case BusVirtio, BusNVMe:
		return maxSlots // each takes a PCI slot
	case BusVirtioSCSI:
		return 256 // targets of one controller
	case BusSCSI:
		return 7 // of lsilogic
	case BusUSB:
		return 15 // ports of qemu-xhci
	case BusFDC:
		return 2
	}
	return 0
}

func (s Spec) validateDisks(f *findings) {
	paths := map[string]int{}
	names := map[string]string{}
	for i, d := range s.Disks {
		field := fmt.Sprintf("disks[%d]", i)
		d.validate(f, field)
		s.validateThread(f, field, d)
		if j, ok := paths[d.Path]; ok && d.Path != "" && !(d.ReadOnly && s.Disks[j].ReadOnly) && !(d.Shareable && s.Disks[j].Shareable) {
			f.add(field+".path", fmt.Sprintf("%s is also disks[%d]", d.Path, j), "two drives on one image corrupt it: make an overlay for each")
		}
		paths[d.Path] = i
		if d.Target == "" {
			continue
		}
		word(f, field+".target", d.Target)
		if other, ok := names[d.Target]; ok {
			f.add(field+".target", fmt.Sprintf("%s is also that of %s", d.Target, other), "leave it out to have one chosen")
		}
		names[d.Target] = field
	}
	s.validateUnits(f)
	s.validateGroups(f)
}

// validateUnits counts the drives of each bus.
func (s Spec) validateUnits(f *findings) {
	used := map[Bus]int{}
	for _, d := range s.Disks {
		used[d.Bus]++
	}
	for _, bus := range []Bus{BusIDE, BusSATA, BusVirtioSCSI, BusSCSI, BusFDC} {
		n, limit := used[bus], MaxUnits(s.Machine, bus)
		if limit > 0 {
			limit *= max(1, s.controllerCount(bus))
		}
		switch {
		case n == 0 || n <= limit:
		case limit == 0:
			f.add("disks", fmt.Sprintf("machine type %s has no %s controller", s.Machine, bus), "use bus sata, or machine type pc")
		case bus == BusFDC:
			f.add("disks", fmt.Sprintf("%d floppy drives, and there are two", n), "change the medium of one while the machine runs")
		default:
			f.add("disks", fmt.Sprintf("%d drives on %s, which takes %d", n, bus, limit), "put the others on virtio-scsi, which takes 256")
		}
	}
}

// controllerCount is how many controllers of a bus the spec names, or its
// disks' addresses ask for.
func (s Spec) controllerCount(bus Bus) int {
	n := 0
	for _, c := range s.Controllers {
		if c.Type == controllerType(bus) {
			n = max(n, c.Index+1)
		}
	}
	for _, d := range s.Disks {
		if d.Bus == bus && d.Address != nil {
			n = max(n, d.Address.Controller+1)
		}
	}
	return n
}

func controllerType(bus Bus) string {
	switch bus {
	case BusVirtioSCSI, BusSCSI:
		return "scsi"
	}
	return string(bus)
}

// validate checks what concerns one drive alone.
func (d Disk) validate(f *findings, field string) {
	tray := d.Device == DeviceCDROM || d.Device == DeviceFloppy
	if d.Path == "" && tray {
		d.validateDevice(f, field)
		return
	}
	absolute(f, field+".path", d.Path)
	switch {
	case slices.Contains(readOnlyFormats, d.Format):
		if !d.ReadOnly {
			f.add(field+".format", d.Format+" images cannot be written", "set readOnly, or convert it with lamina img convert")
		}
	case !slices.Contains(writableFormats, d.Format):
		f.add(field+".format", fmt.Sprintf("%q is not a format that machines use", d.Format), "say which it is (it is never guessed): "+strings.Join(Formats(), ", ")+"; convert others with lamina img convert")
	}
	if d.SecretFile != "" {
		absolute(f, field+".secretFile", d.SecretFile)
		if d.Format != "luks" && d.Format != "qcow2" {
			f.add(field+".secretFile", d.Format+" images have no encryption", "leave it out")
		}
	} else if d.Format == "luks" {
		f.add(field+".secretFile", "a luks image has to have its passphrase", "name a file that holds it")
	}
	d.validateDevice(f, field)
	d.validateIdentity(f, field)
	d.validateCache(f, field)
	d.validateIO(f, field)
	d.Throttle.validate(f, field+".throttle")
}

// validateDevice checks that the bus has such drives.
func (d Disk) validateDevice(f *findings, field string) {
	if !slices.Contains(buses, d.Bus) {
		f.add(field+".bus", fmt.Sprintf("unknown bus %q", d.Bus), "use virtio, virtio-scsi, sata, ide, scsi, usb, nvme or fdc")
		return
	}
	switch {
	case !slices.Contains([]DiskDevice{DeviceDisk, DeviceCDROM, DeviceFloppy, DeviceLUN}, d.Device):
		f.add(field+".device", fmt.Sprintf("unknown device %q", d.Device), "use disk, cdrom, floppy or lun")
	case (d.Device == DeviceFloppy) != (d.Bus == BusFDC):
		f.add(field+".bus", fmt.Sprintf("a %s cannot be on %s", d.Device, d.Bus), "floppy drives are on fdc, and nothing else is")
	case d.Device == DeviceCDROM && (d.Bus == BusVirtio || d.Bus == BusNVMe):
		f.add(field+".bus", fmt.Sprintf("%s has no CD-ROM drive", d.Bus), "use virtio-scsi, sata or ide, or a read-only disk")
	case d.Device == DeviceCDROM && !d.ReadOnly:
		f.add(field+".readOnly", "a CD-ROM is always read-only", "set readOnly")
	case d.Device == DeviceDisk && d.ReadOnly && (d.Bus == BusIDE || d.Bus == BusSATA):
		f.add(field+".readOnly", fmt.Sprintf("a disk on %s cannot be read-only", d.Bus), "use virtio or virtio-scsi, or make it a cdrom")
	case d.Device == DeviceLUN && d.Bus != BusVirtioSCSI && d.Bus != BusSCSI:
		f.add(field+".bus", fmt.Sprintf("a lun cannot be on %s", d.Bus), "use virtio-scsi, or device disk")
	case d.Device == DeviceLUN && d.Format != "raw":
		f.add(field+".format", "a lun is a block device of the host: it has no image format", "say raw, or use device disk")
	}
}

var (
	validWWN  = pattern(`^(0x)?[0-9a-fA-F]{16}$`)
	validSCSI = pattern(`^[ -+--~]*$`) // printable, without a comma
)

// scsiLike are the buses that tell their guests more of a disk.
func (d Disk) scsiLike() bool {
	return d.Bus == BusSCSI || d.Bus == BusVirtioSCSI
}

func (d Disk) validateIdentity(f *findings, field string) {
	if !validSerial().MatchString(d.Serial) {
		f.add(field+".serial", fmt.Sprintf("%q", d.Serial), fmt.Sprintf("use up to %d letters, digits, '_', '.', '+' or '-'", maxSerial))
	}
	if d.Bus == BusNVMe && d.Serial == "" {
		f.add(field+".serial", "an NVMe controller has to have one", "give it one")
	}
	if !matches(validWWN, d.WWN) {
		f.add(field+".wwn", fmt.Sprintf("%q", d.WWN), "use 16 hexadecimal digits")
	} else if d.WWN != "" && !d.scsiLike() && d.Bus != BusIDE && d.Bus != BusSATA {
		f.add(field+".wwn", fmt.Sprintf("a disk on %s has none", d.Bus), "use virtio-scsi, sata or ide, or leave it out")
	}
	for name, v := range inOrder(map[string]struct {
		text string
		most int
	}{"vendor": {d.Vendor, 8}, "product": {d.Product, 16}}) {
		switch {
		case v.text == "":
		case !d.scsiLike():
			f.add(field+"."+name, fmt.Sprintf("a disk on %s has none", d.Bus), "use virtio-scsi, or leave it out")
		case len(v.text) > v.most || !matches(validSCSI, v.text):
			f.add(field+"."+name, fmt.Sprintf("%q", v.text), fmt.Sprintf("use up to %d printable characters without a comma", v.most))
		}
	}
	toggle(f, field+".removable", d.Removable)
	if d.Removable != "" && !d.scsiLike() && d.Bus != BusUSB {
		f.add(field+".removable", fmt.Sprintf("a disk on %s is never", d.Bus), "use usb, or leave it out")
	}
	if d.RotationRate < 0 || d.RotationRate > 65534 {
		f.add(field+".rotationRate", fmt.Sprintf("%d", d.RotationRate), "use 1 for an SSD, or up to 65534 rpm")
	} else if d.RotationRate > 0 && !d.scsiLike() && d.Bus != BusIDE && d.Bus != BusSATA {
		f.add(field+".rotationRate", fmt.Sprintf("a disk on %s does not tell", d.Bus), "use virtio-scsi, sata or ide, or leave it out")
	}
	oneOf(f, field+".tray", d.Tray, "", "open", "closed")
	if a := d.Address; a != nil && (a.Controller < 0 || a.Controller > 31 || a.Bus < 0 || a.Target < 0 || a.Unit < 0) {
		f.add(field+".address", fmt.Sprintf("%+v", *a), "use controller 0 to 31, and no number below 0")
	}
}

func (d Disk) validateCache(f *findings, field string) {
	switch d.Cache {
	case CacheWriteback, CacheWritethrough, CacheUnsafe:
	case CacheNone, CacheDirectsync:
		if !filepath.IsAbs(d.Path) {
			return
		}
		if err := TryDirect(d.Path); err != nil {
			f.add(field+".cache", fmt.Sprintf("%s opens the image with O_DIRECT, which its file system refuses: %v", d.Cache, err), "use writeback, or keep the disk elsewhere (not on tmpfs)")
		}
	default:
		f.add(field+".cache", fmt.Sprintf("unknown cache mode %q", d.Cache), "use none, writeback, writethrough, directsync or unsafe")
	}
}

func (d Disk) validateIO(f *findings, field string) {
	oneOf(f, field+".io", d.IO, "", IOThreads, IONative, IOURing)
	if d.IO == IONative && d.Cache != CacheNone && d.Cache != CacheDirectsync {
		f.add(field+".io", fmt.Sprintf("native needs O_DIRECT, and cache %s goes through the host's page cache", d.Cache), "use cache none or directsync, or io threads or io_uring")
	}
	oneOf(f, field+".detectZeroes", d.DetectZeroes, "", "off", "on", "unmap")
	if d.DetectZeroes == "unmap" && !d.Discard {
		f.add(field+".detectZeroes", "unmap gives space back, which needs discard", "set discard, or use on")
	}
	oneOf(f, field+".writeError", d.WriteError, "", ErrorStop, ErrorReport, ErrorIgnore, ErrorENOSPC)
	oneOf(f, field+".readError", d.ReadError, "", ErrorStop, ErrorReport, ErrorIgnore)
	if (d.WriteError != "" || d.ReadError != "") && d.Bus == BusFDC {
		f.add(field+".writeError", "floppy drives always report", "leave it out")
	}
	if (d.WriteError != "" || d.ReadError != "") && d.Bus == BusNVMe {
		f.add(field+".writeError", "NVMe drives always report", "leave it out")
	}
	for name, n := range inOrder(map[string]int{"logicalBlock": d.LogicalBlock, "physicalBlock": d.PhysicalBlock}) {
		if n != 0 && (n < 512 || n > 2<<20 || bits.OnesCount(uint(n)) != 1) {
			f.add(field+"."+name, fmt.Sprintf("%d bytes", n), "use 512, 4096 or another power of 2 up to 2 MiB")
		}
	}
	if d.PhysicalBlock > 0 && d.PhysicalBlock < d.LogicalBlock {
		f.add(field+".physicalBlock", fmt.Sprintf("%d bytes below the logical block's %d", d.PhysicalBlock, d.LogicalBlock), "make it as large, or leave it out")
	}
	if d.LogicalBlock > 512 && (d.Bus == BusIDE || d.Bus == BusSATA || d.Bus == BusFDC) {
		f.add(field+".logicalBlock", fmt.Sprintf("a disk on %s has blocks of 512 bytes", d.Bus), "use virtio, virtio-scsi or nvme, or leave it out")
	}
	if d.Queues < 0 || d.Queues > 1024 || d.Queues > 0 && d.Bus != BusVirtio && d.Bus != BusNVMe {
		f.add(field+".queues", fmt.Sprintf("%d on %s", d.Queues, d.Bus), "use 1 to 1024 on virtio or nvme; a virtio-scsi disk has its controller's")
	}
	switch {
	case d.CopyOnRead && d.ReadOnly:
		f.add(field+".copyOnRead", "a read-only image cannot keep what is read", "leave one out")
	case d.Shareable && !d.ReadOnly && d.Format != "raw":
		f.add(field+".shareable", d.Format+" images cannot have two writers", "use raw")
	}
}

// validateThread checks who serves the disk.
func (s Spec) validateThread(f *findings, field string, d Disk) {
	switch {
	case d.IOThread == 0:
	case d.IOThread < 0 || d.IOThread > s.IOThreads:
		f.add(field+".ioThread", fmt.Sprintf("there is no thread %d", d.IOThread), fmt.Sprintf("the machine has %d: set ioThreads", s.IOThreads))
	case d.Bus == BusVirtioSCSI:
		f.add(field+".ioThread", "a virtio-scsi disk is served by its controller's thread", "set ioThread of the controller")
	case d.Bus != BusVirtio:
		f.add(field+".ioThread", fmt.Sprintf("a disk on %s is served by QEMU's main loop", d.Bus), "use virtio, or leave it out")
	}
}

// validateGroups: the members of a throttling group have the same bounds.
func (s Spec) validateGroups(f *findings) {
	seen := map[string]int{}
	for i, d := range s.Disks {
		g := d.Throttle.Group
		if g == "" {
			continue
		}
		if j, ok := seen[g]; ok && s.Disks[j].Throttle != d.Throttle {
			f.add(fmt.Sprintf("disks[%d].throttle", i), fmt.Sprintf("group %s has other bounds at disks[%d]", g, j), "make them the same")
		}
		seen[g] = i
	}
}

// Bounded reports whether there is any bound.
func (t Throttle) Bounded() bool {
	t.Group, t.SizeIOPS = "", 0
	return t != Throttle{}
}

// Validate returns what is wrong with the bounds, nil if nothing is.
func (t Throttle) Validate() error {
	var f findings
	t.validate(&f, "throttle")
	if len(f) == 0 {
		return nil
	}
	return fmt.Errorf("%s", f[0])
}

func (t Throttle) validate(f *findings, field string) {
	word(f, field+".group", t.Group)
	const most = 1_000_000_000_000_000 // QEMU's THROTTLE_VALUE_MAX
	for _, k := range []struct {
		name            string
		base, max, secs int64
	}{
		{"totalBytes", t.TotalBytes, t.TotalBytesMax, t.TotalBytesMaxLength}, {"readBytes", t.ReadBytes, t.ReadBytesMax, t.ReadBytesMaxLength},
		{"writeBytes", t.WriteBytes, t.WriteBytesMax, t.WriteBytesMaxLength}, {"totalIops", t.TotalIOPS, t.TotalIOPSMax, t.TotalIOPSMaxLength},
		{"readIops", t.ReadIOPS, t.ReadIOPSMax, t.ReadIOPSMaxLength}, {"writeIops", t.WriteIOPS, t.WriteIOPSMax, t.WriteIOPSMaxLength},
	} {
		switch {
		case min(k.base, k.max, k.secs) < 0 || max(k.base, k.max) > most:
			f.add(field+"."+k.name, fmt.Sprintf("%d, burst %d for %d s", k.base, k.max, k.secs), "use 0 (no bound) to 10^15")
		case k.max > 0 && k.base == 0:
			f.add(field+"."+k.name+"Max", "a burst without a bound", "set "+k.name+" too")
		case k.max > 0 && k.max < k.base:
			f.add(field+"."+k.name+"Max", fmt.Sprintf("a burst of %d below the bound of %d", k.max, k.base), "make it larger")
		case k.secs > 0 && k.max == 0:
			f.add(field+"."+k.name+"MaxLength", "the length of no burst", "set "+k.name+"Max too")
		}
	}
	if t.TotalBytes > 0 && (t.ReadBytes > 0 || t.WriteBytes > 0) || t.TotalIOPS > 0 && (t.ReadIOPS > 0 || t.WriteIOPS > 0) {
		f.add(field, "total excludes read and write of the same kind", "use one or the others")
	}
	atLeastZero(f, field+".sizeIops", t.SizeIOPS)
}
