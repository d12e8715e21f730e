package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// frozenStart is what a start goes on from.
type frozenStart struct {
	frozen vm.Frozen
	unit   string // "" of a fork
	agent  string // that is known to answer in it; "" for what does
	// disk is the index of the drive of the machine's own layer in frozen.Spec.
	disk int
}

// spec is the machine that goes on: the frozen one, with what is the machine's own.
// Cards that were frozen have their cables out: the guest does not know yet that it
// is not who it was.
func (f *frozenStart) spec(rec store.Machine) vm.Spec {
	s := f.frozen.Spec.Clone()
	s.Name, s.UUID, s.GenerationID = rec.Name, rec.Spec.UUID, newUUID()
	s.Title, s.Description = rec.Spec.Title, rec.Spec.Description
	s.Disks[f.disk].Path = rec.Spec.Disks[0].Path
	s.Graphics, s.Displays = rec.Spec.Graphics, rec.Spec.Displays
	s.OS, s.MemoryConfig.NoMerge = rec.Spec.OS, rec.Spec.MemoryConfig.NoMerge
	for i := range s.NICs {
		s.NICs[i].Link, s.NICs[i].Forwards = vm.LinkDown, nil
	}
	return s
}

// sameShape says whether a machine can go on from a frozen one: that which a guest
// sees from its start is the same. Cards and the seed come while it runs.
func sameShape(rec, frozen vm.Spec) (bool, error) {
	a, err := json.Marshal(shape(rec))
	if err != nil {
		return false, err
	}
	b, err := json.Marshal(shape(frozen))
	return string(a) == string(b), err
}

func shape(s vm.Spec) vm.Spec {
	s = s.Clone()
	s.Name, s.UUID, s.GenerationID, s.Title, s.Description = "", "", "", "", ""
	s.Accel, s.Machine, s.CPUs, s.Memory = "", "", 0, 0 // of the key
	s.NICs, s.HotplugPorts = nil, 0
	s.Graphics, s.Displays = vm.Graphics{}, nil
	s.MemoryConfig.NoMerge, s.OS = false, ""
	if len(s.Disks) > 0 {
		s.Disks = s.Disks[:1]
		d := &s.Disks[0]
		d.Path, d.Format, d.Discard, d.Target = "", "", false, ""
	}
	return s
}

// findWarm returns the unit that machines of a template with this spec can be started
// from, nil for none; why says what is missing. told says that it is the host's fault, or
// damage: nothing that a person has asked for.
func (d *Daemon) findWarm(ctx context.Context, template string, spec vm.Spec, size int64) (u *store.Unit, why string, told bool, err error) {
	th, ok := d.opts.Driver.(vm.Thawer)
	if !ok {
		return nil, "this driver starts machines cold only", false, nil
	}
	all, err := d.store.UnitsOf(ctx, template)
	if err != nil {
		return nil, "", false, err
	}
	if len(all) == 0 {
		if err := d.store.DamagedUnit(ctx, template); err != nil {
			return nil, err.Error(), true, nil
		}
		return nil, "it has no warm unit: `lamina template warm` makes one", false, nil
	}
	if size != 0 {
		t, err := d.store.Template(ctx, template)
		if err != nil {
			return nil, "", false, err
		}
		if size != t.VirtualSize {
			return nil, "its disk is to have another size than the template's", false, nil
		}
	}
	key, err := th.FrozenKey(ctx, spec)
	if err != nil {
		return nil, "", false, err
	}
	for _, u := range slices.Backward(all) {
		if u.Key != key {
			why = fmt.Sprintf("warm unit %s has %s: `lamina template warm` with the same options makes one that fits", u.ID, keyDifference(u.Key, key))
			told = told || otherHost(u.Key, key)
			continue
		}
		same, err := sameShape(spec, u.Frozen.Spec)
		if err != nil {
			return nil, "", false, err
		}
		if !same {
			why = fmt.Sprintf("warm unit %s has other devices (disk bus and cache, balloon, firmware): leave out the options that change them, or warm the template anew", u.ID)
			continue
		}
		if err := d.store.IntactUnit(ctx, u.ID); err != nil {
			why, told = err.Error(), true
			continue
		}
		return &u, "", false, nil
	}
	return nil, why, told, nil
}

// otherHost says whether two keys differ, and in nothing that a person chooses.
func otherHost(frozen, want vm.FrozenKey) bool {
	frozen.QEMU, frozen.Binary, frozen.CPU = want.QEMU, want.Binary, want.CPU
	return frozen == want
}

// touchEvery is how exactly it is known when a unit was used last.
const touchEvery = time.Minute

// fromUnit is a start from a warm unit.
func (d *Daemon) fromUnit(ctx context.Context, u store.Unit) *frozenStart {
	if time.Since(u.UsedAt) > touchEvery {
		if err := d.store.TouchUnit(ctx, u.ID); err != nil {
			d.log.Warn("record the use of a warm unit", "unit", u.ID, "error", err)
		}
	}
	return &frozenStart{frozen: u.Frozen, unit: u.ID, agent: u.Agent}
}

// planWarm says what a machine's start goes on from: nil for a cold start. A machine that
// lies over a unit's disk, and cannot be started from the unit, is put over its template
// first. warn tells why a machine that could be expected to start warm does not.
func (m *machine) planWarm(ctx context.Context, want api.Warm, warn func(string)) (*frozenStart, error) {
	rec := m.known()
	refuse := func(why string) error {
		return api.Errorf(api.CodeInvalid, "machine %s cannot be started warm: %s", m.name, why)
	}
	if rec.Definition != nil || rec.Digest == "" || rec.Unit == "" && (rec.Last.Started || want == api.WarmNever) {
		if want == api.WarmMust {
			return nil, refuse("it has been started already, or is not a template's clone: leave out --warm")
		}
		return nil, nil
	}
	if known, err := m.knowsSeed(rec); err != nil {
		return nil, err
	} else if !known {
		if want == api.WarmMust {
			return nil, refuse("its seed was made for a cold start: leave out --warm")
		}
		return nil, m.leaveUnit(ctx, rec)
	}
	if rec.Unit == "" {
		return m.takeUnit(ctx, rec, want, refuse, warn)
	}
	if fresh, err := m.untouched(ctx, rec, want, refuse, warn); err != nil || !fresh {
		return nil, err
	}
	u, err := m.d.store.Unit(ctx, rec.Unit)
	if err == nil && want != api.WarmNever {
		err = m.d.store.IntactUnit(ctx, u.ID)
	}
	if err == nil && rec.Digest != u.Layer {
		return nil, nil // it was put over something else since
	}
	switch {
	case err == nil && want != api.WarmNever:
		return m.d.fromUnit(ctx, u), nil
	case err != nil && want == api.WarmMust:
		return nil, refuse(err.Error())
	case err != nil && !errors.Is(err, store.ErrUnitChanged) && !errors.Is(err, store.ErrChanged) && !errors.Is(err, store.ErrNotFound):
		return nil, err
	case err != nil:
		warn("it is started cold: " + err.Error())
	}
	return nil, m.goCold(ctx)
}

// leaveUnit puts a machine that lies over a unit's disk, and has written nothing, over
// its template.
func (m *machine) leaveUnit(ctx context.Context, rec store.Machine) error {
	if rec.Unit == "" {
		return nil
	}
	if fresh, err := m.d.store.Pristine(ctx, rec); err != nil || !fresh {
		return err
	}
	return m.goCold(ctx)
}

// takeUnit puts a machine that was never started over the disk of a unit that fits.
func (m *machine) takeUnit(ctx context.Context, rec store.Machine, want api.Warm, refuse func(string) error, warn func(string)) (*frozenStart, error) {
	u, why, told, err := m.d.findWarm(ctx, rec.Digest, rec.Spec, rec.Config.DiskSize)
	if err != nil || u == nil {
		switch {
		case err != nil:
		case want == api.WarmMust:
			err = refuse(why)
		case told:
			warn("it is started cold: " + why)
		}
		return nil, err
	}
	if fresh, err := m.untouched(ctx, rec, want, refuse, warn); err != nil || !fresh {
		return nil, err
	}
	if err := m.restack(ctx, u.ID); err != nil {
		return nil, err
	}
	return m.d.fromUnit(ctx, *u), nil
}

// untouched says whether a machine that could be started warm has nothing on its disk yet.
// That is asked of one that was never started too: people put files into the disk of a
// machine that does not run, and a guest that goes on would know of none of them.
func (m *machine) untouched(ctx context.Context, rec store.Machine, want api.Warm, refuse func(string) error, warn func(string)) (bool, error) {
	fresh, err := m.d.store.Pristine(ctx, rec)
	switch {
	case err != nil || fresh:
	case want == api.WarmMust:
		err = refuse("something was written to its disk since it was made: leave out --warm")
	case !rec.Last.Started:
		warn("it is started cold: something was written to its disk since it was made")
	}
	return fresh, err
}

// goCold puts a machine whose guest has written nothing over its template.
func (m *machine) goCold(ctx context.Context) error { return m.restack(ctx, "") }

func (m *machine) restack(ctx context.Context, unit string) error {
	if _, err := m.d.store.Restack(ctx, m.id, unit); err != nil {
		return err
	}
	return m.reload()
}

// startProcess starts the machine's process, warm if it can be. spec is the cold
// one; the one that runs is returned.
func (m *machine) startProcess(ctx context.Context, spec vm.Spec, o *startOptions) (vm.Machine, vm.Spec, error) {
	if o.from == nil {
		if err := m.makeSeed(false); err != nil {
			return nil, spec, err
		}
		machine, err := m.d.opts.Driver.Start(ctx, spec, m.dir)
		return machine, spec, err
	}
	warm := o.from.spec(m.known())
	th, ok := m.d.opts.Driver.(vm.Thawer)
	if !ok {
		return nil, spec, api.Errorf(api.CodeInvalid, "machines can only be started cold here")
	}
	machine, err := th.Thaw(ctx, warm, o.from.frozen, m.dir)
	if err == nil || o.from.unit == "" || ctx.Err() != nil {
		return machine, warm, err
	}
	if o.warm == api.WarmMust {
		if errors.Is(err, vm.ErrOtherHost) {
			err = fmt.Errorf("%w; `lamina template warm` makes a unit that fits", err)
		}
		return nil, spec, fmt.Errorf("%w: without --warm, or with --cold, it starts cold", err)
	}
	m.d.log.Warn("not thawed, starting cold", "machine", m.name, "unit", o.from.unit, "error", err)
	o.warn(m.name, "warm unit "+o.from.unit+" cannot be used, and the machine is started cold: "+err.Error())
	o.from = nil
	if err := m.goCold(ctx); err != nil {
		return nil, spec, err
	}
	// Before there is a process: a next daemon must not take its boot for a warm one.
	if err := m.setRun(func(rec *store.Machine) { rec.Warmth = nil }); err != nil {
		return nil, spec, err
	}
	spec.Disks = m.known().Spec.Disks
	return m.startProcess(ctx, spec, o)
}

// warn adds a warning to the boot's log.
func (o *startOptions) warn(name, text string) {
	o.boot.add(api.Event{Step: "start", Machine: name, Warning: text})
}

// setRun is setRecord for what a run changes beside its Last.
func (m *machine) setRun(change func(*store.Machine)) error {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	change(&m.rec)
	rec := m.rec
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := m.d.store.SetRun(ctx, m.id, rec.Last, rec.Warmth, rec.Identity)
	if err != nil {
		m.d.log.Error("record the state of a machine", "machine", m.name, "error", err)
	}
	return err
}

// hasSeed says whether the machine has a seed, made or to be made.
func hasSeed(rec store.Machine, path string) bool {
	return rec.Definition == nil && len(rec.Spec.Disks) > 1 && rec.Spec.Disks[1].Path == path
}

// makeSeed makes the seed of a machine that was made without; keep keeps what it is
// made of.
func (m *machine) makeSeed(keep bool) error {
	rec := m.known()
	if !hasSeed(rec, m.file(home.SeedFile)) {
		return nil
	}
	build := func(kept []byte) ([]byte, error) {
		s, err := readSecrets(kept)
		if err != nil {
			return nil, err
		}
		return m.d.opts.Seed(seedConfig(m.name, rec.Spec, rec.Config, s))
	}
	if keep {
		return m.d.store.BuildSeed(rec, build)
	}
	return m.d.store.MakeSeed(rec, build)
}

// knowsSeed says whether what the guest is to be told is still known: a seed that was
// made for a cold start is all that is left of it.
func (m *machine) knowsSeed(rec store.Machine) (bool, error) {
	path := m.file(home.SeedFile)
	if !hasSeed(rec, path) {
		return true, nil
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	kept, err := m.d.store.Secrets(m.id)
	return kept != nil, err
}

// overUnit has machines that are to be started made over the disk of a warm unit that
// fits.
func (d *Daemon) overUnit(ctx context.Context, t api.Template, todo []store.NewMachine, warm api.Warm) error {
	if len(todo) == 0 {
		return nil
	}
	u, why, _, err := d.findWarm(ctx, t.Digest, todo[0].Spec, todo[0].Size)
	if err != nil {
		return err
	}
	if u == nil {
		if warm == api.WarmMust {
			return api.Errorf(api.CodeInvalid, "machines of template %s cannot be started warm: %s", cmp.Or(t.Name, brief(t.Digest)), why)
		}
		return nil
	}
	for i := range todo {
		todo[i].Unit = u.ID
	}
	return nil
}

// checkWarm refuses words that are none.
func checkWarm(w api.Warm, to api.WaitTo) error {
	if !slices.Contains([]api.Warm{api.WarmAuto, api.WarmNever, api.WarmMust}, w) {
		return api.Errorf(api.CodeInvalid, "warm is %q: it is cold, warm or left out", w)
	}
	if !slices.Contains([]api.WaitTo{api.WaitDefault, api.WaitPrompt, api.WaitReady}, to) {
		return api.Errorf(api.CodeInvalid, "wait is %q: it is prompt, ready or left out", to)
	}
	return nil
}

// warmth is what is on record of a start that goes on from f.
func (f *frozenStart) warmth() *api.Warmth {
	if f == nil {
		return nil
	}
	return &api.Warmth{Unit: f.unit}
}

// attachWarm goes on with a run that was started warm, where it is.
func (m *machine) attachWarm(ctx context.Context, r *run, last store.Last, watchers *sync.WaitGroup) {
	w := m.known().Warmth
	switch {
	case w != nil && last.Problem != nil:
		r.warm.arrived()
		close(r.warm.prompted)
		r.boot.add(api.Event{Step: "boot", Machine: m.name, Boot: &boot.Event{Stage: last.Stage}})
		e := api.Errorf(api.CodeBoot, "machine %s runs, but %s", m.name, last.Problem.Cause)
		e.Problem = last.Problem
		r.boot.finish(e)
	case w != nil && w.Ready > 0:
		r.warm.arrived()
		close(r.warm.prompted)
		r.boot.add(api.Event{Step: "boot", Machine: m.name, Boot: &boot.Event{Stage: boot.StageLogin, Since: w.Ready}})
		r.boot.finish(nil)
	default:
		watchers.Go(func() { m.becomeItself(ctx, r) })
	}
}
