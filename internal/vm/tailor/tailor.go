// Package tailor holds a machine against its guest's operating system: what the
// system has no driver for is found before the guest hangs in its boot.
package tailor

import (
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// Check returns what of the machine the system has no driver for as it comes, nil
// where nothing is known of the system. A driver disc may change that, so it is
// the caller's to refuse, or to say. The spec is complete.
func Check(s vm.Spec, o osinfo.OS) []vm.Problem {
	if o.ShortID == osinfo.Generic || len(o.Devices()) == 0 {
		return nil
	}
	remedy := func(instead string) string {
		r := "use " + instead
		if o.IsWindows() {
			r += ", or give it the virtio-win drivers on a second CD-ROM"
		}
		return r
	}
	var found []vm.Problem
	lacks := func(field string, f osinfo.Feature, instead string) {
		if !o.Supports(f) {
			found = append(found, vm.Problem{Field: field, Text: fmt.Sprintf("%s has no %s driver as it comes", o.ShortID, f), Remedy: remedy(instead)})
		}
	}
	best := osinfo.Defaults(o, osinfo.Request{Machine: s.Chipset()})
	for i, d := range s.Disks {
		field := fmt.Sprintf("disks[%d].bus", i)
		switch d.Bus {
		case vm.BusVirtio:
			lacks(field, osinfo.VirtioBlock, "bus "+best.DiskBus)
		case vm.BusVirtioSCSI:
			lacks(field, osinfo.VirtioSCSI, "bus "+best.DiskBus)
		}
	}
	for i, n := range s.NICs {
		field := fmt.Sprintf("nics[%d].model", i)
		switch n.Model {
		case "virtio", "virtio-net-pci":
			lacks(field, osinfo.VirtioNet, "model "+best.NIC)
		case "e1000e":
			if !o.IsWindows() { // virt-install's choice for those, whatever the database says
				lacks(field, osinfo.E1000E, "model "+best.NIC)
			}
		}
	}
	if low := best.MinimumMemory; low > 0 && s.Memory < low {
		found = append(found, vm.Problem{Field: "memory", Text: fmt.Sprintf("%s needs %d MiB, and the machine has %d", o.ShortID, low>>20, s.Memory>>20), Remedy: "give it more"})
	}
	return found
}
