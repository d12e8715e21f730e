package virtinstall

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// nodeDevices returns the host's devices, as libvirtd knows them.
func (h *libvirtHost) nodeDevices(ctx context.Context) ([]*domxml.Element, error) {
	names, err := h.conn.NodeDevices(ctx)
	if err != nil {
		return nil, err
	}
	var all []*domxml.Element
	for _, name := range names {
		dev, err := h.nodeDevice(ctx, name)
		if err != nil {
			return nil, err
		}
		if dev != nil { // else it was unplugged just now
			all = append(all, dev)
		}
	}
	return all, nil
}

// sysfs is where the kernel shows its devices.
const sysfs = "/sys/bus"

// nodeDevices returns the PCI and USB devices of this computer, under the
// names that libvirt would give the first.
func (h *plainHost) nodeDevices(context.Context) ([]*domxml.Element, error) {
	return sysfsDevices(sysfs)
}

func (h *plainHost) nodeDevice(ctx context.Context, name string) (*domxml.Element, error) {
	all, err := h.nodeDevices(ctx)
	if err != nil {
		return nil, err
	}
	for _, dev := range all {
		if dev.Get("name") == name {
			return dev, nil
		}
	}
	return nil, nil
}

func sysfsDevices(root string) ([]*domxml.Element, error) {
	var all []*domxml.Element
	pci, err := os.ReadDir(filepath.Join(root, "pci/devices"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, entry := range pci {
		if dev := pciDevice(entry.Name()); dev != nil {
			all = append(all, dev)
		}
	}
	usb, err := os.ReadDir(filepath.Join(root, "usb/devices"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, entry := range usb {
		if dev := usbDevice(filepath.Join(root, "usb/devices", entry.Name())); dev != nil {
			all = append(all, dev)
		}
	}
	return all, nil
}

// pciDevice describes a device by its place: 0000:00:1f.2.
func pciDevice(place string) *domxml.Element {
	var domain, bus, slot, function int
	if n, err := fmt.Sscanf(place, "%x:%x:%x.%x", &domain, &bus, &slot, &function); n != 4 || err != nil {
		return nil
	}
	dev := domxml.New("device")
	dev.AddText("name", fmt.Sprintf("pci_%04x_%02x_%02x_%x", domain, bus, slot, function))
	c := dev.Add(domxml.New("capability", "type", "pci"))
	c.AddText("domain", strconv.Itoa(domain))
	c.AddText("bus", strconv.Itoa(bus))
	c.AddText("slot", strconv.Itoa(slot))
	c.AddText("function", strconv.Itoa(function))
	return dev
}

// usbDevice describes a device by its folder; an interface of one is none.
func usbDevice(dir string) *domxml.Element {
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(text))
	}
	bus, number, vendor, product := read("busnum"), read("devnum"), read("idVendor"), read("idProduct")
	if bus == "" || number == "" || vendor == "" || product == "" {
		return nil
	}
	dev := domxml.New("device")
	dev.AddText("name", "usb_"+strings.NewReplacer("-", "_", ".", "_").Replace(filepath.Base(dir)))
	c := dev.Add(domxml.New("capability", "type", "usb_device"))
	c.AddText("bus", bus)
	c.AddText("device", number)
	c.Add(domxml.New("product", "id", "0x"+product))
	c.Add(domxml.New("vendor", "id", "0x"+vendor))
	return dev
}
