package vm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Chipset is [MachinePC] or [MachineQ35], whichever the machine type is a
// version of, "" for any other.
func (s Spec) Chipset() string { return Chipset(s.Machine) }

// Chipset is [Spec.Chipset] for a machine type.
func Chipset(machine string) string {
	switch {
	case machine == MachinePC, strings.HasPrefix(machine, "pc-i440fx-"):
		return MachinePC
	case machine == MachineQ35, strings.HasPrefix(machine, "pc-q35-"):
		return MachineQ35
	}
	return ""
}

// diskPrefix is how libvirt begins the names of drives on a bus.
func diskPrefix(b Bus) string {
	switch b {
	case BusVirtio:
		return "vd"
	case BusIDE:
		return "hd"
	case BusFDC:
		return "fd"
	case BusNVMe:
		return "nvme"
	}
	return "sd"
}

// DiskNames returns the names of the drives, in order: their targets, and for
// those without the first free one of their bus, as libvirt does: vda, vdb, sda.
func (s Spec) DiskNames() []string {
	names := make([]string, len(s.Disks))
	for i, d := range s.Disks {
		names[i] = d.Target
	}
	for i, d := range s.Disks {
		if names[i] != "" {
			continue
		}
		for n := 0; ; n++ {
			if name := diskPrefix(d.Bus) + letters(n); !slices.Contains(names, name) {
				names[i] = name
				break
			}
		}
	}
	return names
}

// letters counts a, b, ... z, aa, ab, ...
func letters(n int) string {
	var s string
	for n++; n > 0; n = (n - 1) / 26 {
		s = string(rune('a'+(n-1)%26)) + s
	}
	return s
}

// FindDisk returns the index of the drive of that name: one of [Spec.DiskNames],
// its path, or its serial number. The error wraps [ErrNoDevice] and lists what
// there is.
func (s Spec) FindDisk(name string) (int, error) {
	names := s.DiskNames()
	if i := slices.Index(names, name); i >= 0 {
		return i, nil
	}
	match := func(d Disk) bool { return name != "" && (d.Path == name || d.Serial == name) }
	if i := slices.IndexFunc(s.Disks, match); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("drive %q: %w: there is %s", name, ErrNoDevice, listOr(names, "none"))
}

// FindNIC returns the index of the card of that name: its MAC address, or its
// number from 0. The error wraps [ErrNoDevice] and lists what there is.
func (s Spec) FindNIC(name string) (int, error) {
	macs := make([]string, len(s.NICs))
	for i, n := range s.NICs {
		macs[i] = n.MAC
		if strings.EqualFold(n.MAC, name) || strconv.Itoa(i) == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("network card %q: %w: there is %s", name, ErrNoDevice, listOr(macs, "none"))
}

func listOr(words []string, empty string) string {
	if len(words) == 0 {
		return empty
	}
	return strings.Join(words, ", ")
}
