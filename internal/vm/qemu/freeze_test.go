package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu/stream"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// tinySpec is the tiny guest on an image that can have layers.
func tinySpec(t *testing.T) vm.Spec {
	t.Helper()
	spec := vmtest.Spec(t)
	spec.GenerationID = vm.NewUUID()
	base := spec.Disks[0].Path
	over := filepath.Join(t.TempDir(), "disk.qcow2")
	qemutest.Img(t, "create", "-f", "qcow2", "-b", base, "-F", "raw", over)
	spec.Disks[0] = vm.Disk{Path: over, Format: "qcow2"}
	return spec.WithDefaults()
}

func tiny(t *testing.T) *machine {
	t.Helper()
	m := vmtest.Start(t, New(Options{}), tinySpec(t), t.TempDir()).(*machine)
	vmtest.WaitSerial(t, m, vmtest.Ready)
	return m
}

// tinyRequest freezes it over a new overlay.
func tinyRequest(t *testing.T, m vm.Machine) vm.FreezeRequest {
	t.Helper()
	dir := t.TempDir()
	spec := m.(vm.Described).RunningSpec()
	over := filepath.Join(dir, "over.qcow2")
	qemutest.Img(t, "create", "-f", "qcow2", "-b", spec.Disks[0].Path, "-F", "qcow2", over)
	return vm.FreezeRequest{RAM: filepath.Join(dir, "ram"), State: filepath.Join(dir, "state"), Layers: map[string]string{"vda": over}}
}

// requireGoesOn: the guest executes, on the given image, which is what its spec says
// too; nothing else of it is open, and nothing is on record of a freeze.
func requireGoesOn(t *testing.T, m *machine, path string) {
	t.Helper()
	if s, err := m.State(t.Context()); err != nil || s != vm.StateRunning {
		t.Fatalf("state %s, %v", s, err)
	}
	vmtest.Send(t, m, "x") // which it echoes
	if got := m.RunningSpec().Disks[0].Path; got != path {
		t.Errorf("the spec says %s, want %s", got, path)
	}
	if got := topFile(t, m); got != path {
		t.Errorf("it writes to %s, want %s", got, path)
	}
	r, err := readRecord(m.dir)
	if err != nil || r.Freeze != nil || r.Spec.Disks[0].Path != path {
		t.Errorf("record %+v, %v", r, err)
	}
}

// topFile is the image that QEMU writes to.
func topFile(t *testing.T, m *machine) string {
	t.Helper()
	var all []struct {
		Inserted struct {
			File string `json:"file"`
		} `json:"inserted"`
	}
	if err := m.execute(t.Context(), "query-block", nil, &all); err != nil || len(all) != 1 {
		t.Fatalf("query-block: %+v, %v", all, err)
	}
	return all[0].Inserted.File
}

func requireNoFiles(t *testing.T, r vm.FreezeRequest) {
	t.Helper()
	for _, p := range []string{r.RAM, r.State} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left behind: %s, %v", p, err)
		}
	}
}

// requireFree: nobody has the overlay open for writing, if it is there yet.
func requireFree(t *testing.T, r vm.FreezeRequest) {
	t.Helper()
	if _, err := os.Lstat(r.Layers["vda"]); errors.Is(err, fs.ErrNotExist) {
		return
	}
	qemutest.Img(t, "check", `json:{"driver": "qcow2", "file": {"driver": "file", "filename": "`+r.Layers["vda"]+`"}, "backing": null}`)
}

// TestFreezeRefused: what cannot be is said before anything is done.
func TestFreezeRefused(t *testing.T) {
	m := tiny(t)
	path := m.RunningSpec().Disks[0].Path
	taken := filepath.Join(t.TempDir(), "taken")
	if err := os.WriteFile(taken, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*vm.FreezeRequest){
		"no absolute path":    func(r *vm.FreezeRequest) { r.RAM = "ram" },
		"cannot be both":      func(r *vm.FreezeRequest) { r.State = r.RAM },
		"file already exists": func(r *vm.FreezeRequest) { r.State = taken },
		"no such file":        func(r *vm.FreezeRequest) { r.RAM = "/nonexistent/ram" },
		"has no overlay":      func(r *vm.FreezeRequest) { r.Layers = nil },
		"gets no layers":      func(r *vm.FreezeRequest) { r.End = true },
		"no such device":      func(r *vm.FreezeRequest) { r.Layers["vdz"] = "/x" },
		"No such file":        func(r *vm.FreezeRequest) { r.Layers["vda"] += "not" },
		"not in qcow2 format": func(r *vm.FreezeRequest) { r.Layers["vda"] = taken },
	} {
		r := tinyRequest(t, m)
		change(&r)
		if _, err := m.Freeze(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		requireGoesOn(t, m, path)
	}
	if b, err := os.ReadFile(taken); err != nil || string(b) != "data" {
		t.Errorf("a file of another holds %q, %v", b, err)
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := tinyRequest(t, m)
	res, err := m.Freeze(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.State(t.Context()); err != nil || s != vm.StatePaused || res.Total == 0 {
		t.Errorf("a machine that was paused: %s, %v, %+v", s, err, res)
	}
	if got := topFile(t, m); got != r.Layers["vda"] {
		t.Errorf("it writes to %s", got)
	}
	if _, err := m.Freeze(t.Context(), tinyRequest(t, m)); err == nil || !strings.Contains(err.Error(), "let it go on") {
		t.Errorf("a second time: %v", err)
	}
	// One that is let go on meanwhile goes on when QEMU can stand it.
	if err := errors.Join(m.Resume(t.Context()), m.Pause(t.Context())); err != nil {
		t.Fatal(err)
	}
	next := tinyRequest(t, m)
	f := prepared(t, m, next)
	m.setFreezing(true)
	if err := f.mig.awaitSwitch(t.Context(), false, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Error(err)
	}
	if r, err := readRecord(m.dir); err != nil || r.Freeze == nil || !r.Freeze.Resume {
		t.Errorf("what the next process is told: %+v, %v", r.Freeze, err)
	}
	if s, err := m.State(t.Context()); err != nil || s != vm.StatePaused {
		t.Errorf("in the middle: %s, %v", s, err)
	}
	why := errors.New("given up")
	if err := f.undo(t.Context(), why); !errors.Is(err, why) {
		t.Error(err)
	}
	f.mig.close()
	requireGoesOn(t, m, r.Layers["vda"])
}

// TestFreezeCancelled: at whatever instant the caller gives up, the machine goes on
// on the right image.
func TestFreezeCancelled(t *testing.T) {
	m := tiny(t)
	path := m.RunningSpec().Disks[0].Path
	frozen := 0
	for _, after := range []time.Duration{0, 5, 20, 40, 60, 80, 100, 120, 140, 160, 200} {
		r := tinyRequest(t, m)
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		_, err := m.Freeze(ctx, r)
		cancel()
		switch {
		case err == nil:
			frozen++
			path = r.Layers["vda"]
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("cancelled after %v: %v", after, err)
		default:
			requireNoFiles(t, r)
			requireFree(t, r)
		}
		requireGoesOn(t, m, path)
	}
	t.Logf("%d times it was faster", frozen)
}

// TestFreezeCancelledAtStop gives up at the instant at which QEMU stops the guest.
// QEMU can lose that word between two of its steps, and would wait for ever.
func TestFreezeCancelledAtStop(t *testing.T) {
	m := tiny(t)
	path := m.RunningSpec().Disks[0].Path
	for range 6 {
		r := tinyRequest(t, m)
		f := prepared(t, m, r)
		events := f.mig.events.Events()
		for e := range events {
			if e.Name == "STOP" {
				break
			}
			if _, pass := f.mig.note(e); pass == 2 {
				if err := f.mig.downtime(t.Context(), quietDowntime); err != nil {
					t.Fatal(err)
				}
			}
		}
		why := errors.New("given up")
		begin := time.Now()
		if err := f.undo(t.Context(), why); !errors.Is(err, why) || strings.Contains(err.Error(), "does not go on") {
			t.Errorf("undo: %v", err)
		}
		if took := time.Since(begin); took > recovering/2 {
			t.Errorf("it took %v", took)
		}
		f.mig.close()
		f.files.discard()
		requireGoesOn(t, m, path)
		requireFree(t, r)
	}
}

// TestFreezeUndone: where the last of the stream is lost, after the overlays came into
// use, they are taken off again with what was written to them.
func TestFreezeUndone(t *testing.T) {
	m := tiny(t)
	path := m.RunningSpec().Disks[0].Path
	r := tinyRequest(t, m)
	f := prepared(t, m, r)
	if err := f.instant(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := topFile(t, m); got != r.Layers["vda"] || m.RunningSpec().Disks[0].Path != got {
		t.Fatalf("it writes to %s", got)
	}
	_ = f.mig.conn.Close()
	why := errors.New("the disk is full")
	if err := f.undo(t.Context(), why); !errors.Is(err, why) || strings.Contains(err.Error(), "does not go on") {
		t.Errorf("undo: %v", err)
	}
	f.mig.close()
	requireGoesOn(t, m, path)
	if _, err := os.Lstat(r.Layers["vda"]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an overlay that was in use is there yet: %v", err)
	}
	qemutest.Img(t, "create", "-f", "qcow2", "-b", path, "-F", "qcow2", r.Layers["vda"])
	if _, err := m.Freeze(t.Context(), r); err != nil { // the same files
		t.Fatal(err)
	}
	requireGoesOn(t, m, r.Layers["vda"])
}

// prepared is a freeze of which the migration has begun.
func prepared(t *testing.T, m *machine, r vm.FreezeRequest) *freeze {
	t.Helper()
	f := &freeze{m: m, r: r, spec: m.RunningSpec()}
	ctx := t.Context()
	err := f.check(ctx)
	if err == nil {
		f.files, err = createFrozen(r.RAM, r.State)
	}
	if err == nil {
		t.Cleanup(f.files.discard)
		err = m.noteLayers(ctx, freezeNote{Resume: !f.held}, f.layers)
	}
	if err == nil {
		err = f.openLayers(ctx)
	}
	if err == nil {
		f.mig, err = m.newMigration(ctx, stream.Options{Block: mainBlock, Size: f.spec.Memory, RAM: f.files.ram, State: f.files.state})
	}
	if err == nil {
		err = f.mig.begin(ctx, f.live, !r.End)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFreezeNoSpace: the reason is the host's, and the guest does not feel it.
func TestFreezeNoSpace(t *testing.T) {
	m := tiny(t)
	path := m.RunningSpec().Disks[0].Path
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	for _, which := range []string{"ram", "state"} {
		r := tinyRequest(t, m)
		if which == "ram" {
			r.RAM = filepath.Join(small, "ram")
		} else {
			r.State = filepath.Join(small, "state")
		}
		if _, err := m.Freeze(t.Context(), r); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), small) {
			t.Errorf("%s: %v", which, err)
		}
		requireNoFiles(t, r)
		requireGoesOn(t, m, path)
		requireFree(t, r)
	}
}

// TestFreezerGone: whoever adopts a machine whose freezer is gone lets it go on, at
// whatever stage that was.
func TestFreezerGone(t *testing.T) {
	for stage, reach := range map[string]func(*freeze) error{
		"before": func(f *freeze) error { return f.mig.awaitSwitch(t.Context(), true, func() {}) },
		"switched": func(f *freeze) error {
			err := f.mig.awaitSwitch(t.Context(), true, func() {})
			if err == nil {
				err = f.switchLayers(t.Context())
			}
			return err
		},
		"ending": func(f *freeze) error {
			return f.m.execute(t.Context(), "stop", nil, nil)
		},
		"sent": func(f *freeze) error {
			err := f.instant(t.Context())
			if err == nil {
				err = f.mig.awaitEnd(t.Context())
			}
			return err
		},
	} {
		m := tiny(t)
		want := m.RunningSpec().Disks[0].Path
		r := tinyRequest(t, m)
		if stage == "ending" {
			r.Layers, r.End = nil, true
		}
		f := prepared(t, m, r)
		if err := reach(f); err != nil {
			t.Fatalf("%s: %v", stage, err)
		}
		if stage == "switched" || stage == "sent" {
			want = r.Layers["vda"]
		}
		if s, err := m.State(t.Context()); err != nil || s != vm.StatePaused {
			t.Errorf("%s: %s, %v", stage, s, err)
		}
		if err := m.Release(); err != nil {
			t.Error(err)
		}
		again, err := New(Options{}).Adopt(t.Context(), m.dir)
		if err != nil {
			t.Fatalf("%s: %v", stage, err)
		}
		t.Cleanup(func() { _ = again.Kill(context.WithoutCancel(t.Context())) })
		f.mig.close()
		requireGoesOn(t, again.(*machine), want)
		if want != r.Layers["vda"] && !r.End {
			requireFree(t, r)
		}
	}
}

// TestKilledFreezer kills a freezer at many instants.
func TestKilledFreezer(t *testing.T) {
	d := New(Options{})
	seen := map[bool]int{}
	for i := range 8 {
		spec, dir := tinySpec(t), t.TempDir()
		noStrays(t, dir, spec.UUID)
		path, out := spec.Disks[0].Path, t.TempDir()
		over := filepath.Join(out, "over")
		qemutest.Img(t, "create", "-f", "qcow2", "-b", path, "-F", "qcow2", over)
		r := vm.FreezeRequest{RAM: filepath.Join(out, "ram"), State: filepath.Join(out, "state"), Layers: map[string]string{"vda": over}}
		cmd, says := runStarter(t, os.Args[0], startRequest{Spec: spec, Dir: dir, Freeze: &r}, nil)
		readInfo(t, says)
		time.Sleep(time.Duration(i) * 25 * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		m, err := d.Adopt(t.Context(), dir)
		if err != nil {
			t.Fatalf("instant %d: %v", i, err)
		}
		vmtest.WaitSerial(t, m, vmtest.Ready)
		requireGoesOn(t, m.(*machine), m.(*machine).RunningSpec().Disks[0].Path)
		seen[topFile(t, m.(*machine)) == over]++
		// Both files or none, and never half of one.
		if _, err := os.Stat(r.State); err == nil {
			requireWhole(t, r)
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		qemutest.Img(t, "check", over)
	}
	t.Logf("%d on the overlay, %d on the image", seen[true], seen[false])
}

func requireWhole(t *testing.T, r vm.FreezeRequest) {
	t.Helper()
	state, err := os.Open(r.State)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = state.Close() }()
	ram, err := os.Open(r.RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ram.Close() }()
	if err := stream.Check(state, ram); err != nil {
		t.Error(err)
	}
}

// TestFreezeKilledQEMU: a QEMU that dies meanwhile is told of, and leaves no files.
func TestFreezeKilledQEMU(t *testing.T) {
	m := tiny(t)
	r := tinyRequest(t, m)
	done := make(chan error, 1)
	go func() {
		_, err := m.Freeze(context.WithoutCancel(t.Context()), r)
		done <- err
	}()
	events := m.monitor().Subscribe(eventBuffer)
	defer events.Close()
	for e := range events.Events() {
		if e.Name == "MIGRATION" {
			break
		}
	}
	if err := unix.Kill(m.Info().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("freeze: %v", err)
	}
	requireNoFiles(t, r)
	if _, err := m.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := m.Freeze(t.Context(), r); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("freeze after the end: %v", err)
	}
}

// TestFreezeLostMonitor: a monitor that is gone for a while keeps no guest stopped.
func TestFreezeLostMonitor(t *testing.T) {
	m := tiny(t)
	path := m.RunningSpec().Disks[0].Path
	r := tinyRequest(t, m)
	f := prepared(t, m, r)
	if err := f.mig.awaitSwitch(t.Context(), true, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := m.monitor().Close(); err != nil {
		t.Fatal(err)
	}
	err := f.switchLayers(t.Context())
	if err == nil {
		t.Fatal("the monitor was closed")
	}
	if err := f.undo(t.Context(), err); strings.Contains(err.Error(), "does not go on") {
		t.Errorf("undo: %v", err)
	}
	f.mig.close()
	requireGoesOn(t, m, path)
	requireFree(t, r)
}

// tinyFrozen is the tiny guest, frozen at its end.
func tinyFrozen(t *testing.T) vm.Frozen {
	t.Helper()
	m := tiny(t)
	r := tinyRequest(t, m)
	r.Layers, r.End, r.Durable = nil, true, true
	res, err := m.Freeze(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if res.Pause != 0 || res.Total == 0 {
		t.Errorf("%+v", res)
	}
	requireWhole(t, r)
	vmtest.RequireNoLeftovers(t, m.dir)
	b, err := json.Marshal(res.Frozen) // as the store keeps it
	if err != nil {
		t.Fatal(err)
	}
	var f vm.Frozen
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// thawSpec is a machine that goes on from a frozen one.
func thawSpec(t *testing.T, f vm.Frozen, name string) vm.Spec {
	t.Helper()
	spec := f.Spec.Clone()
	spec.Name, spec.UUID, spec.GenerationID = name, vm.NewUUID(), vm.NewUUID()
	for _, n := range spec.NICs {
		for j := range n.Forwards {
			n.Forwards[j].HostPort = 0 // the frozen one has it still
		}
	}
	dir := t.TempDir()
	for i := range spec.Disks {
		spec.Disks[i].Path = filepath.Join(dir, spec.DiskNames()[i])
		qemutest.Img(t, "create", "-f", "qcow2", "-b", f.Spec.Disks[i].Path, "-F", "qcow2", spec.Disks[i].Path)
	}
	return spec
}

// TestThawRefused: a frozen machine that does not fit, or is damaged, is told of
// before a QEMU is started, and nothing is left of the try.
func TestThawRefused(t *testing.T) {
	good := tinyFrozen(t)
	d := New(Options{})
	key, err := d.FrozenKey(t.Context(), good.Spec)
	if err != nil || key != good.Key {
		t.Fatalf("key %+v, %v; frozen with %+v", key, err, good.Key)
	}
	damaged := func(path string, change func(f *os.File) error) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(t.TempDir(), filepath.Base(path)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if _, err = f.Write(b); err == nil {
			err = change(f)
		}
		if err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	cut := func(f *os.File) error { return f.Truncate(4096) }
	pipe := func() string {
		path := filepath.Join(t.TempDir(), "pipe")
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		want   error
		text   string
		change func(*vm.Frozen, *vm.Spec)
	}{
		"QEMU":         {vm.ErrOtherHost, "QEMU 6.0.0, here 7", func(f *vm.Frozen, _ *vm.Spec) { f.Key.QEMU = "6.0.0" }},
		"build":        {vm.ErrOtherHost, "another build", func(f *vm.Frozen, _ *vm.Spec) { f.Key.Binary = "00" }},
		"machine":      {vm.ErrOtherHost, "machine type pc-q35-6.0", func(f *vm.Frozen, _ *vm.Spec) { f.Key.Machine = "pc-q35-6.0" }},
		"CPU":          {vm.ErrOtherHost, "CPU max, here qemu64", func(_ *vm.Frozen, s *vm.Spec) { s.CPU = "qemu64" }},
		"memory":       {vm.ErrOtherHost, "memory in bytes", func(_ *vm.Frozen, s *vm.Spec) { s.Memory *= 2 }},
		"CPUs":         {vm.ErrOtherHost, "CPUs 1, here 2", func(_ *vm.Frozen, s *vm.Spec) { s.CPUs = 2 }},
		"accelerator":  {vm.ErrOtherHost, `accelerator "xen"`, func(f *vm.Frozen, _ *vm.Spec) { f.Key.Accel = "xen" }},
		"another card": {nil, "nics differ", func(_ *vm.Frozen, s *vm.Spec) { s.NICs = []vm.NIC{{}} }},
		"no genid":     {nil, "generationID differ", func(_ *vm.Frozen, s *vm.Spec) { s.GenerationID = "" }},
		"another bus":  {nil, "disks differ", func(_ *vm.Frozen, s *vm.Spec) { s.Disks[0].Bus = vm.BusSATA }},
		"no RAM":       {fs.ErrNotExist, "RAM", func(f *vm.Frozen, _ *vm.Spec) { f.RAM += "not" }},
		"no state":     {fs.ErrNotExist, "state", func(f *vm.Frozen, _ *vm.Spec) { f.State += "not" }},
		"cut RAM":      {stream.ErrDamaged, "4096 bytes", func(f *vm.Frozen, _ *vm.Spec) { f.RAM = damaged(f.RAM, cut) }},
		"cut state":    {stream.ErrDamaged, "cut", func(f *vm.Frozen, _ *vm.Spec) { f.State = damaged(f.State, cut) }},
		"a pipe: RAM":  {stream.ErrDamaged, "pipe", func(f *vm.Frozen, _ *vm.Spec) { f.RAM = pipe() }},
		"a pipe":       {stream.ErrDamaged, "pipe", func(f *vm.Frozen, _ *vm.Spec) { f.State = pipe() }},
		"no disk":      {fs.ErrNotExist, "disk image", func(_ *vm.Frozen, s *vm.Spec) { s.Disks[0].Path += "not" }},
	} {
		f, spec, dir := good, thawSpec(t, good, "clone"), t.TempDir()
		c.change(&f, &spec)
		m, err := d.Thaw(t.Context(), spec, f, dir)
		if err == nil {
			_ = m.Kill(t.Context())
		}
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %q", name, err, c.text)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
			t.Errorf("%s: left %v, %v", name, files, err)
		}
	}
	requireThaws(t, d, good)
}

// requireThaws thaws the tiny guest at many instants of a caller's patience, then for
// good; has it adopted, and found half-way.
func requireThaws(t *testing.T, d *Driver, f vm.Frozen) {
	t.Helper()
	dir := t.TempDir()
	for _, after := range []time.Duration{0, 1, 10, 30} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		m, err := d.Thaw(ctx, thawSpec(t, f, "clone"), f, dir)
		cancel()
		if err == nil {
			_ = m.Kill(t.Context())
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v ms: %v", after, err)
		}
		vmtest.RequireNoLeftovers(t, dir)
	}
	spec := thawSpec(t, f, "clone")
	m, err := d.Thaw(t.Context(), spec, f, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill(context.WithoutCancel(t.Context())) })
	if err := errors.Join(os.Remove(f.RAM), os.Remove(f.State)); err != nil { // it needs them no more
		t.Error(err)
	}
	requireGoesOn(t, m.(*machine), spec.Disks[0].Path)
	if err := m.Release(); err != nil {
		t.Error(err)
	}
	m, err = d.Adopt(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill(context.WithoutCancel(t.Context())) })
	requireGoesOn(t, m.(*machine), spec.Disks[0].Path)
	if err := m.Release(); err != nil {
		t.Error(err)
	}
	r, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.Info.QEMU = "" // as while it is under way
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Adopt(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("half thawed: %v", err)
	}
	if err := unix.Kill(m.Info().PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
	vmtest.RequireNoLeftovers(t, dir)
}

// TestUnfreezable: the words for each device that keeps a machine from it.
func TestUnfreezable(t *testing.T) {
	for want, change := range map[string]func(*vm.Spec){
		"a device of the host": func(s *vm.Spec) { s.HostDevices = []vm.HostDevice{{Type: "pci"}} },
		"a folder of the host": func(s *vm.Spec) { s.Filesystems = []vm.Filesystem{{}} },
		"USB redirection":      func(s *vm.Spec) { s.Redirects = []vm.USBRedirect{{}} },
		"a TPM":                func(s *vm.Spec) { s.TPM = &vm.TPM{} },
		"a balloon":            func(s *vm.Spec) { s.Balloon = &vm.Balloon{Autodeflate: vm.On} },
		"a vsock":              func(s *vm.Spec) { s.VSock = &vm.VSock{CID: 3} },
		"memory is shared":     func(s *vm.Spec) { s.MemoryConfig.Shared = true },
		"huge pages":           func(s *vm.Spec) { s.MemoryConfig.HugePages = true },
		"NUMA cells":           func(s *vm.Spec) { s.Processor.NUMA = []vm.NUMACell{{}} },
		"an input device":      func(s *vm.Spec) { s.Inputs = []vm.Input{{Type: "evdev"}} },
		"graphics card draws":  func(s *vm.Spec) { s.Videos = []vm.Video{{Accel3D: vm.On}} },
		"display draws":        func(s *vm.Spec) { s.Displays = []vm.Display{{GL: vm.On}} },
		"drive sda is a dev":   func(s *vm.Spec) { s.Disks = []vm.Disk{{Device: vm.DeviceLUN}} },
		"the host's /dev/s":    func(s *vm.Spec) { s.Serials = []vm.Char{{Type: vm.CharDev, Path: "/dev/s"}} },
		"is on nvme":           func(s *vm.Spec) { s.Disks = []vm.Disk{{Bus: vm.BusNVMe}} },
		"is encrypted":         func(s *vm.Spec) { s.Disks = []vm.Disk{{SecretFile: "/s"}} },
	} {
		var s vm.Spec
		change(&s)
		if err := unfreezable(s); !errors.Is(err, vm.ErrNoFreeze) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if err := unfreezable(vm.Spec{Disks: []vm.Disk{{}}, Devices: vm.Devices{Balloon: &vm.Balloon{Model: "none"}}}); err != nil {
		t.Error(err)
	}
}

// TestPlaces: where a device was is added to what a command line says of it.
func TestPlaces(t *testing.T) {
	l := layout{
		Disks:  []string{"disk0", "disk3"},
		Places: map[string][]string{"a": {"bus", "pci.0", "addr", "3.0"}, "usb1": {"port", "2"}},
		SCSI:   map[string]int{"disk3": 5},
	}
	args := []string{"-device", "x,id=a,serial=1,,id=b", "-device", "y,id=c", "-device", "usb-tablet,bus=usb0.0,id=usb1", "-device", "z,addr=7.0,id=a", "-netdev", "user,id=a"}
	l.place(args)
	want := "-device x,id=a,serial=1,,id=b,bus=pci.0,addr=3.0 -device y,id=c -device usb-tablet,bus=usb0.0,id=usb1,port=2 -device z,addr=7.0,id=a,bus=pci.0 -netdev user,id=a"
	if got := strings.Join(args, " "); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	s := l.apply(vm.Spec{Disks: make([]vm.Disk, 2)})
	if s.Disks[0].Address != nil || s.Disks[1].Address == nil || s.Disks[1].Address.Unit != 5 {
		t.Errorf("%+v", s.Disks)
	}
}

// TestVersions: what QEMUs call themselves.
func TestVersions(t *testing.T) {
	for out, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright": "7.2.22 (Debian 1:7.2+dfsg-7)",
		"QEMU emulator version 8.2.0 (qemu-8.2.0-9.fc40)\n":             "8.2.0 (qemu-8.2.0-9.fc40)",
		"QEMU emulator version 10.0.2\n":                                "10.0.2",
	} {
		if got, err := parseVersion([]byte(out)); err != nil || got != want {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if _, err := parseVersion([]byte("busybox")); err == nil {
		t.Error("no error")
	}
	for v, want := range map[string]bool{"7.2.22 (Debian)": false, "8.1.9": false, "8.2.0": true, "10.0.2": true, "": false, "x.y": false} {
		if atLeast(v, 8, 2) != want {
			t.Errorf("%s", v)
		}
	}
	one := hostCPU([]byte("processor: 0\nvendor_id: A\nmodel name: M\nflags: a b\n\nprocessor: 1\n"))
	if two := hostCPU([]byte("processor: 0\nvendor_id: A\nmodel name: M\nflags: a b c\n\n")); one == two || !strings.HasPrefix(one, "M (") {
		t.Errorf("%s, %s", one, two)
	}
	// What KVM makes of any CPU, one with a name too, depends on the host's.
	spec := vm.Spec{Name: "m", CPU: "qemu64"}.WithDefaults()
	kvm, err := frozenCPU(spec, vm.AccelKVM)
	tcg, err2 := frozenCPU(spec, vm.AccelTCG)
	if err := errors.Join(err, err2); err != nil || !strings.HasPrefix(kvm, "qemu64") || !strings.Contains(kvm, " of ") || strings.Contains(tcg, " of ") {
		t.Errorf("%s, %s, %v", kvm, tcg, err)
	}
}

// TestChannelSocket: a channel takes a client as soon as the machine is there.
func TestChannelSocket(t *testing.T) {
	spec := vmtest.Spec(t)
	spec.Channels = []vm.Channel{{Target: vm.ChannelAgent}, {Target: vm.ChannelLamina, Char: vm.Char{Type: vm.CharUnix, Listen: true}}}
	m := vmtest.Start(t, New(Options{}), spec, t.TempDir())
	c, err := net.Dial("unix", m.(vm.Channeled).ChannelSocket(vm.ChannelLamina))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if got := m.(vm.Channeled).ChannelSocket(vm.ChannelAgent); got != "" {
		t.Errorf("a pseudoterminal has socket %s", got)
	}
}
