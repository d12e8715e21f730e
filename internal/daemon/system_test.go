package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// TestFit: an image that only UEFI starts gets that, its copies too, and its system is
// on record.
func TestFit(t *testing.T) {
	info := api.ImageInfo{OS: "debian11", BootMode: "uefi"}
	x := serve(t, Options{Driver: &fakeDriver{}, Images: realImages{},
		Inspect: func(context.Context, string, string) (api.ImageInfo, error) { return info, nil }})
	image := func(name string, size int) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "disk.raw")
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: path, Format: "raw", Name: name}, nil))
	}
	image("efi", 1<<20)
	if s := x.clone("efi", "a")[0].Spec; s.Boot.Firmware != vm.FirmwareEFI || s.OS != "debian11" || s.Disks[0].Bus != vm.BusVirtio {
		t.Errorf("%+v, %q, %+v", s.Boot, s.OS, s.Disks)
	}
	var list []api.Machine
	x.must(x.stream("POST", "/v1/machines/a/clone", api.CloneMachineRequest{Names: []string{"copy"}}, &list))
	if s := list[0].Spec; s.Boot.Firmware != vm.FirmwareEFI || s.OS != "debian11" {
		t.Errorf("the copy: %+v, %q", s.Boot, s.OS)
	}
	info = api.ImageInfo{BootMode: "bios+uefi"}
	image("both", 2<<20)
	if s := x.clone("both", "b")[0].Spec; s.Boot.Firmware != "" || s.OS != "" {
		t.Errorf("%+v, %q", s.Boot, s.OS)
	}
}

// TestSystemWithoutVirtio: what a system has no driver for it does not get; what is
// asked for, it does.
func TestSystemWithoutVirtio(t *testing.T) {
	d := &Daemon{}
	d.systems.known = map[string]system{"old": {os: "old", bus: vm.BusSATA, nic: "e1000e"}}
	s := vm.Spec{Disks: []vm.Disk{{}, {Bus: vm.BusVirtio}}, NICs: []vm.NIC{{}, {Model: "virtio"}}}
	d.fit(&s, api.ImageInfo{OS: "old"})
	if s.Disks[0].Bus != vm.BusSATA || s.Disks[1].Bus != vm.BusVirtio || s.NICs[0].Model != "e1000e" || s.NICs[1].Model != "virtio" {
		t.Errorf("%+v, %+v", s.Disks, s.NICs)
	}
	db := osinfo.Open(osinfo.Dirs()...)
	if got := lookUpSystem(db, api.ImageInfo{OS: "win10"}); got != (system{"win10", vm.BusSATA, "e1000e"}) {
		t.Errorf("%+v", got)
	}
	if got := lookUpSystem(db, api.ImageInfo{OS: "debian11"}); got != (system{os: "debian11"}) {
		t.Errorf("%+v", got)
	}
	if got := lookUpSystem(db, api.ImageInfo{OS: "nosuch7"}); got != (system{}) {
		t.Errorf("%+v", got)
	}
}
