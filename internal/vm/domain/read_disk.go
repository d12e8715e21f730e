package domain

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lamina-vm/lamina/internal/vm"
)

func (r *reader) disk(c *node, place int) {
	c.device()
	c.ignore(ofDisk...)
	d := vm.Disk{Device: vm.DiskDevice(c.enum("device", "disk", "cdrom", "floppy", "lun"))}
	if d.Device == "" {
		d.Device = vm.DeviceDisk
	}
	c.plain("rawio", "no")
	c.plain("sgio", "filtered")
	c.plain("model", "virtio", "virtio-non-transitional")
	r.diskSource(c, &d)
	r.diskDriver(c.one("driver"), &d)
	r.diskTarget(c, &d)
	d.ReadOnly = c.one("readonly") != nil
	d.Shareable = c.one("shareable") != nil
	d.Serial, d.WWN = c.childWords("serial"), c.childWords("wwn")
	d.Vendor, d.Product = c.childWords("vendor"), c.childWords("product")
	b := c.one("boot")
	d.BootIndex = b.number("order")
	b.plain("loadparm")
	if io := c.one("blockio"); io != nil {
		d.LogicalBlock, d.PhysicalBlock = io.number("logical_block_size"), io.number("physical_block_size")
		io.plain("discard_granularity")
	}
	r.throttle(c.one("iotune"), &d.Throttle)
	c.one("transient").refuse("what the guest writes is kept", "use an overlay and remove it afterwards, or "+useLibvirt)
	c.one("encryption").refuse("the passphrase is in libvirt's keeping", useLibvirt)
	c.one("auth").refuse("network disks are opened by libvirt", useLibvirt)
	c.one("geometry").refuse("the geometry is the image's", "leave it out, or "+useLibvirt)
	c.one("mirror").refuse("a block job of a running machine is not part of a definition", "print the document with --inactive")
	if bs := c.one("backingStore"); bs != nil {
		bs.whole = true
		if !bs.e.Empty() {
			r.note(bs.path, "the backing chain is the one that the image's header names", useLibvirt+" to have another")
		}
	}
	r.spec.Disks = append(r.spec.Disks, d)
}

// diskSource reads where the disk's bytes are.
func (r *reader) diskSource(c *node, d *vm.Disk) {
	src := c.one("source")
	kind := c.attr("type")
	switch kind {
	case "", "file":
		d.Path = src.attr("file")
	case "block":
		d.Path = src.attr("dev")
	case "volume":
		src.refuse("a volume of a storage pool is found by libvirt's daemon", "give the file's path, or "+useLibvirt)
	case "network":
		src.refuse("network disks are opened by libvirt", useLibvirt)
	default:
		c.refuse(fmt.Sprintf("a disk of type %s is not opened", quote(kind)), "use a file or a block device, or "+useLibvirt)
		return
	}
	src.plain("startupPolicy", "mandatory")
	src.ignore("@index")
	for _, name := range []string{"seclabel", "reservations", "encryption", "slices", "cookies", "readahead", "timeout", "ssl"} {
		for _, x := range src.all(name) {
			x.refuse("this is set up by libvirt's daemon", useLibvirt)
		}
	}
}

func (r *reader) diskDriver(n *node, d *vm.Disk) {
	d.Format = "raw" // libvirt's default, as probing is not safe
	if n == nil {
		return
	}
	n.plain("name", "qemu")
	if t := n.attr("type"); t != "" {
		d.Format = t
	}
	if d.Format == "aio" {
		d.Format = "raw"
	}
	switch cache := n.enum("cache", "default", "none", "writeback", "writethrough", "directsync", "unsafe"); cache {
	case "", "default":
	default:
		d.Cache = vm.Cache(cache)
	}
	d.IO = vm.IO(n.enum("io", "threads", "native", "io_uring"))
	d.Discard = n.enum("discard", "unmap", "ignore") == "unmap"
	switch z := n.enum("detect_zeroes", "off", "on", "unmap"); {
	case z != "":
		d.DetectZeroes = z
	case d.Discard:
		d.DetectZeroes = "off" // libvirt does not look for zeros unless told to
	}
	d.WriteError = vm.ErrorPolicy(n.enum("error_policy", "stop", "report", "ignore", "enospace"))
	if d.WriteError == "enospace" {
		d.WriteError = vm.ErrorENOSPC
	}
	d.ReadError = vm.ErrorPolicy(n.enum("rerror_policy", "stop", "report", "ignore"))
	if d.WriteError != "" && d.ReadError == "" && d.WriteError != vm.ErrorENOSPC {
		d.ReadError = d.WriteError // libvirt's error_policy is for both
	}
	d.IOThread = n.number("iothread")
	d.Queues = n.number("queues")
	d.CopyOnRead = n.flag("copy_on_read")
	n.one("metadata_cache").refuse("the size of qcow2's cache is QEMU's", useLibvirt)
}

func (r *reader) diskTarget(c *node, d *vm.Disk) {
	t := c.one("target")
	d.Target = t.attr("dev")
	d.Removable = t.toggle("removable")
	d.RotationRate = t.number("rotation_rate")
	if t.enum("tray", "open", "closed") == "open" {
		d.Tray = "open"
	}
	bus := t.attr("bus")
	if bus == "" {
		bus = guessBus(d.Target, d.Device)
	}
	a := c.one("address")
	if a != nil && a.e.Attr("type") == "drive" {
		a.attr("type")
		d.Address = &vm.DriveAddress{Controller: a.number("controller"), Bus: a.number("bus"), Target: a.number("target"), Unit: a.number("unit")}
	}
	switch bus {
	case "ide", "sata", "virtio", "usb", "fdc", "nvme":
		d.Bus = vm.Bus(bus)
	case "scsi":
		d.Bus = r.scsiBus(d.Address)
	default:
		r.problem(t.at("bus"), fmt.Sprintf("there is no bus %s", quote(bus)), "use virtio, scsi, sata, ide, usb or fdc")
	}
	if d.Bus == vm.BusVirtio || d.Bus == vm.BusUSB || d.Bus == vm.BusNVMe {
		d.Address = nil
	}
}

// guessBus is libvirt's guess by the first letters of the target.
func guessBus(target string, device vm.DiskDevice) string {
	for _, x := range []struct{ prefix, bus string }{{"vd", "virtio"}, {"hd", "ide"}, {"sd", "scsi"}, {"fd", "fdc"}, {"nvme", "nvme"}} {
		if len(target) > len(x.prefix) && target[:len(x.prefix)] == x.prefix {
			return x.bus
		}
	}
	if device == vm.DeviceFloppy {
		return "fdc"
	}
	return "ide"
}

// scsiBus depends on the controller that the disk hangs on.
func (r *reader) scsiBus(a *vm.DriveAddress) vm.Bus {
	index := 0
	if a != nil {
		index = a.Controller
	}
	if m := r.scsi[index]; m == "virtio-scsi" || m == "virtio-non-transitional" {
		return vm.BusVirtioSCSI
	}
	return vm.BusSCSI
}

func (r *reader) throttle(n *node, t *vm.Throttle) {
	if n == nil {
		return
	}
	fields := throttles(t)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if c := n.one(name); c != nil {
			*fields[name] = c.numberText()
		}
	}
	t.Group = n.childWords("group_name")
}

// throttles are the fields by libvirt's names.
func throttles(t *vm.Throttle) map[string]*int64 {
	return map[string]*int64{
		"total_bytes_sec": &t.TotalBytes, "read_bytes_sec": &t.ReadBytes, "write_bytes_sec": &t.WriteBytes,
		"total_iops_sec": &t.TotalIOPS, "read_iops_sec": &t.ReadIOPS, "write_iops_sec": &t.WriteIOPS,
		"total_bytes_sec_max": &t.TotalBytesMax, "read_bytes_sec_max": &t.ReadBytesMax, "write_bytes_sec_max": &t.WriteBytesMax,
		"total_iops_sec_max": &t.TotalIOPSMax, "read_iops_sec_max": &t.ReadIOPSMax, "write_iops_sec_max": &t.WriteIOPSMax,
		"total_bytes_sec_max_length": &t.TotalBytesMaxLength, "read_bytes_sec_max_length": &t.ReadBytesMaxLength,
		"write_bytes_sec_max_length": &t.WriteBytesMaxLength, "total_iops_sec_max_length": &t.TotalIOPSMaxLength,
		"read_iops_sec_max_length": &t.ReadIOPSMaxLength, "write_iops_sec_max_length": &t.WriteIOPSMaxLength,
		"size_iops_sec": &t.SizeIOPS,
	}
}

// nicModels are libvirt's names of cards that QEMU calls otherwise.
var nicModels = map[string]string{"virtio": "virtio-net-pci", "virtio-non-transitional": "virtio-net-pci"}

func (r *reader) nic(c *node) {
	c.device()
	c.plain("trustGuestRxFilters", "no")
	n := vm.NIC{Model: "rtl8139"} // libvirt's default
	if m := c.one("model").attr("type"); m != "" {
		n.Model = m
		if q, ok := nicModels[m]; ok {
			n.Model = q
		}
	}
	r.nicSource(c, &n)
	mac := c.one("mac")
	n.MAC = mac.attr("address")
	mac.plain("type", "static")
	mac.plain("check", "yes")
	if l := c.one("link"); l != nil {
		n.Link = vm.LinkState(l.enum("state", "up", "down"))
	}
	n.MTU = c.one("mtu").number("size")
	b := c.one("boot")
	n.BootIndex = b.number("order")
	b.plain("loadparm")
	if rom := c.one("rom"); rom != nil {
		n.ROM = rom.attr("file")
		rom.plain("bar", "on")
		rom.plain("enabled", "yes")
	}
	if d := c.one("driver"); d != nil {
		switch d.enum("name", "vhost", "qemu") {
		case "vhost":
			n.VHost = vm.On
		case "qemu":
			n.VHost = vm.Off
		}
		n.Queues = d.number("queues")
	}
	for _, x := range []struct{ name, why string }{
		{"filterref", "packet filters are set up by libvirt's daemon"},
		{"bandwidth", "bandwidth is bounded by libvirt's daemon"},
		{"vlan", "VLAN tags are set up by libvirt's daemon"},
		{"virtualport", "virtual ports are set up by libvirt's daemon"},
		{"ip", "the addresses of the user network are QEMU's"},
		{"route", "routes are set up by libvirt's daemon"},
		{"script", "scripts are run by libvirt's daemon"},
		{"downscript", "scripts are run by libvirt's daemon"},
		{"coalesce", "this is set up by libvirt's daemon"},
		{"tune", "the send buffer is the system's"},
		{"teaming", "teaming is set up by libvirt's daemon"},
		{"port", "isolated ports are set up by libvirt's daemon"},
		{"guest", "this is for containers"},
		{"portForward", "passt is started by libvirt's daemon; the user network's own forwards are an option of lamina"},
		{"backend", "passt is started by libvirt's daemon"},
	} {
		for _, e := range c.all(x.name) {
			e.refuse(x.why, useLibvirt)
		}
	}
	r.spec.NICs = append(r.spec.NICs, n)
}

// nicSource reads what the card is connected to.
func (r *reader) nicSource(c *node, n *vm.NIC) {
	kind, src, target := c.attr("type"), c.one("source"), c.one("target")
	n.Device = target.attr("dev")
	switch kind {
	case "user", "":
		n.Type = vm.NICUser
		n.Device = ""
		src.ignore("@dev")
	case "network":
		n.Type, n.Device = vm.NICUser, ""
		src.ignore("@bridge", "@portid") // of a running domain
		if name := src.attr("network"); name != "default" {
			r.problem(src.at("network"), fmt.Sprintf("network %s is run by libvirt's daemon", quote(name)), "use --network user or --network bridge=NAME, or "+useLibvirt)
		} else {
			r.note(c.path, "network default is QEMU's user network here: the guest reaches out, and is reached through forwards only", "use --network bridge=NAME, or "+useLibvirt)
		}
		src.plain("portgroup")
	case "bridge":
		n.Type, n.Bridge = vm.NICBridge, src.attr("bridge")
	case "ethernet":
		n.Type = vm.NICTap
		if target.enum("managed", "yes", "no") != "no" {
			r.problem(target.at("managed"), "the tap device must be there already", `make it, and say target.dev=NAME,target.managed=no`)
		}
	case "direct":
		c.refuse("macvtap devices are made by libvirt's daemon", "use --network bridge=NAME, or "+useLibvirt)
	default:
		c.refuse(fmt.Sprintf("an interface of type %s is not made", quote(kind)), "use user or bridge, or "+useLibvirt)
	}
	if kind != "ethernet" {
		target.ignore("@managed")
	}
}
