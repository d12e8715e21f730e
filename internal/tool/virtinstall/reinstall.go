package virtinstall

import (
	"context"
	"errors"
	"fmt"
)

// reinstall makes the documents of an installation into a machine that is
// there: what it is stays, only where the guest comes from is new.
func (g *guest) reinstall(ctx context.Context, name string) (*installation, error) {
	if g.host.libvirtConn() == nil {
		return nil, errors.New("--reinstall is about a domain of libvirt: give --connect, or remove the machine with `lamina rm` and install it anew")
	}
	doc, err := g.host.domain(ctx, name)
	if err != nil {
		return nil, err
	}
	if doc == nil {
		return nil, fmt.Errorf("Domain not found: no domain with matching name '%s'", name)
	}
	g.dom = doc
	in, err := newInstallation(g)
	if err != nil {
		return nil, err
	}
	capsDoc, err := g.host.capabilities(ctx)
	if err != nil {
		return nil, err
	}
	g.caps = readCapabilities(capsDoc)
	for _, stage := range []func(context.Context, *installation) error{g.reinstallOS, in.prepare, g.validate} {
		if err := stage(ctx, in); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// reinstallOS finds out what the guest is to be: what --osinfo says, what the
// media are, or what the machine is labelled with.
func (g *guest) reinstallOS(ctx context.Context, in *installation) error {
	before := g.dom.Clone()
	label := g.dom.Get("metadata/libosinfo:libosinfo/libosinfo:os/@id")
	if label != "" && !g.args.has("os-variant") {
		if o, err := osDB().Lookup(label); err == nil {
			g.os = o
			return nil
		}
	}
	if err := g.chooseOS(ctx, in); err != nil {
		return err
	}
	g.dom = before // the machine stays what it is, but for its label
	g.labelOS()
	return nil
}
