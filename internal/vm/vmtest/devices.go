package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// watcher tells, whenever it changes, which disks of which size, which label in
// the CD-ROM drive and which cards the guest's kernel has.
const watcher = `#cloud-config
runcmd:
  - |
    modprobe -a -q ahci sd_mod sr_mod virtio_scsi
    (
    old=
    while usleep 100000; do
        seen=
        for d in /sys/block/[vsh]d*; do read -r n <$d/size; seen="$seen ${d##*/}:$n"; done
        seen="$seen cd:$(dd if=/dev/sr0 bs=8 count=1 2>/dev/null | tr -dc a-z)"
        for d in /sys/class/net/eth*; do read -r n <$d/address; seen="$seen $n"; done
        [ "$seen" = "$old" ] || echo "SEEN$seen." >/dev/console
        old=$seen
    done
    ) &
`

// testDevices boots the small Linux guest once, with disks on every bus that it
// has drivers for and with several cache modes, and then lets devices come, go,
// grow and change. A driver whose machines cannot do one of these fails the test:
// vm/qemu and vm/libvirt both can. It takes some 30 s.
func testDevices(t *testing.T, newDriver maker) {
	dir := t.TempDir()
	image := func(name, label string, sectors int) string {
		path := filepath.Join(dir, name)
		b := make([]byte, sectors*512)
		copy(b, label)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root, cidata := filepath.Join(dir, "root.qcow2"), filepath.Join(dir, "seed.iso")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", guestimage.Small(t), "-F", "qcow2", root)
	if err := seed.Write(cidata, seed.Config{InstanceID: "i-1", Hostname: "devices", UserData: []byte(watcher)}); err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{
		Name: "devices", Memory: 256 << 20, Accel: vm.AccelTCG, Machine: vm.MachineQ35,
		Disks: []vm.Disk{
			{Path: root, Format: "qcow2", Cache: vm.CacheUnsafe, BootIndex: 1},
			vm.SeedDisk(cidata, vm.BusVirtio),
			{Path: image("none", "", 2050), Format: "raw", Cache: vm.CacheNone, IO: vm.IONative},
			{Path: image("scsi", "", 2052), Format: "raw", Bus: vm.BusVirtioSCSI, Cache: vm.CacheDirectsync, Serial: "SCSI1"},
			{Path: image("sata", "", 2054), Format: "raw", Bus: vm.BusSATA, Cache: vm.CacheWritethrough},
			{Path: image("cd", "first", 2056), Format: "raw", Device: vm.DeviceCDROM, Target: "sdz"},
		},
		NICs: []vm.NIC{{MAC: "52:54:00:00:00:01"}},
	}
	spec.HotplugPorts = 2
	m := Start(t, newDriver(t), spec, filepath.Join(dir, "m"))
	see(t, m, "vdc:2050", ":2052", ":2054", "cd:first", "52:54:00:00:00:01")
	plugDisks(t, m, image)
	changeMedia(t, m, image)
	plugCard(t, m)
	kill(t, m)
}

// see waits until the guest's last word of its devices has all the texts.
func see(t *testing.T, m vm.Machine, want ...string) {
	t.Helper()
	eventually(t, strings.Join(want, " "), func() (bool, any) {
		last := lastSeen(t, m)
		for _, w := range want {
			if !strings.Contains(last, w) {
				return false, last
			}
		}
		return true, last
	})
}

// gone waits until it has the text no more.
func gone(t *testing.T, m vm.Machine, text string) {
	t.Helper()
	eventually(t, "without "+text, func() (bool, any) {
		last := lastSeen(t, m)
		return last != "" && !strings.Contains(last, text), last
	})
}

func lastSeen(t *testing.T, m vm.Machine) string {
	t.Helper()
	b, err := os.ReadFile(m.SerialLog())
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for line := range strings.Lines(string(b)) {
		if _, seen, ok := strings.Cut(strings.TrimSpace(line), "SEEN "); ok && strings.HasSuffix(seen, ".") {
			last = seen
		}
	}
	return last
}

// plugDisks: a virtio and a SCSI disk come; one grows; both go.
func plugDisks(t *testing.T, m vm.Machine, image func(name, label string, sectors int) string) {
	t.Helper()
	ctx := t.Context()
	plugger := m.(vm.DiskPlugger)
	disk := vm.Disk{Path: image("hot", "", 2060), Format: "raw", Serial: "HOT1", Target: "vdx"}
	if _, err := plugger.PlugDisk(ctx, disk); err != nil {
		t.Fatal(err)
	}
	if _, err := plugger.PlugDisk(ctx, vm.Disk{Path: image("hot-scsi", "", 2062), Format: "raw", Bus: vm.BusVirtioSCSI, Target: "sdx"}); err != nil {
		t.Fatal(err)
	}
	see(t, m, ":2060", ":2062")
	resizer := m.(vm.DiskResizer)
	if err := resizer.ResizeDisk(ctx, "vdx", 4120*512); err != nil {
		t.Fatal(err)
	}
	see(t, m, ":4120")
	if st, err := os.Stat(disk.Path); err != nil || st.Size() != 4120*512 {
		t.Errorf("the image after it has grown: %v, %v", st, err)
	}
	if err := resizer.ResizeDisk(ctx, "vdx", 2060*512); err == nil {
		t.Error("a disk was made smaller under a running guest")
	}
	if err := m.(vm.DiskThrottler).ThrottleDisk(ctx, "vdx", vm.Throttle{TotalIOPS: 1000}); err != nil {
		t.Error(err)
	}
	for name, size := range map[string]string{"vdx": ":4120", "sdx": ":2062"} {
		if _, err := plugger.UnplugDisk(ctx, name); err != nil {
			t.Fatal(err)
		}
		gone(t, m, size)
	}
	if _, err := plugger.UnplugDisk(ctx, "vdx"); err == nil {
		t.Error("a disk that is gone was taken away again")
	}
}

// changeMedia: the CD-ROM drive is emptied and filled.
func changeMedia(t *testing.T, m vm.Machine, image func(name, label string, sectors int) string) {
	t.Helper()
	changer := m.(vm.MediaChanger)
	if err := changer.ChangeMedium(t.Context(), "sdz", vm.Medium{Path: "/nonexistent.iso", Format: "raw"}, true); err == nil {
		t.Error("a medium that is not there was put in")
	}
	see(t, m, "cd:first")
	if err := changer.ChangeMedium(t.Context(), "sdz", vm.Medium{Path: image("cd2", "second", 2064), Format: "raw"}, true); err != nil {
		t.Fatal(err)
	}
	see(t, m, "cd:second")
	if err := changer.EjectMedium(t.Context(), "sdz", true); err != nil {
		t.Fatal(err)
	}
	gone(t, m, "cd:second")
	if err := changer.EjectMedium(t.Context(), "vda", true); err == nil {
		t.Error("the medium of a disk was ejected")
	}
}

// plugCard: a card comes and goes.
func plugCard(t *testing.T, m vm.Machine) {
	t.Helper()
	plugger := m.(vm.NICPlugger)
	const mac = "52:54:00:00:00:02"
	if _, err := plugger.PlugNIC(t.Context(), vm.NIC{MAC: mac}); err != nil {
		t.Fatal(err)
	}
	see(t, m, mac)
	if err := plugger.SetLink(t.Context(), mac, vm.LinkDown); err != nil {
		t.Error(err)
	}
	if _, err := plugger.UnplugNIC(t.Context(), mac); err != nil {
		t.Fatal(err)
	}
	gone(t, m, mac)
}
