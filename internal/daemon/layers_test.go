package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// realImages has the store work with images that are such.
type realImages struct{ store.Images }

// fakeMachine changes the layers of its disk as a running QEMU does.

func (m *fakeMachine) SnapshotDisks(_ context.Context, layers map[string]string) error {
	if err := m.d.snapshot; err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spec.Disks = slices.Clone(m.spec.Disks)
	for name, path := range layers {
		i, err := m.spec.FindDisk(name)
		if err != nil {
			return err
		}
		m.spec.Disks[i].Path = path
	}
	return nil
}

func (m *fakeMachine) DiskImage(_ context.Context, name string) (string, error) {
	if err := m.d.mute; err != nil {
		return "", err
	}
	s := m.RunningSpec()
	i, err := s.FindDisk(name)
	if err != nil {
		return "", err
	}
	return s.Disks[i].Path, nil
}

func (m *fakeMachine) FlattenDisk(ctx context.Context, name string, progress func(done, total int64)) error {
	spec := m.RunningSpec()
	i, err := spec.FindDisk(name)
	if err != nil {
		return err
	}
	if progress != nil {
		progress(1, 2)
	}
	if m.d.flatten != nil {
		select {
		case <-m.d.flatten:
		case <-m.ended:
			return vm.ErrNotRunning
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return exec.CommandContext(ctx, "qemu-img", "rebase", "-b", "", spec.Disks[i].Path).Run()
}

// layered is a daemon with a template "base" of 8 MiB that holds 0x11.
func layered(t *testing.T, driver *fakeDriver) *tester {
	t.Helper()
	x := serve(t, Options{Driver: driver, Images: realImages{}})
	image := filepath.Join(t.TempDir(), "base.raw")
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	qemutest.IO(t, "raw", image, "write -P 0x11 0 1M")
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: image, Format: "raw", Name: "base"}, nil))
	return x
}

// disk is where a machine's own layer lies.
func (x *tester) disk(name string) string {
	x.Helper()
	m := x.machine(name)
	return m.Spec.Disks[0].Path
}

func (x *tester) clone(template string, names ...string) (out []api.Machine) {
	x.Helper()
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: template, Names: names}, &out))
	return out
}

// holds fails the test unless a machine's disk reads as it should.
func (x *tester) holds(name string, reads ...string) {
	x.Helper()
	qemutest.IO(x, "qcow2", x.disk(name), reads...)
}

// TestTemplates goes through all that is done with templates and the layers of
// machines that do not run.
func TestTemplates(t *testing.T) {
	x := layered(t, &fakeDriver{})
	x.clone("base", "web", "other")
	qemutest.IO(t, "qcow2", x.disk("web"), "write -P 0x22 1M 1M")
	var v2 api.Template
	x.must(x.stream("POST", "/v1/machines/web/commit", api.CommitRequest{Name: "v2"}, &v2))
	base := x.layerOf("base")
	if v2.Name != "v2" || v2.Parent != base.Digest || v2.Kind != api.LayerTemplate || x.machine("web").Base != v2.Digest || x.machine("web").Template != "v2" {
		t.Errorf("committed: %+v, the machine lies over %s", v2, x.machine("web").Base)
	}
	x.holds("web", "read -P 0x11 0 1M", "read -P 0x22 1M 1M")
	qemutest.IO(t, "qcow2", x.disk("web"), "write -P 0x33 2M 1M")
	x.clone("v2", "next")
	x.holds("next", "read -P 0x11 0 1M", "read -P 0x22 1M 1M", "read -P 0 2M 1M")

	// Names.
	var tagged api.Template
	if _, e := x.call("POST", "/v1/templates/v2/tag", api.TagRequest{Name: "base"}, nil); e == nil || e.Code != api.CodeExists || !strings.Contains(e.Message, "--move") {
		t.Errorf("a name that another one has: %v", e)
	}
	if _, e := x.call("POST", "/v1/templates/base/tag", api.TagRequest{Name: "first"}, nil); e != nil {
		t.Error(e)
	}
	if _, e := x.call("POST", "/v1/templates/v2/tag", api.TagRequest{Name: "base", Move: true}, &tagged); e != nil || tagged.Digest != v2.Digest || x.layerOf("first").Digest != base.Digest {
		t.Errorf("a name that is moved: %+v, %v", tagged, e)
	}
	if _, e := x.call("DELETE", "/v1/templates/first", nil, nil); e == nil || e.Code != api.CodeInUse {
		t.Errorf("removing what others lie over: %v", e)
	}

	// Rebase, flatten, template of a machine, export.
	before := filepath.Join(t.TempDir(), "before.raw")
	qemutest.Img(t, "convert", "-O", "raw", x.disk("other"), before)
	x.must(x.stream("POST", "/v1/machines/other/rebase", api.RebaseRequest{Template: "v2"}, nil))
	if m := x.machine("other"); m.Base != v2.Digest || m.Template != "v2" {
		t.Errorf("rebased: %s, %s", m.Base, m.Template)
	}
	qemutest.RequireSame(t, "raw", before, "qcow2", x.disk("other"))
	x.must(x.stream("POST", "/v1/machines/other/flatten", api.FlattenRequest{}, nil))
	if m := x.machine("other"); m.Base != "" {
		t.Errorf("flattened: over %s", m.Base)
	}
	qemutest.RequireSame(t, "raw", before, "qcow2", x.disk("other"))
	var from api.Template
	x.must(x.stream("POST", "/v1/template-from", api.TemplateFromRequest{Machine: "web", Name: "of-web", Flatten: true, Compress: "zstd"}, &from))
	if from.Parent != "" || from.Compress != "zstd" {
		t.Errorf("a template of a machine: %+v", from)
	}
	out := filepath.Join(t.TempDir(), "out.raw")
	x.must(x.stream("POST", "/v1/templates/of-web/export", api.ExportRequest{Path: out, Format: "raw"}, nil))
	qemutest.RequireSame(t, "raw", out, "qcow2", x.disk("web"))
	if e := second(x.stream("POST", "/v1/templates/of-web/export", api.ExportRequest{Path: out}, nil)); e == nil || e.Code != api.CodeExists {
		t.Errorf("an export over a file: %v", e)
	}
	x.must(x.stream("POST", "/v1/templates/v2/verify", nil, nil))
	x.lineage()
	for path, body := range map[string]any{
		"/v1/machines/web/rebase": api.RebaseRequest{}, "/v1/machines/web/commit": api.CommitRequest{Name: "a b"},
		"/v1/machines/web/clone": api.CloneMachineRequest{}, "/v1/template-from": api.TemplateFromRequest{Machine: "web", Timeout: -1},
	} {
		if e := second(x.stream("POST", path, body, nil)); e == nil || e.Code != api.CodeInvalid {
			t.Errorf("%s: %v", path, e)
		}
	}
}

func (x *tester) layerOf(ref string) (t api.Template) {
	x.Helper()
	if _, e := x.call("GET", "/v1/templates/"+ref, nil, &t); e != nil {
		x.Fatal(e)
	}
	return t
}

// lineage looks at the tree: parents first, and each machine with its state.
func (x *tester) lineage() {
	x.Helper()
	var nodes []api.LineageNode
	if _, e := x.call("GET", "/v1/lineage", nil, &nodes); e != nil {
		x.Fatal(e)
	}
	seen := map[string]bool{"": true}
	machines := 0
	for _, n := range nodes {
		if !seen[n.Parent] {
			x.Errorf("%v comes before what it lies over", n.Names)
		}
		seen[n.ID] = true
		if n.Machine {
			machines++
			if n.State != x.machine(n.Names[0]).State {
				x.Errorf("%s is %s in the tree", n.Names[0], n.State)
			}
		}
	}
	var list []api.Machine
	if _, e := x.call("GET", "/v1/machines", nil, &list); e != nil || machines != len(list) {
		x.Errorf("%d machines in the tree, %d in the list", machines, len(list))
	}
}

// TestCloneMachine clones a machine that is stopped, and one that runs: it and its
// clones go on over what it was.
func TestCloneMachine(t *testing.T) {
	driver := &fakeDriver{}
	x := layered(t, driver)
	var web []api.Machine
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "base", Names: []string{"web"}, MachineConfig: api.MachineConfig{CPUs: 2, Memory: 256 << 20}}, &web))
	qemutest.IO(t, "qcow2", x.disk("web"), "write -P 0x22 1M 1M")
	var made []api.Machine
	x.must(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"c-{1..3}"}, MachineConfig: api.MachineConfig{Memory: 512 << 20}}, &made))
	if len(made) != 3 || made[1].Base != x.machine("web").Base || made[1].Spec.CPUs != 2 || made[1].Spec.Memory != 512<<20 || made[1].User != web[0].User {
		t.Fatalf("clones: %+v", made)
	}
	qemutest.IO(t, "qcow2", x.disk("web"), "write -P 0x33 2M 1M")
	x.holds("c-2", "read -P 0x11 0 1M", "read -P 0x22 1M 1M", "read -P 0 2M 1M")
	frozen := x.layerOf(made[0].Base)
	if frozen.Kind != api.LayerFrozen || len(frozen.Machines) != 4 {
		t.Errorf("the layer: %+v", frozen)
	}
	// While it runs.
	x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, nil))
	guest := driver.machine(t, web[0].Dir)
	x.must(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"live"}, Start: true}, &made))
	if made[0].State != api.Login {
		t.Errorf("the clone of a running machine is %s", made[0].State)
	}
	if got := guest.RunningSpec().Disks[0].Path; got != x.disk("web") || got == web[0].Spec.Disks[0].Path {
		t.Errorf("it runs with %s, and its disk is %s", got, x.disk("web"))
	}
	x.holds("live", "read -P 0x22 1M 1M", "read -P 0x33 2M 1M")
	x.requireFailures(driver)
	x.lineage()
	x.requireTidy("web")
}

// requireTidy: the links that the QEMU of a frozen machine needs go with it.
func (x *tester) requireTidy(name string) {
	x.Helper()
	links := func() (n int) {
		list, err := filepath.Glob(filepath.Join(x.machine(name).Dir, "disk*"))
		if err != nil || len(list) == 0 {
			x.Fatal(list, err)
		}
		return len(list) - 1
	}
	if links() == 0 {
		x.Error("a frozen machine that runs has no link to its layer")
	}
	x.must(x.stream("POST", "/v1/machines/"+name+"/stop", api.StopRequest{Force: true}, nil))
	x.until("the links are gone", func() bool { return links() == 0 })
}

// requireFailures: a clone that fails leaves nothing, and the machine as it was.
func (x *tester) requireFailures(driver *fakeDriver) {
	x.Helper()
	before, disk := x.count(), x.disk("web")
	clone := func(names ...string) *api.Error {
		return second(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: names}, nil))
	}
	if e := clone("new", "live"); e == nil || e.Code != api.CodeExists {
		x.Errorf("a name that is taken: %v", e)
	}
	driver.snapshot = fmt.Errorf("drive vda: %w: no luck", vm.ErrNoLayer)
	if e := clone("new"); e == nil || e.Code != api.CodeInvalid || !strings.Contains(e.Message, "no luck") {
		x.Errorf("a snapshot that fails: %v", e)
	}
	driver.snapshot = nil
	if now := x.count(); now != before || x.disk("web") != disk {
		x.Errorf("left behind: %s, before it was %s; the disk is %s", now, before, x.disk("web"))
	}
	for what, path := range map[string]string{"commit": "/v1/machines/web/commit", "rebase": "/v1/machines/web/rebase"} {
		if e := second(x.stream("POST", path, map[string]string{map[string]string{"commit": "name", "rebase": "template"}[what]: "v9"}, nil)); e == nil || e.Code != api.CodeInUse {
			x.Errorf("%s of a running machine: %v", what, e)
		}
	}
}

// count says how many machines, layers and files there are.
func (x *tester) count() string {
	x.Helper()
	var machines []api.Machine
	var layers []api.Template
	_, e1 := x.call("GET", "/v1/machines", nil, &machines)
	_, e2 := x.call("GET", "/v1/templates?all=1", nil, &layers)
	if e1 != nil || e2 != nil {
		x.Fatal(e1, e2)
	}
	disks, err := filepath.Glob(filepath.Join(x.home.Machines(), "*", "disk*"))
	files, err2 := filepath.Glob(filepath.Join(x.home.Layers(), "*"))
	if err := errors.Join(err, err2); err != nil {
		x.Fatal(err)
	}
	// A link leads from the name that QEMU has a frozen image open by to the layer.
	disks = slices.DeleteFunc(disks, func(path string) bool {
		st, err := os.Lstat(path)
		return err != nil || st.Mode()&os.ModeSymlink != 0
	})
	return fmt.Sprintf("%d machines, %d layers, %d disks, %d files", len(machines), len(layers), len(disks), len(files))
}

// TestCloneBrokenOff: the daemon dies in the middle of the clone of a running
// machine. What QEMU writes to decides what the next one makes of it.
func TestCloneBrokenOff(t *testing.T) {
	for name, switched := range map[string]bool{"before the snapshot": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			driver := &fakeDriver{}
			x := layered(t, driver)
			web := x.clone("base", "web")[0]
			x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, nil))
			f, err := x.d.store.BeginFreeze(t.Context(), web.ID, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			guest := driver.machine(t, web.Dir)
			want := web.Spec.Disks[0].Path
			if switched {
				want = f.Overlay
				if err := guest.SnapshotDisks(t.Context(), map[string]string{"vda": f.Overlay}); err != nil {
					t.Fatal(err)
				}
			}
			x.stop()
			x.start()
			if got := x.disk("web"); got != want || guest.RunningSpec().Disks[0].Path != want {
				t.Errorf("its disk is %s, want %s", got, want)
			}
			if got := strings.Contains(x.count(), "2 layers, 1 disks, 1 files"); got != switched {
				t.Errorf("there are %s", x.count())
			}
			x.must(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"after"}}, nil))
			x.holds("after", "read -P 0x11 0 1M")
		})
	}
}

// TestCloneOfDyingMachine: a process that is being killed closes its monitor before it is
// gone, and so does not say what it writes to. Its end settles that, without a start or
// another daemon.
func TestCloneOfDyingMachine(t *testing.T) {
	driver := &fakeDriver{}
	x := layered(t, driver)
	web := x.clone("base", "web")[0]
	x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, nil))
	had := x.count()
	driver.snapshot = errors.New("the monitor is closed")
	driver.mute = driver.snapshot
	if e := second(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"c"}}, nil)); e == nil || !strings.Contains(e.Message, "what it writes to is not known") {
		t.Errorf("cloned: %v", e)
	}
	if list, err := x.d.store.Unsettled(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("unsettled: %q, %v", list, err)
	}
	// While it lives, the next request that uses its disk tries again.
	driver.mute = nil
	if e := second(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"c"}}, nil)); e == nil || strings.Contains(e.Message, "just becoming") {
		t.Errorf("cloned: %v", e)
	}
	if got := x.count(); got != had {
		t.Errorf("there are %s, were %s", got, had)
	}
	driver.mute = driver.snapshot
	if e := second(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"c"}}, nil)); e == nil {
		t.Error("cloned")
	}
	if err := driver.machine(t, web.Dir).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.until("its end settles it", func() bool {
		list, err := x.d.store.Unsettled(t.Context())
		return err == nil && len(list) == 0
	})
	if got := x.count(); got != had {
		t.Errorf("there are %s, were %s", got, had)
	}
	x.holds("web", "read -P 0x11 0 1M")
}

// TestFlattenRunning: a machine that runs gets a disk of its own, can be stopped
// meanwhile, and the next daemon goes on with what this one has begun.
func TestFlattenRunning(t *testing.T) {
	driver := &fakeDriver{}
	x := layered(t, driver)
	web := x.clone("base", "web", "dies")
	for _, name := range []string{"web", "dies"} {
		x.must(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{}, nil))
	}
	driver.flatten = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.d.store.BeginStream(ctx, web[0].ID) }() // an earlier daemon's, killed
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	cancel()
	x.stop()
	x.start()
	if e := second(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"c"}}, nil)); e == nil || e.Code != api.CodeInUse {
		t.Errorf("a clone while it is flattened: %v", e)
	}
	close(driver.flatten)
	x.until("web is flat", func() bool { return x.machine("web").Base == "" })
	x.holds("web", "read -P 0x11 0 1M")
	x.until("nobody is at it", func() bool { m, err := x.d.find("web"); return err == nil && !m.isStreaming() })
	x.must(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"c"}}, nil))

	// Stopped in the middle: it is as good as it was.
	driver.flatten = make(chan struct{})
	failed := make(chan *api.Error, 1)
	go func() {
		failed <- second(x.stream("POST", "/v1/machines/dies/flatten", api.FlattenRequest{}, nil))
	}()
	x.until("it is under way", func() bool { m, err := x.d.find("dies"); return err == nil && m.isStreaming() })
	x.must(x.stream("POST", "/v1/machines/dies/stop", api.StopRequest{Force: true}, nil))
	if e := <-failed; e == nil {
		t.Error("a flattening that was broken off succeeded")
	}
	if m := x.machine("dies"); m.Base == "" {
		t.Error("it counts as flat")
	}
	driver.flatten = nil
	x.must(x.stream("POST", "/v1/machines/dies/start", api.StartRequest{}, nil))
	x.must(x.stream("POST", "/v1/machines/dies/flatten", api.FlattenRequest{}, nil))
	if m := x.machine("dies"); m.Base != "" {
		t.Errorf("flattened: over %s", m.Base)
	}
	if _, e := x.call("DELETE", "/v1/templates/base", nil, nil); e != nil {
		t.Errorf("nothing lies over the template any more: %v", e)
	}
}

// TestPrune: what nothing needs goes, and nothing else.
func TestPrune(t *testing.T) {
	x := layered(t, &fakeDriver{})
	x.clone("base", "web")
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.rawImage(), Format: "raw", Name: "unused"}, nil))
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.rawImage(), Format: "raw", Name: "fleets"}, nil))
	if err := x.d.store.SetFleet(t.Context(), store.Fleet{Name: "f", State: "applied", Document: api.Fleet{Name: "f", Groups: []api.FleetGroup{{Name: "g", Template: "fleets"}}}}); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(x.home.Templates(), "mine.qcow2")
	download := filepath.Join(x.home.Downloads(), "debian.qcow2-0123456789ab")
	if err := os.MkdirAll(download, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{mine, filepath.Join(download, "part"), filepath.Join(x.home.Downloads(), "notes")} {
		if err := os.WriteFile(f, []byte("something"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(req api.PruneRequest) (names []string, res api.PruneResult) {
		t.Helper()
		if _, e := x.call("POST", "/v1/prune", req, &res); e != nil {
			t.Fatal(e)
		}
		for _, it := range res.Items {
			names = append(names, it.Kind+" "+it.Name)
		}
		return names, res
	}
	if got, res := prune(api.PruneRequest{DryRun: true, Templates: true}); strings.Join(got, ", ") != "template unused, download debian.qcow2" || res.Freed == 0 || len(res.Kept) != 2 {
		t.Errorf("would go: %q, %+v", got, res)
	}
	if got, _ := prune(api.PruneRequest{Templates: true, OlderThan: 1 << 50}); len(got) != 0 {
		t.Errorf("too young, and goes: %q", got)
	}
	got, res := prune(api.PruneRequest{Templates: true})
	if len(got) != 2 || !res.Items[0].Gone || !res.Items[1].Gone {
		t.Errorf("went: %+v", res)
	}
	if got, _ := prune(api.PruneRequest{Templates: true}); len(got) != 0 {
		t.Errorf("goes again: %q", got)
	}
	for _, f := range []string{mine, filepath.Join(x.home.Downloads(), "notes")} {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("what nobody knows: %v", err)
		}
	}
	x.holds("web", "read -P 0x11 0 1M")
	if _, e := x.call("POST", "/v1/prune", api.PruneRequest{OlderThan: -1}, nil); e == nil || e.Code != api.CodeInvalid {
		t.Errorf("a negative age: %v", e)
	}
}

// rawImage makes an image that is none of those before.
func (x *tester) rawImage() string {
	x.Helper()
	path := filepath.Join(x.TempDir(), "image.raw")
	if err := os.WriteFile(path, []byte(strings.Repeat(path, 100)), 0o600); err != nil {
		x.Fatal(err)
	}
	return path
}

// TestRepack: a template of a template is a whole image, compressed as said; where nothing
// would differ it is the same one.
func TestRepack(t *testing.T) {
	x := layered(t, &fakeDriver{})
	var base api.Template
	if _, e := x.call("GET", "/v1/templates/base", nil, &base); e != nil {
		t.Fatal(e)
	}
	x.clone("base", "m")
	x.must(x.stream("POST", "/v1/machines/m/commit", api.CommitRequest{Name: "over"}, nil))
	var small, same api.Template
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: "over", Compress: "zstd", User: "bob"}, &small))
	if small.Name != "over-zstd" || small.Compress != "zstd" || small.Parent != "" || small.User != "bob" || small.VirtualSize != base.VirtualSize || small.Source != "template over" {
		t.Errorf("%+v", small)
	}
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: "over", Name: "flat"}, &same))
	if same.Digest != base.Digest || same.Name != "flat" {
		t.Errorf("%+v, want %s once more", same, base.Digest)
	}
	chain, err := x.d.store.Chain(t.Context(), small.Digest)
	if err != nil || len(chain) != 1 {
		t.Fatalf("%q, %v", chain, err)
	}
	qemutest.IO(t, "qcow2", chain[0], "read -P 0x11 0 1M", "read -P 0 1M 7M")
	for _, c := range []struct {
		req  api.ImportRequest
		want string
	}{
		{api.ImportRequest{Source: "over", Name: "base", Compress: "zlib"}, "base exists already"},
		{api.ImportRequest{Source: "over", Compress: "gzip"}, "none, zlib or zstd"},
		{api.ImportRequest{Source: "over", Name: "no good"}, "is not allowed"},
		{api.ImportRequest{Source: "over", Format: "raw"}, "whose format is known"},
		{api.ImportRequest{Source: "over", Checksum: "sha256:00"}, "whose digest is known"},
		{api.ImportRequest{Source: x.rawImage(), Format: "raw", Checksum: "bad"}, "checksum does not match"},
	} {
		if e := second(x.stream("POST", "/v1/templates", c.req, nil)); e == nil || !strings.Contains(e.Message, c.want) {
			t.Errorf("%+v: %v", c.req, e)
		}
	}
	if left, err := filepath.Glob(filepath.Join(x.home.Templates(), "*tmp*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// teller is a machine that says itself which image it writes to.
type teller struct {
	*fakeMachine
	path string
	err  error
}

func (m teller) DiskImage(context.Context, string) (string, error) { return m.path, m.err }

// TestWritesTo: the machine's own word counts, not the record's; where it has ended
// nothing is written, and where it does not answer nothing is decided.
func TestWritesTo(t *testing.T) {
	spec := vm.Spec{Disks: []vm.Disk{{Path: "/recorded"}}}
	f := &fakeMachine{d: &fakeDriver{}, spec: spec}
	deaf := errors.New("no answer")
	for _, c := range []struct {
		m    vm.Machine
		want string
		err  error
	}{
		{nil, "", nil}, {f, "/recorded", nil}, {teller{f, "/said", nil}, "/said", nil},
		{teller{f, "", vm.ErrNotRunning}, "", nil}, {teller{f, "", deaf}, "", deaf},
	} {
		if got, err := writesTo(t.Context(), c.m, spec); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

// TestDigestsGoOn: a layer whose file cannot be trusted does not keep others from having
// their digests recorded, without which no look at them tells anything.
func TestDigestsGoOn(t *testing.T) {
	x := layered(t, &fakeDriver{})
	x.clone("base", "web")
	x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, nil))
	var keys []string
	undigested := func() []string {
		list, err := x.d.store.Undigested(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	for i := range 3 {
		x.must(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{fmt.Sprintf("c%d", i)}}, nil))
		keys = append(keys, x.machine("web").Base)
		x.until("its digest is known", func() bool { return len(undigested()) == 0 })
	}
	if err := errors.Join(x.tamper(`UPDATE templates SET sha256 = '' WHERE length(digest) <> 64`), edit(x.home.LayerDisk(keys[0]), true)); err != nil {
		t.Fatal(err)
	}
	x.stop()
	x.start()
	x.until("those of the others are known", func() bool { return slices.Equal(undigested(), keys[:1]) })
}
