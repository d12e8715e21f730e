package virtinstall

import (
	"context"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// plainHost is QEMU alone on this computer. Its documents are made of what the
// QEMU binary and the kernel say.
type plainHost struct{}

func newPlainHost() *plainHost { return &plainHost{} }

func (h *plainHost) uri() string  { return "" }
func (h *plainHost) close() error { return nil }

func (h *plainHost) capabilities(context.Context) (*domxml.Element, error) {
	doc := domxml.New("capabilities")
	if err := doc.Set("host/cpu/arch", "x86_64"); err != nil {
		return nil, err
	}
	guest := doc.Add(domxml.New("guest"))
	guest.AddText("os_type", "hvm")
	arch := guest.Add(domxml.New("arch", "name", "x86_64"))
	arch.AddText("emulator", "/usr/bin/qemu-system-x86_64")
	for _, m := range []string{"pc", "q35"} {
		arch.AddText("machine", m)
	}
	arch.Add(domxml.New("domain", "type", "qemu"))
	arch.Add(domxml.New("domain", "type", "kvm"))
	return doc, nil
}

func (h *plainHost) domainCapabilities(_ context.Context, emulator, arch, machine, virtType string) (*domxml.Element, error) {
	doc := domxml.New("domainCapabilities")
	doc.AddText("path", emulator)
	doc.AddText("domain", virtType)
	if machine == "" {
		machine = "pc"
	}
	doc.AddText("machine", machine)
	doc.AddText("arch", arch)
	for _, mode := range []string{"host-passthrough", "host-model"} {
		doc.Need("cpu").Add(domxml.New("mode", "name", mode, "supported", yesIf(virtType == "kvm")))
	}
	return doc, nil
}

func yesIf(ok bool) string {
	if ok {
		return "yes"
	}
	return "no"
}

// A machine that runs on QEMU alone is found by the daemon, not here; QEMU
// knows no networks by name, and no devices.

func (h *plainHost) domain(context.Context, string) (*domxml.Element, error)  { return nil, nil }
func (h *plainHost) network(context.Context, string) (*domxml.Element, error) { return nil, nil }
