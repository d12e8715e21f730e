package tailor

import (
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

func lookup(t *testing.T, name string) osinfo.OS {
	t.Helper()
	o, err := osinfo.Open(osinfo.Dirs()...).Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestOwnChoices: what virt-install chooses for these systems, none of which
// is then found to lack a driver.
func TestOwnChoices(t *testing.T) {
	for name, want := range map[string]struct {
		machine     string
		disk, cdrom vm.Bus
		nic, clock  string
		uefi        bool
	}{
		"centos6.10": {"pc", vm.BusVirtio, vm.BusIDE, "virtio", "utc", false},
		"centos7.0":  {"q35", vm.BusVirtio, vm.BusSATA, "virtio", "utc", false},
		"debian11":   {"q35", vm.BusVirtio, vm.BusSATA, "virtio", "utc", false},
		"win10":      {"q35", vm.BusSATA, vm.BusSATA, "e1000e", "localtime", false},
		"win11":      {"q35", vm.BusSATA, vm.BusSATA, "e1000e", "localtime", true},
		"generic":    {"pc", vm.BusIDE, vm.BusIDE, "e1000", "utc", false},
	} {
		o := lookup(t, name)
		m := osinfo.Defaults(o, osinfo.Request{})
		if m.Type != want.machine || vm.Bus(m.DiskBus) != want.disk || vm.Bus(m.CDROMBus) != want.cdrom || m.NIC != want.nic ||
			m.ClockOffset != want.clock || m.UEFI != want.uefi || (m.TPM != "") != want.uefi {
			t.Errorf("%s: %+v", name, m)
		}
		s := vm.Spec{Name: "m", Machine: m.Type, CPUs: int(m.CPUs), Memory: m.Memory, NICs: []vm.NIC{{Model: m.NIC}}, Disks: []vm.Disk{
			{Path: "/d", Format: "raw", Bus: vm.Bus(m.DiskBus)}, {Device: vm.DeviceCDROM, Bus: vm.Bus(m.CDROMBus)},
		}}.WithDefaults()
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p := Check(s, o); len(p) > 0 {
			t.Errorf("%s: its own choices: %v", name, p)
		}
	}
}

// TestCheck: what the system lacks is named, with what it has.
func TestCheck(t *testing.T) {
	spec := func(bus vm.Bus, nic string) vm.Spec {
		return vm.Spec{Machine: "q35", Memory: 8 << 30, Disks: []vm.Disk{{Path: "/d", Format: "raw", Bus: bus}}, NICs: []vm.NIC{{Model: nic}}}.WithDefaults()
	}
	for _, c := range []struct {
		os   string
		spec vm.Spec
		want string // "" is nothing
	}{
		{"win10", spec(vm.BusVirtio, "e1000e"), "disks[0].bus: win10 has no virtio-blk driver as it comes: use bus sata, or give it the virtio-win drivers"},
		{"win10", spec(vm.BusSATA, "virtio"), "nics[0].model: win10 has no virtio-net driver"},
		{"centos6.10", spec(vm.BusVirtioSCSI, "virtio"), "no virtio-scsi driver"},
		{"debian11", spec(vm.BusVirtioSCSI, "virtio"), ""},
		{"generic", spec(vm.BusVirtio, "virtio"), ""},
	} {
		var got []string
		for _, p := range Check(c.spec, lookup(t, c.os)) {
			got = append(got, p.String())
		}
		text := strings.Join(got, "\n")
		if (c.want == "") != (text == "") || !strings.Contains(text, c.want) {
			t.Errorf("%s: %q, want %q", c.os, text, c.want)
		}
	}
	low := spec(vm.BusVirtio, "virtio")
	low.Memory = 16 << 20
	if p := Check(low, lookup(t, "debian11")); len(p) != 1 || p[0].Field != "memory" {
		t.Errorf("16 MiB: %v", p)
	}
}
