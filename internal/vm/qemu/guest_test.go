package qemu

import (
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestLinuxGuest boots the small Linux guest from an overlay, with a seed: its
// own drivers, not only the firmware's, must find both drives. The other buses
// are tested with the formats, in test/boot.
func TestLinuxGuest(t *testing.T) {
	bus := vm.BusVirtioSCSI
	base := guestimage.Small(t)
	dir := t.TempDir()
	disk, cidata := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "seed.iso")
	qemutest.Img(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", disk)
	if err := seed.Write(cidata, seed.Config{InstanceID: "i-1", Hostname: "found-the-seed"}); err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{
		Name:   "linux",
		Memory: 256 << 20,
		Accel:  vm.AccelTCG,
		RNG:    true,
		Disks:  []vm.Disk{{Path: disk, Format: "qcow2", Bus: bus, Cache: vm.CacheUnsafe}, vm.SeedDisk(cidata, bus)},
		NICs:   []vm.NIC{{Forwards: []vm.Forward{{GuestPort: 22}}}},
	}
	begin := time.Now()
	m := vmtest.Start(t, New(Options{}), spec, filepath.Join(dir, "m"))
	vmtest.WaitSerial(t, m, "found-the-seed login:")
	t.Logf("login after %v", time.Since(begin).Round(time.Millisecond))
	if lines, err := m.ScreenText(t.Context()); err != nil || !strings.Contains(strings.Join(lines, "\n"), "login:") {
		t.Errorf("screen %q, %v", lines, err)
	}
	ssh, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(m.Info().Forwards[0])))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ssh.Close() }()
	banner := make([]byte, 4)
	if err := ssh.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := ssh.Read(banner); err != nil || string(banner) != "SSH-" {
		t.Errorf("the forwarded port says %q, %v", banner, err)
	}
	if err := m.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e, err := m.Wait(t.Context()); err != nil || e.Reason != "guest shut down" {
		t.Errorf("exit %+v, %v", e, err)
	}
}

func port(f vm.Forward) string { return strconv.Itoa(f.HostPort) }
