package virtinstall

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestEmulator: what is read out of QEMU's program is what QEMU says itself.
func TestEmulator(t *testing.T) {
	e := newEmulator(qemutest.Path(t, "qemu-system-x86_64"))
	if e.read().asked {
		t.Error("the program was not read, but asked")
	}
	machines, aliases := map[string]bool{"none": true}, map[string]string{}
	for _, line := range strings.Split(qemutest.Run(t, e.path, "-machine", "help").Stdout, "\n")[1:] {
		name, rest, _ := strings.Cut(line, " ")
		if _, full, ok := strings.Cut(rest, "(alias of "); ok {
			aliases[name] = strings.TrimSuffix(full, ")")
		} else if name != "" {
			machines[name] = true
		}
	}
	for _, m := range e.machines() {
		if !machines[m] {
			t.Errorf("QEMU does not have the machine %s", m)
		}
		delete(machines, m)
	}
	if len(machines) > 0 {
		t.Errorf("machines not found: %v", machines)
	}
	got := e.aliases()
	if len(got) != len(aliases) || got["pc"] != aliases["pc"] || got["q35"] != aliases["q35"] {
		t.Errorf("aliases %v, of QEMU %v", got, aliases)
	}
	devices := qemutest.Run(t, e.path, "-device", "help").Stdout
	for device, module := range map[string]string{"VGA": "", "cirrus-vga": "", "qxl-vga": "hw-display-qxl", "virtio-gpu-pci": "hw-display-virtio-gpu-pci",
		"bochs-display": "", "tpm-tis": "", "tpm-crb": "", "nvme": "", "virtio-rng-pci": "", "usb-redir": "hw-usb-redirect", "virtio-9p-pci": "", "no-such-device": ""} {
		want := strings.Contains(devices, `name "`+device+`"`)
		if got := e.hasModule(device, module); got != want {
			t.Errorf("%s: found %v, of QEMU %v", device, got, want)
		}
	}
}

// TestAskedEmulator: a script in front of QEMU is asked, and what fails has
// nothing.
func TestAskedEmulator(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "qemu")
	real := qemutest.Path(t, "qemu-system-x86_64")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec "+real+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	e, read := newEmulator(script), newEmulator(real)
	if !e.read().asked || e.binary() || !read.binary() {
		t.Error("the script was taken for a program")
	}
	if got, want := e.machines(), read.machines(); !slices.Equal(got, want) {
		t.Errorf("asked %v\nread  %v", got, want)
	}
	if !e.has("virtio-rng-pci") || e.has("no-such-device") {
		t.Error("the devices differ")
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("\x7fELF and nothing more"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{broken, filepath.Join(dir, "none"), dir} {
		if m := newEmulator(path).machines(); len(m) > 0 {
			t.Errorf("%s has machines %v", path, m)
		}
	}
}

// TestPlainHost: the documents have what defaults are made of, and the same as
// libvirt's where both say something.
func TestPlainHost(t *testing.T) {
	h := newPlainHost()
	doc, err := h.capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	caps := readCapabilities(doc)
	p, err := caps.choose(platform{machine: "q35"})
	if err != nil || p.arch != "x86_64" || p.osType != "hvm" || p.emulator != qemutest.Path(t, "qemu-system-x86_64") {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := caps.choose(platform{machine: "nope"}); err == nil {
		t.Error("there is a machine nope")
	}
	dc, err := h.domainCapabilities(t.Context(), "", "x86_64", "q35", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	d := domainCaps{dc}
	if !strings.HasPrefix(d.machine(), "pc-q35-") || d.mode("host-passthrough") || !d.mode("maximum") || !d.has("os", "firmware", "efi") ||
		!d.has("devices/graphics", "type", "spice") || !d.has("devices/video", "modelType", "qxl") || d.has("devices/video", "modelType", "gop") ||
		!d.has("devices/tpm", "backendModel", "emulator") || d.has("os/loader", "secure", "maybe") {
		t.Errorf("%s", dc)
	}
	if _, err := h.domainCapabilities(t.Context(), "", "vax", "", ""); err == nil || !strings.Contains(err.Error(), "vax") {
		t.Errorf("a vax: %v", err)
	}
	for name, want := range map[string]bool{"default": true, "nope": false} {
		if n, err := h.network(t.Context(), name); err != nil || (n != nil) != want {
			t.Errorf("network %s: %v, %v", name, n, err)
		}
	}
	t.Setenv("LAMINA_HOME", t.TempDir())
	if m, err := h.domain(t.Context(), "nobody"); m != nil || err != nil {
		t.Errorf("without a daemon: %v, %v", m, err)
	}
}

func BenchmarkPlainHost(b *testing.B) {
	for b.Loop() {
		h := newPlainHost()
		if _, err := h.capabilities(b.Context()); err != nil {
			b.Fatal(err)
		}
		if _, err := h.domainCapabilities(b.Context(), "", "x86_64", "q35", "qemu"); err != nil {
			b.Fatal(err)
		}
	}
}
