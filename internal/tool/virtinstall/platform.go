package virtinstall

import (
	"context"
	"errors"
	"slices"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// choosePlatform writes down what the command line asks for of the platform;
// options such as --boot arch= may change it, see resolvePlatform.
func (g *guest) choosePlatform(ctx context.Context, _ *installation) error {
	doc, err := g.host.capabilities(ctx)
	if err != nil {
		return err
	}
	g.caps = readCapabilities(doc)
	for path, key := range map[string]string{"os/type": "os_type", "os/type/@arch": "arch", "os/type/@machine": "machine", "@type": "virt-type"} {
		if text := g.args.get(key); text != "" {
			if err := g.dom.Set(path, text); err != nil {
				return err
			}
		}
	}
	if g.arch() == "i386" || g.arch() == "i486" || g.arch() == "i586" {
		return g.dom.Set("os/type/@arch", "i686")
	}
	return nil
}

// resolvePlatform completes the platform with what the host prefers.
func (g *guest) resolvePlatform() error {
	want := platform{osType: g.dom.Get("os/type"), arch: g.arch(), virtType: g.virtType(), machine: g.machine(), emulator: g.dom.Get("devices/emulator")}
	p, err := g.caps.choose(want)
	if err != nil {
		return err
	}
	return errors.Join(g.dom.Set("os/type", p.osType), g.dom.Set("os/type/@arch", p.arch), g.dom.Set("@type", p.virtType),
		g.dom.Set("devices/emulator", p.emulator))
}

// domainCaps asks the host what the machine's kind can.
func (g *guest) domainCaps(ctx context.Context) (domainCaps, error) {
	if g.dcaps != nil {
		return *g.dcaps, nil
	}
	doc, err := g.host.domainCapabilities(ctx, g.dom.Get("devices/emulator"), g.arch(), g.machine(), g.virtType())
	switch {
	case ctx.Err() != nil:
		return domainCaps{}, ctx.Err()
	case err != nil:
		// Libvirt does not know the emulator, or too little of it: what depends
		// on it is decided without. Whether the machine starts is seen then.
		g.debug("domain capabilities: %v", err)
		doc = domxml.New("domainCapabilities")
		doc.Need("devices").Need("tpm").Add(domxml.New("enum", "name", "backendModel")) // none
		if usual, err := g.host.domainCapabilities(ctx, "", g.arch(), g.machine(), g.virtType()); err == nil {
			doc.AddText("machine", usual.Get("machine"))
		}
	}
	g.dcaps = &domainCaps{doc}
	return *g.dcaps, nil
}

// securityFeatures are the CPU features against the security problems of CPUs
// that the host's CPU model has a word on.
func (g *guest) securityFeatures() ([]string, error) {
	if err := g.resolvePlatform(); err != nil {
		return nil, err
	}
	doc, err := g.host.domainCapabilities(context.Background(), g.dom.Get("devices/emulator"), g.arch(), g.machine(), g.virtType())
	if err != nil {
		return nil, err
	}
	mode := doc.Find("cpu/mode[@name='host-model']")
	if mode.Attr("supported") != "yes" {
		return nil, nil
	}
	known, err := g.modelFeatures(mode)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range []string{"spec-ctrl", "ssbd", "ibpb", "virt-ssbd", "md-clear"} {
		if slices.Contains(known, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// expander is a host that can say which features a CPU model has.
type expander interface {
	expandCPU(ctx context.Context, cpu *domxml.Element, arch, emulator, virtType string) (*domxml.Element, error)
}

// modelFeatures are the names of all features that the host's CPU model, as
// the domain capabilities have it, speaks of: its own and what differs.
func (g *guest) modelFeatures(mode *domxml.Element) ([]string, error) {
	cpu := mode
	if e, ok := g.host.(expander); ok {
		cpu = mode.Clone()
		cpu.Name, cpu.Attrs = "cpu", nil
		if m := cpu.Child("model"); m != nil {
			m.Attrs = nil
		}
		var err error
		if cpu, err = e.expandCPU(context.Background(), cpu, g.arch(), g.dom.Get("devices/emulator"), g.virtType()); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, f := range cpu.All("feature") {
		names = append(names, f.Attr("name"))
	}
	return names, nil
}
