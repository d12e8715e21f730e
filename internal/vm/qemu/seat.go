package qemu

import (
	"fmt"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm"
)

// seat is a drive's place on its bus.
type seat struct {
	place []string // as device properties
	unit  int
}

// address is a place that can be taken once.
type address struct {
	bus           vm.Bus
	controller, n int
}

// seating hands out the places on each bus.
type seating struct {
	c     config
	made  map[string]bool  // controllers that are there
	taken map[address]bool // places, and those that a later drive asks for
}

func newSeating(c config) *seating {
	s := &seating{c: c, made: map[string]bool{}, taken: map[address]bool{}}
	for _, d := range c.spec.Disks {
		if d.Address != nil {
			s.taken[addressOf(d)] = true
		}
	}
	return s
}

// family is the bus whose places are shared: both kinds of SCSI have the same
// controllers.
func family(b vm.Bus) vm.Bus {
	if b == vm.BusVirtioSCSI {
		return vm.BusSCSI
	}
	return b
}

// addressOf is the place that a drive asks for.
func addressOf(d vm.Disk) address {
	a := d.Address
	n := a.Unit
	switch family(d.Bus) {
	case vm.BusIDE:
		n = a.Bus*2 + a.Unit
	case vm.BusSCSI: // libvirt counts targets, or units of target 0 on virtio-scsi
		n = a.Target
		if n == 0 {
			n = a.Unit
		}
	}
	return address{family(d.Bus), a.Controller, n}
}

// free is the next free place on a bus.
func (s *seating) free(bus vm.Bus) address {
	for controller := 0; ; controller++ {
		most := s.places(bus, controller)
		for n := range most {
			a := address{family(bus), controller, n}
			if !s.taken[a] {
				return a
			}
		}
	}
}

// places is how many drives a controller takes.
func (s *seating) places(bus vm.Bus, controller int) int {
	if family(bus) == vm.BusSCSI {
		switch s.c.scsiModel(controller, scsiFallback(bus)) {
		case "lsilogic", "am53c974", "dc390":
			return 7
		case "lsisas1068":
			return 8
		case "lsisas1078":
			return 64
		}
		return 256
	}
	return vm.MaxUnits(vm.MachinePC, bus)
}

// scsiFallback is the model of a SCSI controller of which nothing is said.
func scsiFallback(bus vm.Bus) string {
	if bus == vm.BusSCSI {
		return "lsilogic"
	}
	return "virtio-scsi"
}

// next returns the place of the next drive, and the controller to add before
// it where the machine does not have it. id is the drive's.
func (s *seating) next(d vm.Disk, id string) (controller string, at seat) {
	switch d.Bus {
	case vm.BusVirtio, vm.BusNVMe:
		return "", seat{}
	case vm.BusUSB: // its controller is there
		if d.Device == vm.DeviceCDROM {
			return "", seat{place: []string{"bus", id + "-usb.0", "scsi-id", "0", "lun", "0"}}
		}
		return "", seat{place: []string{"bus", usbBus}}
	}
	a := address{}
	if d.Address != nil {
		a = addressOf(d)
	} else {
		a = s.free(d.Bus)
		s.taken[a] = true
	}
	return s.controller(d.Bus, a.controller), seat{s.place(d.Bus, a), a.n}
}

// named are the SCSI and SATA controllers that the spec has, whether or not
// there is a drive on them.
func (s *seating) named() []string {
	var all []string
	for _, k := range s.c.spec.Controllers {
		bus := map[string]vm.Bus{"scsi": vm.BusVirtioSCSI, "sata": vm.BusSATA, "fdc": vm.BusFDC}[k.Type]
		if bus == "" {
			continue
		}
		if d := s.controller(bus, k.Index); d != "" {
			all = append(all, d)
		}
	}
	return all
}

// controller is the device to add for a controller, "" where it is there.
func (s *seating) controller(bus vm.Bus, index int) string {
	name := fmt.Sprintf("%s%d", family(bus), index)
	if s.made[name] {
		return ""
	}
	s.made[name] = true
	q35 := s.c.spec.Chipset() == vm.MachineQ35
	switch {
	case family(bus) == vm.BusSCSI:
		return s.c.scsiController(index, scsiFallback(bus))
	case bus == vm.BusSATA && !(q35 && index == 0):
		return fmt.Sprintf("ich9-ahci,id=sata%d", index)
	case bus == vm.BusFDC && q35:
		return "isa-fdc,id=fdc0"
	}
	return ""
}

// place is a place as device properties.
func (s *seating) place(bus vm.Bus, a address) []string {
	switch bus {
	case vm.BusIDE: // two channels of the PIIX chipset, two drives each
		return []string{"bus", fmt.Sprintf("ide.%d", a.n/2), "unit", strconv.Itoa(a.n % 2)}
	case vm.BusSATA:
		if s.c.spec.Chipset() == vm.MachineQ35 && a.controller == 0 { // whose own AHCI controller is called ide
			return []string{"bus", fmt.Sprintf("ide.%d", a.n)}
		}
		return []string{"bus", fmt.Sprintf("sata%d.%d", a.controller, a.n)}
	case vm.BusFDC:
		return []string{"unit", strconv.Itoa(a.n)}
	}
	return []string{"bus", fmt.Sprintf("scsi%d.0", a.controller), "channel", "0", "scsi-id", strconv.Itoa(a.n), "lun", "0"}
}
