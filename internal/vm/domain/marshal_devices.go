package domain

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// plainQEMU is the remedy for what only vm/qemu has.
const plainQEMU = "leave it out, or leave out --connect"

func (w *writer) devices(d *domxml.Element) {
	s := w.spec
	textIf(d, "emulator", s.QEMU.Binary)
	names := s.DiskNames()
	for i, disk := range s.Disks {
		w.disk(d, i, disk, names[i])
	}
	w.controllers(d)
	for i, n := range s.NICs {
		w.nic(d, i, n)
	}
	w.chars(d)
	for _, in := range s.Inputs {
		w.input(d, in)
	}
	w.screens(d)
	for _, snd := range s.Sounds {
		w.sound(d, snd)
	}
	w.rngs(d)
	w.balloon(d)
	for _, x := range s.Watchdogs {
		d.Add(with("watchdog", "model", x.Model, "action", x.Action))
	}
	w.tpm(d)
	if v := s.VSock; v != nil {
		cid := with("cid", "address", numIf(v.CID))
		if v.Auto {
			cid = with("cid", "auto", "yes")
		}
		d.Add(with("vsock", "model", "virtio")).Add(cid)
	}
	if s.Panic == nil {
		d.Add(with("panic", "model", "isa"))
	} else if s.Panic.Model != "none" {
		d.Add(with("panic", "model", orElse(s.Panic.Model, "isa")))
	}
	if m := s.IOMMU; m != nil {
		e := d.Add(with("iommu", "model", m.Model))
		addIf(e, with("driver", "intremap", string(m.IntRemap), "caching_mode", string(m.CachingMode), "eim", string(m.EIM), "iotlb", string(m.IOTLB)))
	}
	for _, f := range s.Filesystems {
		w.filesystem(d, f)
	}
	for _, h := range s.HostDevices {
		w.hostdev(d, h)
	}
	for i, r := range s.Redirects {
		e := d.Add(with("redirdev", "bus", "usb", "type", string(r.Type)))
		w.char(e, r.Char, field("redirects", i, "type"))
	}
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (w *writer) disk(parent *domxml.Element, i int, d vm.Disk, name string) {
	kind, attr := "file", "file"
	if d.Path != "" && w.opts.BlockDevice(d.Path) {
		kind, attr = "block", "dev"
	}
	e := parent.Add(with("disk", "type", kind, "device", string(d.Device)))
	e.Add(w.diskDriver(d))
	if d.Path != "" {
		e.Add(with("source", attr, d.Path))
	}
	if d.SecretFile != "" {
		w.problem(field("disks", i, "secretFile"), "libvirt keeps passphrases as its own secrets", "define one with virsh secret-define, or leave out --connect")
	}
	bus := string(d.Bus)
	if d.Bus == vm.BusVirtioSCSI {
		bus = "scsi"
	}
	e.Add(with("target", "dev", name, "bus", bus, "tray", d.Tray, "removable", string(d.Removable), "rotation_rate", numIf(d.RotationRate)))
	w.iotune(e, d.Throttle)
	if d.LogicalBlock+d.PhysicalBlock > 0 {
		e.Add(with("blockio", "logical_block_size", numIf(d.LogicalBlock), "physical_block_size", numIf(d.PhysicalBlock)))
	}
	if d.ReadOnly {
		e.Add(with("readonly"))
	}
	if d.Shareable {
		e.Add(with("shareable"))
	}
	textIf(e, "serial", d.Serial)
	textIf(e, "wwn", d.WWN)
	textIf(e, "vendor", d.Vendor)
	textIf(e, "product", d.Product)
	if d.BootIndex > 0 {
		e.Add(with("boot", "order", strconv.Itoa(d.BootIndex)))
	}
	if a := d.Address; a != nil {
		e.Add(domxml.New("address", "type", "drive", "controller", strconv.Itoa(a.Controller), "bus", strconv.Itoa(a.Bus), "target", strconv.Itoa(a.Target), "unit", strconv.Itoa(a.Unit)))
	}
}

func (w *writer) diskDriver(d vm.Disk) *domxml.Element {
	x := with("driver", "name", "qemu", "type", d.Format, "cache", string(d.Cache), "io", string(d.IO),
		"queues", numIf(d.Queues), "iothread", numIf(d.IOThread))
	write := string(d.WriteError)
	if d.WriteError == vm.ErrorENOSPC {
		write = "enospace"
	}
	if write != "" {
		x.SetAttr("error_policy", write)
	}
	read := d.ReadError
	if read == "" && write != "" && write != "enospace" {
		read = vm.ErrorReport // of plain QEMU, while libvirt takes error_policy for both
	}
	if read != "" && read != vm.ErrorENOSPC {
		x.SetAttr("rerror_policy", string(read))
	}
	if d.Discard {
		x.SetAttr("discard", "unmap")
	}
	zeroes := d.DetectZeroes
	if zeroes == "" && d.Discard && !d.ReadOnly {
		zeroes = "unmap"
	}
	if zeroes != "" {
		x.SetAttr("detect_zeroes", zeroes)
	}
	if d.CopyOnRead {
		x.SetAttr("copy_on_read", "on")
	}
	return x
}

func (w *writer) iotune(e *domxml.Element, t vm.Throttle) {
	if t == (vm.Throttle{}) {
		return
	}
	io := e.Add(with("iotune"))
	fields := throttles(&t)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		textIf(io, name, numIf(*fields[name]))
	}
	textIf(io, "group_name", t.Group)
}

func (w *writer) controllers(parent *domxml.Element) {
	s := w.spec
	has := map[string]bool{}
	for _, c := range s.Controllers {
		has[c.Type] = true
		w.controller(parent, c)
	}
	if !has["scsi"] && slices.ContainsFunc(s.Disks, func(d vm.Disk) bool { return d.Bus == vm.BusVirtioSCSI }) {
		w.controller(parent, vm.Controller{Type: "scsi", Model: "virtio-scsi"})
	}
	// Libvirt adds a USB controller of its own where the document has none.
	if !has["usb"] {
		model := "none"
		if w.needsUSB() {
			model = "qemu-xhci"
		}
		parent.Add(with("controller", "type", "usb", "model", model))
	}
	// Whoever names one port leaves the others to libvirt only where it can tell
	// how many: so all are named, with one for each device that takes one.
	if s.HotplugPorts > 0 && s.Chipset() == vm.MachineQ35 {
		parent.Add(with("controller", "type", "pci", "model", "pcie-root"))
		for range s.HotplugPorts + w.pcieDevices() {
			parent.Add(with("controller", "type", "pci", "model", "pcie-root-port"))
		}
	}
}

// pcieDevices is how many ports the spec's own devices take in libvirt, or a few
// more.
func (w *writer) pcieDevices() int {
	s := w.spec
	n := len(s.NICs) + len(s.RNGs) + len(s.Videos) + len(s.Inputs) + len(s.Sounds) + len(s.Filesystems) + len(s.HostDevices)
	for _, on := range []bool{
		slices.ContainsFunc(s.Disks, func(d vm.Disk) bool { return d.Bus == vm.BusVirtioSCSI || d.Bus == vm.BusSCSI }),
		w.needsUSB(), len(s.Channels)+len(s.Consoles) > 0, s.VSock != nil,
	} {
		if on {
			n++
		}
	}
	for _, d := range s.Disks {
		if d.Bus == vm.BusVirtio || d.Bus == vm.BusNVMe {
			n++
		}
	}
	for _, c := range s.Controllers {
		if c.Type == "usb" || c.Type == "scsi" || c.Type == "virtio-serial" {
			n++
		}
	}
	if s.Balloon != nil {
		n++
	}
	if s.RNG {
		n++
	}
	return n
}

func (w *writer) needsUSB() bool {
	s := w.spec
	return slices.ContainsFunc(s.Disks, func(d vm.Disk) bool { return d.Bus == vm.BusUSB }) ||
		slices.ContainsFunc(s.Inputs, func(i vm.Input) bool { return i.Bus == "usb" || i.Bus == "" && i.Type == "tablet" }) ||
		slices.ContainsFunc(s.HostDevices, func(h vm.HostDevice) bool { return h.Type == "usb" }) ||
		slices.ContainsFunc(s.Sounds, func(x vm.Sound) bool { return x.Model == "usb" }) || len(s.Redirects) > 0
}

// controller writes one; ICH9's USB is four in libvirt.
func (w *writer) controller(parent *domxml.Element, c vm.Controller) {
	index := strconv.Itoa(c.Index)
	if c.Type == "usb" && c.Model == "ich9" {
		parent.Add(with("controller", "type", "usb", "index", index, "model", "ich9-ehci1"))
		for i := range 3 {
			x := parent.Add(with("controller", "type", "usb", "index", index, "model", fmt.Sprintf("ich9-uhci%d", i+1)))
			x.Add(with("master", "startport", strconv.Itoa(2*i)))
		}
		return
	}
	model := c.Model
	if c.Type == "scsi" && model == "" {
		model = "virtio-scsi"
	}
	e := parent.Add(with("controller", "type", c.Type, "index", index, "model", model, "ports", numIf(c.Ports)))
	addIf(e, with("driver", "iothread", numIf(c.IOThread), "queues", numIf(c.Queues), "cmd_per_lun", numIf(c.CmdPerLUN), "max_sectors", numIf(c.MaxSectors)))
}

func (w *writer) nic(parent *domxml.Element, i int, n vm.NIC) {
	kind := string(n.Type)
	switch n.Type {
	case "", vm.NICUser:
		kind = "user"
		for _, x := range []struct {
			on   bool
			name string
		}{{len(n.Forwards) > 0, "forwards"}, {n.Network != "", "network"}, {n.Hostname != "", "hostname"}, {n.TFTP != "", "tftp"}, {n.BootFile != "", "bootFile"}, {n.Restrict, "restrict"}} {
			if x.on {
				w.problem(field("nics", i, x.name), "libvirt's user network does not have this", plainQEMU)
			}
		}
	case vm.NICTap:
		kind = "ethernet"
	case vm.NICNone:
		w.problem(field("nics", i, "type"), "libvirt has no card without a network", "use a network with the link down")
	}
	e := parent.Add(with("interface", "type", kind))
	if n.Type == vm.NICBridge {
		e.Add(with("source", "bridge", n.Bridge))
	}
	addIf(e, with("mac", "address", n.MAC))
	if n.Type == vm.NICTap {
		e.Add(with("target", "dev", n.Device, "managed", "no"))
	} else {
		addIf(e, with("target", "dev", n.Device))
	}
	model := n.Model
	if model == "virtio-net-pci" {
		model = "virtio"
	}
	addIf(e, with("model", "type", model))
	vhost := map[vm.Toggle]string{vm.On: "vhost", vm.Off: "qemu"}[n.VHost]
	addIf(e, with("driver", "name", vhost, "queues", numIf(n.Queues)))
	addIf(e, with("link", "state", string(n.Link)))
	addIf(e, with("mtu", "size", numIf(n.MTU)))
	addIf(e, with("rom", "file", n.ROM))
	if n.BootIndex > 0 {
		e.Add(with("boot", "order", strconv.Itoa(n.BootIndex)))
	}
}

// chars writes ports, consoles and channels. The first serial port of a spec
// that says nothing of them is one with a pty, which `virsh console` takes.
func (w *writer) chars(parent *domxml.Element) {
	s := w.spec
	serials := s.Serials
	if serials == nil {
		serials = []vm.Char{{Type: vm.CharPTY}}
	}
	for i, c := range serials {
		if c.Type == vm.CharNone {
			continue
		}
		e := parent.Add(with("serial", "type", string(charType(c))))
		w.char(e, c, field("serials", i, "type"))
		model := c.Model
		if model != "" && model != "isa-serial" {
			kind := model
			if model == "isa-debugcon" {
				kind = "isa-debug"
			}
			e.Add(with("target", "type", kind)).Add(with("model", "name", model))
		}
	}
	for i, c := range s.Parallels {
		e := parent.Add(with("parallel", "type", string(charType(c))))
		w.char(e, c, field("parallels", i, "type"))
	}
	for i, c := range s.Consoles {
		e := parent.Add(with("console", "type", string(charType(c))))
		w.char(e, c, field("consoles", i, "type"))
		e.Add(with("target", "type", "virtio"))
	}
	for i, c := range s.Channels {
		e := parent.Add(with("channel", "type", string(charType(c.Char))))
		w.char(e, c.Char, field("channels", i, "type"))
		e.Add(with("target", "type", "virtio", "name", c.Target))
	}
}

func charType(c vm.Char) vm.CharType {
	switch c.Type {
	case "":
		return vm.CharPTY
	case vm.CharLog:
		return vm.CharNull
	}
	return c.Type
}

// char writes the far end.
func (w *writer) char(e *domxml.Element, c vm.Char, field string) {
	mode := "connect"
	if c.Listen {
		mode = "bind"
	}
	switch c.Type {
	case vm.CharTCP:
		e.Add(with("source", "mode", mode, "host", orElse(c.Host, "127.0.0.1"), "service", strconv.Itoa(c.Port)))
		protocol := "raw"
		if c.Telnet {
			protocol = "telnet"
		}
		e.Add(with("protocol", "type", protocol))
	case vm.CharUDP:
		if c.BindPort != 0 || c.BindHost != "" {
			e.Add(with("source", "mode", "bind", "host", c.BindHost, "service", strconv.Itoa(c.BindPort)))
		}
		e.Add(with("source", "mode", "connect", "host", orElse(c.Host, "127.0.0.1"), "service", strconv.Itoa(c.Port)))
	case vm.CharUnix:
		e.Add(with("source", "mode", mode, "path", c.Path))
	case vm.CharFile:
		e.Add(with("source", "path", c.Path, "append", onIf(c.Append)))
	case vm.CharPipe, vm.CharDev:
		e.Add(with("source", "path", c.Path))
	case vm.CharPort:
		e.Add(with("source", "channel", c.Name))
	case "", vm.CharPTY, vm.CharNull, vm.CharLog, vm.CharVMC, vm.CharNone:
	default:
		w.problem(field, fmt.Sprintf("unknown character device %q", c.Type), "use pty, unix, tcp or file")
	}
	if c.LogFile != "" {
		e.Add(with("log", "file", c.LogFile, "append", onIf(c.LogAppend)))
	}
}

func onIf(b bool) string {
	if b {
		return "on"
	}
	return ""
}

func (w *writer) input(parent *domxml.Element, in vm.Input) {
	bus := in.Bus
	if bus == "" && in.Type != "evdev" {
		bus = "usb"
	}
	e := parent.Add(with("input", "type", in.Type, "bus", bus))
	switch in.Type {
	case "passthrough":
		e.SetAttr("bus", "virtio")
		e.Add(with("source", "evdev", in.Path))
	case "evdev":
		e.Add(with("source", "dev", in.Path))
	}
}

func (w *writer) sound(parent *domxml.Element, s vm.Sound) {
	e := parent.Add(with("sound", "model", s.Model))
	for _, c := range s.Codecs {
		e.Add(with("codec", "type", c))
	}
}

func (w *writer) rngs(parent *domxml.Element) {
	all := w.spec.RNGs
	if w.spec.RNG {
		all = append([]vm.RNG{{}}, all...)
	}
	for _, r := range all {
		e := parent.Add(with("rng", "model", "virtio"))
		if r.RateBytes > 0 {
			e.Add(with("rate", "bytes", numIf(r.RateBytes), "period", numIf(r.RatePeriod)))
		}
		if r.Builtin {
			e.Add(with("backend", "model", "builtin"))
			continue
		}
		b := with("backend", "model", "random")
		b.Text = orElse(r.Path, "/dev/urandom")
		e.Add(b)
	}
}

// balloon: where the spec has none, libvirt must be told so.
func (w *writer) balloon(parent *domxml.Element) {
	b := w.spec.Balloon
	if b == nil || b.Model == "none" {
		parent.Add(with("memballoon", "model", "none"))
		return
	}
	e := parent.Add(with("memballoon", "model", orElse(b.Model, "virtio"), "autodeflate", string(b.Autodeflate), "freePageReporting", string(b.FreePageReporting)))
	addIf(e, with("stats", "period", numIf(b.StatsPeriod)))
}

func (w *writer) tpm(parent *domxml.Element) {
	t := w.spec.TPM
	if t == nil {
		return
	}
	e := parent.Add(with("tpm", "model", orElse(t.Model, "tpm-crb")))
	kind := orElse(t.Type, "emulator")
	if kind == "emulator" {
		e.Add(with("backend", "type", kind, "version", orElse(t.Version, "2.0")))
		return
	}
	e.Add(with("backend", "type", kind)).Add(with("device", "path", orElse(t.Path, "/dev/tpm0")))
}

func (w *writer) filesystem(parent *domxml.Element, f vm.Filesystem) {
	virtiofs := f.Driver == "virtiofs"
	access := orElse(f.Access, "mapped")
	if virtiofs {
		access = "passthrough"
	}
	e := parent.Add(with("filesystem", "type", "mount", "accessmode", access))
	if virtiofs {
		e.Add(with("driver", "type", "virtiofs"))
	}
	e.Add(with("source", "dir", f.Source))
	e.Add(with("target", "dir", f.Target))
	if f.ReadOnly {
		e.Add(with("readonly"))
	}
}

func (w *writer) hostdev(parent *domxml.Element, h vm.HostDevice) {
	e := parent.Add(with("hostdev", "mode", "subsystem", "type", h.Type, "managed", "yes"))
	src := e.Add(with("source"))
	if h.Type == "pci" {
		src.Add(pciAddress(h.PCI))
	} else {
		addIf(src, with("vendor", "id", h.Vendor))
		addIf(src, with("product", "id", h.Product))
		if h.USBDevice > 0 {
			src.Add(with("address", "bus", strconv.Itoa(h.USBBus), "device", strconv.Itoa(h.USBDevice)))
		}
	}
	if h.BootIndex > 0 {
		e.Add(with("boot", "order", strconv.Itoa(h.BootIndex)))
	}
	addIf(e, with("rom", "bar", string(h.ROMBar), "file", h.ROMFile))
}

// pciAddress takes 0000:01:00.0 apart.
func pciAddress(s string) *domxml.Element {
	parts := strings.FieldsFunc(s, func(r rune) bool { return r == ':' || r == '.' })
	if len(parts) == 3 {
		parts = append([]string{"0000"}, parts...)
	}
	for len(parts) < 4 {
		parts = append(parts, "0")
	}
	return with("address", "domain", "0x"+parts[0], "bus", "0x"+parts[1], "slot", "0x"+parts[2], "function", "0x"+parts[3])
}
