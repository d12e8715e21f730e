package vm

import (
	"fmt"
	"slices"
	"strings"
)

func (s Spec) validateDevices(f *findings) {
	s.validateInputs(f)
	s.validateSounds(f)
	for i, r := range s.RNGs {
		field := fmt.Sprintf("rngs[%d]", i)
		if r.Path != "" {
			absolute(f, field+".path", r.Path)
		}
		atLeastZero(f, field+".rateBytes", r.RateBytes)
		atLeastZero(f, field+".ratePeriod", r.RatePeriod)
	}
	if b := s.Balloon; b != nil {
		oneOf(f, "balloon.model", b.Model, "", "virtio", "none")
		toggle(f, "balloon.autodeflate", b.Autodeflate)
		toggle(f, "balloon.freePageReporting", b.FreePageReporting)
		atLeastZero(f, "balloon.statsPeriod", b.StatsPeriod)
	}
	if g := s.GenerationID; g != "" && !validUUID().MatchString(g) {
		f.add("generationID", fmt.Sprintf("%q is not a UUID", g), "use one such as "+NewUUID())
	}
	s.validateWatchdogs(f)
	s.validateTPM(f)
	if v := s.VSock; v != nil && !v.Auto && (v.CID < 3 || v.CID == 1<<32-1) {
		f.add("vsock.cid", fmt.Sprintf("%d is not a guest's", v.CID), "use 3 or more, or auto")
	}
	if p := s.Panic; p != nil {
		oneOf(f, "panic.model", p.Model, "", "isa", "hyperv", "none")
	}
	s.validateIOMMU(f)
	s.validateFilesystems(f)
	s.validateHostDevices(f)
	s.validateQEMU(f)
}

func (s Spec) validateInputs(f *findings) {
	for i, in := range s.Inputs {
		field := fmt.Sprintf("inputs[%d]", i)
		oneOf(f, field+".type", in.Type, "tablet", "mouse", "keyboard", "passthrough", "evdev")
		oneOf(f, field+".bus", in.Bus, "", "usb", "virtio", "ps2")
		switch {
		case in.Type == "passthrough" || in.Type == "evdev":
			absolute(f, field+".path", in.Path)
			if in.Type == "passthrough" && in.Bus != "virtio" {
				f.add(field+".bus", "a host's device is passed through virtio only", "use bus virtio")
			}
		case in.Bus == "ps2" && in.Type == "tablet":
			f.add(field+".bus", "PS/2 has no tablet", "use usb or virtio")
		}
	}
}

func (s Spec) validateSounds(f *findings) {
	for i, x := range s.Sounds {
		field := fmt.Sprintf("sounds[%d]", i)
		oneOf(f, field+".model", x.Model, "ich6", "ich9", "ac97", "es1370", "sb16", "usb")
		oneOf(f, field+".audio", x.Audio, "", "spice", "none")
		for _, c := range x.Codecs {
			oneOf(f, field+".codecs", c, "duplex", "micro", "output")
		}
		if x.Audio == "spice" && !s.HasSPICE() {
			f.add(field+".audio", "there is no SPICE display that could play it", "add one, or use none")
		}
	}
}

func (s Spec) validateWatchdogs(f *findings) {
	for i, w := range s.Watchdogs {
		field := fmt.Sprintf("watchdogs[%d]", i)
		oneOf(f, field+".model", w.Model, "i6300esb", "ib700", "itco")
		oneOf(f, field+".action", w.Action, "", "reset", "shutdown", "poweroff", "pause", "none", "inject-nmi")
		if w.Model == "itco" && s.Chipset() != MachineQ35 {
			f.add(field+".model", "the iTCO watchdog is part of q35", "use i6300esb, or machine type q35")
		}
		if w.Action != s.Watchdogs[0].Action {
			f.add(field+".action", "all watchdogs of a machine do the same", "use "+s.Watchdogs[0].Action)
		}
		if slices.ContainsFunc(s.Watchdogs[:i], func(o Watchdog) bool { return o.Model == w.Model }) {
			f.add(field+".model", "a second "+w.Model, "leave one out")
		}
	}
}

func (s Spec) validateTPM(f *findings) {
	t := s.TPM
	if t == nil {
		return
	}
	oneOf(f, "tpm.model", t.Model, "", "tpm-crb", "tpm-tis")
	oneOf(f, "tpm.type", t.Type, "", "emulator", "passthrough")
	oneOf(f, "tpm.version", t.Version, "", "2.0", "1.2")
	if t.Version == "1.2" && t.Model != "tpm-tis" {
		f.add("tpm.version", "tpm-crb is of version 2.0", "use model tpm-tis")
	}
	if t.Path != "" {
		absolute(f, "tpm.path", t.Path)
		if t.Type != "passthrough" {
			f.add("tpm.path", "the emulator has no device on the host", "leave it out, or use passthrough")
		}
	}
}

func (s Spec) validateIOMMU(f *findings) {
	m := s.IOMMU
	if m == nil {
		return
	}
	oneOf(f, "iommu.model", m.Model, "intel")
	for name, t := range inOrder(map[string]Toggle{"intremap": m.IntRemap, "cachingMode": m.CachingMode, "iotlb": m.IOTLB, "eim": m.EIM}) {
		toggle(f, "iommu."+name, t)
	}
	if s.Chipset() != MachineQ35 {
		f.add("iommu.model", "machine type "+s.Machine+" has none", "use q35")
	}
	if m.IntRemap == On && s.Features.IOAPIC != "qemu" {
		f.add("iommu.intremap", "interrupt remapping needs a split IOAPIC", "set features.ioapic to qemu")
	}
}

func (s Spec) validateFilesystems(f *findings) {
	seen := map[string]bool{}
	for i, x := range s.Filesystems {
		field := fmt.Sprintf("filesystems[%d]", i)
		oneOf(f, field+".driver", x.Driver, "", "9p", "virtiofs")
		oneOf(f, field+".access", x.Access, "", "mapped", "passthrough", "squash")
		absolute(f, field+".source", x.Source)
		if !validPort().MatchString(x.Target) {
			f.add(field+".target", fmt.Sprintf("%q is not a tag to mount by", x.Target), "use up to 31 letters, digits, '.', '_' and '-'")
		}
		if seen[x.Target] {
			f.add(field+".target", x.Target+" is there twice", "use another")
		}
		seen[x.Target] = true
		if x.Driver == "virtiofs" && strings.ContainsAny(x.Source, `,\`) {
			f.add(field+".source", fmt.Sprintf("virtiofsd cannot be told of %q: it holds a comma or a backslash", x.Source), "rename the folder, or use 9p")
		}
		if x.Driver == "virtiofs" && x.ReadOnly {
			f.add(field+".readOnly", "virtiofs has no read-only mode", "use 9p, or mount it read-only in the guest")
		}
		if x.Driver == "virtiofs" && x.Access != "" && x.Access != "passthrough" {
			f.add(field+".access", "virtiofs passes owners and modes through", "use 9p, or leave it out")
		}
	}
}

var (
	validPCI   = pattern(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	validUSBID = pattern(`^0x[0-9a-f]{4}$`)
)

func (s Spec) validateHostDevices(f *findings) {
	for i, h := range s.HostDevices {
		field := fmt.Sprintf("hostDevices[%d]", i)
		oneOf(f, field+".type", h.Type, "usb", "pci")
		toggle(f, field+".romBar", h.ROMBar)
		switch h.Type {
		case "pci":
			if !validPCI().MatchString(h.PCI) {
				f.add(field+".pci", fmt.Sprintf("%q is not a PCI address", h.PCI), "write it as lspci -D does, as in 0000:01:00.0")
			}
		case "usb":
			place, identity := h.USBBus > 0 && h.USBDevice > 0, h.Vendor != "" && h.Product != ""
			if place == identity {
				f.add(field, "a USB device has a bus and a device number, or a vendor and a product", "say one of the two, as lsusb lists them")
			}
			if !matches(validUSBID, h.Vendor) || !matches(validUSBID, h.Product) {
				f.add(field+".vendor", fmt.Sprintf("%q and %q", h.Vendor, h.Product), "write them as in 0x1d6b")
			}
		}
		if h.ROMFile != "" {
			absolute(f, field+".romFile", h.ROMFile)
		}
	}
}

// controllerModels are those of each type of controller.
var controllerModels = map[string][]string{
	"scsi":          {"", "virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi", "am53c974", "dc390"},
	"usb":           {"", "qemu-xhci", "nec-xhci", "ich9", "ehci", "piix3-uhci", "piix4-uhci", "pci-ohci", "none"},
	"sata":          {"", "ahci"},
	"ide":           {"", "piix3", "piix4"},
	"virtio-serial": {"", "virtio"},
	"fdc":           {""},
	"ccid":          {""},
}

func (s Spec) validateControllers(f *findings) {
	type key struct {
		kind  string
		index int
	}
	seen := map[key]bool{}
	for i, c := range s.Controllers {
		field := fmt.Sprintf("controllers[%d]", i)
		models, known := controllerModels[c.Type]
		switch {
		case !known:
			f.add(field+".type", fmt.Sprintf("unknown type %q", c.Type), "use scsi, usb, sata, ide, virtio-serial, fdc or ccid; PCI ports are hotplugPorts")
			continue
		case !slices.Contains(models, c.Model):
			f.add(field+".model", fmt.Sprintf("a controller of type %s cannot be %q", c.Type, c.Model), "use one of "+strings.Join(models[1:], ", "))
		case c.Index < 0 || c.Index > 31:
			f.add(field+".index", fmt.Sprintf("%d", c.Index), "use 0 to 31")
		case seen[key{c.Type, c.Index}]:
			f.add(field+".index", fmt.Sprintf("a second %s controller %d", c.Type, c.Index), "number them from 0, each once")
		case c.Index > 0 && slices.Contains([]string{"ide", "fdc", "virtio-serial", "ccid"}, c.Type):
			f.add(field+".index", fmt.Sprintf("a second controller of type %s", c.Type), "leave it out")
		case c.Type == "ide" && s.Chipset() != MachinePC:
			f.add(field+".type", fmt.Sprintf("machine type %s has no ide controller", s.Machine), "use sata, or machine type pc")
		}
		seen[key{c.Type, c.Index}] = true
		s.validateController(f, field, c)
	}
	if s.HotplugPorts < 0 || s.HotplugPorts > 24 {
		f.add("hotplugPorts", fmt.Sprintf("%d ports", s.HotplugPorts), "use up to 24")
	}
	if s.IOThreads < 0 || s.IOThreads > 64 {
		f.add("ioThreads", fmt.Sprintf("%d threads", s.IOThreads), "use up to 64")
	}
}

func (s Spec) validateController(f *findings, field string, c Controller) {
	virtioSCSI := c.Type == "scsi" && (c.Model == "" || c.Model == "virtio-scsi")
	if !virtioSCSI && (c.IOThread != 0 || c.Queues != 0 || c.CmdPerLUN != 0 || c.MaxSectors != 0) {
		f.add(field, "threads, queues and limits are of virtio-scsi", "leave them out, or use that model")
	}
	if c.IOThread < 0 || c.IOThread > s.IOThreads {
		f.add(field+".ioThread", fmt.Sprintf("there is no thread %d", c.IOThread), fmt.Sprintf("the machine has %d: set ioThreads", s.IOThreads))
	}
	atLeastZero(f, field+".queues", c.Queues)
	atLeastZero(f, field+".cmdPerLun", c.CmdPerLUN)
	atLeastZero(f, field+".maxSectors", c.MaxSectors)
	xhci := c.Type == "usb" && (c.Model == "" || strings.HasSuffix(c.Model, "xhci"))
	switch {
	case c.Ports == 0:
	case xhci && c.Ports > 0 && c.Ports <= 15:
	case c.Type == "virtio-serial" && c.Ports > 0 && c.Ports <= 511:
	default:
		f.add(field+".ports", fmt.Sprintf("%d ports", c.Ports), "use up to 15 with qemu-xhci, up to 511 with virtio-serial, or leave it out")
	}
	if c.Type == "scsi" && c.Model != "" && c.Model != "virtio-scsi" {
		for _, d := range s.Disks {
			if d.Bus == BusVirtioSCSI && d.controller() == c.Index {
				f.add(field+".model", c.Model+" for a disk on virtio-scsi", "put the disk on bus scsi, or use virtio-scsi")
			}
		}
	}
}

func (d Disk) controller() int {
	if d.Address == nil {
		return 0
	}
	return d.Address.Controller
}

// ownOptions are what the driver says itself: another one would break how it
// runs and adopts the machine.
var ownOptions = []string{"-S", "-qmp", "-mon", "-pidfile", "-daemonize", "-name", "-uuid", "-incoming", "-nodefaults", "-sandbox", "-runas", "-chroot"}

func (s Spec) validateQEMU(f *findings) {
	if s.QEMU.Binary != "" {
		absolute(f, "qemu.binary", s.QEMU.Binary)
	}
	for i, a := range s.QEMU.Args {
		field := fmt.Sprintf("qemu.args[%d]", i)
		if strings.ContainsRune(a, 0) {
			f.add(field, "holds a zero byte", "leave it out")
		}
		if name := strings.TrimPrefix(a, "-"); slices.Contains(ownOptions, "-"+strings.TrimPrefix(name, "-")) && strings.HasPrefix(a, "-") {
			f.add(field, a+" is how the machine is run and found again", "leave it out")
		}
	}
	for k, v := range inOrder(s.QEMU.Env) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			f.add("qemu.env", fmt.Sprintf("%q is not a variable", k), "use a name without '='")
		}
	}
}
