package domain

import (
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// devices reads the element of that name. Controllers come first: disks need
// to know theirs.
func (r *reader) devices(n *node) {
	s := &r.spec
	s.QEMU.Binary = n.childWords("emulator")
	r.controllers(n)
	for i, d := range n.all("disk") {
		r.disk(d, i)
	}
	for _, c := range n.all("interface") {
		r.nic(c)
	}
	r.chars(n)
	r.screens(n)
	for _, c := range n.all("input") {
		r.input(c)
	}
	for _, c := range n.all("sound") {
		r.sound(c)
	}
	r.audio(n)
	for _, c := range n.all("rng") {
		r.rng(c)
	}
	r.balloon(n.one("memballoon"))
	for _, c := range n.all("watchdog") {
		c.device()
		s.Watchdogs = append(s.Watchdogs, vm.Watchdog{
			Model:  c.enum("model", "i6300esb", "ib700", "itco"),
			Action: c.enum("action", "reset", "shutdown", "poweroff", "pause", "none", "inject-nmi", "dump"),
		})
		if c.e.Attr("action") == "dump" {
			r.problem(c.at("action"), "the guest's memory is not dumped", "use reset or pause, or "+useLibvirt)
		}
	}
	r.tpm(n.one("tpm"))
	r.vsock(n.one("vsock"))
	for i, c := range n.all("panic") {
		c.device()
		if i > 0 {
			c.refuse("one such device is enough", "keep one")
			continue
		}
		s.Panic = &vm.Panic{Model: c.enum("model", "isa", "hyperv")}
	}
	r.iommu(n.one("iommu"))
	for _, c := range n.all("filesystem") {
		r.filesystem(c)
	}
	for _, c := range n.all("hostdev") {
		r.hostdev(c)
	}
	for _, c := range n.all("redirdev") {
		c.device()
		c.plain("bus", "usb")
		s.Redirects = append(s.Redirects, vm.USBRedirect{Char: r.char(c)})
	}
	r.refuseDevices(n)
	s.HotplugPorts = r.freePorts()
}

// refuseDevices names the devices that are not made.
func (r *reader) refuseDevices(n *node) {
	for _, x := range []struct{ name, why string }{
		{"smartcard", "smart cards are not emulated"},
		{"redirfilter", "USB redirection is not filtered"},
		{"lease", "leases are kept by libvirt's lock manager"},
		{"memory", "memory devices are not made"},
		{"shmem", "memory shared between machines is not made"},
		{"nvram", "this is for other processors"},
		{"crypto", "a virtio crypto device is not made"},
		{"pstore", "a pstore is not made"},
	} {
		for _, c := range n.all(x.name) {
			c.refuse(x.why, useLibvirt)
		}
	}
	n.ignore("hub") // libvirt puts one where the ports of a controller run out, and so does QEMU's user
}

func (r *reader) controllers(n *node) {
	r.scsi = map[int]string{}
	usb := map[int]bool{}
	for _, c := range n.all("controller") {
		c.device()
		kind := c.attr("type")
		index := c.number("index")
		model := c.attr("model")
		switch kind {
		case "pci":
			r.pciController(c, model)
			continue
		case "usb":
			if usb[index] && strings.HasPrefix(model, "ich9-") {
				c.one("master").ignore("@startport")
				continue // a companion of the one before
			}
			usb[index] = true
			c.one("master").ignore("@startport")
			model = r.usbModel(c, model)
		case "scsi":
			r.scsi[index] = model
			model = r.scsiModel(c, model)
		case "virtio-serial", "sata", "ide", "fdc", "ccid":
			c.plain("model", "virtio")
			model = ""
		default:
			c.refuse(fmt.Sprintf("a controller of type %s is not made", quote(kind)), "leave it out, or "+useLibvirt)
			continue
		}
		out := vm.Controller{Type: kind, Index: index, Model: model, Ports: c.number("ports")}
		if d := c.one("driver"); d != nil {
			out.IOThread, out.Queues = d.number("iothread"), d.number("queues")
			out.CmdPerLUN, out.MaxSectors = d.number("cmd_per_lun"), d.number("max_sectors")
		}
		r.spec.Controllers = append(r.spec.Controllers, out)
	}
}

// pciController: QEMU's root complex is what it is, and the ports are counted.
func (r *reader) pciController(c *node, model string) {
	switch model {
	case "pci-root", "pcie-root", "pci-bridge", "dmi-to-pci-bridge", "pcie-to-pci-bridge":
	case "pcie-root-port", "pcie-switch-downstream-port":
		r.rootPorts++
	default:
		c.refuse(fmt.Sprintf("a PCI controller of model %s is not made", quote(model)), "leave it out, or "+useLibvirt)
		return
	}
	c.ignore("model", "target") // libvirt's choice of the device, its bus number and its slot
	c.one("pcihole64").refuse("the size of the 64-bit PCI hole is the firmware's", useLibvirt)
}

func (r *reader) usbModel(c *node, model string) string {
	switch {
	case model == "":
		if r.spec.Chipset() == vm.MachineQ35 {
			return "qemu-xhci"
		}
		return "piix3-uhci"
	case strings.HasPrefix(model, "ich9-"):
		return "ich9"
	}
	return c.enum("model", "qemu-xhci", "nec-xhci", "ehci", "piix3-uhci", "piix4-uhci", "pci-ohci", "none")
}

func (r *reader) scsiModel(c *node, model string) string {
	switch model {
	case "virtio-non-transitional":
		return "virtio-scsi"
	case "", "auto":
		return "lsilogic" // libvirt's own choice on a PC
	}
	return c.enum("model", "virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi", "am53c974", "dc390")
}

// freePorts is how many of the document's PCIe ports its devices leave.
func (r *reader) freePorts() int {
	if r.rootPorts == 0 {
		return 0
	}
	s := r.spec
	used := len(s.NICs) + len(s.RNGs) + len(s.Videos)
	for _, d := range s.Disks {
		if d.Bus == vm.BusVirtio || d.Bus == vm.BusNVMe {
			used++
		}
	}
	for _, c := range s.Controllers {
		if c.Type == "usb" || c.Type == "scsi" || c.Type == "virtio-serial" {
			used++
		}
	}
	if s.Balloon != nil {
		used++
	}
	// More free ones than this are more than the board's slots take.
	return min(max(0, r.rootPorts-used), 8)
}

func (r *reader) input(c *node) {
	c.device()
	in := vm.Input{Type: c.attr("type"), Bus: c.enum("bus", "usb", "virtio", "ps2", "none", "xen")}
	switch in.Type {
	case "tablet", "mouse", "keyboard":
		c.plain("model", "virtio", "virtio-non-transitional")
		if in.Bus == "ps2" || in.Bus == "" && in.Type != "tablet" {
			return // the board has it
		}
	case "passthrough":
		in.Path = c.one("source").attr("evdev")
	case "evdev":
		s := c.one("source")
		in.Path = s.attr("dev")
		s.plain("grab")
		s.plain("repeat", "off")
		s.plain("grabToggle")
	default:
		c.refuse(fmt.Sprintf("input %s is unknown", quote(in.Type)), "use tablet, mouse or keyboard")
		return
	}
	r.spec.Inputs = append(r.spec.Inputs, in)
}

func (r *reader) sound(c *node) {
	c.device()
	s := vm.Sound{Model: c.enum("model", "ich6", "ich9", "ac97", "es1370", "sb16", "usb")}
	for _, codec := range c.all("codec") {
		s.Codecs = append(s.Codecs, codec.enum("type", "duplex", "micro", "output"))
	}
	c.plain("multichannel", "no")
	c.one("audio").ignore("@id")
	if s.Model != "" {
		r.spec.Sounds = append(r.spec.Sounds, s)
	}
}

// audio reads where sound goes.
func (r *reader) audio(n *node) {
	for _, a := range n.all("audio") {
		a.attr("id")
		t := a.attr("type")
		if t != "spice" && t != "none" {
			a.refuse(fmt.Sprintf("sound does not go to %s", quote(t)), "use spice or none, or "+useLibvirt)
			continue
		}
		a.one("input").ignore("@mixingEngine", "@fixedSettings", "@voices", "@bufferLength", "settings")
		a.one("output").ignore("@mixingEngine", "@fixedSettings", "@voices", "@bufferLength", "settings")
		for i := range r.spec.Sounds {
			r.spec.Sounds[i].Audio = t
		}
	}
}

func (r *reader) rng(c *node) {
	c.device()
	c.plain("model", "virtio", "virtio-non-transitional")
	c.one("driver").refuse("the driver's tuning is not done", "leave it out, or "+useLibvirt)
	var out vm.RNG
	if rate := c.one("rate"); rate != nil {
		out.RateBytes, out.RatePeriod = rate.size("bytes"), rate.number("period")
	}
	b := c.one("backend")
	if b == nil {
		c.refuse("it has no backend", "use backend random or builtin")
		return
	}
	switch b.attr("model") {
	case "random":
		out.Path = b.words()
	case "builtin":
		out.Builtin = true
	default:
		b.refuse("random numbers come from the host or from QEMU only", "use backend random or builtin, or "+useLibvirt)
		return
	}
	r.spec.RNGs = append(r.spec.RNGs, out)
}

func (r *reader) balloon(c *node) {
	if c == nil {
		return
	}
	c.device()
	b := &vm.Balloon{Autodeflate: c.toggle("autodeflate"), FreePageReporting: c.toggle("freePageReporting")}
	switch c.enum("model", "virtio", "virtio-non-transitional", "none") {
	case "none":
		b.Model = "none"
	default:
		b.Model = "virtio"
	}
	b.StatsPeriod = c.one("stats").number("period")
	c.one("driver").refuse("the driver's tuning is not done", "leave it out, or "+useLibvirt)
	r.spec.Balloon = b
}

func (r *reader) tpm(c *node) {
	if c == nil {
		return
	}
	c.device()
	t := &vm.TPM{Model: c.enum("model", "tpm-crb", "tpm-tis")}
	b := c.one("backend")
	t.Type = b.enum("type", "emulator", "passthrough")
	t.Version = b.enum("version", "1.2", "2.0")
	t.Path = b.one("device").attr("path")
	b.plain("persistent_state", "no", "yes")
	b.one("encryption").refuse("the TPM's state is not encrypted", useLibvirt)
	b.one("active_pcr_banks").refuse("the TPM's banks are swtpm's default", useLibvirt)
	r.spec.TPM = t
}

func (r *reader) vsock(c *node) {
	if c == nil {
		return
	}
	c.device()
	c.plain("model", "virtio", "virtio-non-transitional")
	cid := c.one("cid")
	v := &vm.VSock{Auto: cid.flag("auto")}
	if n := cid.ranged("address", 0, 1<<32-1); !v.Auto {
		v.CID = uint32(n)
	}
	c.one("driver").refuse("the driver's tuning is not done", "leave it out, or "+useLibvirt)
	r.spec.VSock = v
}

func (r *reader) iommu(c *node) {
	if c == nil {
		return
	}
	c.device()
	out := &vm.IOMMU{Model: c.enum("model", "intel")}
	if d := c.one("driver"); d != nil {
		out.IntRemap, out.CachingMode = d.toggle("intremap"), d.toggle("caching_mode")
		out.IOTLB, out.EIM = d.toggle("iotlb"), d.toggle("eim")
		d.plain("aw_bits")
	}
	r.spec.IOMMU = out
}

func (r *reader) filesystem(c *node) {
	c.device()
	c.plain("type", "mount")
	f := vm.Filesystem{Access: c.enum("accessmode", "mapped", "passthrough", "squash"), Driver: "9p"}
	if d := c.one("driver"); d != nil {
		if d.enum("type", "path", "virtiofs") == "virtiofs" {
			f.Driver = "virtiofs"
			f.Access = ""
		}
		d.plain("wrpolicy")
		d.plain("queue")
	}
	f.Source = c.one("source").attr("dir")
	f.Target = c.one("target").attr("dir")
	f.ReadOnly = c.one("readonly") != nil
	c.plain("multidevs", "default")
	c.plain("fmode")
	c.plain("dmode")
	c.plain("model", "virtio")
	c.one("binary").refuse("virtiofsd is started with its defaults", useLibvirt)
	r.spec.Filesystems = append(r.spec.Filesystems, f)
}

func (r *reader) hostdev(c *node) {
	c.device()
	c.plain("mode", "subsystem")
	kind := c.attr("type")
	h := vm.HostDevice{Type: kind, BootIndex: c.one("boot").number("order")}
	src := c.one("source")
	switch kind {
	case "usb":
		h.Vendor, h.Product = src.one("vendor").attr("id"), src.one("product").attr("id")
		if a := src.one("address"); a != nil {
			h.USBBus, h.USBDevice = a.number("bus"), a.number("device")
		}
		src.plain("startupPolicy", "mandatory")
		src.plain("guestReset")
		c.ignore("@managed") // USB devices have no driver to be taken from
	case "pci":
		a := src.one("address")
		h.PCI = fmt.Sprintf("%04x:%02x:%02x.%x", a.size("domain")&0xffff, a.size("bus")&0xff, a.size("slot")&0x1f, a.size("function")&7)
		c.ignore("@managed")
		c.one("driver").plain("name", "vfio")
	default:
		c.refuse(fmt.Sprintf("host devices of type %s are not passed through", quote(kind)), useLibvirt)
		return
	}
	if rom := c.one("rom"); rom != nil {
		h.ROMBar, h.ROMFile = rom.toggle("bar"), rom.attr("file")
		rom.plain("enabled", "yes")
	}
	r.spec.HostDevices = append(r.spec.HostDevices, h)
}
