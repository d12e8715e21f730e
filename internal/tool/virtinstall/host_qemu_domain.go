package virtinstall

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// domainCapabilities says what a machine of a kind can have, in the form of
// libvirt's document.
func (h *plainHost) domainCapabilities(_ context.Context, program, arch, machine, virtType string) (*domxml.Element, error) {
	if arch == "" {
		arch = nativeArch()
	}
	e := h.find()[arch]
	switch {
	case e == nil && program == "":
		return nil, fmt.Errorf("there is no QEMU for the architecture %q: %w", arch, errNoQEMU)
	case e == nil || program != "" && program != e.path:
		e = newEmulator(program)
	}
	if virtType == "" {
		virtType = "qemu"
		if h.accelerates(arch) {
			virtType = "kvm"
		}
	}
	doc := domxml.New("domainCapabilities")
	doc.AddText("path", e.path)
	doc.AddText("domain", virtType)
	doc.AddText("machine", e.canonical(machine))
	doc.AddText("arch", arch)
	firmwareCapabilities(doc, arch, e.canonical(machine))
	h.cpuCapabilities(doc, arch, virtType)
	deviceCapabilities(doc.Need("devices"), e)
	return doc, nil
}

// enum adds a list of values as libvirt has them.
func enum(at *domxml.Element, name string, values ...string) {
	e := at.Add(domxml.New("enum", "name", name))
	for _, v := range values {
		e.AddText("value", v)
	}
}

// cpuCapabilities says which CPU modes there are.
func (h *plainHost) cpuCapabilities(doc *domxml.Element, arch, virtType string) {
	cpu := doc.Need("cpu")
	native := virtType == "kvm" && h.accelerates(arch)
	cpu.Add(domxml.New("mode", "name", "host-passthrough", "supported", yesIf(native)))
	cpu.Add(domxml.New("mode", "name", "maximum", "supported", "yes"))
	model := cpu.Add(domxml.New("mode", "name", "host-model", "supported", yesIf(native)))
	if native {
		for _, name := range mitigations() {
			model.Add(domxml.New("feature", "policy", "require", "name", name))
		}
	}
	cpu.Add(domxml.New("mode", "name", "custom", "supported", "yes"))
}

func yesIf(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}

// mitigations are libvirt's names of the CPU features against the security
// problems of CPUs that this one has, of those that virt-install asks for.
func mitigations() []string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	first := make([]byte, 8<<10) // the first CPU's part; all are alike
	n, err := io.ReadFull(f, first)
	if err != nil && n == 0 {
		return nil
	}
	text, _, _ := strings.Cut(string(first[:n]), "\n\n")
	var flags []string
	for _, line := range strings.Split(text, "\n") {
		if key, list, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "flags" {
			flags = strings.Fields(list)
		}
	}
	intel := strings.Contains(text, "GenuineIntel")
	var out []string
	for _, m := range []struct {
		flag, name string
		vendor     bool
	}{
		{"ibrs", "spec-ctrl", intel}, {"ssbd", "ssbd", intel}, {"ibpb", "ibpb", !intel}, {"virt_ssbd", "virt-ssbd", !intel}, {"md_clear", "md-clear", true},
	} {
		if m.vendor && slices.Contains(flags, m.flag) {
			out = append(out, m.name)
		}
	}
	return out
}

// deviceCapabilities says which devices there are, of those that decide
// something.
func deviceCapabilities(devices *domxml.Element, e *emulator) {
	present := func(list [][3]string) (out []string) {
		for _, d := range list { // name, QEMU's device, its module
			if e.hasModule(d[1], d[2]) {
				out = append(out, d[0])
			}
		}
		return out
	}
	add := func(name string, supported bool) *domxml.Element {
		return devices.Add(domxml.New(name, "supported", yesIf(supported)))
	}
	disk := add("disk", true)
	enum(disk, "diskDevice", "disk", "cdrom", "floppy", "lun")
	enum(disk, "bus", present([][3]string{{"ide", "ide-hd", ""}, {"fdc", "floppy", ""}, {"scsi", "scsi-hd", ""}, {"virtio", "virtio-blk-pci", ""},
		{"usb", "usb-storage", ""}, {"sata", "ich9-ahci", ""}, {"nvme", "nvme", ""}})...)
	spice := e.hasModule("chardev-spicevmc", "chardev-spice") && e.hasModule("chardev-spicevmc", "ui-spice-core")
	graphics := add("graphics", true)
	kinds := []string{"vnc"}
	if spice {
		kinds = append(kinds, "spice")
	}
	if e.hasModule("egl-headless", "ui-egl-headless") {
		kinds = append(kinds, "egl-headless")
	}
	enum(graphics, "type", kinds...)
	enum(add("video", true), "modelType", append(present([][3]string{{"vga", "VGA", ""}, {"cirrus", "cirrus-vga", ""}, {"vmvga", "vmware-svga", ""},
		{"qxl", "qxl-vga", "hw-display-qxl"}, {"virtio", "virtio-gpu-pci", "hw-display-virtio-gpu-pci"}, {"bochs", "bochs-display", ""},
		{"ramfb", "ramfb", ""}}), "none")...)
	models := present([][3]string{{"tpm-tis", "tpm-tis", ""}, {"tpm-crb", "tpm-crb", ""}, {"tpm-spapr", "tpm-spapr", ""}})
	var backends []string
	if _, err := os.Stat("/dev/tpm0"); err == nil && e.has("tpm-passthrough") {
		backends = append(backends, "passthrough")
	}
	if _, err := exec.LookPath("swtpm"); err == nil && e.has("tpm-emulator") {
		backends = append(backends, "emulator")
	}
	tpm := add("tpm", len(models) > 0)
	enum(tpm, "model", models...)
	enum(tpm, "backendModel", backends...)
	rng := add("rng", e.has("virtio-rng-pci"))
	enum(rng, "model", "virtio")
	enum(rng, "backendModel", "random", "egd", "builtin")
	filesystem := add("filesystem", e.has("virtio-9p-pci") || e.has("vhost-user-fs-pci"))
	enum(filesystem, "driverType", present([][3]string{{"path", "virtio-9p-pci", ""}, {"virtiofs", "vhost-user-fs-pci", ""}})...)
	enum(add("redirdev", e.hasModule("usb-redir", "hw-usb-redirect")), "bus", "usb")
	channels := []string{"pty", "unix"}
	if spice {
		channels = append(channels, "spicevmc")
	}
	enum(add("channel", true), "type", channels...)
}

// descriptorDirs are where firmware is described (QEMU's
// docs/interop/firmware.json), the most important last.
func descriptorDirs() []string {
	dirs := []string{"/usr/share/qemu/firmware", "/etc/qemu/firmware"}
	config := os.Getenv("XDG_CONFIG_HOME")
	if homeDir, err := os.UserHomeDir(); err == nil && !filepath.IsAbs(config) {
		config = filepath.Join(homeDir, ".config")
	}
	if filepath.IsAbs(config) {
		dirs = append(dirs, filepath.Join(config, "qemu", "firmware"))
	}
	return dirs
}

// firmware is what of a firmware descriptor matters here.
type firmware struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Device     string `json:"device"`
		Executable struct {
			File string `json:"filename"`
		} `json:"executable"`
		File string `json:"filename"`
	} `json:"mapping"`
	Targets []struct {
		Arch     string   `json:"architecture"`
		Machines []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

// readFirmware returns the descriptors in the order in which they are chosen:
// by file name, where one of a later folder hides one of the same name.
func readFirmware(dirs []string) []firmware {
	files := map[string]string{}
	for _, dir := range dirs {
		all, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			continue
		}
		for _, file := range all {
			files[filepath.Base(file)] = file
		}
	}
	var names []string
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	var out []firmware
	for _, name := range names {
		var f firmware
		if b, err := os.ReadFile(files[name]); err == nil && json.Unmarshal(b, &f) == nil {
			out = append(out, f) // an empty file hides one, a damaged one is none
		}
	}
	return out
}

// fits reports whether the firmware is for such machines.
func (f firmware) fits(arch, machine string) bool {
	if arch == "i686" {
		arch = "i386" // QEMU's name
	}
	for _, t := range f.Targets {
		if t.Arch != arch {
			continue
		}
		for _, pattern := range t.Machines {
			if ok, err := path.Match(pattern, machine); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// firmwareCapabilities says which firmware there is for a machine.
func firmwareCapabilities(doc *domxml.Element, arch, machine string) {
	kinds, files := []string{}, []string{}
	secure := false
	for _, f := range readFirmware(descriptorDirs()) {
		if !f.fits(arch, machine) {
			continue
		}
		for i, kind := range f.Interfaces {
			f.Interfaces[i] = map[string]string{"uefi": "efi"}[kind]
			if kind == "bios" {
				f.Interfaces[i] = kind
			}
			if name := f.Interfaces[i]; name != "" && !slices.Contains(kinds, name) {
				kinds = append(kinds, name)
			}
		}
		if file := f.Mapping.Executable.File; file != "" && !slices.Contains(files, file) {
			files = append(files, file)
		}
		secure = secure || slices.Contains(f.Features, "requires-smm")
	}
	at := doc.Add(domxml.New("os", "supported", "yes"))
	enum(at, "firmware", kinds...)
	loader := at.Add(domxml.New("loader", "supported", "yes"))
	for _, file := range files {
		loader.AddText("value", file)
	}
	enum(loader, "type", "rom", "pflash")
	enum(loader, "readonly", "yes", "no")
	values := []string{"no"}
	if secure {
		values = []string{"yes", "no"}
	}
	enum(loader, "secure", values...)
}
