package virtctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }

// sample is a machine as virsh would define it: its BIOS finds nothing to boot.
const sample = `<domain type='qemu'>
  <name>%[1]s</name>
  <uuid>%[3]s</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><bios useserial='yes'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='%[2]s/%[1]s.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='pty'><log file='%[2]s/%[1]s.log'/><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <video><model type='vga'/></video>
    <graphics type='vnc' port='-1'><listen type='none'/></graphics>
  </devices>
</domain>
`

func open(t *testing.T) (*libvirttest.Daemon, *Machines) {
	t.Helper()
	d := libvirttest.Shared(t)
	v, err := Open(t.Context(), d.URI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, v
}

// define makes a domain with virsh, as somebody else would.
func define(t *testing.T, d *libvirttest.Daemon, dir, name string) {
	t.Helper()
	qemutest.Img(t, "create", "-q", "-f", "qcow2", filepath.Join(dir, name+".qcow2"), "16M")
	file := filepath.Join(dir, name+".xml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(sample, name, dir, vm.NewUUID())), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "define", file)
}

func code(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

func TestMachines(t *testing.T) {
	d, v := open(t)
	ctx, dir := t.Context(), t.TempDir()
	define(t, d, dir, "one")
	m, err := v.Machine(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	disk := m.Spec.Disks[0]
	if m.State != api.Stopped || m.Spec.CPUs != 2 || m.Spec.Memory != 64<<20 || m.Run != nil || m.DiskSize == 0 ||
		disk.Path != dir+"/one.qcow2" || disk.Format != "qcow2" || disk.Bus != vm.BusVirtio || disk.Cache != vm.CacheNone || disk.Target != "vda" {
		t.Errorf("%+v", m)
	}
	if _, err := v.Machine(ctx, "two"); code(err) != api.CodeNotFound {
		t.Error(err)
	}
	if err := v.Autostart(ctx, "one", true); err != nil {
		t.Error(err)
	}

	var heard []string
	events, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	ready := make(chan struct{}, 100)
	go func() {
		over <- v.Events(events, func(e api.MachineEvent) { heard = append(heard, e.Machine+" "+e.Kind); ready <- struct{}{} })
	}()
	// The subscription is there when something is heard.
	for waiting := true; waiting; {
		d.Virsh(t, "define", filepath.Join(dir, "one.xml"))
		select {
		case <-ready:
			waiting = false
		case <-time.After(100 * time.Millisecond):
		}
	}

	if m, err = v.Start(ctx, "one", api.StartRequest{}, nil); err != nil || m.State != api.Running || m.Run == nil || m.Run.Accel != vm.AccelTCG || !m.Autostart {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := v.Start(ctx, "one", api.StartRequest{}, nil); code(err) != api.CodeInvalid {
		t.Errorf("started twice: %v", err)
	}
	if err := v.Remove(ctx, "one", false); code(err) != api.CodeInUse {
		t.Errorf("removed while it runs: %v", err)
	}
	list, err := v.Machines(ctx)
	if err != nil || len(list) != 1 || list[0].Name != "one" {
		t.Errorf("%v, %v", list, err)
	}
	look(t, v)
	d.Virsh(t, "suspend", "one")
	if m, err := v.Machine(ctx, "one"); err != nil || m.State != api.Paused {
		t.Errorf("%+v, %v", m, err)
	}
	d.Virsh(t, "resume", "one")
	// The BIOS does not hear the button.
	var told []string
	began := time.Now()
	m, err = v.Stop(ctx, "one", api.StopRequest{Timeout: 300 * time.Millisecond}, func(e api.Event) { told = append(told, e.Text+e.Warning) })
	if err != nil || m.State != api.Stopped || time.Since(began) < 300*time.Millisecond || !strings.Contains(strings.Join(told, "\n"), "powered off") {
		t.Errorf("%+v, %v, told %q", m, err, told)
	}
	if m, err = v.Stop(ctx, "one", api.StopRequest{}, nil); err != nil || m.State != api.Stopped {
		t.Errorf("stopped twice: %+v, %v", m, err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"one started", "one suspended", "one resumed", "one stopped"} {
		if !slices.Contains(heard, want) {
			t.Errorf("not heard: %s; only %q", want, heard)
		}
	}
	remove(t, d, v, dir)
}

// look reads what the machine one shows.
func look(t *testing.T, v *Machines) {
	t.Helper()
	ctx := t.Context()
	log, err := v.Log(ctx, "one", true, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	readUntil(t, log, "No bootable device")
	png, err := v.Screen(ctx, "one", "png")
	if err != nil || !strings.HasPrefix(string(png), "\x89PNG") {
		t.Errorf("screen: %.20q, %v", png, err)
	}
	text, err := v.Screen(ctx, "one", "text")
	if err != nil || !strings.Contains(string(text), "No bootable device") {
		t.Errorf("screen: %q, %v", text, err)
	}
	con, err := v.Console(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Console(ctx, "one"); err == nil {
		t.Error("a console is given to two")
	}
	if err := con.Close(); err != nil {
		t.Error(err)
	}
	last, err := v.Log(ctx, "one", false, 1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(last)
	if err != nil || strings.Count(strings.TrimRight(string(b), "\n"), "\n") != 0 || len(b) == 0 {
		t.Errorf("last line: %q, %v", b, err)
	}
	_ = last.Close()
}

func readUntil(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !strings.Contains(string(got), want) {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
	}
}

// remove removes the machine one, whose disk another has first.
func remove(t *testing.T, d *libvirttest.Daemon, v *Machines, dir string) {
	t.Helper()
	ctx := t.Context()
	define(t, d, dir, "other")
	text, err := os.ReadFile(filepath.Join(dir, "other.xml"))
	if err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared.xml")
	if err := os.WriteFile(shared, []byte(strings.Replace(string(text), "other.qcow2", "one.qcow2", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "define", shared)
	if err := v.RemoveDisks(ctx, "one", false, nil); code(err) != api.CodeInUse || !strings.Contains(err.Error(), "other") {
		t.Errorf("a disk of another machine: %v", err)
	}
	// Another that does not run, of which libvirt does not say what is below.
	d.Virsh(t, "define", filepath.Join(dir, "other.xml"))
	over := filepath.Join(dir, "other.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", "one.qcow2", "-F", "qcow2", over)
	if err := v.RemoveDisks(ctx, "one", false, nil); code(err) != api.CodeInUse || !strings.Contains(err.Error(), "machine other needs") {
		t.Errorf("the base of another machine's disk: %v", err)
	}
	if err := os.WriteFile(over, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.RemoveDisks(ctx, "one", false, nil); code(err) != api.CodeInUse || !strings.Contains(err.Error(), "machine other") {
		t.Errorf("another machine's disk cannot be read: %v", err)
	}
	if err := v.Remove(ctx, "other", false); err != nil {
		t.Error(err)
	}
	there := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	if !there("one.qcow2") || !there("other.qcow2") {
		t.Error("a disk is gone that nobody wanted removed")
	}
	if err := v.RemoveDisks(ctx, "one", false, nil); err != nil {
		t.Error(err)
	}
	if there("one.qcow2") || !there("other.qcow2") {
		t.Error("the wrong disk is gone")
	}
	if list, err := v.Machines(ctx); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// TestVolumes: what lies in a pool goes by way of libvirt, which knows what is
// below it too; what is no file stays.
func TestVolumes(t *testing.T) {
	d, v := open(t)
	ctx, dir := t.Context(), t.TempDir()
	base, over, folder := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "over.qcow2"), filepath.Join(dir, "folder")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", base, "1M")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", over)
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "pool-create-as", "volumes", "dir", "--target", dir)
	t.Cleanup(func() { d.Virsh(t, "pool-destroy", "volumes") })
	if files, err := v.volumeFiles(ctx, over, "qcow2"); err != nil || !slices.Equal(files, []string{over, base}) {
		t.Errorf("%q, %v", files, err)
	}
	for _, path := range []string{folder, over} {
		if removed, err := v.removeImage(ctx, path); err != nil || removed != (path == over) {
			t.Errorf("%s: %v, %v", path, removed, err)
		}
	}
	if _, err := os.Stat(folder); err != nil {
		t.Errorf("a volume that is no file: %v", err)
	}
	if _, err := os.Stat(over); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a volume that is a file: %v", err)
	}
	file := filepath.Join(t.TempDir(), "volume.xml")
	text := strings.NewReplacer("type='file'", "type='volume'", "<source file='%[2]s/%[1]s.qcow2'/>", "<source pool='volumes' volume='base.qcow2'/>").Replace(sample)
	if err := os.WriteFile(file, []byte(fmt.Sprintf(text, "by-name", dir, vm.NewUUID())), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "define", file)
	t.Cleanup(func() { d.Virsh(t, "undefine", "by-name") })
	dom, err := v.find(ctx, "by-name")
	if err != nil {
		t.Fatal(err)
	}
	if files, err := v.filesOf(ctx, dom); err != nil || !slices.Contains(files, base) {
		t.Errorf("a disk that is named by its volume: %q, %v", files, err)
	}
	text = strings.Replace(sample, "%[2]s/%[1]s.qcow2", folder, 1)
	if err := os.WriteFile(file, []byte(fmt.Sprintf(text, "held", dir, vm.NewUUID())), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "define", file)
	var told []string
	if err := v.RemoveDisks(ctx, "held", false, func(e api.Event) { told = append(told, e.Warning) }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(folder); err != nil || len(told) != 1 || !strings.Contains(told[0], folder) {
		t.Errorf("a disk that is no file: %v, told %q", err, told)
	}
}

func TestDevices(t *testing.T) {
	d, v := open(t)
	ctx, dir := t.Context(), t.TempDir()
	define(t, d, dir, "dev")
	t.Cleanup(func() {
		if err := v.Remove(context.Background(), "dev", true); err != nil {
			t.Error(err)
		}
	})
	more, cd := filepath.Join(dir, "more.qcow2"), filepath.Join(dir, "cd.iso")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", more, "8M")
	if err := os.WriteFile(cd, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	drives := func(m api.Machine, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, d := range m.Spec.Disks {
			out = append(out, d.Target+"="+filepath.Base(d.Path))
		}
		return strings.Join(out, " ")
	}
	is := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	drive := vm.Disk{Device: vm.DeviceCDROM, Bus: vm.BusIDE, Format: "raw"}
	is(drives(v.Attach(ctx, "dev", api.AttachRequest{Disk: drive})), "vda=dev.qcow2 hda=.")
	if _, err := v.Start(ctx, "dev", api.StartRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	// While the BIOS looks for a medium it moves the tray itself.
	log, err := v.Log(ctx, "dev", true, -1)
	if err != nil {
		t.Fatal(err)
	}
	readUntil(t, log, "No bootable device")
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	is(drives(v.Attach(ctx, "dev", api.AttachRequest{Disk: vm.Disk{Path: more, Format: "qcow2", Serial: "more"}})), "vda=dev.qcow2 vdb=more.qcow2 hda=.")
	is(drives(v.Media(ctx, "dev", api.MediaRequest{Path: cd, Force: true})), "vda=dev.qcow2 vdb=more.qcow2 hda=cd.iso")
	is(drives(v.Media(ctx, "dev", api.MediaRequest{Drive: "hda", Force: true})), "vda=dev.qcow2 vdb=more.qcow2 hda=.")
	if _, err := v.Media(ctx, "dev", api.MediaRequest{Drive: "vda", Path: cd}); code(err) != api.CodeInvalid {
		t.Error(err)
	}
	if _, err := v.Resize(ctx, "dev", api.ResizeRequest{Disk: "vdb", Size: 9 << 20}); err != nil {
		t.Error(err)
	}
	if _, err := v.Resize(ctx, "dev", api.ResizeRequest{Disk: "vdb", Size: 8 << 20}); code(err) != api.CodeInvalid {
		t.Error(err)
	}
	if _, err := v.Resize(ctx, "dev", api.ResizeRequest{Disk: "vdx", Size: 8 << 20}); code(err) != api.CodeNotFound {
		t.Error(err)
	}
	if _, err := v.Stop(ctx, "dev", api.StopRequest{Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	is(drives(v.Machine(ctx, "dev")), "vda=dev.qcow2 vdb=more.qcow2 hda=.")
	if _, err := v.Resize(ctx, "dev", api.ResizeRequest{Disk: "vdb", Size: 10 << 20}); err != nil {
		t.Error(err)
	}
	if out := qemutest.Img(t, "info", more); !strings.Contains(out, "10 MiB") {
		t.Error(out)
	}
	is(drives(v.Detach(ctx, "dev", api.DetachRequest{Disk: "more"})), "vda=dev.qcow2 hda=.")
	if _, err := v.Detach(ctx, "dev", api.DetachRequest{Disk: "more"}); code(err) != api.CodeNotFound {
		t.Error(err)
	}
	if _, err := os.Stat(more); err != nil {
		t.Error(err)
	}
}

func TestSnapshots(t *testing.T) {
	d, v := open(t)
	ctx := t.Context()
	define(t, d, t.TempDir(), "snap")
	t.Cleanup(func() { d.Virsh(t, "undefine", "snap", "--snapshots-metadata") })
	if list, err := v.Snapshots(ctx, "snap"); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if s, err := v.CreateSnapshot(ctx, "snap", api.SnapshotRequest{Name: "a<b", Description: "x & y"}); err != nil || s.Name != "a<b" || s.CreatedAt.IsZero() {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := v.CreateSnapshot(ctx, "snap", api.SnapshotRequest{Name: "a<b"}); err == nil {
		t.Error("a name is taken twice")
	}
	if _, err := v.CreateSnapshot(ctx, "snap", api.SnapshotRequest{Name: "second"}); err != nil {
		t.Fatal(err)
	}
	list, err := v.Snapshots(ctx, "snap")
	if err != nil || len(list) != 2 || list[0].Description != "x & y" || list[0].State != "shutoff" || list[1].Parent != "a<b" {
		t.Errorf("%+v, %v", list, err)
	}
	if err := v.RevertSnapshot(ctx, "snap", "a<b", false); err != nil {
		t.Error(err)
	}
	if err := v.RevertSnapshot(ctx, "snap", "none", false); code(err) != api.CodeNotFound {
		t.Error(err)
	}
	if err := v.DeleteSnapshot(ctx, "snap", "a<b", true); err != nil {
		t.Error(err)
	}
	if list, err := v.Snapshots(ctx, "snap"); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}
