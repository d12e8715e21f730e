package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// disk stands in for the host's file systems: all have the same space free.
type disk struct {
	free atomic.Int64
	gone atomic.Bool // they cannot be looked at
}

func (d *disk) statfs(string) (free, total int64, err error) {
	if d.gone.Load() {
		return 0, 0, errFake
	}
	return d.free.Load(), 100 << 30, nil
}

func newDisk(free int64) *disk {
	d := &disk{}
	d.free.Store(free)
	return d
}

// setSpace sets the bounds, and has the guard look at once.
func (x *tester) setSpace(l api.SpaceLimits) (s api.Space) {
	x.Helper()
	if _, e := x.call("PUT", "/v1/space", l, &s); e != nil {
		x.Fatal(e)
	}
	return s
}

// TestGuard: machines are paused when space is short, before that nothing happens,
// and they go on when there is half as much again.
func TestGuard(t *testing.T) {
	disk := newDisk(10 << 30)
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Statfs: disk.statfs})
	m := x.run("web")
	guest := driver.machine(t, m.Dir)
	limits := api.SpaceLimits{MinFree: 1 << 30}
	if s := x.setSpace(limits); s.Free != 10<<30 || s.Limits != limits || len(s.Paused) > 0 || s.Used == 0 {
		t.Errorf("space %+v", s)
	}
	disk.free.Store(1<<30 - 1)
	x.setSpace(limits)
	m = x.await("web", api.Paused)
	if !strings.Contains(m.PauseReason, "1 GiB are kept free") || !strings.Contains(m.PauseReason, "lamina prune") {
		t.Errorf("why it is paused: %q", m.PauseReason)
	}
	x.until("the guest is held", guest.held)
	// Nothing new, with a remedy.
	for what, e := range map[string]*api.Error{
		"run":    second(x.stream("POST", "/v1/machines", api.RunRequest{Image: m.Digest, Name: "two"}, nil)),
		"clone":  second(x.stream("POST", "/v1/clones", api.CloneRequest{Template: m.Digest, Names: []string{"two"}}, nil)),
		"import": second(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image}, nil)),
	} {
		if e == nil || e.Code != api.CodeNoSpace || !strings.Contains(e.Message, "lamina prune") {
			t.Errorf("%s: %v", what, e)
		}
	}
	if s := x.setSpace(limits); len(s.Paused) != 1 || s.Paused[0] != "web" {
		t.Errorf("paused: %v", s.Paused)
	}
	// A little more is not enough to go on.
	disk.free.Store(1<<30 + 1<<28)
	x.d.guard.look(t.Context())
	if !guest.held() {
		t.Error("it goes on, and will be paused again in a moment")
	}
	disk.free.Store(3 << 29)
	x.d.guard.wake()
	if m := x.await("web", api.Login); m.PauseReason != "" || guest.held() {
		t.Errorf("it goes on: %q", m.PauseReason)
	}
	// Where it is not short, it is not paused at all.
	disk.free.Store(1<<30 + 1)
	x.d.guard.look(t.Context())
	if guest.held() {
		t.Error("it is paused although there is enough")
	}
	guest.waits.Store(true)
	if m := x.machine("web"); m.State != api.Paused || !strings.Contains(m.PauseReason, "a write of its guest") {
		t.Errorf("QEMU's own pause: %s, %q", m.State, m.PauseReason)
	}
	guest.waits.Store(false)
	disk.free.Store(0)
	x.setSpace(limits)
	x.await("web", api.Paused)
	x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{Force: true}, nil))
	if m := x.machine("web"); m.State != api.Stopped || m.PauseReason != "" {
		t.Errorf("switched off: %s %q", m.State, m.PauseReason)
	}
	if e := second(x.stream("POST", "/v1/machines/web/start", api.StartRequest{}, nil)); e == nil || e.Code != api.CodeNoSpace {
		t.Errorf("start: %v", e)
	}
}

// TestStopPaused: a machine that is paused loses its power in the end, of which the
// person is told at once; one that goes on again shuts down without a word.
func TestStopPaused(t *testing.T) {
	disk := newDisk(10 << 30)
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Statfs: disk.statfs})
	limits := api.SpaceLimits{MinFree: 1 << 30}
	for name, space := range map[string]int64{"poor": 0, "rich": 10 << 30} {
		disk.free.Store(10 << 30)
		x.setSpace(limits)
		m := x.run(name)
		disk.free.Store(0)
		x.setSpace(limits)
		x.await(name, api.Paused)
		x.until("it is held", driver.machine(t, m.Dir).held)
		if space > 0 {
			disk.free.Store(space)
			x.setSpace(limits)
			x.await(name, api.Login)
		}
		told, patience := "", 20*time.Millisecond
		if space > 0 {
			patience = time.Minute // it shuts down by itself, however slow this host is
		}
		for _, e := range x.must(x.stream("POST", "/v1/machines/"+name+"/stop", api.StopRequest{Timeout: patience}, nil)) {
			told += e.Warning + "\n"
		}
		m = x.machine(name)
		want := []string{"shuts down only when it goes on", "lamina prune", "switched off after 20ms", "what it held in its memory is lost"}
		if space > 0 {
			want = nil
		}
		for _, w := range want {
			if !strings.Contains(told, w) {
				t.Errorf("%s: told %q, without %q", name, told, w)
			}
		}
		if m.State != api.Stopped || space > 0 && strings.TrimSpace(told) != "" {
			t.Errorf("%s: %s, told %q", name, m.State, told)
		}
	}
}

func second(_ []api.Event, e *api.Error) *api.Error { return e }

// until waits for what another goroutine is about to do.
func (x *tester) until(what string, is func() bool) {
	x.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			x.Fatal(what + ": it is not so after 10 s")
		}
	}
}

// TestGuardSuccession: what an earlier daemon has paused, or was about to, is known
// to the next one, which lets it go on, or holds it on.
func TestGuardSuccession(t *testing.T) {
	disk := newDisk(10 << 30)
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Statfs: disk.statfs})
	m := x.run("web")
	guest := driver.machine(t, m.Dir)
	x.setSpace(api.SpaceLimits{MinFree: 1 << 30})
	disk.free.Store(0)
	x.d.guard.wake()
	x.until("it is held", guest.held)
	x.stop()
	x.start()
	if m := x.machine("web"); m.State != api.Paused {
		t.Errorf("after the restart: %s", m.State)
	}
	// Killed between the record and the pause: it runs, and the record says that
	// it does not. In between both bounds it stays as the record says.
	x.stop()
	_ = guest.Resume(t.Context())
	disk.free.Store(1<<30 + 1)
	x.start()
	x.until("it is held as the record says", guest.held)
	x.stop()
	disk.free.Store(10 << 30)
	x.start()
	x.await("web", api.Login)
	if guest.held() {
		t.Error("the record says that it goes on, and it does not")
	}
	if l := x.d.guard.bounds(); l.MinFree != 1<<30 {
		t.Errorf("the bounds are %+v after a restart", l)
	}
}

// TestGuardQuota: what the home takes is bounded too.
func TestGuardQuota(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Statfs: newDisk(10 << 30).statfs})
	m := x.run("web")
	x.setSpace(api.SpaceLimits{Quota: 32 << 20})
	fill := filepath.Join(m.Dir, "big")
	if err := os.WriteFile(fill, make([]byte, 33<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	x.setSpace(api.SpaceLimits{Quota: 32 << 20})
	m = x.await("web", api.Paused)
	if !strings.Contains(m.PauseReason, "its quota is 32 MiB") {
		t.Errorf("why: %q", m.PauseReason)
	}
	if e := second(x.stream("POST", "/v1/clones", api.CloneRequest{Template: m.Digest, Names: []string{"two"}}, nil)); e == nil || e.Code != api.CodeNoSpace {
		t.Errorf("clone: %v", e)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	x.setSpace(api.SpaceLimits{Quota: 32 << 20})
	x.await("web", api.Login)
	if _, e := x.call("PUT", "/v1/space", api.SpaceLimits{Quota: -1}, nil); e == nil || e.Code != api.CodeInvalid {
		t.Errorf("a negative quota: %v", e)
	}
}

// TestGuardFileSystem is the guard on a real file system that fills up.
func TestGuardFileSystem(t *testing.T) {
	dir := filepath.Join(shortHome(t).Data, "fs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lamina-test", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatalf("mount a tmpfs (the tests run as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Home: home.At(dir)})
	m := x.run("web")
	guest := driver.machine(t, m.Dir)
	var s api.Space
	if _, e := x.call("GET", "/v1/space", nil, &s); e != nil || s.Total != 64<<20 || s.MinFree != (64<<20)/20 || s.Limits.MinFree != 0 {
		t.Fatalf("space %+v, %v", s, e)
	}
	x.setSpace(api.SpaceLimits{MinFree: 16 << 20})
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 50<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	x.await("web", api.Paused)
	x.until("held", guest.held)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	x.await("web", api.Login)
}

// TestGuardBlind: where the disks cannot be looked at, nothing changes: what is paused stays
// so, and what runs goes on.
func TestGuardBlind(t *testing.T) {
	disk := newDisk(10 << 30)
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Statfs: disk.statfs})
	limits := api.SpaceLimits{MinFree: 1 << 30}
	m := x.run("web")
	guest := driver.machine(t, m.Dir)
	x.setSpace(limits)
	disk.gone.Store(true)
	x.d.guard.look(t.Context())
	if guest.held() {
		t.Error("it is paused though nothing is known")
	}
	disk.gone.Store(false)
	disk.free.Store(0)
	x.setSpace(limits)
	x.await("web", api.Paused)
	x.until("it is held", guest.held)
	disk.gone.Store(true)
	for range 3 {
		x.d.guard.look(t.Context())
	}
	if m := x.machine("web"); m.State != api.Paused || !guest.held() {
		t.Errorf("it goes on though nothing is known: %s", m.State)
	}
	disk.free.Store(10 << 30)
	disk.gone.Store(false)
	x.d.guard.wake()
	x.await("web", api.Login)
	// A disk of which the folder cannot be looked into is one that may need space.
	if got, err := x.d.guard.diskFolders(vm.Spec{Disks: []vm.Disk{
		{Device: vm.DeviceDisk, Path: filepath.Join(x.image, "disk")}, {Device: vm.DeviceDisk, Path: filepath.Join(m.Dir, "none")},
	}}, time.Minute); err != nil || len(got) != 1 || got[0] != x.image {
		t.Errorf("folders %q, %v", got, err)
	}
}

// TestRoomForMemory: a copy of a machine's memory is not begun where the disk would be full
// of it, which would pause all machines.
func TestRoomForMemory(t *testing.T) {
	disk := newDisk(2<<30 - 1) // a GiB is kept free, and a machine has one
	d := newWarmDriver()
	x := serve(t, Options{Driver: d, Guests: &fakeGuests{}, Images: warmImages{}, Statfs: disk.statfs})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "t"}, nil))
	x.setSpace(api.SpaceLimits{MinFree: 1 << 30})
	full := func(what string, e *api.Error) {
		t.Helper()
		x.says(what, e, "it may take 1 GiB", "1 GiB are kept free", "lamina prune")
		if e != nil && e.Code != api.CodeNoSpace {
			t.Errorf("%s: %s", what, e.Code)
		}
	}
	full("warm", second(x.stream("POST", "/v1/templates/t/warm", api.WarmRequest{}, nil)))
	if left, err := os.ReadDir(x.home.Warm()); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if _, starts := d.count(); starts > 0 {
		t.Error("a machine was started")
	}
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}}); e != nil {
		t.Fatal(e)
	}
	full("fork", second(x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{}, nil)))
	if a, list := x.machine("a"), x.d.list(); len(list) != 1 || a.State != api.Login || a.Spec.Disks[0].Path != filepath.Join(a.Dir, "disk.qcow2") {
		t.Errorf("%d machines, %+v", len(list), a)
	}
	disk.free.Store(2 << 30)
	x.must(x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{}, nil))
	x.warm()
}
