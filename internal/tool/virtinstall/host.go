package virtinstall

import (
	"context"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// host is what a machine is made for: a libvirtd, or plain QEMU on this
// computer. What can be known of both is in libvirt's documents, which the
// latter makes of what the QEMU binary and the kernel say.
type host interface {
	// uri is libvirt's name of the connection, "" for plain QEMU.
	uri() string
	// capabilities and domainCapabilities are libvirt's documents of these
	// names (formatcaps.html, formatdomaincaps.html).
	capabilities(ctx context.Context) (*domxml.Element, error)
	domainCapabilities(ctx context.Context, emulator, arch, machine, virtType string) (*domxml.Element, error)
	// domain returns a machine's document, nil where there is none of the name.
	domain(ctx context.Context, name string) (*domxml.Element, error)
	// network returns a network's document, nil where there is none of the name.
	network(ctx context.Context, name string) (*domxml.Element, error)
	// nodeDevice returns a host device's document, nil where there is none.
	nodeDevice(ctx context.Context, name string) (*domxml.Element, error)
	// nodeDevices returns the documents of the host devices that a machine can
	// be given.
	nodeDevices(ctx context.Context) ([]*domxml.Element, error)

	storage
	runner
	close() error
}
