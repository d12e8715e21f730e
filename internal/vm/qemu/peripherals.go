package qemu

import (
	"fmt"
	"strconv"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// rngArgs are sources of random numbers.
func (c config) rngArgs() []string {
	var all []vm.RNG
	if c.spec.RNG {
		all = append(all, vm.RNG{})
	}
	all = append(all, c.spec.RNGs...)
	var args []string
	for i, r := range all {
		id := fmt.Sprintf("rng%d", i)
		source := device("rng-builtin", "id", id)
		if !r.Builtin {
			path := r.Path
			if path == "" {
				path = "/dev/urandom"
			}
			source = device("rng-random", "id", id, "filename", path)
		}
		period := number(r.RatePeriod)
		if r.RateBytes > 0 && r.RatePeriod == 0 {
			period = "1000"
		}
		args = append(args, "-object", source, "-device", device("virtio-rng-pci", "id", id+"-device", "rng", id, "max-bytes", number(r.RateBytes), "period", period))
	}
	return args
}

// inputArgs are tablets, mice and keyboards beside the board's own.
func (c config) inputArgs() []string {
	var args []string
	for i, in := range c.spec.Inputs {
		id := fmt.Sprintf("input%d", i)
		switch {
		case in.Type == "evdev":
			args = append(args, "-object", device("input-linux", "id", id, "evdev", in.Path))
		case in.Type == "passthrough":
			args = append(args, "-device", device("virtio-input-host-pci", "id", id, "evdev", in.Path))
		case in.Bus == "ps2": // the board has them
		case in.Bus == "virtio":
			args = append(args, "-device", device("virtio-"+in.Type+"-pci", "id", id))
		default:
			driver := map[string]string{"tablet": "usb-tablet", "mouse": "usb-mouse", "keyboard": "usb-kbd"}[in.Type]
			args = append(args, "-device", device(driver, "id", id, "bus", usbBus))
		}
	}
	return args
}

// soundArgs are sound cards. The sound goes to SPICE, or nowhere.
func (c config) soundArgs() []string {
	var args []string
	for i, s := range c.spec.Sounds {
		id, audio := fmt.Sprintf("sound%d", i), fmt.Sprintf("audio%d", i)
		backend := s.Audio
		if backend == "" {
			backend = "none"
			if c.spec.HasSPICE() {
				backend = "spice"
			}
		}
		args = append(args, "-audiodev", device(backend, "id", audio))
		add := func(driver string, p ...string) { args = append(args, "-device", device(driver, p...)) }
		switch s.Model {
		case "ich6", "ich9":
			add(map[string]string{"ich6": "intel-hda", "ich9": "ich9-intel-hda"}[s.Model], "id", id)
			codecs := s.Codecs
			if len(codecs) == 0 {
				codecs = []string{"duplex"}
			}
			for n, codec := range codecs {
				add("hda-"+codec, "id", fmt.Sprintf("%s-codec%d", id, n), "bus", id+".0", "cad", strconv.Itoa(n), "audiodev", audio)
			}
		case "usb":
			add("usb-audio", "id", id, "bus", usbBus, "audiodev", audio)
		default:
			add(map[string]string{"ac97": "AC97", "es1370": "ES1370", "sb16": "sb16"}[s.Model], "id", id, "audiodev", audio)
		}
	}
	return args
}

// watchArgs are what looks after the guest: balloon, watchdogs, TPM.
func (c config) watchArgs() []string {
	s := c.spec
	var args []string
	if b := s.Balloon; b != nil && b.Model != "none" {
		args = append(args, "-device", device("virtio-balloon-pci", "id", "balloon0", "deflate-on-oom", string(b.Autodeflate), "free-page-reporting", string(b.FreePageReporting)))
	}
	for i, w := range s.Watchdogs {
		if w.Model == "itco" {
			args = append(args, "-global", "ICH9-LPC.noreboot=off")
			continue
		}
		args = append(args, "-device", device(w.Model, "id", fmt.Sprintf("watchdog%d", i)))
	}
	if t := s.TPM; t != nil {
		args = append(args, tpmArgs(*t)...)
	}
	if s.GenerationID != "" {
		args = append(args, "-device", device("vmgenid", "id", "genid0", "guid", s.GenerationID))
	}
	return args
}

func tpmArgs(t vm.TPM) []string {
	model := t.Model
	if model == "" {
		model = "tpm-crb"
	}
	guest := []string{"-device", device(model, "id", "tpm0-device", "tpmdev", "tpm0")}
	if t.Type == "passthrough" {
		path := t.Path
		if path == "" {
			path = "/dev/tpm0"
		}
		return append([]string{"-tpmdev", device("passthrough", "id", "tpm0", "path", path)}, guest...)
	}
	return append([]string{
		"-chardev", "socket,id=tpm0-chardev,path=" + home.TPMSocket,
		"-tpmdev", "emulator,id=tpm0,chardev=tpm0-chardev",
	}, guest...)
}

// vsockArgs: the host's half was opened by us, as it may need privileges and
// the address must be free.
func (c config) vsockArgs() []string {
	if c.spec.VSock == nil {
		return nil
	}
	return []string{"-device", device("vhost-vsock-pci", "id", "vsock0", "guest-cid", strconv.FormatUint(uint64(c.spec.VSock.CID), 10), "vhostfd", number(c.vsockFD))}
}

// filesystemArgs are folders that the guest mounts.
func (c config) filesystemArgs() []string {
	var args []string
	for i, f := range c.spec.Filesystems {
		id := fmt.Sprintf("fs%d", i)
		if f.Driver == "virtiofs" {
			args = append(args, "-chardev", "socket,id="+id+"-chardev,path="+filesystemSocket(i),
				"-device", device("vhost-user-fs-pci", "id", id+"-device", "chardev", id+"-chardev", "tag", f.Target))
			continue
		}
		model := map[string]string{"": "mapped-xattr", "mapped": "mapped-xattr", "passthrough": "passthrough", "squash": "none"}[f.Access]
		args = append(args, "-fsdev", device("local", "id", id, "path", f.Source, "security_model", model, "readonly", onIf(f.ReadOnly)),
			"-device", device("virtio-9p-pci", "id", id+"-device", "fsdev", id, "mount_tag", f.Target))
	}
	return args
}

func filesystemSocket(index int) string { return fmt.Sprintf("fs%d.sock", index) }

// hostArgs are the host's own devices, and those that a viewer lends.
func (c config) hostArgs() []string {
	var args []string
	for i, h := range c.spec.HostDevices {
		id := fmt.Sprintf("hostdev%d", i)
		if h.Type == "pci" {
			args = append(args, "-device", device("vfio-pci", "id", id, "host", h.PCI, "bootindex", number(h.BootIndex),
				"rombar", map[vm.Toggle]string{vm.On: "1", vm.Off: "0"}[h.ROMBar], "romfile", h.ROMFile))
			continue
		}
		args = append(args, "-device", device("usb-host", "id", id, "bus", usbBus, "hostbus", number(h.USBBus), "hostaddr", number(h.USBDevice),
			"vendorid", h.Vendor, "productid", h.Product, "bootindex", number(h.BootIndex)))
	}
	for i, r := range c.spec.Redirects {
		id := fmt.Sprintf("redir%d", i)
		if r.Type == "" {
			r.Type = vm.CharVMC
		}
		args = append(args, "-chardev", chardev(id, r.Char, id+".sock", "usbredir"), "-device", device("usb-redir", "id", id+"-device", "bus", usbBus, "chardev", id))
	}
	return args
}

// floppyBoot: the boot order of floppy drives is their controller's.
func floppyBoot(d vm.Disk, unit int) []string {
	if d.BootIndex == 0 {
		return nil
	}
	return []string{"-global", fmt.Sprintf("isa-fdc.bootindex%s=%d", string(rune('A'+unit)), d.BootIndex)}
}
