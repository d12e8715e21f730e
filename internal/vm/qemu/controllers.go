package qemu

import (
	"fmt"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm"
)

// Buses of the first controllers.
const usbBus = "usb0.0"

// hotplugPort is the id, and the bus, of a PCIe port for devices that come
// later.
func hotplugPort(index int) string { return fmt.Sprintf("hotplug%d", index) }

// controllerArgs are those that are there for themselves: I/O threads, USB
// controllers, PCIe ports. Drives bring their own with them.
func (c config) controllerArgs() []string {
	var args []string
	for i := 1; i <= c.spec.IOThreads; i++ {
		args = append(args, "-object", "iothread,id="+ioThread(i))
	}
	if m := c.spec.IOMMU; m != nil {
		args = append(args, "-device", device("intel-iommu", "intremap", string(m.IntRemap), "caching-mode", string(m.CachingMode),
			"device-iotlb", string(m.IOTLB), "eim", string(m.EIM)))
	}
	args = append(args, c.usbArgs()...)
	if c.spec.Chipset() == vm.MachineQ35 {
		for i := range c.spec.HotplugPorts {
			args = append(args, "-device", device("pcie-root-port", "id", hotplugPort(i), "bus", "pcie.0", "chassis", strconv.Itoa(i+1)))
		}
	}
	return args
}

func ioThread(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("iothread%d", n)
}

// usbArgs are the USB controllers that the spec names, or one where a device
// needs it.
func (c config) usbArgs() []string {
	var args []string
	found := false
	for _, k := range c.spec.Controllers {
		if k.Type == "usb" {
			found = true
			for _, d := range usbController(k) {
				args = append(args, "-device", d)
			}
		}
	}
	if !found && c.spec.NeedsUSB() {
		args = append(args, "-device", usbController(vm.Controller{Ports: 15})[0])
	}
	for _, k := range c.spec.Controllers {
		if k.Type == "ccid" {
			args = append(args, "-device", device("usb-ccid", "id", fmt.Sprintf("ccid%d", k.Index), "bus", usbBus))
		}
	}
	return args
}

// usbController is a controller; the EHCI of ich9 comes with its three
// companions for slower devices, in one slot.
func usbController(k vm.Controller) []string {
	id := fmt.Sprintf("usb%d", k.Index)
	ports := number(k.Ports)
	switch k.Model {
	case "none":
		return nil
	case "ich9":
		slot := 0x1d - k.Index
		all := []string{device("ich9-usb-ehci1", "id", id, "addr", fmt.Sprintf("%x.7", slot), "multifunction", "on")}
		for i := range 3 {
			all = append(all, device(fmt.Sprintf("ich9-usb-uhci%d", i+1), "masterbus", id+".0", "firstport", strconv.Itoa(2*i),
				"addr", fmt.Sprintf("%x.%d", slot, i), "multifunction", "on"))
		}
		return all
	case "ehci":
		return []string{device("usb-ehci", "id", id)}
	case "piix3-uhci", "piix4-uhci":
		return []string{device(k.Model[:5]+"-usb-uhci", "id", id)}
	case "pci-ohci":
		return []string{device("pci-ohci", "id", id)}
	case "nec-xhci":
		return []string{device("nec-usb-xhci", "id", id, "p2", ports, "p3", ports)}
	}
	return []string{device("qemu-xhci", "id", id, "p2", ports, "p3", ports)}
}

// scsiController is a SCSI controller with what the spec says of it.
func (c config) scsiController(index int, fallback string) string {
	k := vm.Controller{Index: index, Model: fallback}
	for _, o := range c.spec.Controllers {
		if o.Type == "scsi" && o.Index == index {
			k = o
			if k.Model == "" {
				k.Model = fallback
			}
		}
	}
	id := fmt.Sprintf("scsi%d", index)
	driver := map[string]string{
		"lsilogic": "lsi53c895a", "lsisas1068": "mptsas1068", "lsisas1078": "megasas", "vmpvscsi": "pvscsi", "am53c974": "am53c974", "dc390": "dc390",
	}[k.Model]
	if driver != "" {
		return device(driver, "id", id)
	}
	return device("virtio-scsi-pci", "id", id, "iothread", ioThread(k.IOThread), "num_queues", number(k.Queues),
		"cmd_per_lun", number(k.CmdPerLUN), "max_sectors", number(k.MaxSectors))
}

// scsiModel is the model of a controller.
func (c config) scsiModel(index int, fallback string) string {
	for _, o := range c.spec.Controllers {
		if o.Type == "scsi" && o.Index == index && o.Model != "" {
			return o.Model
		}
	}
	return fallback
}
