package daemon

import (
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/inspect"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// system is what is known of a guest's system: its short id, and what it needs where it
// has no driver for what machines have by default.
type system struct {
	os  string
	bus vm.Bus
	nic string
}

// systems remembers that by the id that was found in images. Asking the database for
// one that it does not know costs some 70 ms and 8 MiB, so it is not kept open.
type systems struct {
	mu    sync.Mutex
	known map[string]system
}

// maxSystems bounds the memory; ids are of images, so anybody's.
const maxSystems = 1000

func (s *systems) of(info api.ImageInfo) system {
	if info.OS == "" {
		return system{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if found, ok := s.known[info.OS]; ok {
		return found
	}
	if s.known == nil || len(s.known) >= maxSystems {
		s.known = map[string]system{}
	}
	found := lookUpSystem(osinfo.Open(osinfo.Dirs()...), info)
	s.known[info.OS] = found
	return found
}

func lookUpSystem(db *osinfo.DB, info api.ImageInfo) system {
	id, _ := inspect.SpecOS(db, info)
	out := system{os: id}
	o, err := db.Lookup(id)
	if err != nil || len(o.Devices()) == 0 {
		return out // nothing is known of what it has
	}
	best := osinfo.Defaults(o, osinfo.Request{Machine: vm.MachineQ35})
	if !o.Supports(osinfo.VirtioBlock) {
		out.bus = vm.Bus(best.DiskBus)
	}
	if !o.Supports(osinfo.VirtioNet) {
		out.nic = best.NIC
	}
	return out
}

// bootUEFI is the boot mode of an image that only UEFI starts.
const bootUEFI = "uefi"

// asImage is what fit is to know of the image of a machine that is copied.
func asImage(s vm.Spec) api.ImageInfo {
	i := api.ImageInfo{OS: s.OS}
	if s.Boot.Firmware == vm.FirmwareEFI {
		i.BootMode = bootUEFI
	}
	return i
}

// fit fills in what a machine of an image needs, where nothing else was asked for: UEFI
// for an image that nothing else boots, and devices that its system has drivers for.
// The drives and cards of s are its main ones.
func (d *Daemon) fit(s *vm.Spec, info api.ImageInfo) {
	if info.BootMode == bootUEFI && s.Boot.Firmware == "" {
		s.Boot.Firmware = vm.FirmwareEFI
	}
	sys := d.systems.of(info)
	s.OS = sys.os
	for i := range s.Disks {
		if s.Disks[i].Bus == "" {
			s.Disks[i].Bus = sys.bus
		}
	}
	for i := range s.NICs {
		if s.NICs[i].Model == "" {
			s.NICs[i].Model = sys.nic
		}
	}
}
