package virtinstall

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func controllerOption() option {
	return option{flag: "controller", element: "devices/controller", many: true, first: []string{"type"}, none: true, subs: controllerSubs, before: beforeController}
}

func controllerSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "type", path: "@type"},
		{name: "model", path: "@model"},
		{name: "index", path: "@index", kind: number},
		{name: "maxGrantFrames", path: "@maxGrantFrames", kind: number},
		{name: "vectors", path: "@vectors", kind: number},
		{name: "master.startport", aliases: []string{"master"}, path: "master/@startport", kind: number},
		{name: "driver.iothread", path: "driver/@iothread", kind: number},
		{name: "driver.queues", aliases: []string{"driver_queues"}, path: "driver/@queues", kind: number},
		{name: "target.chassisNr", path: "target/@chassisNr", kind: number},
		{name: "target.chassis", path: "target/@chassis", kind: number},
		{name: "target.port", path: "target/@port", kind: number},
		{name: "target.hotplug", path: "target/@hotplug"},
		{name: "target.busNr", path: "target/@busNr", kind: number},
		{name: "target.index", path: "target/@index", kind: number},
		{name: "target.node", path: "target/node", kind: number},
		{name: "address", set: setControllerAddress},
		{name: "num_pcie_root_ports", set: planned},
	})
}

func iommuOption() option {
	return option{flag: "iommu", element: "devices/iommu", many: true, first: []string{"model"}, none: true, subs: iommuSubs}
}

func iommuSubs() []sub {
	return slices.Concat([]sub{
		{name: "model", path: "@model"},
		{name: "driver.aw_bits", path: "driver/@aw_bits", kind: number},
		{name: "driver.intremap", path: "driver/@intremap", kind: onOff},
		{name: "driver.caching_mode", path: "driver/@caching_mode", kind: onOff},
		{name: "driver.eim", path: "driver/@eim", kind: onOff},
		{name: "driver.iotlb", path: "driver/@iotlb", kind: onOff},
	})
}

// saidRootPorts is the key of guest.said under which the number of PCIe root
// ports is that the command line has.
const saidRootPorts = "num_pcie_root_ports"

// beforeController reads the short forms of USB controllers, which are several
// devices, and the number of PCIe root ports.
func beforeController(g *guest, _ *domxml.Element, given *suboptions) error {
	if text, ok := given.take("num_pcie_root_ports"); ok {
		return g.wantRootPorts(text, given)
	}
	kind, _ := given.get("type")
	if len(given.list) != 1 {
		return nil
	}
	switch kind {
	case "usb2":
		g.addUSB2()
	case "usb3":
		g.add("devices/controller", domxml.New("controller", "type", "usb", "model", "qemu-xhci", "ports", "15"))
	default:
		return nil
	}
	return errNothingMore
}

// addUSB2 adds an EHCI controller and its three companions for slow devices.
func (g *guest) addUSB2() {
	g.add("devices/controller", domxml.New("controller", "type", "usb", "model", "ich9-ehci1"))
	for i := range 3 {
		c := domxml.New("controller", "type", "usb", "model", "ich9-uhci"+strconv.Itoa(i+1))
		put(c, "master/@startport", strconv.Itoa(2*i))
		g.add("devices/controller", c)
	}
}

// wantRootPorts notes how many PCIe root ports there are to be; with none the
// machine gets what libvirt finds it needs.
func (g *guest) wantRootPorts(text string, given *suboptions) error {
	n, err := wholeNumber(text)
	switch {
	case err != nil:
		return err
	case n < 0 || n > 4096:
		return fmt.Errorf("num_pcie_root_ports=%s: a machine has 0 to 4096 PCIe root ports", text)
	case len(given.list) > 0:
		return errors.New("num_pcie_root_ports stands alone: give each other controller an option of its own")
	}
	g.said[saidRootPorts] = strconv.FormatInt(n, 10)
	return errNothingMore
}

// addSCSIController adds the controller that disks on the scsi bus need, where
// the guest's OS has a driver for it; QEMU's own is libvirt's matter.
func (g *guest) addSCSIController() {
	has := func(c *domxml.Element) bool { return c.Attr("type") == "scsi" }
	needs := func(d *domxml.Element) bool { return d.Get("target/@bus") == "scsi" }
	if !slices.ContainsFunc(g.devices("disk"), needs) || slices.ContainsFunc(g.devices("controller"), has) {
		return
	}
	if model := g.osMachine().SCSIModel; model != "" {
		g.add("devices/controller", domxml.New("controller", "type", "scsi", "model", model))
	}
}

// setControllerAddress reads DOMAIN:BUS:SLOT.FUNCTION, in decimal numbers.
func setControllerAddress(_ *guest, el *domxml.Element, v value) error {
	m := regexp.MustCompile(`^(?:([^:.]*):)?([^:.]*):([^:.]*)\.([^:.]*)$`).FindStringSubmatch(v.text)
	if m == nil {
		return fmt.Errorf("Expected PCI format string for '%s'", v.text)
	}
	put(el, "address/@type", "pci")
	for i, name := range []string{"domain", "bus", "slot", "function"} {
		if i == 0 && m[1] == "" {
			m[1] = "0"
		}
		n, err := wholeNumber(m[i+1])
		if err != nil {
			return err
		}
		put(el, "address/@"+name, strconv.FormatInt(n, 10))
	}
	return nil
}
