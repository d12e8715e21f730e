package virtinstall

import (
	"context"
	"errors"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// libvirtHost is a libvirtd.
type libvirtHost struct{ conn *libvirt.Conn }

// connect returns the host of a connection URI: a libvirtd, or plain QEMU for
// the empty one.
func connect(ctx context.Context, uri string) (host, error) {
	if uri == "" {
		return newPlainHost(), nil
	}
	conn, err := libvirt.Connect(ctx, uri)
	if err != nil {
		return nil, err
	}
	return &libvirtHost{conn}, nil
}

func (h *libvirtHost) uri() string { return h.conn.URI() }

func (h *libvirtHost) close() error { return h.conn.Close() }

func (h *libvirtHost) capabilities(ctx context.Context) (*domxml.Element, error) {
	return parsed(h.conn.Capabilities(ctx))
}

func (h *libvirtHost) domainCapabilities(ctx context.Context, emulator, arch, machine, virtType string) (*domxml.Element, error) {
	return parsed(h.conn.DomainCapabilities(ctx, libvirt.DomainCapabilitiesQuery{Emulator: emulator, Arch: arch, Machine: machine, Type: virtType}))
}

// expandCPU returns a CPU with all the features that its model stands for.
func (h *libvirtHost) expandCPU(ctx context.Context, cpu *domxml.Element, arch, emulator, virtType string) (*domxml.Element, error) {
	doc, err := h.conn.BaselineCPU(ctx, cpu.String(), libvirt.DomainCapabilitiesQuery{Emulator: emulator, Arch: arch, Type: virtType})
	if errors.Is(err, libvirt.ErrUnsupported) {
		return cpu, nil // not on this architecture
	}
	return parsed(doc, err)
}

func (h *libvirtHost) domain(ctx context.Context, name string) (*domxml.Element, error) {
	d, err := h.conn.LookupDomain(ctx, name)
	if err != nil {
		return nil, found(err)
	}
	return parsed(d.XML(ctx, libvirt.XMLOptions{Inactive: true, Secure: true}))
}

func (h *libvirtHost) network(ctx context.Context, name string) (*domxml.Element, error) {
	n, err := h.conn.LookupNetwork(ctx, name)
	if err != nil {
		return nil, found(err)
	}
	return parsed(n.XML(ctx))
}

func (h *libvirtHost) nodeDevice(ctx context.Context, name string) (*domxml.Element, error) {
	doc, err := h.conn.NodeDeviceXML(ctx, name)
	if err != nil {
		return nil, found(err)
	}
	return parsed(doc, nil)
}

// found is no error where there is nothing of the name.
func found(err error) error {
	if errors.Is(err, libvirt.ErrNotFound) {
		return nil
	}
	return err
}

func parsed(doc string, err error) (*domxml.Element, error) {
	if err != nil {
		return nil, err
	}
	return domxml.Parse([]byte(strings.TrimSpace(doc)))
}
