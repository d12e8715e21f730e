package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestPlugPlaces: where a plugged device can go, and the words where it cannot.
// Whether a guest finds it is the conformance suite's matter.
func TestPlugPlaces(t *testing.T) {
	spec := vmtest.Spec(t)
	spec.HotplugPorts = 2
	spec.Controllers = []vm.Controller{{Type: "scsi"}}
	dir := t.TempDir()
	m := vmtest.Start(t, New(Options{}), spec, dir).(*machine)
	vmtest.WaitSerial(t, m, vmtest.Ready)
	ctx := t.Context()
	plug := func(d vm.Disk) (vm.Disk, error) {
		d.Format = "raw"
		if d.Path == "" {
			d.Path = blank(t)
		}
		return m.PlugDisk(ctx, d)
	}
	scsi, err := plug(vm.Disk{Bus: vm.BusVirtioSCSI, Serial: "S1", Throttle: vm.Throttle{TotalIOPS: 50}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := plug(vm.Disk{}); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		disk vm.Disk
		want error
		text string
	}{
		"no port":       {vm.Disk{}, vm.ErrNoHotplug, "hotplugPorts"},
		"no nvme port":  {vm.Disk{Bus: vm.BusNVMe}, vm.ErrNoHotplug, "hotplugPorts"},
		"no controller": {vm.Disk{Bus: vm.BusUSB}, vm.ErrNoHotplug, "usb controller"},
		"sata":          {vm.Disk{Bus: vm.BusSATA}, vm.ErrNoHotplug, "use virtio"},
		"the same disk": {vm.Disk{Path: scsi.Path}, nil, "two drives on one image"},
		"missing":       {vm.Disk{Path: "/nonexistent"}, os.ErrNotExist, "no such file"},
		"not an image":  {vm.Disk{Bus: vm.BusVirtioSCSI, Path: os.DevNull}, nil, "neither a file"},
	} {
		before := len(m.RunningSpec().Disks)
		if _, err := plug(c.disk); err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(m.RunningSpec().Disks); n != before {
			t.Errorf("%s: %d drives, %d before", name, n, before)
		}
	}
	nodes, err := m.nodesOf(ctx, "disk4")
	if err != nil || len(nodes) != 0 {
		t.Errorf("a failed plug leaves nodes %v, %v", nodes, err)
	}
	requireUnplug(t, m, scsi)
}

// requireUnplug takes a SCSI disk away, and has another process adopt what is
// left.
func requireUnplug(t *testing.T, m *machine, scsi vm.Disk) {
	t.Helper()
	if _, err := m.UnplugDisk(t.Context(), "vda"); !errors.Is(err, vm.ErrNoHotplug) {
		t.Errorf("the boot disk, which is on no port: %v", err)
	}
	if _, err := m.UnplugDisk(t.Context(), "S1"); err != nil {
		t.Fatal(err)
	}
	qemutest.Img(t, "info", "-f", "raw", scsi.Path) // its lock is free
	if err := m.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := New(Options{}).Adopt(t.Context(), m.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Kill(context.WithoutCancel(t.Context())) })
	if got := strings.Join(again.(vm.Described).RunningSpec().DiskNames(), " "); got != "vda vdb vdc" {
		t.Errorf("adopted with %s", got)
	}
	d, err := again.(vm.DiskPlugger).PlugDisk(t.Context(), scsi)
	if err != nil || d.Path != scsi.Path {
		t.Errorf("plugged again: %+v, %v", d, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := again.(vm.DiskPlugger).UnplugDisk(short, "vdb"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest without a driver for that: %v", err)
	}
}

// TestBridge: the card's tap device is on the bridge, and gone with the machine.
func TestBridge(t *testing.T) {
	bridge := fmt.Sprintf("lamt%d", os.Getpid()%1_000_000)
	if r := qemutest.Run(t, "ip", "link", "add", bridge, "type", "bridge"); r.Status != 0 {
		t.Fatalf("ip: %+v", r)
	}
	t.Cleanup(func() { qemutest.Run(t, "ip", "link", "del", bridge) })
	members := func() []string {
		found, err := filepath.Glob(filepath.Join("/sys/class/net", bridge, "brif", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	spec := vmtest.Spec(t)
	spec.Machine = vm.MachinePC
	spec.NICs = []vm.NIC{{Type: vm.NICBridge, Bridge: bridge, MTU: 1400}, {Type: vm.NICBridge, Bridge: bridge, Model: "e1000"}}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
	if n := len(members()); n != 2 {
		t.Errorf("%d devices on the bridge, want 2", n)
	}
	if _, err := m.(vm.NICPlugger).PlugNIC(t.Context(), vm.NIC{Type: vm.NICBridge, Bridge: bridge}); err != nil {
		t.Error(err)
	}
	for _, member := range members() { // else one of them becomes the bridge's own
		i, err := net.InterfaceByName(filepath.Base(member))
		if err != nil || i.HardwareAddr[0] != 0xfe {
			t.Errorf("%s: address %v, %v", member, i, err)
		}
	}
	if n := len(members()); n != 3 {
		t.Errorf("%d devices on the bridge, want 3", n)
	}
	if err := m.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); len(members()) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left on the bridge: %v", members())
		}
	}
	spec.NICs[0].Bridge = "nosuchbr0"
	if _, err := New(Options{}).Start(t.Context(), spec, t.TempDir()); err == nil || !strings.Contains(err.Error(), "there is no bridge nosuchbr0") {
		t.Errorf("no bridge: %v", err)
	}
	if n := len(members()); n != 0 {
		t.Errorf("a start that failed leaves %d devices on the bridge", n)
	}
}

// TestGoneDisk: the others keep their names.
func TestGoneDisk(t *testing.T) {
	disk := vm.Disk{Bus: vm.BusVirtio}
	r := record{Spec: vm.Spec{Disks: []vm.Disk{disk, disk, disk}}, DiskIDs: []string{"disk0", "disk1", "disk2"}}
	r.dropDisk("disk1")
	if got := r.Spec.DiskNames(); !slices.Equal(got, []string{"vda", "vdc"}) {
		t.Error(got)
	}
}
