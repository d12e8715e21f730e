package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// warmPorts is how many devices a machine that is started warm takes while it
// runs, on a board where each needs a port: its card and its seed are two of them.
const warmPorts = 2 + hotplugPorts

// How long a warming may take until its guest is ready, and how long an agent may
// take to answer behind the login prompt.
const (
	warmTimeout    = 10 * time.Minute
	warmTimeoutTCG = 40 * time.Minute
	agentPatience  = 5 * time.Minute
	// agentUnlikely is for an image in which nothing was found that could start one.
	agentUnlikely = 20 * time.Second
)

func (d *Daemon) postWarm(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.WarmRequest](w, r)
	if err != nil {
		return err
	}
	if req.CPUs < 0 || req.Memory < 0 || req.Timeout < 0 {
		return api.Errorf(api.CodeInvalid, "warm: CPUs, memory and timeout cannot be negative")
	}
	t, err := d.store.Template(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	s := newEvents(w)
	u, err := d.warm(r.Context(), t, req, s)
	if err != nil {
		s.done(nil, err)
		return nil
	}
	s.done(d.showUnit(r.Context(), u, map[string]string{t.Digest: t.Name}), nil)
	return nil
}

func (d *Daemon) getWarm(w http.ResponseWriter, r *http.Request) error {
	units, err := d.store.Units(r.Context())
	if err != nil {
		return err
	}
	templates, err := d.store.Templates(r.Context())
	if err != nil {
		return err
	}
	names := map[string]string{}
	for _, t := range templates {
		if len(t.Names) > 0 {
			names[t.Digest] = t.Names[0]
		}
	}
	out := make([]api.WarmUnit, 0, len(units))
	for _, u := range units {
		out = append(out, d.showUnit(r.Context(), u, names))
	}
	answer(w, out)
	return nil
}

func (d *Daemon) deleteWarm(w http.ResponseWriter, r *http.Request) error {
	if err := d.store.RemoveUnit(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	d.log.Info("warm unit removed", "unit", r.PathValue("id"))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// showUnit is a unit as clients see it; names are those of templates, by digest.
func (d *Daemon) showUnit(ctx context.Context, u store.Unit, names map[string]string) api.WarmUnit {
	out := api.WarmUnit{ID: u.ID, Template: cmp.Or(names[u.Template], u.Template), Digest: u.Template, Layer: u.Layer, Key: u.Key,
		RAMSize: u.RAMSize, DiskSize: u.DiskSize, BootTime: int64(u.BootTime), Agent: u.Agent, Machines: u.Machines,
		CreatedAt: u.CreatedAt, UsedAt: u.UsedAt}
	if out.Machines == nil {
		out.Machines = []string{}
	}
	err := d.store.IntactUnit(ctx, u.ID)
	if err == nil {
		err = d.unitFits(ctx, u)
	}
	if out.Fits = err == nil; err != nil {
		out.Note = err.Error()
	}
	return out
}

// unitFits says why a unit cannot be used on this host now.
func (d *Daemon) unitFits(ctx context.Context, u store.Unit) error {
	th, ok := d.opts.Driver.(vm.Thawer)
	if !ok {
		return errors.New("this driver starts machines cold only")
	}
	spec := u.Frozen.Spec.Clone()
	if u.Key.Accel == vm.AccelTCG {
		spec.Accel = vm.AccelTCG
	}
	key, err := th.FrozenKey(ctx, spec)
	if err != nil {
		return err
	}
	if key != u.Key {
		return fmt.Errorf("%w: %s", vm.ErrOtherHost, keyDifference(u.Key, key))
	}
	return nil
}

// warmSpec is the machine that a template is warmed as: no card, no seed, and places for both.
func (d *Daemon) warmSpec(t api.Template, req api.WarmRequest, disk string) vm.Spec {
	spec := vm.Spec{
		Name: "warm", CPUs: req.CPUs, Memory: req.Memory, Machine: req.Machine, Accel: req.Accel, RNG: true,
		Disks: []vm.Disk{{Path: disk, Format: "qcow2", Discard: true, BootIndex: 1}},
	}
	d.fit(&spec, t.Info)
	withIdentity(&spec)
	spec = spec.WithDefaults()
	if spec.Chipset() == vm.MachineQ35 {
		spec.HotplugPorts = warmPorts
	}
	return spec
}

// warm makes a warm unit of a template. What was begun is undone where it fails, and
// where ctx ends.
func (d *Daemon) warm(ctx context.Context, t api.Template, req api.WarmRequest, s *events) (store.Unit, error) {
	th, ok := d.opts.Driver.(vm.Thawer)
	if !ok {
		return store.Unit{}, api.Errorf(api.CodeInvalid, "machines cannot be frozen here: start them cold")
	}
	name := cmp.Or(t.Name, t.Digest[:12])
	spec := d.warmSpec(t, req, filepath.Join(d.home.Warm(), home.DiskFile))
	if err := spec.Validate(); err != nil {
		return store.Unit{}, api.Errorf(api.CodeInvalid, "%v", err)
	}
	key, err := th.FrozenKey(ctx, spec)
	if err != nil {
		return store.Unit{}, err
	}
	if !req.Again {
		if u, err := d.intactUnit(ctx, t.Digest, key); err != nil || u.ID != "" {
			if err == nil {
				s.send(api.Event{Step: "warm", Text: "template " + name + " is warm already: unit " + u.ID})
			}
			return u, err
		}
	}
	if err := d.guard.haveRoomFor("warm "+name, spec.Memory); err != nil {
		return store.Unit{}, err
	}
	u, err := d.store.BeginUnit(ctx, t.Digest, 0)
	if err != nil {
		return store.Unit{}, err
	}
	w := &warming{d: d, t: t, name: name, unit: u, req: req, s: s}
	spec.Disks[0].Path = u.Disk
	watched, stop := d.guard.watching(ctx, "warm "+name, u.Dir)
	facts, err := w.run(watched, spec)
	err = shortOf(watched, err)
	stop()
	if err == nil {
		s.send(api.Event{Step: "warm", Text: "keeping it"})
		u, err = d.store.CommitUnit(ctx, u.ID, facts)
	}
	if err != nil {
		w.kill()
		return store.Unit{}, errors.Join(fmt.Errorf("warm %s: %w", name, err), d.store.DiscardUnit(context.WithoutCancel(ctx), w.unit.ID))
	}
	d.log.Info("template warmed", "template", name, "unit", u.ID, "took", u.BootTime.Round(time.Millisecond), "agent", u.Agent)
	return u, nil
}

// intactUnit returns the newest unit that fits and can be used; one without an ID for
// none.
func (d *Daemon) intactUnit(ctx context.Context, template string, key vm.FrozenKey) (store.Unit, error) {
	list, err := d.store.FindUnit(ctx, template, key)
	if err != nil {
		return store.Unit{}, err
	}
	for _, u := range list {
		if err := d.store.IntactUnit(ctx, u.ID); err != nil {
			d.log.Warn("a warm unit cannot be used", "unit", u.ID, "error", err)
			continue
		}
		return u, nil
	}
	return store.Unit{}, nil
}

// warming is the one boot of a template that is frozen.
type warming struct {
	d    *Daemon
	t    api.Template
	name string
	unit store.Unit
	req  api.WarmRequest
	s    *events
	vm   vm.Machine
}

// kill ends the machine if it runs.
func (w *warming) kill() {
	if w.vm == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.vm.Kill(ctx); err != nil && !errors.Is(err, vm.ErrNotRunning) {
		w.d.log.Warn("end a machine that was warmed", "template", w.name, "error", err)
	}
	if err := w.vm.Release(); err != nil {
		w.d.log.Warn("release", "template", w.name, "error", err)
	}
	w.vm = nil
}

// run boots the machine and freezes it.
func (w *warming) run(ctx context.Context, spec vm.Spec) (f store.UnitFacts, err error) {
	if err := w.start(ctx, spec); err != nil {
		return f, err
	}
	freezer, ok := w.vm.(vm.Freezer)
	if !ok {
		return f, vm.ErrNoFreeze
	}
	limit := cmp.Or(w.req.Timeout, warmTimeout)
	if w.req.Timeout == 0 && w.vm.Info().Accel == vm.AccelTCG {
		limit = warmTimeoutTCG
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not ready to be frozen within %s", limit))
	defer cancel()
	seedDisk, err := w.plugSeed(ctx, spec)
	if err != nil {
		return f, err
	}
	if err := w.login(ctx, limit); err != nil {
		return f, err
	}
	g, err := w.open(ctx)
	if err != nil {
		return f, err
	}
	defer func() { _ = g.Close() }() // the machine ends
	w.tell("waiting until its boot is over")
	if err := g.WaitReady(ctx); err != nil {
		return f, err
	}
	f.BootTime, f.Agent = time.Since(w.vm.Info().StartedAt), string(g.Kind())
	w.tell("taking its seed away")
	if _, err := w.vm.(vm.DiskPlugger).UnplugDisk(ctx, seedDisk); err != nil {
		return f, fmt.Errorf("its seed: %w", err)
	}
	if err := os.Remove(filepath.Join(w.unit.Dir, home.SeedFile)); err != nil {
		return f, err
	}
	w.tell("preparing its guest")
	if err := g.Prepare(ctx); err != nil {
		return f, err
	}
	_ = g.Close() // closed again above
	w.tell("freezing it")
	res, err := freezer.Freeze(ctx, vm.FreezeRequest{RAM: w.unit.RAM, State: w.unit.State, End: true, Durable: true})
	if err != nil {
		return f, err
	}
	f.Frozen = res.Frozen
	return f, w.ended(ctx)
}

func (w *warming) tell(text string) {
	w.s.send(api.Event{Step: "warm", Text: text})
}

// start starts the machine in the unit's folder.
func (w *warming) start(ctx context.Context, spec vm.Spec) (err error) {
	w.s.send(api.Event{Step: "start", Text: "booting " + w.name + " once"})
	select {
	case w.d.starts <- struct{}{}:
		defer func() { <-w.d.starts }()
	case <-ctx.Done():
		return cause(ctx)
	}
	if w.vm, err = w.d.opts.Driver.Start(ctx, spec, w.unit.Dir); err != nil {
		return err
	}
	info := w.vm.Info()
	w.d.log.Info("warming", "template", w.name, "unit", w.unit.ID, "pid", info.PID, "accel", info.Accel)
	if info.AccelNote != "" {
		w.s.send(api.Event{Warning: "KVM is not used: " + info.AccelNote})
	}
	return nil
}

// plugSeed gives the machine the seed that installs the agent, as a drive that can go
// again. Its guest has not looked for drives yet.
func (w *warming) plugSeed(ctx context.Context, spec vm.Spec) (name string, err error) {
	content, err := w.d.opts.Seed(agent.WarmingSeed("warm-" + w.unit.ID))
	if err != nil {
		return "", err
	}
	path := filepath.Join(w.unit.Dir, home.SeedFile)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", err
	}
	plugger, ok := w.vm.(vm.DiskPlugger)
	if !ok {
		return "", cannot("drives cannot be added to it")
	}
	disk := vm.SeedDisk(path, vm.BusVirtio)
	disk.Target = "vdz"
	disk, err = plugger.PlugDisk(ctx, disk)
	return disk.Target, err
}

// login follows the boot to the login prompt.
func (w *warming) login(ctx context.Context, limit time.Duration) error {
	ended := make(chan struct{})
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	machine := w.vm
	go func() {
		defer close(ended)
		_, _ = machine.Wait(wctx) // that it ended is all that counts
	}()
	serial, err := boot.Follow(wctx, machine.SerialLog(), ended)
	if err != nil {
		return err
	}
	defer func() { _ = serial.Close() }() // only read
	res, err := w.d.opts.Watch(wctx, boot.Sources{Serial: serial, Screen: machine.ScreenText}, boot.Options{
		Timeout: limit,
		Hints:   boot.Hints{Name: w.name, TCG: machine.Info().Accel == vm.AccelTCG, DiskBus: string(vm.BusVirtio), HasSeed: true},
		OnEvent: func(e boot.Event) { w.s.send(api.Event{Step: "boot", Text: e.Line, Boot: &e}) },
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return cause(ctx)
	case err != nil:
		return err
	case res.Problem != nil:
		return bootError("of template "+w.name, res.Problem)
	}
	return nil
}

// open waits for an agent.
func (w *warming) open(ctx context.Context) (Guest, error) {
	patience := agentPatience
	if i := w.t.Info; i.OS != "" && !i.CloudInit && !i.Agent {
		patience = agentUnlikely
	}
	if w.req.Timeout > 0 {
		patience = min(patience, w.req.Timeout)
	}
	w.tell("waiting for its agent")
	dial, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lamina, qga := agentSockets(w.unit.Dir, runningSpec(w.vm))
	g, err := w.d.opts.Guests.Open(dial, lamina, qga)
	if err != nil && ctx.Err() == nil {
		return nil, api.Errorf(api.CodeInvalid, "no agent answers in the guest within %s of its login prompt, so it cannot be frozen for others: the image needs cloud-init, by which Lamina's agent is installed, or qemu-guest-agent with guest-exec allowed; its machines are started cold (%v)", patience, err)
	}
	if err != nil {
		return nil, cause(ctx)
	}
	return g, nil
}

// ended waits until the process of a machine that was frozen with its end is gone.
func (w *warming) ended(ctx context.Context) error {
	if _, err := w.vm.Wait(ctx); err != nil {
		return err
	}
	err := w.vm.Release()
	w.vm = nil
	return err
}

// runningSpec is what a machine has now.
func runningSpec(m vm.Machine) vm.Spec {
	if d, ok := m.(vm.Described); ok {
		return d.RunningSpec()
	}
	return vm.Spec{}
}

// keyDifference says in what two keys differ.
func keyDifference(frozen, want vm.FrozenKey) string {
	pairs := [][3]string{
		{"QEMU", frozen.QEMU, want.QEMU}, {"build of QEMU", brief(frozen.Binary), brief(want.Binary)}, {"machine type", frozen.Machine, want.Machine},
		{"accelerator", string(frozen.Accel), string(want.Accel)}, {"CPU", frozen.CPU, want.CPU},
		{"CPUs", fmt.Sprint(frozen.CPUs), fmt.Sprint(want.CPUs)},
		{"memory", fmt.Sprintf("%d MiB", frozen.Memory>>20), fmt.Sprintf("%d MiB", want.Memory>>20)},
	}
	out := ""
	for _, p := range slices.Backward(pairs) {
		if p[1] != p[2] {
			if out != "" {
				out = "; " + out
			}
			out = fmt.Sprintf("%s %s, not %s", p[0], p[1], p[2]) + out
		}
	}
	return out
}

func brief(s string) string { return s[:min(len(s), 12)] }
