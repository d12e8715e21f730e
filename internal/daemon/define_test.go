package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// definition is what the tests define: a disk of the person's, and files of the
// machine's and of its install phase.
type definition struct {
	req                    api.DefineRequest
	disk, seed, kernel, cd string
}

func (x *tester) definition(name string) definition {
	x.Helper()
	dir := x.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
			x.Fatal(err)
		}
		return path
	}
	d := definition{disk: file("disk.img"), seed: file("seed.iso"), kernel: file("kernel"), cd: file("cd.iso")}
	disk := vm.Disk{Path: d.disk, Format: "raw"}
	d.req = api.DefineRequest{
		Spec:  vm.Spec{Name: name, Disks: []vm.Disk{disk}},
		Owned: []string{d.seed},
		Install: &api.Install{
			Spec:  vm.Spec{Disks: []vm.Disk{disk, {Path: d.cd, Format: "raw", Device: vm.DeviceCDROM}}},
			Owned: []string{d.kernel},
		},
		Start: true, NoWait: true,
	}
	return d
}

// has fails the test unless exactly those of a definition's files are there.
func (x *tester) has(d definition, disk, seed, kernel bool) {
	x.Helper()
	for _, f := range []struct {
		path string
		want bool
	}{{d.disk, disk}, {d.seed, seed}, {d.kernel, kernel}, {d.cd, true}} {
		if _, err := os.Lstat(f.path); errors.Is(err, fs.ErrNotExist) == f.want {
			x.Errorf("%s is there: %v, want %v", f.path, !f.want, f.want)
		}
	}
}

func (x *tester) define(d definition) (m api.Machine) {
	x.Helper()
	x.must(x.stream("POST", "/v1/define", d.req, &m))
	return m
}

// eventually waits until ok.
func (x *tester) eventually(what string, ok func() bool) {
	x.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			x.Fatalf("never: %s", what)
		}
	}
}

// installer waits in its menu; what it starts later boots.
func installer(m *fakeMachine) {
	if m.spec.NoReboot {
		m.say("[    0.000000] Linux version 6.1.0\r\nWelcome to the installer\r\n")
		return
	}
	bootToLogin(m)
}

func TestInstall(t *testing.T) {
	driver := &fakeDriver{script: installer}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	m := x.define(d)
	if m.State != api.Installing || m.Definition == nil || m.Definition.Phase != api.InstallRuns || m.Template != "" {
		t.Fatalf("%+v", m)
	}
	guest := driver.machine(t, m.Dir)
	if len(guest.spec.Disks) != 2 || guest.spec.UUID != m.Spec.UUID || guest.spec.Name != "web" || !guest.spec.NoReboot {
		t.Errorf("phase one runs with %+v", guest.spec)
	}
	x.has(d, true, true, true)
	guest.reboot()
	var after api.Machine
	x.must(x.stream("GET", "/v1/machines/web/wait?for=installed", nil, &after))
	if after.Definition.Phase != api.Installed || after.Definition.Install != nil {
		t.Errorf("after the install: %+v", after.Definition)
	}
	got := x.await("web", api.Login)
	guest = driver.machine(t, m.Dir)
	if len(guest.spec.Disks) != 1 || guest.spec.NoReboot || guest.spec.UUID != m.Spec.UUID {
		t.Errorf("the final machine runs with %+v", guest.spec)
	}
	x.has(d, true, true, false)
	if _, e := x.call("DELETE", "/v1/machines/web?force=1", nil, nil); e != nil {
		t.Fatal(e)
	}
	x.has(d, true, false, false)
	if got.Exit != nil {
		t.Errorf("exit %+v", got.Exit)
	}
	x.nothingLeft()
}

// TestPasswordsStay: no answer holds a password, and the machine has it.
func TestPasswordsStay(t *testing.T) {
	driver := &fakeDriver{script: installer}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	screen := []vm.Display{{Type: vm.DisplayVNC, Password: "geheim"}}
	d.req.Spec.Displays, d.req.Install.Spec.Displays = screen, screen
	m := x.define(d)
	if len(m.Spec.Displays) != 1 || m.Spec.Displays[0].Password != "***" {
		t.Errorf("defined: %+v", m.Spec.Displays)
	}
	for _, path := range []string{"/v1/machines", "/v1/machines/web"} {
		res := x.send(t.Context(), "GET", path, nil)
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || !strings.Contains(string(b), "***") || strings.Contains(string(b), "geheim") {
			t.Errorf("%s: %s, %v", path, b, err)
		}
	}
	driver.machine(t, m.Dir).reboot()
	x.await("web", api.Login)
	if got := driver.machine(t, m.Dir).spec.Displays; len(got) != 1 || got[0].Password != "geheim" {
		t.Errorf("after the install it runs with %+v", got)
	}
}

// TestInstallFollowed follows an install through its switch to the login.
func TestInstallFollowed(t *testing.T) {
	driver := &fakeDriver{script: func(m *fakeMachine) {
		installer(m)
		if m.spec.NoReboot {
			m.exitWith(vm.Exit{State: vm.StateStopped, Cause: vm.CauseShutdown, Reason: "guest shut down"})
		}
	}}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	d.req.NoWait = false
	var m api.Machine
	list := x.must(x.stream("POST", "/v1/define", d.req, &m))
	if m.State != api.Login {
		t.Errorf("state %s", m.State)
	}
	if s := strings.Join(stages(list), " "); !strings.HasSuffix(s, "login") {
		t.Errorf("stages %s", s)
	}
}

// TestInstallEnds covers the ends of an install phase that do not lead on.
func TestInstallEnds(t *testing.T) {
	for _, c := range []struct {
		name      string
		noRestart bool
		end       func(*tester, *fakeMachine)
		state     api.MachineState
		phase     api.InstallPhase
		kernel    bool
	}{
		{"noreboot", true, func(_ *tester, m *fakeMachine) { m.reboot() }, api.Stopped, api.Installed, false},
		{"stopped", false, func(x *tester, _ *fakeMachine) {
			x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{}, nil))
		}, api.Stopped, api.Interrupted, true},
		{"killed", false, func(x *tester, m *fakeMachine) {
			x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{Force: true}, nil))
		}, api.Stopped, api.Interrupted, true},
		{"crashed", false, func(_ *tester, m *fakeMachine) { m.end(vm.StateCrashed, "boom") }, api.Crashed, api.Interrupted, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			driver := &fakeDriver{script: installer}
			x := serve(t, Options{Driver: driver})
			d := x.definition("web")
			d.req.Install.NoRestart = c.noRestart
			m := x.define(d)
			c.end(x, driver.machine(t, m.Dir))
			var after api.Machine
			x.must(x.stream("GET", "/v1/machines/web/wait?for=installed", nil, &after))
			x.must(x.stream("GET", "/v1/machines/web/wait?for=end", nil, &after))
			if after.State != c.state || after.Definition.Phase != c.phase {
				t.Errorf("%s, %s; want %s, %s", after.State, after.Definition.Phase, c.state, c.phase)
			}
			x.has(d, true, true, c.kernel)
			if c.phase != api.Interrupted {
				if _, e := x.stream("POST", "/v1/machines/web/start", api.StartRequest{Install: true}, nil); e == nil {
					t.Error("an install that is over is repeated")
				}
				return
			}
			// The next start is the final machine's, unless the phase is asked for.
			x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, &after))
			if spec := driver.machine(t, m.Dir).spec; spec.NoReboot {
				t.Error("the next start is the install's")
			}
			x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{Force: true}, nil))
			x.must(x.stream("POST", "/v1/machines/web/start", api.StartRequest{Install: true, NoWait: true}, &after))
			if after.State != api.Installing {
				t.Errorf("repeated: %s", after.State)
			}
			driver.machine(t, m.Dir).reboot()
			x.await("web", api.Login)
			x.has(d, true, true, false)
		})
	}
}

// TestInstallFailedStart starts the phase again when QEMU itself has failed.
func TestInstallFailedStart(t *testing.T) {
	first := true
	driver := &fakeDriver{script: func(m *fakeMachine) {
		installer(m)
		if first {
			first = false
			m.exitWith(vm.Exit{State: vm.StateCrashed, Reason: "aborted", Failed: true})
		}
	}}
	x := serve(t, Options{Driver: driver})
	m := x.define(x.definition("web"))
	x.eventually("a second start", func() bool { _, starts := driver.count(); return starts == 2 })
	x.await("web", api.Installing)
	if !driver.machine(t, m.Dir).spec.NoReboot {
		t.Error("the second start is not the install's")
	}
}

// TestInstallAcrossDaemons ends the daemon in an install phase.
func TestInstallAcrossDaemons(t *testing.T) {
	for _, c := range []struct {
		name  string
		end   func(*fakeMachine) // while no daemon runs; nil: it goes on
		state api.MachineState
		phase api.InstallPhase
	}{
		{"goes on", nil, api.Installing, api.InstallRuns},
		{"rebooted", (*fakeMachine).reboot, api.Login, api.Installed},
		{"killed", func(m *fakeMachine) { _ = m.Kill(t.Context()) }, api.Stopped, api.Interrupted},
	} {
		t.Run(c.name, func(t *testing.T) {
			driver := &fakeDriver{script: installer}
			x := serve(t, Options{Driver: driver})
			d := x.definition("web")
			m := x.define(d)
			guest := driver.machine(t, m.Dir)
			x.stop()
			if c.end != nil {
				c.end(guest)
			}
			x.start()
			got := x.await("web", c.state)
			if got.Definition.Phase != c.phase {
				t.Errorf("phase %s, want %s", got.Definition.Phase, c.phase)
			}
			if c.end == nil {
				guest.reboot()
				x.await("web", api.Login)
			}
			x.has(d, true, true, c.phase == api.Interrupted)
		})
	}
}

// TestDefineFails leaves nothing of a definition whose start fails or that is
// wrong, and keeps every file.
func TestDefineFails(t *testing.T) {
	driver := &fakeDriver{fail: errFake}
	x := serve(t, Options{Driver: driver})
	for _, c := range []struct {
		name   string
		change func(*definition)
		want   string
	}{
		{"start", func(*definition) {}, errFake.Error()},
		{"name", func(d *definition) { d.req.Spec.Name = "a b" }, "not a machine name"},
		{"transient", func(d *definition) { d.req.Transient, d.req.Start = true, false }, "transient"},
		{"transient autostart", func(d *definition) { d.req.Transient, d.req.Autostart = true, true }, "transient"},
		{"owned", func(d *definition) { d.req.Owned = []string{filepath.Dir(d.seed)} }, "plain file"},
		{"owned relative", func(d *definition) { d.req.Owned = []string{"seed.iso"} }, "whole path"},
		{"owned disk", func(d *definition) { d.req.Install.Owned = []string{d.disk} }, "the machine has it too"},
		{"owned twice", func(d *definition) { d.req.Install.Owned = []string{d.seed} }, "the machine has it too"},
		{"owned kernel", func(d *definition) { d.req.Spec.Boot.Kernel = d.kernel }, "the machine has it too"},
		{"install", func(d *definition) { d.req.Install.Spec.Memory = 1 }, "install phase"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := x.definition("web")
			c.change(&d)
			_, e := x.stream("POST", "/v1/define", d.req, nil)
			if e == nil || !strings.Contains(e.Message, c.want) {
				t.Errorf("error %v, want %q", e, c.want)
			}
			x.has(d, true, true, true)
			x.nothingLeft()
			if _, e := x.call("GET", "/v1/machines/web", nil, nil); e == nil || e.Code != api.CodeNotFound {
				t.Errorf("the machine is there: %v", e)
			}
		})
	}
}

// TestDefineTaken refuses what another machine has.
func TestDefineTaken(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{script: installer}})
	d := x.definition("web")
	m := x.define(d)
	for _, c := range []struct {
		name   string
		change func(*definition)
		code   string
	}{
		{"name", func(o *definition) { o.req.Spec.Name = "web" }, api.CodeExists},
		{"uuid", func(o *definition) { o.req.Spec.UUID = m.Spec.UUID }, api.CodeExists},
		{"owned", func(o *definition) { o.req.Owned = []string{d.kernel} }, api.CodeInUse},
		{"owned is a disk", func(o *definition) { o.req.Owned = []string{d.disk} }, api.CodeInUse},
	} {
		o := x.definition("other")
		c.change(&o)
		if _, e := x.stream("POST", "/v1/define", o.req, nil); e == nil || e.Code != c.code {
			t.Errorf("%s: %v", c.name, e)
		}
	}
	x.has(d, true, true, true)
}

func TestTransient(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	d := x.definition("brief")
	d.req.Transient, d.req.Install = true, nil
	m := x.define(d)
	guest := driver.machine(t, m.Dir)
	waited := make(chan api.Machine, 1)
	go func() {
		var last api.Machine
		_, _ = x.stream("GET", "/v1/machines/brief/wait?for=end", nil, &last)
		waited <- last
	}()
	x.eventually("somebody waits", func() bool { return requests(x.d) > 0 })
	_ = guest.Shutdown(t.Context())
	if last := <-waited; last.Name != "brief" {
		t.Errorf("waited for %+v", last)
	}
	x.eventually("it vanishes", func() bool { _, e := x.call("GET", "/v1/machines/brief", nil, nil); return e != nil })
	x.has(d, true, false, true)
	x.nothingLeft()

	// One that ends while no daemon runs vanishes with the next.
	d = x.definition("brief")
	d.req.Transient, d.req.Install = true, nil
	guest = driver.machine(t, x.define(d).Dir)
	x.stop()
	_ = guest.Shutdown(t.Context())
	x.start()
	x.nothingLeft()
	x.has(d, true, false, true)
}

func TestAutostart(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, BootID: "first"})
	d := x.definition("web")
	d.req.Install, d.req.Autostart, d.req.Start = nil, true, false
	if m := x.define(d); m.State != api.Defined || !m.Autostart {
		t.Errorf("%+v", m)
	}
	x.run("other")
	var m api.Machine
	if _, e := x.call("POST", "/v1/machines/other/autostart", api.AutostartRequest{On: true}, &m); e != nil || !m.Autostart {
		t.Fatal(m, e)
	}
	x.must(x.stream("POST", "/v1/machines/other/stop", api.StopRequest{Force: true}, nil))
	x.stop()
	x.start() // the same boot of the host
	if n, _ := driver.count(); n != 0 {
		t.Errorf("%d machines run", n)
	}
	x.stop()
	x.opts.BootID = "second"
	x.start()
	x.await("web", api.Login)
	x.await("other", api.Login)
	var off api.Machine
	if _, e := x.call("POST", "/v1/machines/web/autostart", api.AutostartRequest{}, &off); e != nil || off.Autostart {
		t.Error(off, e)
	}
}

func TestRemoveDisks(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	d := x.definition("one")
	d.req.Start = false
	x.define(d)
	o := x.definition("two")
	o.req.Start, o.req.Install, o.req.Owned = false, nil, nil
	o.req.Spec.Disks[0].Path = d.disk
	x.define(o)
	if _, e := x.call("DELETE", "/v1/machines/one?disks=1", nil, nil); e == nil || e.Code != api.CodeInUse || !strings.Contains(e.Message, "two") {
		t.Errorf("a disk of another machine: %v", e)
	}
	x.has(d, true, true, true)
	if _, e := x.call("DELETE", "/v1/machines/two", nil, nil); e != nil {
		t.Fatal(e)
	}
	x.has(d, true, true, true)
	if _, e := x.call("DELETE", "/v1/machines/one?disks=1", nil, nil); e != nil {
		t.Fatal(e)
	}
	x.has(d, false, false, false)
}

// TestDefineAbandoned: the start goes on when its client leaves, and a removal
// waits for it: nothing runs on the disks when it is answered.
func TestDefineAbandoned(t *testing.T) {
	driver := heldDriver{&fakeDriver{script: installer}, make(chan struct{}), make(chan struct{})}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	ctx, cancel := context.WithCancel(t.Context())
	res := x.send(ctx, "POST", "/v1/define", d.req)
	<-driver.begun
	cancel()
	_ = res.Body.Close()
	time.AfterFunc(50*time.Millisecond, func() { close(driver.hold) })
	if _, e := x.call("DELETE", "/v1/machines/web?force=1", nil, nil); e != nil {
		t.Fatal(e)
	}
	if running, starts := driver.count(); running != 0 || starts != 1 {
		t.Errorf("%d run, %d starts", running, starts)
	}
	x.has(d, true, false, false)
	x.nothingLeft()
}

// TestDefineLeft: whoever asked for a machine that runs, and has left before it
// is started, has found none and takes its disks back: it is not there. One
// that was only to be defined is, as its files are.
func TestDefineLeft(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	for _, start := range []bool{false, true} {
		d := x.definition("web")
		d.req.Start = start
		body, err := json.Marshal(d.req)
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		x.log.when("machine defined", leave)
		// Not over a socket, so that the daemon knows of it at that moment.
		err = x.d.postDefine(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", "/v1/define", bytes.NewReader(body)))
		if start != errors.Is(err, context.Canceled) {
			t.Errorf("start %v: %v", start, err)
		}
		_, e := x.call("GET", "/v1/machines/web", nil, nil)
		if running, starts := driver.count(); start != (e != nil) || running+starts != 0 {
			t.Errorf("start %v: machine: %v; %d run, %d starts", start, e, running, starts)
		}
		if start {
			break
		}
		x.has(d, true, true, true)
		if _, e := x.call("DELETE", "/v1/machines/web", nil, nil); e != nil {
			t.Fatal(e)
		}
	}
	x.nothingLeft()
}

// heldDriver says that a start has begun, and holds it.
type heldDriver struct {
	*fakeDriver
	begun, hold chan struct{}
}

func (d heldDriver) Start(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	close(d.begun)
	<-d.hold
	return d.fakeDriver.Start(ctx, spec, dir)
}

// TestRemoveDisksPlugged: a disk is another machine's too that it only has
// now, and one of which nobody can say what is below it.
func TestRemoveDisksPlugged(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	d := x.definition("one")
	d.req.Start = false
	x.define(d)
	o := x.definition("two")
	o.req.Install = nil
	guest := driver.machine(t, x.define(o).Dir)
	refused := func(what string) {
		t.Helper()
		if _, e := x.call("DELETE", "/v1/machines/one?disks=1", nil, nil); e == nil || !strings.Contains(e.Message, "two") {
			t.Errorf("%s: %v", what, e)
		}
		x.has(d, true, true, true)
	}
	plugged, err := guest.PlugDisk(t.Context(), vm.Disk{Path: d.disk, Format: "raw", Target: "vdx"})
	if err != nil {
		t.Fatal(err)
	}
	refused("a disk that another machine has plugged in")
	over := filepath.Join(t.TempDir(), "over.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", d.disk, "-F", "raw", over)
	if _, err := guest.UnplugDisk(t.Context(), plugged.Target); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.PlugDisk(t.Context(), vm.Disk{Path: over, Format: "qcow2", Target: "vdx"}); err != nil {
		t.Fatal(err)
	}
	refused("the base of a disk that another machine has plugged in")
	if err := os.WriteFile(over, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("an image that cannot be read")
	if err := os.Remove(over); err != nil {
		t.Fatal(err)
	}
	if _, e := x.call("DELETE", "/v1/machines/one?disks=1", nil, nil); e != nil {
		t.Fatal(e)
	}
	x.has(d, false, false, false)
}

// TestRemoveDisksReadOnly: a disk that cannot be removed is said before
// anything is.
func TestRemoveDisksReadOnly(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	d := x.definition("one")
	d.req.Start = false
	m := x.define(d)
	dir := filepath.Dir(d.disk)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceValue(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, e := x.call("DELETE", "/v1/machines/one?disks=1", nil, nil); e == nil || e.Code != api.CodeInvalid || !strings.Contains(e.Message, d.disk) {
		t.Errorf("a disk on a read-only file system: %v", e)
	}
	if got := x.machine("one"); got.ID != m.ID {
		t.Errorf("%+v", got)
	}
	x.has(d, true, true, true)
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if _, e := x.call("DELETE", "/v1/machines/one?disks=1", nil, nil); e != nil {
		t.Fatal(e)
	}
	x.has(d, false, false, false)
}

// TestFreshUndone undoes a machine whose maker was cut off before its start
// had come to anything.
func TestFreshUndone(t *testing.T) {
	driver := &fakeDriver{script: installer}
	x := serve(t, Options{Driver: driver})
	d := x.definition("web")
	m := x.define(d)
	// As a daemon leaves it that is killed between the start and its record.
	if err := x.d.machines["web"].setLast(fresh); err != nil {
		t.Fatal(err)
	}
	x.stop()
	x.start()
	if n, _ := driver.count(); n != 0 {
		t.Errorf("%d machines run", n)
	}
	x.nothingLeft()
	x.has(d, true, true, true)
	if _, err := os.Stat(m.Dir); err == nil {
		t.Error("its folder is left")
	}
}

func fresh(l *store.Last) { l.Fresh = true }

// requests is how many are under way.
func requests(d *Daemon) int {
	d.idle.mu.Lock()
	defer d.idle.mu.Unlock()
	return d.idle.active
}

// TestStoppedInSwitch stops a machine between its install phase and the start
// after it: it is not started.
func TestStoppedInSwitch(t *testing.T) {
	driver := &fakeDriver{script: installer}
	x := serve(t, Options{Driver: driver, StartsAtOnce: 1})
	d := x.definition("web")
	m := x.define(d)
	web := x.d.machines["web"]
	web.op <- struct{}{} // nobody starts it meanwhile
	driver.machine(t, m.Dir).reboot()
	x.eventually("the install is over", func() bool { return web.last().Wanted })
	if err := web.setLast(func(l *store.Last) { l.Wanted = false }); err != nil { // as stopMachine does
		t.Fatal(err)
	}
	<-web.op
	_, e := x.stream("GET", "/v1/machines/web/wait?for=installed", nil, nil)
	if got := x.machine("web"); got.State != api.Stopped || got.Definition.Phase != api.Installed {
		t.Errorf("%+v, %v", got, e)
	}
	if _, starts := driver.count(); starts != 1 {
		t.Errorf("%d starts", starts)
	}
}

// TestNoSerialConsole says where else to look.
func TestNoSerialConsole(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	m := x.run("web")
	if err := os.Remove(filepath.Join(m.Dir, home.SerialSock)); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://laminad/v1/machines/web/console", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", consoleProtocol)
	res, err := x.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 400 || !strings.Contains(string(b), "lamina screen web") {
		t.Errorf("%d %s, %v", res.StatusCode, b, err)
	}
}
