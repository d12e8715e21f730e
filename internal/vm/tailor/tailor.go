// Package tailor fits a machine to its guest's operating system: the choices
// that the spec leaves open become those that the system has drivers for, and
// those that it has none for are found before the guest hangs in its boot.
package tailor

import (
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// Fit returns s with the system's defaults in the fields that say nothing: the
// machine type, the buses of the drives, the cards' models, CPUs and memory,
// firmware and TPM, clock, timers and what Windows likes to find. It adds no
// drive and no card. What is said stays, also where it does not fit: see
// [Check]. Call it before [vm.Spec.WithDefaults].
func Fit(s vm.Spec, o osinfo.OS) vm.Spec {
	s = s.Clone()
	s.OS = o.ShortID
	want := osinfo.Request{Machine: s.Chipset(), UEFI: s.Boot.Firmware == vm.FirmwareEFI}
	for _, d := range s.Disks {
		if d.Bus == vm.BusIDE && s.Machine == "" {
			want.Machine = vm.MachinePC // which alone has it
		}
	}
	m := osinfo.Defaults(o, want)
	if s.Machine == "" {
		s.Machine = m.Type
	}
	fitDrives(&s, m)
	for i := range s.NICs {
		if s.NICs[i].Model == "" {
			s.NICs[i].Model = m.NIC
		}
	}
	if s.CPUs == 0 {
		s.CPUs = int(min(m.CPUs, vm.MaxCPUs))
	}
	if s.Memory == 0 {
		s.Memory = m.Memory
	}
	if m.UEFI && s.Boot.Firmware == "" && s.Boot.Loader == "" {
		s.Boot.Firmware = vm.FirmwareEFI
		if s.TPM == nil && m.TPM != "" {
			s.TPM = &vm.TPM{Model: m.TPM}
		}
	}
	if m.RNG && len(s.RNGs) == 0 {
		s.RNG = true
	}
	fitClock(&s, m)
	return s
}

func fitDrives(s *vm.Spec, m osinfo.Machine) {
	for i := range s.Disks {
		d := &s.Disks[i]
		if d.Bus != "" {
			continue
		}
		switch d.Device {
		case vm.DeviceCDROM:
			d.Bus = vm.Bus(m.CDROMBus)
		case vm.DeviceDisk, "":
			d.Bus = vm.Bus(m.DiskBus)
		}
	}
}

func fitClock(s *vm.Spec, m osinfo.Machine) {
	if s.Clock.Offset == "" && m.ClockOffset != "utc" { // which is QEMU's default too
		s.Clock.Offset = m.ClockOffset
	}
	if m.HyperV && s.Features.HyperV == (vm.HyperV{}) {
		s.Features.HyperV = vm.HyperV{Relaxed: vm.On, VAPIC: vm.On, Spinlocks: vm.On, SpinlockRetries: 8191}
		if len(s.Clock.Timers) == 0 {
			for _, t := range m.Timers {
				s.Clock.Timers = append(s.Clock.Timers, vm.Timer{Name: t.Name, TickPolicy: t.TickPolicy, Present: toggle(t.Present)})
			}
		}
	}
}

func toggle(present string) vm.Toggle {
	return map[string]vm.Toggle{"yes": vm.On, "no": vm.Off}[present]
}

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
