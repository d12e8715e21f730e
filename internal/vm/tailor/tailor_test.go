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

// TestFit: what virt-install chooses for these systems.
func TestFit(t *testing.T) {
	for name, want := range map[string]struct {
		machine     string
		disk, cdrom vm.Bus
		nic, clock  string
		uefi        bool
	}{
		"centos6.10": {"pc", vm.BusVirtio, vm.BusIDE, "virtio", "", false},
		"centos7.0":  {"q35", vm.BusVirtio, vm.BusSATA, "virtio", "", false},
		"debian11":   {"q35", vm.BusVirtio, vm.BusSATA, "virtio", "", false},
		"win10":      {"q35", vm.BusSATA, vm.BusSATA, "e1000e", "localtime", false},
		"win11":      {"q35", vm.BusSATA, vm.BusSATA, "e1000e", "localtime", true},
		"generic":    {"pc", vm.BusIDE, vm.BusIDE, "e1000", "", false},
	} {
		o := lookup(t, name)
		s := vm.Spec{Name: "m", Disks: []vm.Disk{{Path: "/d", Format: "raw"}, {Device: vm.DeviceCDROM}}, NICs: []vm.NIC{{}}}
		got := Fit(s, o)
		if got.Machine != want.machine || got.Disks[0].Bus != want.disk || got.Disks[1].Bus != want.cdrom || got.NICs[0].Model != want.nic || got.Clock.Offset != want.clock ||
			(got.Boot.Firmware == vm.FirmwareEFI) != want.uefi || (got.TPM != nil) != want.uefi {
			t.Errorf("%s: %+v", name, got)
		}
		if s.Disks[0].Bus != "" || s.NICs[0].Model != "" {
			t.Errorf("%s: the spec that was fitted has changed", name)
		}
		got = got.WithDefaults()
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p := Check(got, o); len(p) > 0 {
			t.Errorf("%s: its own choices: %v", name, p)
		}
	}
	said := vm.Spec{Machine: "q35", CPUs: 3, Memory: 1 << 30, Disks: []vm.Disk{{Bus: vm.BusVirtio}}, NICs: []vm.NIC{{Model: "rtl8139"}}}
	if got := Fit(said, lookup(t, "win10")); got.Disks[0].Bus != vm.BusVirtio || got.NICs[0].Model != "rtl8139" || got.CPUs != 3 || got.Memory != 1<<30 {
		t.Errorf("what was said has changed: %+v", got)
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
