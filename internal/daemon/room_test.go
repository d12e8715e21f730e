package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// bigImages says that every image holds so much, and remembers whether any work was begun.
type bigImages struct {
	warmImages
	size  int64
	begun *atomic.Int32
}

func (b bigImages) Content(context.Context, string, string, bool) (int64, error) { return b.size, nil }

func (b bigImages) Import(ctx context.Context, source, format, target, compress string, progress func(done, total int64)) (int64, error) {
	b.begun.Add(1)
	return b.warmImages.Import(ctx, source, format, target, compress, progress)
}

// TestRoomForImages: what writes an image is refused before it begins, where the image may not
// fit the disk or the quota.
func TestRoomForImages(t *testing.T) {
	disk := newDisk(100 << 30)
	images := bigImages{size: 2 << 30, begun: new(atomic.Int32)}
	x := serve(t, Options{Driver: newWarmDriver(), Guests: &fakeGuests{}, Images: images, Statfs: disk.statfs})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "t"}, nil))
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"off"}}, nil))
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"on"}, Start: true}, nil))
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	begun := images.begun.Load()
	for _, bound := range []struct {
		limits api.SpaceLimits
		free   int64
		words  []string
	}{
		{api.SpaceLimits{MinFree: 1 << 30}, 3 << 30, []string{"it may take 2.0", "1 GiB are kept free", "lamina prune"}},
		{api.SpaceLimits{MinFree: 1, Quota: 2 << 30}, 100 << 30, []string{"it may take 2.0", "its quota is 2 GiB", "lamina prune"}},
	} {
		disk.free.Store(bound.free)
		x.setSpace(bound.limits)
		for what, e := range map[string]*api.Error{
			"import":          second(x.stream("POST", "/v1/templates", api.ImportRequest{Source: other}, nil)),
			"repack":          second(x.stream("POST", "/v1/templates", api.ImportRequest{Source: "t", Compress: "zstd"}, nil)),
			"flatten":         second(x.stream("POST", "/v1/machines/off/flatten", api.FlattenRequest{}, nil)),
			"flatten running": second(x.stream("POST", "/v1/machines/on/flatten", api.FlattenRequest{}, nil)),
			"rebase":          second(x.stream("POST", "/v1/machines/off/rebase", api.RebaseRequest{Template: "t"}, nil)),
			"template":        second(x.stream("POST", "/v1/template-from", api.TemplateFromRequest{Machine: "off", Flatten: true}, nil)),
		} {
			x.says(what, e, bound.words...)
			if e != nil && e.Code != api.CodeNoSpace {
				t.Errorf("%s: %s", what, e.Code)
			}
		}
	}
	if images.begun.Load() != begun {
		t.Error("an import was begun")
	}
	// With a quota that the layers alone pass.
	x.setSpace(api.SpaceLimits{MinFree: 1, Quota: 1 << 20})
	for what, e := range map[string]*api.Error{
		"commit": second(x.stream("POST", "/v1/machines/off/commit", api.CommitRequest{Name: "c"}, nil)),
		"clone":  second(x.stream("POST", "/v1/machines/off/clone", api.CloneMachineRequest{Names: []string{"n-{1..100}"}}, nil)),
		"new":    second(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"n-{1..100}"}}, nil)),
	} {
		if what == "commit" {
			if e != nil {
				t.Errorf("commit: %v", e)
			}
			continue
		}
		x.says(what, e, "its quota is 1 MiB")
	}
}

// TestWarmWithoutSpace: the boot of a template that is warmed ends when space runs out, and
// leaves nothing.
func TestWarmWithoutSpace(t *testing.T) {
	disk := newDisk(100 << 30)
	guests, d := &fakeGuests{}, newWarmDriver()
	x := serve(t, Options{Driver: d, Guests: guests, Images: warmImages{}, Statfs: disk.statfs})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "t"}, nil))
	x.setSpace(api.SpaceLimits{MinFree: 1 << 30})
	guests.set(make(chan struct{}), nil) // its boot is never over
	done := make(chan *api.Error, 1)
	go func() { done <- second(x.stream("POST", "/v1/templates/t/warm", api.WarmRequest{}, nil)) }()
	x.until("it boots", func() bool {
		guests.mu.Lock()
		defer guests.mu.Unlock()
		return guests.renews > 0
	})
	disk.free.Store(1<<30 - 1)
	x.d.guard.wake()
	select {
	case e := <-done:
		x.says("warm", e, "warm t: there is too little space", "1 GiB are kept free", "lamina prune")
		if e != nil && e.Code != api.CodeNoSpace {
			t.Errorf("code %s", e.Code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if left, err := os.ReadDir(x.home.Warm()); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if units, err := x.d.store.Units(t.Context()); err != nil || len(units) > 0 {
		t.Errorf("units %v, %v", units, err)
	}
	disk.free.Store(100 << 30)
	guests.set(nil, nil)
	x.warm()
	if n := len(x.d.guard.watches()); n > 0 {
		t.Errorf("%d are watched", n)
	}
}

// dead is a file system of which the server is gone.
type dead struct {
	*disk
	dir   string
	hangs chan struct{} // nil: it answers
	asked atomic.Int32
}

func (d *dead) statfs(dir string) (free, total int64, err error) {
	if strings.HasPrefix(dir, d.dir) && d.hangs != nil {
		d.asked.Add(1)
		<-d.hangs
	}
	return d.disk.statfs(dir)
}

// TestDeadFileSystem: one that does not answer holds up neither the guard, which looks
// after the other machines, nor a request; and few questions are under way.
func TestDeadFileSystem(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("lamina-test", mount, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a tmpfs (the tests run as root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := &dead{disk: newDisk(10 << 30), dir: mount, hangs: make(chan struct{})}
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver, Statfs: d.statfs})
	m := x.run("web")
	guest := driver.machine(t, m.Dir)
	x.setSpace(api.SpaceLimits{MinFree: 1 << 30})
	before := runtime.NumGoroutine()
	spec := vm.Spec{}
	for _, name := range []string{"a", "b", "c"} {
		dir := filepath.Join(mount, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "disk"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, vm.Disk{Device: vm.DeviceDisk, Path: filepath.Join(dir, "disk"), Format: "qcow2"})
	}
	for range 20 {
		err := x.d.guard.haveRoomIn("start far", spec)
		if e := apiError(err); err == nil || e.Code != api.CodeFailed || !strings.Contains(e.Message, "start far: "+mount) || !strings.Contains(e.Message, "does not answer") {
			t.Fatalf("%v", err)
		}
		limits := x.d.guard.bounds()
		for _, name := range []string{"a", "b", "c"} {
			if r := x.d.guard.room(filepath.Join(mount, name), limits, glancePatience); r.verdict() != scarce || !errors.Is(r.err, errSilent) {
				t.Fatalf("room %+v", r)
			}
		}
	}
	if n := d.asked.Load(); n != 1 {
		t.Errorf("%d questions to a mount that does not answer", n)
	}
	if n := runtime.NumGoroutine(); n > before+10 {
		t.Errorf("%d goroutines more", n-before)
	}
	d.free.Store(0)
	x.d.guard.wake()
	x.await("web", api.Paused)
	x.until("the machine on the other file system is held", guest.held)
	d.free.Store(10 << 30)
	close(d.hangs)
	x.until("it answers again", func() bool { return x.d.guard.haveRoomIn("start far", spec) == nil })
}

// TestAsk: questions of one path are one, and each gets an answer that was given after it.
func TestAsk(t *testing.T) {
	f := fileSystems{log: slog.New(slog.DiscardHandler), mount: func(path string) string { return filepath.Dir(path) }}
	hang, begun := make(chan struct{}), make(chan struct{})
	var looks atomic.Int32
	first := make(chan error, 1)
	go func() { first <- f.ask("/m/a", time.Minute, func() { looks.Add(1); close(begun); <-hang }) }()
	<-begun
	if err := f.ask("/m/a", time.Millisecond, func() { looks.Add(1) }); !errors.Is(err, errSilent) {
		t.Errorf("the same path: %v", err)
	}
	if err := f.ask("/m/b", time.Millisecond, func() { looks.Add(1) }); !errors.Is(err, errSilent) || !strings.Contains(err.Error(), "/m/a") {
		t.Errorf("the same mount: %v", err)
	}
	if err := f.ask("/n/b", time.Minute, func() {}); err != nil {
		t.Errorf("another mount: %v", err)
	}
	if looks.Load() != 1 {
		t.Errorf("%d looks at once", looks.Load())
	}
	close(hang)
	if err := <-first; err != nil {
		t.Errorf("one with patience: %v", err)
	}
	for _, path := range []string{"/m/a", "/m/b"} {
		if err := f.ask(path, time.Minute, func() { looks.Add(1) }); err != nil {
			t.Errorf("%s answers: %v", path, err)
		}
	}
	if looks.Load() != 3 || f.overdue != 0 || len(f.asked) != 0 {
		t.Errorf("%d looks, %d overdue, %d asked", looks.Load(), f.overdue, len(f.asked))
	}
}

func TestMountOf(t *testing.T) {
	for path, want := range map[string]string{"/proc/self/x": "/proc", "/": "/", "/procedure": "/"} {
		if got := mountOf(path); got != want {
			t.Errorf("mount of %s: %q", path, got)
		}
	}
}

// TestGeneraliseWithoutSpace: the boot of a machine's copy ends when space runs out, and
// leaves nothing but the machine.
func TestGeneraliseWithoutSpace(t *testing.T) {
	disk := newDisk(100 << 30)
	d := newWarmDriver()
	inspect := func(context.Context, string, string) (api.ImageInfo, error) {
		return api.ImageInfo{OS: "debian", CloudInit: true}, nil
	}
	x := serve(t, Options{Driver: d, Guests: &fakeGuests{}, Images: warmImages{}, Statfs: disk.statfs, Inspect: inspect})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "t"}, nil))
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"off"}}, nil))
	x.setSpace(api.SpaceLimits{MinFree: 1 << 30})
	done := make(chan *api.Error, 1)
	go func() {
		done <- second(x.stream("POST", "/v1/template-from", api.TemplateFromRequest{Machine: "off", Name: "new", Generalise: true}, nil))
	}()
	x.until("the copy runs", func() bool { running, _ := d.count(); return running == 1 })
	disk.free.Store(0)
	x.d.guard.wake()
	select {
	case e := <-done:
		x.says("generalise", e, "a template of off: there is too little space", "1 GiB are kept free")
		if e != nil && e.Code != api.CodeNoSpace {
			t.Errorf("code %s", e.Code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if running, _ := d.count(); running != 0 {
		t.Errorf("%d machines run", running)
	}
	if _, err := os.Lstat(filepath.Join(x.machine("off").Dir, home.ScratchDir)); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	if list, err := x.d.store.Templates(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("%d templates, %v", len(list), err)
	}
}
