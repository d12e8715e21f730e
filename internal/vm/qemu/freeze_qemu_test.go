package qemu

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// console is a guest's serial port, on which a shell runs.
type console struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
	runs int
}

const consoleLimit = 100 * time.Second

func openConsole(t *testing.T, m vm.Machine) *console {
	t.Helper()
	conn, err := net.Dial("unix", m.SerialSocket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(consoleLimit)); err != nil {
		t.Fatal(err)
	}
	return &console{t: t, conn: conn, in: bufio.NewReader(conn)}
}

// until sends text and reads until mark has come.
func (c *console) until(text, mark string) string {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
	var seen strings.Builder
	for !strings.HasSuffix(seen.String(), mark) {
		b, err := c.in.ReadByte()
		if err != nil {
			c.t.Fatalf("%v; want %q, the console says %q", err, mark, seen.String())
		}
		seen.WriteByte(b)
	}
	return seen.String()
}

// run runs a command in the guest's shell and returns what it prints.
func (c *console) run(command string) string {
	c.t.Helper()
	c.runs++
	mark := fmt.Sprintf("<%d>", c.runs)
	out := c.until(fmt.Sprintf("printf '<%%s\\n' begin; %s; printf '<%%s>' %d\n", command, c.runs), mark)
	_, out, _ = strings.Cut(out, "<begin\r\n")
	return strings.TrimSpace(strings.ReplaceAll(strings.TrimSuffix(out, mark), "\r", ""))
}

// bootSmall starts the small guest and logs in as root.
func bootSmall(t *testing.T) (vm.Machine, *console) {
	t.Helper()
	over := filepath.Join(t.TempDir(), "disk.qcow2")
	qemutest.Img(t, "create", "-f", "qcow2", "-b", guestimage.Small(t), "-F", "qcow2", over)
	spec := vm.Spec{
		Name: "source", Memory: 192 << 20, Accel: vm.AccelTCG, RNG: true, GenerationID: vm.NewUUID(),
		Disks:   []vm.Disk{{Path: over, Format: "qcow2"}},
		NICs:    []vm.NIC{{Forwards: []vm.Forward{{GuestPort: 22}}}},
		Devices: vm.Devices{HotplugPorts: 3},
	}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
	vmtest.WaitSerial(t, m, "login:")
	c := openConsole(t, m)
	c.until("root\n", "# ")
	return m, c
}

// load makes the guest write, to memory and to its disk, for as long as its shell
// has these jobs.
const load = "cd /tmp; (while :; do dd if=/dev/urandom of=/dev/shm/w bs=64k count=32 2>/dev/null; done) & " +
	"(while :; do dd if=/dev/urandom of=/root/w bs=64k count=8 conv=fsync 2>/dev/null; done) & true"

// TestFork freezes a guest that writes, with a disk that came while it ran, and lets
// two go on from there beside it. Each has what was there, and its own from then on.
func TestFork(t *testing.T) {
	m, c := bootSmall(t)
	extra := filepath.Join(t.TempDir(), "extra.qcow2")
	qemutest.Img(t, "create", "-f", "qcow2", extra, "16M")
	if _, err := m.(vm.DiskPlugger).PlugDisk(t.Context(), vm.Disk{Path: extra, Format: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	c.run("until [ -b /dev/vdb ]; do usleep 20000; done; echo extra | dd of=/dev/vdb conv=fsync,sync bs=512; echo before >/root/before; sync")
	c.run("until ip -4 addr show eth0 | grep -q inet && netstat -ltn | grep -q ':22 '; do usleep 50000; done")
	c.run(load)
	res := freezeShort(t, m)
	logFiles(t, res.Frozen)
	if res.Pause <= 0 || res.Written <= 0 || res.Written >= res.Total {
		t.Errorf("%+v", res)
	}
	frozen := fileSum(t, res.Frozen.Spec.Disks[0].Path)
	c.run("kill %1 %2; echo own >/root/own-source; sync")

	d := New(Options{})
	machines := []vm.Machine{m}
	for _, name := range []string{"one", "two"} {
		begin := time.Now()
		clone, err := d.Thaw(t.Context(), thawSpec(t, res.Frozen, name), res.Frozen, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = clone.Kill(context.WithoutCancel(t.Context())) })
		thawed := time.Since(begin)
		cc := openConsole(t, clone)
		cc.until("\n", "# ")
		t.Logf("%s: thawed in %v, prompt after %v, PSS %d KiB", name, thawed.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond), pss(t, clone))
		machines = append(machines, clone)
		requireClone(t, clone, cc, name)
	}
	if got := c.run("cat /root/before /root/own-*; head -c 5 /dev/vdb"); got != "before\nown\nextra" {
		t.Errorf("the source has %q", got)
	}
	for _, m := range machines {
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		for _, disk := range m.(vm.Described).RunningSpec().Disks {
			qemutest.Img(t, "check", disk.Path)
		}
	}
	if fileSum(t, res.Frozen.Spec.Disks[0].Path) != frozen {
		t.Error("the frozen layer was written to")
	}
}

// The pause of a freeze, beyond what its dirty memory takes to be written, and what a
// host writes in a second at least. A host that does much else may take longer now and
// then, but not each time.
const (
	maxPause   = 300 * time.Millisecond
	writeSpeed = 200 << 20
	tries      = 5
)

// freezeShort freezes a machine, again where the pause was too long.
func freezeShort(t *testing.T, m vm.Machine) vm.FreezeResult {
	t.Helper()
	for try := 1; ; try++ {
		begin := time.Now()
		res, err := m.(vm.Freezer).Freeze(t.Context(), requestFor(t, m))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("frozen in %v, pause %v, %d of %d KiB in it", time.Since(begin).Round(time.Millisecond), res.Pause, res.Written>>10, res.Total>>10)
		limit := maxPause + time.Duration(res.Written)*time.Second/writeSpeed
		if res.Pause <= limit {
			return res
		}
		if try == tries {
			t.Errorf("%d times the guest was stopped for too long, at last for %v where %v may be", try, res.Pause, limit)
			return res
		}
	}
}

// requireClone: it has what was there at the instant, also what was under way; its
// card works, and one that is plugged in gets an address.
func requireClone(t *testing.T, m vm.Machine, c *console, name string) {
	t.Helper()
	if got := c.run("cat /root/before; cat /root/own-* 2>/dev/null; head -c 5 /dev/vdb; echo; jobs | wc -l"); got != "before\nextra\n2" {
		t.Errorf("%s has %q", name, got)
	}
	c.run("kill %1 %2; echo own >/root/own-" + name + "; sync")
	ssh, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(m.Info().Forwards[0])))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ssh.Close() }()
	banner := make([]byte, 4)
	if err := ssh.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ssh, banner); err != nil || string(banner) != "SSH-" {
		t.Errorf("%s: the forwarded port says %q, %v", name, banner, err)
	}
	if _, err := m.(vm.NICPlugger).PlugNIC(t.Context(), vm.NIC{Network: "10.9.8.0/24"}); err != nil {
		t.Fatal(err)
	}
	got := c.run("until ip link set eth1 up 2>/dev/null; do usleep 20000; done; udhcpc -q -n -t 10 -T 1 -s /lib/lamina/dhcp -i eth1 >/dev/null 2>&1; ip -4 addr show eth1")
	if !strings.Contains(got, "inet 10.9.8.15/24") {
		t.Errorf("%s: the second card has %q", name, got)
	}
	if got := c.run("dmesg | grep -c 'crng reseeded due to virtual machine fork'"); got != "1" {
		t.Errorf("%s was told of its fork %q times", name, got)
	}
}

// requestFor freezes over new overlays of all its disks.
func requestFor(t *testing.T, m vm.Machine) vm.FreezeRequest {
	t.Helper()
	dir := t.TempDir()
	r := vm.FreezeRequest{RAM: filepath.Join(dir, "ram"), State: filepath.Join(dir, "state"), Layers: map[string]string{}}
	spec := m.(vm.Described).RunningSpec()
	for i, name := range spec.DiskNames() {
		r.Layers[name] = filepath.Join(dir, name+".qcow2")
		qemutest.Img(t, "create", "-f", "qcow2", "-b", spec.Disks[i].Path, "-F", "qcow2", r.Layers[name])
	}
	return r
}

func logFiles(t *testing.T, f vm.Frozen) {
	t.Helper()
	for _, p := range []string{f.RAM, f.State} {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d KiB, %d on disk", filepath.Base(p), st.Size>>10, st.Blocks/2)
	}
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// pss is a process's share of memory in KiB.
func pss(t *testing.T, m vm.Machine) (kib int) {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/smaps_rollup", m.Info().PID))) {
		if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatal("no Pss")
	return 0
}

// TestForkPlaces: devices that came and went are where they were, also where the same
// command line would put them elsewhere. A QEMU that found one elsewhere would not
// load its state.
func TestForkPlaces(t *testing.T) {
	spec := tinySpec(t)
	spec.Machine, spec.RNG, spec.CPUs = vm.MachinePC, true, 2
	spec.Controllers = []vm.Controller{{Type: "scsi"}, {Type: "usb"}}
	spec.Inputs = []vm.Input{{Type: "tablet"}}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir()).(*machine)
	vmtest.WaitSerial(t, m, vmtest.Ready)
	for i, bus := range []vm.Bus{vm.BusVirtioSCSI, vm.BusVirtioSCSI, vm.BusUSB, vm.BusVirtio} {
		path := filepath.Join(t.TempDir(), "plugged.qcow2")
		qemutest.Img(t, "create", "-f", "qcow2", path, "1M")
		if _, err := m.PlugDisk(t.Context(), vm.Disk{Path: path, Format: "qcow2", Bus: bus, Serial: fmt.Sprintf("S%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.UnplugDisk(t.Context(), "S0"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.PlugNIC(t.Context(), vm.NIC{}); err != nil {
		t.Fatal(err)
	}
	res, err := m.Freeze(t.Context(), requestFor(t, m))
	if err != nil {
		t.Fatal(err)
	}
	d := New(Options{})
	clone, err := d.Thaw(t.Context(), thawSpec(t, res.Frozen, "clone"), res.Frozen, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = clone.Kill(context.WithoutCancel(t.Context())) })
	vmtest.Send(t, clone, "x")
	// It is a machine as any other: what has a place can be unplugged, plugged and
	// frozen again.
	if _, err := clone.(vm.DiskPlugger).UnplugDisk(t.Context(), "S1"); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "plugged.qcow2")
	qemutest.Img(t, "create", "-f", "qcow2", path, "1M")
	if _, err := clone.(vm.DiskPlugger).PlugDisk(t.Context(), vm.Disk{Path: path, Format: "qcow2", Bus: vm.BusVirtioSCSI}); err != nil {
		t.Error(err)
	}
	if res, err = clone.(vm.Freezer).Freeze(t.Context(), requestFor(t, clone)); err != nil {
		t.Fatal(err)
	}
	again, err := d.Thaw(t.Context(), thawSpec(t, res.Frozen, "again"), res.Frozen, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Kill(context.WithoutCancel(t.Context())) })
	vmtest.Send(t, again, "x")
}
