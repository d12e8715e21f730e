package virtinstall

import (
	"context"
	"errors"
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
	if err != nil {
		return domainCaps{}, err
	}
	g.dcaps = &domainCaps{doc}
	return *g.dcaps, nil
}

// hostCPUMode is what "--cpu host" means here.
func (g *guest) hostCPUMode() string {
	c, err := g.domainCaps(context.Background())
	if err == nil && c.mode(cpuHostPassthrough) {
		return cpuHostPassthrough
	}
	return cpuHostModel
}
