package qemu

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func overlay(t *testing.T, base, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	qemutest.Img(t, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
	return path
}

// bootSmall starts the small guest and logs in as root.
func bootSmall(t *testing.T, change func(*vm.Spec)) (vm.Machine, *console) {
	t.Helper()
	spec := vm.Spec{
		Name: "source", Memory: 192 << 20, Accel: vm.AccelTCG, RNG: true, Devices: vm.Devices{HotplugPorts: 3},
		GenerationID: vm.NewUUID(),
		Disks:        []vm.Disk{{Path: overlay(t, guestimage.Small(t), "disk.qcow2"), Format: "qcow2", Cache: vm.CacheUnsafe}},
	}
	if change != nil {
		change(&spec)
	}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
	vmtest.WaitSerial(t, m, "login:")
	c := openConsole(t, m)
	c.until("root\n", "# ")
	return m, c
}

func thawed(t *testing.T, d *Driver, f vm.Frozen, name string) (vm.Machine, vm.Spec) {
	t.Helper()
	spec := f.Spec.Clone()
	spec.Name, spec.UUID, spec.GenerationID = name, vm.NewUUID(), vm.NewUUID()
	for i := range spec.Disks {
		spec.Disks[i].Path = overlay(t, f.Spec.Disks[i].Path, "disk.qcow2")
	}
	begin := time.Now()
	m, err := d.Thaw(t.Context(), spec, f, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: thawed in %v", name, time.Since(begin).Round(time.Millisecond))
	t.Cleanup(func() { _ = m.Kill(context.WithoutCancel(t.Context())) })
	return m, spec
}

func freezeRequest(t *testing.T, m vm.Machine) vm.FreezeRequest {
	t.Helper()
	dir := t.TempDir()
	r := vm.FreezeRequest{RAM: filepath.Join(dir, "ram"), State: filepath.Join(dir, "state"), Layers: map[string]string{}}
	spec := m.(vm.Described).RunningSpec()
	for i, name := range spec.DiskNames() {
		r.Layers[name] = overlay(t, spec.Disks[i].Path, name+".qcow2")
	}
	return r
}

func TestFreezeThaw(t *testing.T) {
	m, c := bootSmall(t, nil)
	c.run("echo before >/root/file; sync")
	r := freezeRequest(t, m)
	begin := time.Now()
	res, err := m.(vm.Freezer).Freeze(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(r.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("frozen in %v, pause %v, %d of %d KiB in it; %+v; ram %d", time.Since(begin).Round(time.Millisecond), res.Pause, res.Written>>10, res.Total>>10, res.Frozen.Key, st.Size())
	t.Logf("%s", res.Frozen.Layout)
	c.run("echo source >/root/own; sync")
	d := New(Options{})
	for i := range 2 {
		name := fmt.Sprintf("clone%d", i)
		begin := time.Now()
		clone, _ := thawed(t, d, res.Frozen, name)
		cc := openConsole(t, clone)
		cc.until("\n", "# ")
		t.Logf("%s: prompt after %v", name, time.Since(begin).Round(time.Millisecond))
		t.Log(cc.run("cat /root/*; dmesg | tail -n 2"))
	}
	t.Log(c.run("cat /root/*"))
}
