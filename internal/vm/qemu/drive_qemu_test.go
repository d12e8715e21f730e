package qemu

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// overlayOf returns a new overlay, two deep, of the tiny guest.
func overlayOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	base, mid, top := filepath.Join(dir, "base"), filepath.Join(dir, "mid"), filepath.Join(dir, "top")
	qemutest.Img(t, "convert", "-f", "raw", "-O", "qcow2", vmtest.Image(t), base)
	qemutest.Img(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", mid)
	qemutest.Img(t, "create", "-f", "qcow2", "-b", mid, "-F", "qcow2", top)
	return top
}

// TestBootFromEachBus boots the tiny guest from an overlay on every bus of both
// machine types, with a seed drive and another disk beside it.
func TestBootFromEachBus(t *testing.T) {
	for _, c := range []struct {
		machine string
		bus     vm.Bus
	}{
		{vm.MachinePC, vm.BusIDE},
		{vm.MachinePC, vm.BusSATA}, {vm.MachineQ35, vm.BusSATA},
		{vm.MachinePC, vm.BusVirtio}, {vm.MachineQ35, vm.BusVirtio},
		{vm.MachinePC, vm.BusVirtioSCSI}, {vm.MachineQ35, vm.BusVirtioSCSI},
	} {
		t.Run(c.machine+" "+string(c.bus), func(t *testing.T) {
			spec := vmtest.Spec(t)
			spec.Machine = c.machine
			other := vmtest.Image(t)
			spec.Disks = []vm.Disk{
				vm.SeedDisk(vmtest.Image(t), c.bus),
				{Path: overlayOf(t), Format: "qcow2", Bus: c.bus, BootIndex: 1, Serial: "main"},
				{Path: other, Format: "raw", Bus: c.bus},
			}
			m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
			vmtest.WaitSerial(t, m, vmtest.Ready)
		})
	}
}

// TestCacheModes asks QEMU what each cache mode became, for every image of the
// chain.
func TestCacheModes(t *testing.T) {
	type cache struct{ Writeback, Direct, NoFlush bool }
	for mode, want := range map[vm.Cache]cache{
		vm.CacheWriteback:    {true, false, false},
		vm.CacheNone:         {true, true, false},
		vm.CacheWritethrough: {false, false, false},
		vm.CacheDirectsync:   {false, true, false},
		vm.CacheUnsafe:       {true, false, true},
	} {
		t.Run(string(mode), func(t *testing.T) {
			spec := vmtest.Spec(t)
			spec.Disks = []vm.Disk{{Path: overlayOf(t), Format: "qcow2", Cache: mode, Discard: true}}
			m := vmtest.Start(t, New(Options{}), spec, t.TempDir()).(*machine)
			var drives []struct {
				Inserted struct {
					Cache struct {
						Writeback bool `json:"writeback"`
						Direct    bool `json:"direct"`
						NoFlush   bool `json:"no-flush"`
					} `json:"cache"`
					Depth int `json:"backing_file_depth"`
				} `json:"inserted"`
			}
			if err := m.execute(t.Context(), "query-block", nil, &drives); err != nil || len(drives) != 1 {
				t.Fatalf("drives %+v, %v", drives, err)
			}
			if got := drives[0].Inserted; cache(got.Cache) != want || got.Depth != 2 {
				t.Errorf("the drive has %+v, want %+v", got, want)
			}
			var nodes []struct {
				File  string `json:"file"`
				Cache struct {
					Direct  bool `json:"direct"`
					NoFlush bool `json:"no-flush"`
				} `json:"cache"`
			}
			if err := m.execute(t.Context(), "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
				t.Fatal(err)
			}
			files := map[string]bool{}
			for _, n := range nodes {
				files[filepath.Base(n.File)] = true
				if n.Cache.Direct != want.Direct || n.Cache.NoFlush != want.NoFlush {
					t.Errorf("image %s has %+v, want %+v", n.File, n.Cache, want)
				}
			}
			if len(files) != 3 {
				t.Errorf("the chain has %v", files)
			}
		})
	}
}

// TestFullHouse starts as many drives as each limit allows.
func TestFullHouse(t *testing.T) {
	for _, c := range []struct {
		machine string
		bus     vm.Bus
		n       int
	}{
		{vm.MachinePC, vm.BusIDE, 4}, {vm.MachinePC, vm.BusSATA, 6}, {vm.MachineQ35, vm.BusSATA, 6},
		{vm.MachinePC, vm.BusVirtio, 29}, {vm.MachineQ35, vm.BusVirtio, 29}, {vm.MachineQ35, vm.BusVirtioSCSI, 256},
	} {
		spec := vmtest.Spec(t)
		spec.Machine = c.machine
		spec.Disks[0].Bus, spec.Disks[0].BootIndex = c.bus, 1
		for range c.n - 1 {
			spec.Disks = append(spec.Disks, vm.Disk{Path: vmtest.Image(t), Format: "raw", Bus: c.bus})
		}
		m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		spec.Disks = append(spec.Disks, vm.Disk{Path: vmtest.Image(t), Format: "raw", Bus: c.bus})
		if _, err := New(Options{}).Start(t.Context(), spec, t.TempDir()); err == nil || !strings.Contains(err.Error(), "virtio-scsi") {
			t.Errorf("%d drives on %s of %s: %v", c.n+1, c.bus, c.machine, err)
		}
	}
}

// TestImageInUse: QEMU's own lock keeps two machines off one image.
func TestImageInUse(t *testing.T) {
	spec := vmtest.Spec(t)
	vmtest.Start(t, New(Options{}), spec, t.TempDir())
	_, err := New(Options{}).Start(t.Context(), spec, t.TempDir())
	if err == nil {
		t.Fatal("two machines write to one image")
	}
	requireIn(t, err.Error(), "lock", fmt.Sprintf("%q", spec.Name))
}
