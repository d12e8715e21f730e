package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// fakeMachine takes and gives devices as a running QEMU does.

func (m *fakeMachine) RunningSpec() vm.Spec {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.spec
	s.Disks = slices.Clone(s.Disks)
	return s
}

func (m *fakeMachine) PlugDisk(_ context.Context, d vm.Disk) (vm.Disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.Bus == vm.BusIDE {
		return d, fmt.Errorf("%w: ide has no hot plug", vm.ErrNoHotplug)
	}
	m.spec.Disks = append(slices.Clone(m.spec.Disks), d)
	return d, nil
}

func (m *fakeMachine) UnplugDisk(_ context.Context, name string) (vm.Disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.spec.FindDisk(name)
	if err != nil {
		return vm.Disk{}, err
	}
	d := m.spec.Disks[i]
	if d.Serial == "stuck" {
		return d, errors.New("the guest does not let go of it")
	}
	m.spec.Disks = slices.Delete(slices.Clone(m.spec.Disks), i, i+1)
	return d, nil
}

func (m *fakeMachine) ResizeDisk(_ context.Context, name string, size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.spec.FindDisk(name)
	if err != nil {
		return err
	}
	return os.Truncate(m.spec.Disks[i].Path, size)
}

func (m *fakeMachine) ChangeMedium(_ context.Context, name string, medium vm.Medium, force bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.spec.FindDisk(name)
	if err != nil {
		return err
	}
	if medium.Path == "" && !force && m.spec.Disks[i].Tray == "locked" {
		return errors.New("the guest has locked the tray")
	}
	m.spec.Disks = slices.Clone(m.spec.Disks)
	m.spec.Disks[i].Path = medium.Path
	return nil
}

func (m *fakeMachine) EjectMedium(ctx context.Context, name string, force bool) error {
	return m.ChangeMedium(ctx, name, vm.Medium{}, force)
}

// paths lists the drives of a spec by name.
func paths(s vm.Spec) string {
	var out []string
	for i, name := range s.DiskNames() {
		out = append(out, name+"="+filepath.Base(s.Disks[i].Path))
	}
	return strings.Join(out, " ")
}

func TestAttachDetach(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	m := x.run("web")
	d := x.definition("unused")
	attach := func(req api.AttachRequest, path string) (api.Machine, *api.Error) {
		t.Helper()
		var out api.Machine
		req.Disk.Path, req.Disk.Format = path, "raw"
		_, e := x.call("POST", "/v1/machines/web/attach", req, &out)
		return out, e
	}
	// The machine's own are vda and the seed vdb.
	both, e := attach(api.AttachRequest{}, d.disk)
	if e != nil || paths(both.Spec) != "vda=disk.qcow2 vdb=seed.iso vdc=disk.img" {
		t.Fatalf("%s, %v", paths(both.Spec), e)
	}
	live, e := attach(api.AttachRequest{Scope: api.Scope{Live: true}}, d.kernel)
	if e != nil || paths(live.Spec) != paths(both.Spec) {
		t.Errorf("%s, %v", paths(live.Spec), e)
	}
	next, e := attach(api.AttachRequest{Scope: api.Scope{Config: true}, Disk: vm.Disk{Bus: vm.BusVirtioSCSI}}, d.cd)
	if e != nil || paths(next.Spec) != "vda=disk.qcow2 vdb=seed.iso vdc=disk.img sda=cd.iso" {
		t.Errorf("%s, %v", paths(next.Spec), e)
	}
	guest := driver.machine(t, m.Dir)
	if got := paths(guest.RunningSpec()); got != "vda=disk.qcow2 vdb=seed.iso vdc=disk.img vdd=kernel" {
		t.Errorf("runs with %s", got)
	}
	for _, c := range []struct {
		disk vm.Disk
		path string
		code string
	}{
		{vm.Disk{}, d.disk, api.CodeInvalid},
		{vm.Disk{}, filepath.Dir(d.disk) + "/none", api.CodeFailed},
		{vm.Disk{}, "relative", api.CodeInvalid},
		{vm.Disk{Bus: "isa"}, d.seed, api.CodeInvalid},
		{vm.Disk{Target: "vda"}, d.seed, api.CodeInvalid},
	} {
		if _, e := attach(api.AttachRequest{Disk: c.disk}, c.path); e == nil || e.Code != c.code {
			t.Errorf("%s, %+v: %v", c.path, c.disk, e)
		}
	}
	if got := x.machine("web"); paths(got.Spec) != paths(next.Spec) {
		t.Errorf("after errors: %s", paths(got.Spec))
	}
	detach := func(disk string, scope api.Scope) *api.Error {
		t.Helper()
		_, e := x.call("POST", "/v1/machines/web/detach", api.DetachRequest{Disk: disk, Scope: scope}, nil)
		return e
	}
	for _, own := range []string{"vda", "vdb"} {
		if e := detach(own, api.Scope{}); e == nil || e.Code != api.CodeInvalid {
			t.Errorf("its own %s: %v", own, e)
		}
	}
	if e := detach("vdx", api.Scope{}); e == nil || e.Code != api.CodeNotFound {
		t.Errorf("%v", e)
	}
	for _, name := range []string{"vdc", "vdd", "sda"} {
		if e := detach(name, api.Scope{}); e != nil {
			t.Errorf("%s: %v", name, e)
		}
	}
	if got := paths(x.machine("web").Spec); got != "vda=disk.qcow2 vdb=seed.iso" {
		t.Errorf("at last %s", got)
	}
	if got := paths(guest.RunningSpec()); got != "vda=disk.qcow2 vdb=seed.iso" {
		t.Errorf("at last it runs with %s", got)
	}
	x.has(d, true, true, true)
}

// TestAttachedDiskStays: a disk that was attached to a machine without a seed
// keeps its path when the daemon starts again.
func TestAttachedDiskStays(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	d := x.definition("unused")
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "web", MachineConfig: api.MachineConfig{NoSeed: true}}, nil))
	x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{Force: true}, nil))
	if _, e := x.call("POST", "/v1/machines/web/attach", api.AttachRequest{Disk: vm.Disk{Path: d.seed, Format: "raw"}}, nil); e != nil {
		t.Fatal(e)
	}
	if _, e := x.call("POST", "/v1/machines/web/attach", api.AttachRequest{Scope: api.Scope{Live: true}, Disk: vm.Disk{Path: d.disk, Format: "raw"}}, nil); e == nil || e.Code != api.CodeInvalid {
		t.Errorf("live on a stopped machine: %v", e)
	}
	x.stop()
	x.start()
	got := x.machine("web")
	if got.Spec.Disks[1].Path != d.seed || got.Spec.Disks[0].Path != filepath.Join(got.Dir, "disk.qcow2") {
		t.Errorf("%+v", got.Spec.Disks)
	}
	if _, e := x.call("DELETE", "/v1/machines/web?disks=1", nil, nil); e != nil {
		t.Fatal(e)
	}
	x.has(d, true, true, true)
}

func TestResize(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", d.disk, "1M")
	d.req.Spec.Disks[0].Format, d.req.Install, d.req.Start = "qcow2", nil, false
	x.define(d)
	resize := func(disk string, size int64) *api.Error {
		t.Helper()
		_, e := x.call("POST", "/v1/machines/web/resize", api.ResizeRequest{Disk: disk, Size: size}, nil)
		return e
	}
	if e := resize("vda", 3<<20); e != nil {
		t.Fatal(e)
	}
	if out := qemutest.Img(t, "info", d.disk); !strings.Contains(out, "3 MiB") {
		t.Error(out)
	}
	for _, c := range []struct {
		disk string
		size int64
		code string
	}{{"vda", 1 << 20, api.CodeInvalid}, {"vda", 1<<20 + 1, api.CodeInvalid}, {"vda", -512, api.CodeInvalid}, {"vdb", 4 << 20, api.CodeNotFound}} {
		if e := resize(c.disk, c.size); e == nil || e.Code != c.code {
			t.Errorf("%s to %d: %v", c.disk, c.size, e)
		}
	}
	qemutest.RequireClean(t, d.disk)
	x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, nil))
	if e := resize("vda", 8<<20); e != nil {
		t.Fatal(e)
	}
	if st, err := os.Stat(d.disk); err != nil || st.Size() != 8<<20 {
		t.Errorf("the driver did not do it: %v, %v", st, err)
	}
}

func TestMedia(t *testing.T) {
	driver := &fakeDriver{script: installer}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	cd := vm.Disk{Format: "raw", Device: vm.DeviceCDROM}
	d.req.Spec.Disks = append(d.req.Spec.Disks, cd)
	d.req.Install = nil
	m := x.define(d)
	guest := driver.machine(t, m.Dir)
	media := func(req api.MediaRequest) (string, *api.Error) {
		t.Helper()
		var out api.Machine
		_, e := x.call("POST", "/v1/machines/web/media", req, &out)
		return paths(out.Spec) + " now " + paths(guest.RunningSpec()), e
	}
	for _, c := range []struct {
		req  api.MediaRequest
		want string
	}{
		{api.MediaRequest{Path: d.cd}, "vda=disk.img sda=cd.iso now vda=disk.img sda=cd.iso"},
		{api.MediaRequest{Scope: api.Scope{Config: true}}, "vda=disk.img sda=. now vda=disk.img sda=cd.iso"},
		{api.MediaRequest{Scope: api.Scope{Live: true}, Drive: "sda", Path: d.kernel}, "vda=disk.img sda=. now vda=disk.img sda=kernel"},
		{api.MediaRequest{}, "vda=disk.img sda=. now vda=disk.img sda=."},
	} {
		if got, e := media(c.req); e != nil || got != c.want {
			t.Errorf("%+v: %s, %v; want %s", c.req, got, e, c.want)
		}
	}
	for drive, code := range map[string]string{"vda": api.CodeInvalid, "sdb": api.CodeNotFound} {
		if _, e := media(api.MediaRequest{Drive: drive, Path: d.cd}); e == nil || e.Code != code {
			t.Errorf("%s: %v", drive, e)
		}
	}
	x.run("none")
	if _, e := x.call("POST", "/v1/machines/none/media", api.MediaRequest{Path: d.cd}, nil); e == nil || e.Code != api.CodeNotFound {
		t.Errorf("no drive: %v", e)
	}
}
