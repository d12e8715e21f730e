package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestDomain walks through a domain's life as virt-install does.
func TestDomain(t *testing.T) {
	d := libvirttest.Shared(t)
	c, ctx := open(t, d.URI), t.Context()
	doc := tiny(t, "life")
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if _, err := c.LookupDomain(ctx, "life"); !errors.Is(err, ErrNotFound) || !strings.Contains(Message(err), "no domain with matching name 'life'") {
		t.Errorf("lookup of none: %v", err)
	}
	if _, err := c.Define(ctx, "<domain", false); !errors.Is(err, ErrBadXML) {
		t.Errorf("bad XML: %v", err)
	}
	dom, err := c.Define(ctx, doc, true)
	must("define", err)
	t.Cleanup(func() {
		_ = dom.Destroy(context.Background(), false) // it may have stopped
		if err := dom.Undefine(context.Background(), UndefineOptions{}); err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	})
	if _, err := c.Define(ctx, strings.Replace(doc, dom.UUID(), vm.NewUUID(), 1), false); !errors.Is(err, ErrExists) {
		t.Errorf("the name of another: %v", err)
	}
	must("autostart", dom.SetAutostart(ctx, true))
	if on, err := dom.Autostart(ctx); err != nil || !on {
		t.Errorf("autostart %v, %v", on, err)
	}
	must("autostart", dom.SetAutostart(ctx, false))
	watch, err := dom.Watch(ctx)
	must("watch", err)
	defer watch.Close()
	must("start", dom.Start(ctx, StartOptions{}))
	if err := dom.Start(ctx, StartOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("second start: %v", err)
	}
	if s, _, err := dom.State(ctx); err != nil || s != Running {
		t.Errorf("state %v, %v", s, err)
	}
	testConsole(t, dom)
	if reason, err := watch.WaitStopped(ctx); err != nil || reason != StopShutdown {
		t.Errorf("stopped: %v, %v", reason, err)
	}
	if reason, err := dom.WaitStopped(ctx); err != nil || reason != StopShutdown {
		t.Errorf("stopped before: %v, %v", reason, err)
	}
	xml, err := dom.XML(ctx, XMLOptions{Inactive: true})
	if err != nil || !strings.Contains(xml, "<name>life</name>") {
		t.Errorf("%v %s", err, xml)
	}
	must("undefine", dom.Undefine(ctx, UndefineOptions{NVRAM: true, ManagedSave: true, SnapshotsMetadata: true}))
	if _, err := dom.XML(ctx, XMLOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("after undefine: %v", err)
	}
}

// testConsole reads what the tiny guest says, and has it power off, which ends
// the stream.
func testConsole(t *testing.T, dom *Domain) {
	t.Helper()
	con, err := dom.OpenConsole(t.Context(), "", true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := con.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := dom.OpenConsole(t.Context(), "", false); err == nil {
		t.Error("a second client has the console")
	}
	timer := time.AfterFunc(time.Minute, func() { _ = con.Close() })
	defer timer.Stop()
	// The guest may have said that it is ready before we were there; it echoes
	// what is typed.
	for said := ""; !strings.Contains(said, "x"); {
		if _, err := con.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := con.Read(b)
		if err != nil {
			t.Fatalf("%q, then %v", said, err)
		}
		said += string(b[:n])
	}
	if _, err := con.Write([]byte(vmtest.PowerOff)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, con); err != nil {
		t.Errorf("at the end: %v", err)
	}
}

// TestTransient: it is gone with its connection, if that is wanted; a device comes
// and goes; a disk grows.
func TestTransient(t *testing.T) {
	d := libvirttest.Shared(t)
	ctx := t.Context()
	c, own := open(t, d.URI), open(t, d.URI)
	dom, err := own.Create(ctx, tiny(t, "fleeting"), StartOptions{Paused: true, AutoDestroy: true})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := dom.Persistent(ctx); err != nil || p {
		t.Errorf("persistent %v, %v", p, err)
	}
	disk := vmtest.Image(t)
	device := fmt.Sprintf(`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vdb' bus='virtio'/></disk>`, disk)
	if err := dom.AttachDevice(ctx, device, AffectLive); err != nil {
		t.Error(err)
	}
	if err := dom.BlockResize(ctx, "vdb", 2<<20); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(disk); err != nil || st.Size() != 2<<20 {
		t.Errorf("%v, %v", st, err)
	}
	again, err := c.LookupDomainByUUID(ctx, dom.UUID())
	if err != nil {
		t.Fatal(err)
	}
	w, err := again.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := own.Close(); err != nil {
		t.Error(err)
	}
	if reason, err := w.WaitStopped(ctx); err != nil || reason != StopDestroyed {
		t.Errorf("%v, %v", reason, err)
	}
}

// TestStorage: a pool of a folder, and a volume that is filled and deleted.
func TestStorage(t *testing.T) {
	d := libvirttest.Shared(t)
	c, ctx, dir := open(t, d.URI), t.Context(), t.TempDir()
	p, err := c.DefinePool(ctx, "<pool type='dir'><name>things</name><target><path>"+dir+"</path></target></pool>")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(p.Destroy(context.Background()), p.Undefine(context.Background())); err != nil {
			t.Error(err)
		}
	}()
	if err := p.Start(ctx, true); err != nil {
		t.Fatal(err)
	}
	if q, err := c.LookupPoolByTarget(ctx, dir); err != nil || q.Name() != "things" {
		t.Errorf("%v, %v", q, err)
	}
	const doc = "<volume><name>v.raw</name><capacity unit='MiB'>3</capacity><target><format type='raw'/></target></volume>"
	v, err := p.CreateVolume(ctx, doc, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateVolume(ctx, doc, false); !errors.Is(err, ErrExists) {
		t.Errorf("the same volume again: %v", err)
	}
	content := strings.Repeat("0123456789abcdef", 3<<16)
	if err := v.Upload(ctx, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "v.raw")
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Errorf("%d bytes arrived, %v", len(b), err)
	}
	if err := v.Upload(ctx, strings.NewReader("short"), 100); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a reader that ends early: %v", err)
	}
	if got, err := c.LookupVolume(ctx, path); err != nil || got.Name() != "v.raw" || got.Pool() != "things" {
		t.Errorf("%v, %v", got, err)
	}
	if err := v.Delete(ctx); err != nil {
		t.Error(err)
	}
	if _, err := c.LookupVolume(ctx, path); !errors.Is(err, ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

// TestSnapshots: of a domain that does not run, in its qcow2 image.
func TestSnapshots(t *testing.T) {
	d := libvirttest.Shared(t)
	c, ctx := open(t, d.URI), t.Context()
	disk := filepath.Join(t.TempDir(), "d.qcow2")
	if out, err := d.Command(t, "qemu-img", "create", "-f", "qcow2", disk, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	doc := fmt.Sprintf(`<domain type='qemu'><name>snap</name><memory unit='MiB'>16</memory><os><type machine='pc'>hvm</type></os><devices>
		<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk></devices></domain>`, disk)
	dom, err := c.Define(ctx, doc, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dom.Undefine(context.Background(), UndefineOptions{SnapshotsMetadata: true}); err != nil {
			t.Error(err)
		}
	}()
	s, err := dom.CreateSnapshot(ctx, "<domainsnapshot><name>one</name></domainsnapshot>", SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := dom.Snapshots(ctx); err != nil || len(all) != 1 || all[0].Name() != "one" {
		t.Errorf("%v, %v", all, err)
	}
	if err := s.Revert(ctx, false); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ctx, false); err != nil {
		t.Error(err)
	}
	if _, err := dom.LookupSnapshot(ctx, "one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after delete: %v", err)
	}
}

// TestHost: capabilities, networks and devices.
func TestHost(t *testing.T) {
	d := libvirttest.Shared(t)
	c, ctx := open(t, d.URI), t.Context()
	if x, err := c.Capabilities(ctx); err != nil || !strings.HasPrefix(x, "<capabilities>") {
		t.Errorf("%.40s, %v", x, err)
	}
	if x, err := c.DomainCapabilities(ctx, DomainCapabilitiesQuery{Machine: "q35", Type: "qemu"}); err != nil || !strings.Contains(x, "<machine>pc-q35") {
		t.Errorf("%.200s, %v", x, err)
	}
	if v, err := c.HypervisorVersion(ctx); err != nil || !v.AtLeast(5, 0) {
		t.Errorf("%v, %v", v, err)
	}
	n, err := c.DefineNetwork(ctx, "<network><name>inner</name></network>")
	if err != nil {
		t.Fatal(err)
	}
	if on, err := n.Active(ctx); err != nil || on {
		t.Errorf("active %v, %v", on, err)
	}
	if all, err := c.Networks(ctx); err != nil || len(all) != 1 || all[0].Name() != "inner" {
		t.Errorf("%v, %v", all, err)
	}
	if err := n.Undefine(ctx); err != nil {
		t.Error(err)
	}
	if _, err := c.LookupNetwork(ctx, "inner"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := c.NodeDeviceXML(ctx, "computer"); err != nil {
		t.Error(err)
	}
	if _, err := c.NodeDeviceXML(ctx, "pci_none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}
