package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// NodeDevices lists the names of the host's devices ("pci_0000_00_1f_2").
func (c *Conn) NodeDevices(ctx context.Context) ([]string, error) {
	devs, err := call(ctx, c, "list host devices", func(l *golibvirt.Libvirt) ([]golibvirt.NodeDevice, error) {
		devs, _, err := l.ConnectListAllNodeDevices(1, 0)
		return devs, err
	})
	if err != nil {
		return nil, err
	}
	names := make([]string, len(devs))
	for i, d := range devs {
		names[i] = d.Name
	}
	return names, nil
}

// NodeDeviceXML returns the document of a host's device by its name.
func (c *Conn) NodeDeviceXML(ctx context.Context, name string) (string, error) {
	return call(ctx, c, fmt.Sprintf("look up host device %q", name), func(l *golibvirt.Libvirt) (string, error) {
		return l.NodeDeviceGetXMLDesc(name, 0)
	})
}
