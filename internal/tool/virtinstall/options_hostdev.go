package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func hostdevOption() option {
	return option{flag: "hostdev", element: "devices/hostdev", many: true, first: []string{"name"}, none: true, subs: hostdevSubs}
}

func hostdevSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "boot.order", aliases: []string{"boot_order"}, set: setBootOrder},
		{name: "type", path: "@type"},
		{name: "name", set: setHostdevName},
		{name: "driver.name", aliases: []string{"driver_name"}, path: "driver/@name"},
		{name: "rom.bar", aliases: []string{"rom_bar"}, path: "rom/@bar", kind: onOff},
	})
}

// setHostdevName finds the host's device: by libvirt's name of it, as USB
// BUS.DEVICE or VENDOR:PRODUCT, or as PCI [DOMAIN:]BUS:SLOT.FUNCTION. What a
// container is given is not looked up.
func setHostdevName(g *guest, el *domxml.Element, v value) error {
	if within := map[string]string{"net": "interface", "misc": "char", "storage": "block"}[el.Attr("type")]; within != "" {
		el.SetAttr("mode", "capabilities")
		put(el, "source/"+within, v.text)
		return nil
	}
	ctx := context.Background()
	dev, err := g.host.nodeDevice(ctx, v.text)
	if err != nil {
		return err
	}
	if dev == nil {
		if dev, err = g.findHostDevice(ctx, v.text); err != nil {
			return err
		}
	}
	return g.fillHostdev(ctx, el, dev)
}

// findHostDevice finds a device by its address or its ids.
func (g *guest) findHostDevice(ctx context.Context, text string) (*domxml.Element, error) {
	matches, err := hostDeviceMatcher(text)
	if err != nil {
		return nil, err
	}
	all, err := g.host.nodeDevices(ctx)
	if err != nil {
		return nil, err
	}
	var found []*domxml.Element
	for _, dev := range all {
		if matches(dev.Child("capability")) {
			found = append(found, dev)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("Did not find a matching node device for '%s'", text)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%s corresponds to multiple node devices", text)
}

// hostDeviceMatcher returns what recognises the device that the text means by
// its capability.
func hostDeviceMatcher(text string) (func(*domxml.Element) bool, error) {
	before, function, dot := strings.Cut(text, ".")
	parts := strings.Split(before, ":")
	var names, digits []string
	base, kind := 16, "pci"
	switch {
	case dot && len(parts) == 1:
		kind, base = "usb_device", 10
		names, digits = []string{"bus", "device"}, []string{before, function}
	case dot && len(parts) == 2:
		names, digits = []string{"domain", "bus", "slot", "function"}, append([]string{"0"}, append(parts, function)...)
	case dot && len(parts) == 3:
		names, digits = []string{"domain", "bus", "slot", "function"}, append(parts, function)
	case !dot && len(parts) == 2:
		kind = "usb_device"
		names, digits = []string{"vendor/@id", "product/@id"}, parts
	default:
		return nil, fmt.Errorf("Unknown hostdev address string format '%s'", text)
	}
	want := make([]int64, len(digits))
	for i, d := range digits {
		n, err := strconv.ParseInt(strings.TrimPrefix(d, "0x"), base, 64)
		switch {
		case err == nil:
			want[i] = n
		case base == 10: // no device has such a place
			want[i] = -1
		default:
			return nil, fmt.Errorf("invalid literal for int() with base 16: '%s'", d)
		}
	}
	return func(capability *domxml.Element) bool {
		if capability.Attr("type") != kind {
			return false
		}
		for i, name := range names {
			n, err := strconv.ParseInt(capability.Get(name), 0, 64)
			if err != nil || n != want[i] {
				return false
			}
		}
		return true
	}, nil
}

// fillHostdev describes the host's device. Of a network card it is the PCI
// device that has it.
func (g *guest) fillHostdev(ctx context.Context, el, dev *domxml.Element) error {
	capability := dev.Child("capability")
	kind := capability.Attr("type")
	if kind == "net" || kind == "storage" {
		parent, err := g.host.nodeDevice(ctx, dev.Get("parent"))
		if err != nil {
			return err
		}
		if kind == "net" && parent != nil {
			capability = parent.Child("capability")
			kind = capability.Attr("type")
		}
	}
	switch kind {
	case "pci":
		el.SetAttr("type", "pci")
		for _, name := range []string{"domain", "bus", "slot", "function"} {
			put(el, "source/address/@"+name, capability.Get(name))
		}
	case "usb_device":
		return g.fillUSBHostdev(ctx, el, capability)
	case "scsi":
		el.SetAttr("type", "scsi")
		el.SetAttr("managed", "no")
		put(el, "source/adapter/@name", "scsi_host"+capability.Get("host"))
		put(el, "source/address/@bus", capability.Get("bus"))
		put(el, "source/address/@target", capability.Get("target"))
		put(el, "source/address/@unit", capability.Get("lun"))
	case "mdev":
		return g.fillMdevHostdev(ctx, el, dev)
	default:
		return fmt.Errorf("Unsupported node device type '%s'", kind)
	}
	return nil
}

// fillUSBHostdev names a USB device by its ids, and by its place too where
// there is another one of its kind.
func (g *guest) fillUSBHostdev(ctx context.Context, el, capability *domxml.Element) error {
	el.SetAttr("type", "usb")
	put(el, "source/vendor/@id", capability.Get("vendor/@id"))
	put(el, "source/product/@id", capability.Get("product/@id"))
	all, err := g.host.nodeDevices(ctx)
	if err != nil {
		return err
	}
	same := 0
	for _, other := range all {
		c := other.Child("capability")
		if c.Attr("type") == "usb_device" && c.Get("vendor/@id") == capability.Get("vendor/@id") && c.Get("product/@id") == capability.Get("product/@id") {
			same++
		}
	}
	if same > 1 {
		put(el, "source/address/@bus", capability.Get("bus"))
		put(el, "source/address/@device", capability.Get("device"))
	}
	return nil
}

// fillMdevHostdev names a mediated device by its UUID, which is in its name
// where the host does not say it.
func (g *guest) fillMdevHostdev(ctx context.Context, el, dev *domxml.Element) error {
	uuid := dev.Get("capability/uuid")
	if uuid == "" {
		name := strings.ReplaceAll(strings.TrimPrefix(dev.Get("name"), "mdev_"), "_", "-")
		if len(name) < 36 {
			return errors.New("the host does not say the UUID of the mediated device " + dev.Get("name"))
		}
		uuid = name[:36]
	}
	parent, err := g.host.nodeDevice(ctx, dev.Get("parent"))
	if err != nil {
		return err
	}
	model := "vfio-pci"
	if kind := parent.Child("capability").Attr("type"); kind == "css" {
		model = "vfio-ccw"
	} else if strings.HasPrefix(kind, "ap_") {
		model = "vfio-ap"
	}
	el.SetAttr("type", "mdev")
	el.SetAttr("model", model)
	if model == "vfio-pci" {
		el.SetAttr("display", "off")
		el.SetAttr("ramfb", "off")
	}
	put(el, "source/address/@uuid", uuid)
	return nil
}

func hostdevDefaults(el *domxml.Element) {
	fill(el, "@mode", "subsystem")
	fill(el, "@managed", "yes")
}
