package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu/stream"
)

// mainBlock is what QEMU calls the RAM of pc and q35 without a memory backend.
const mainBlock = "pc.ram"

// ramBlock is the name of the RAM block of a machine.
func (c config) ramBlock() string {
	if c.needsBackend() {
		return memoryID
	}
	return mainBlock
}

// freeze is one call of Freeze.
type freeze struct {
	m      *machine
	r      vm.FreezeRequest
	spec   vm.Spec // as it runs
	layers []layer
	live   bool // the guest executes meanwhile
	held   bool // a person has paused it
	files  *frozenFiles
	mig    *migration

	pause  time.Duration
	before int64 // bytes of RAM that were written before the pause
}

// Freeze implements [vm.Freezer]. QEMU migrates the machine into a socket of ours.
// Between its last instruction and its devices' state QEMU waits for us
// (pause-before-switchover): that is when the overlays come over the images.
func (m *machine) Freeze(ctx context.Context, r vm.FreezeRequest) (vm.FreezeResult, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	m.setFreezing(true)
	defer m.setFreezing(false)
	f := &freeze{m: m, r: r, spec: m.RunningSpec()}
	result, err := f.run(ctx)
	if err != nil {
		return vm.FreezeResult{}, fmt.Errorf("freeze machine %q: %w", f.spec.Name, err)
	}
	return result, nil
}

func (m *machine) setFreezing(on bool) {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	m.freezing = on
}

func (f *freeze) run(ctx context.Context) (vm.FreezeResult, error) {
	if err := f.check(ctx); err != nil {
		return vm.FreezeResult{}, err
	}
	result := vm.FreezeResult{Frozen: vm.Frozen{RAM: f.r.RAM, State: f.r.State, Spec: f.spec.WithoutPasswords()}}
	key, err := f.m.frozenKey(f.spec)
	if err != nil {
		return result, err
	}
	if result.Frozen.Layout, err = f.m.layout(ctx); err != nil {
		return result, err
	}
	if f.files, err = createFrozen(f.r.RAM, f.r.State); err != nil {
		return result, err
	}
	defer f.files.discard()
	split, err := f.migrate(ctx)
	if err == nil {
		err = f.m.step("sent")
	}
	if err == nil {
		err = f.keep(ctx)
	}
	if err == nil {
		err = f.m.step("kept")
	}
	if err != nil {
		return result, f.undo(ctx, err)
	}
	if key.Machine = split.Machine; key.Machine == "" {
		key.Machine = f.spec.Machine
	}
	result.Frozen.Key, result.Total = key, f.mig.split.Written()
	if !f.r.End {
		result.Pause, result.Written = f.pause, result.Total-f.before
	}
	return result, f.end(ctx)
}

// check says what keeps the machine from being frozen, before anything is done.
func (f *freeze) check(ctx context.Context) error {
	for _, p := range []string{f.r.RAM, f.r.State} {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("%q is no absolute path", p)
		}
	}
	if f.r.RAM == f.r.State {
		return fmt.Errorf("%s cannot be both RAM and state", f.r.RAM)
	}
	if err := unfreezable(f.spec); err != nil {
		return err
	}
	if f.r.End && len(f.r.Layers) > 0 {
		return errors.New("a machine that ends gets no layers")
	}
	var err error
	if f.layers, err = f.m.findLayers(ctx, f.r.Layers); err != nil {
		return err
	}
	for i, d := range f.spec.Disks {
		id := f.m.diskIDAt(i)
		named := slices.ContainsFunc(f.layers, func(l layer) bool { return l.id == id })
		if !f.r.End && !named && !d.ReadOnly && d.Path != "" {
			return fmt.Errorf("drive %q can be written and has no overlay in the request", f.spec.DiskNames()[i])
		}
	}
	if err := f.m.idleDisks(ctx); err != nil {
		return err
	}
	status, err := f.m.queryStatus(ctx)
	if err != nil {
		return err
	}
	switch status {
	case statusRunning:
		f.live = !f.r.End
	case statusPaused:
		f.held = true
		f.m.held.Store(true)
	case statusMigrated:
		return errors.New("it was frozen while it was paused, and QEMU freezes it again when it has gone on since: let it go on for a moment")
	default:
		return fmt.Errorf("the guest does not execute (status %s): it can be frozen when it runs, or is paused", status)
	}
	return nil
}

// idleDisks refuses a machine of which QEMU works on a disk by itself: it could not
// let go of the image.
func (m *machine) idleDisks(ctx context.Context) error {
	var list []job
	if err := m.execute(ctx, "query-jobs", nil, &list); err != nil {
		return err
	}
	for _, j := range list {
		if j.Status != "concluded" && j.Status != "null" {
			return fmt.Errorf("QEMU works on a disk of it (job %s): wait until that is done, or stop it", j.ID)
		}
	}
	return nil
}

// diskIDAt is what QEMU calls the index-th drive.
func (m *machine) diskIDAt(index int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.diskID(index)
}

// migrate takes the machine to the instant and lets it go on.
func (f *freeze) migrate(ctx context.Context) (stream.Result, error) {
	if f.live {
		// What QEMU would write out while the guest is stopped.
		syncImages(f.layers)
	}
	if err := f.m.noteLayers(ctx, freezeNote{Resume: !f.held}, f.layers); err != nil {
		return stream.Result{}, err
	}
	if err := f.m.step("noted"); err != nil {
		return stream.Result{}, err
	}
	if err := f.openLayers(ctx); err != nil {
		return stream.Result{}, err
	}
	if err := f.m.step("opened"); err != nil {
		return stream.Result{}, err
	}
	block := config{spec: f.spec}.ramBlock()
	mig, err := f.m.newMigration(ctx, stream.Options{Block: block, Size: f.spec.Memory, RAM: f.files.ram, State: f.files.state})
	if err != nil {
		return stream.Result{}, err
	}
	f.mig = mig
	defer mig.close()
	if !f.live && !f.held {
		if err := f.m.execute(ctx, "stop", nil, nil); err != nil {
			return stream.Result{}, err
		}
	}
	if err := mig.begin(ctx, f.live, !f.r.End); err != nil {
		return stream.Result{}, err
	}
	if !f.r.End {
		if err := f.instant(ctx); err != nil {
			return stream.Result{}, err
		}
	}
	if err := mig.awaitEnd(ctx); err != nil {
		return stream.Result{}, err
	}
	if err := f.m.step("migrated"); err != nil {
		return stream.Result{}, err
	}
	if !f.r.End {
		if err := f.m.goOn(ctx); err != nil {
			return stream.Result{}, err
		}
		if !f.m.held.Load() {
			f.pause = mig.pause()
		}
	}
	return mig.result(ctx)
}

// instant puts the overlays over the images between the guest's last instruction
// and its devices' state.
func (f *freeze) instant(ctx context.Context) error {
	if err := f.mig.awaitSwitch(ctx, f.live, func() { syncImages(f.layers) }); err != nil {
		return err
	}
	f.before = f.mig.split.Written()
	if err := f.mig.alive(); err != nil {
		return err
	}
	if err := f.m.step("stopped for the instant"); err != nil {
		return err
	}
	if len(f.layers) > 0 {
		if err := f.switchLayers(ctx); err != nil {
			return err
		}
	}
	return f.m.execute(ctx, "migrate-continue", map[string]string{"state": migPreSwitchover}, nil)
}

// switchLayers makes the guest's next write go to the overlays: to all or to none.
func (f *freeze) switchLayers(ctx context.Context) error {
	var actions []any
	for _, l := range f.layers {
		actions = append(actions, map[string]any{"type": "blockdev-snapshot", "data": map[string]string{"node": l.node, "overlay": l.overlay}})
	}
	// Not to be given up half-way: what QEMU did must be known.
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := f.m.execute(sctx, "transaction", map[string]any{"actions": actions}, nil); err != nil {
		return err
	}
	if err := f.m.step("switched"); err != nil {
		return err
	}
	return f.m.change(func(r *record) { r.setPaths(f.layers, func(l layer) string { return l.path }) })
}

func (r *record) setPaths(layers []layer, path func(layer) string) {
	for _, l := range layers {
		if i := slices.Index(r.DiskIDs, l.id); i >= 0 {
			r.Spec.Disks[i].Path = path(l)
		}
	}
}

func (f *freeze) openLayers(ctx context.Context) error {
	for i := range f.layers {
		if err := f.m.openLayer(ctx, &f.layers[i]); err != nil {
			return fmt.Errorf("%s: %w", f.layers[i].path, err)
		}
	}
	return nil
}

// keep makes the files what the caller asked for.
func (f *freeze) keep(ctx context.Context) error {
	if f.r.Durable {
		if err := f.files.sync(); err != nil {
			return err
		}
		if err := syncDisks(f.spec); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.files.link(f.r.Durable)
}

// end clears the note, and ends a machine that is to end.
func (f *freeze) end(ctx context.Context) error {
	if f.r.End {
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*killTimeout)
		defer cancel()
		if err := f.m.Kill(kctx); err != nil {
			f.files.unlink()
			return err
		}
		return nil
	}
	// A note that stays does no harm: the machine goes on already, and nothing is being
	// taken off.
	_ = f.m.change(func(r *record) { r.Freeze = nil })
	return nil
}

// recovering bounds the way back from a freeze that failed.
const recovering = 60 * time.Second

// undo lets the machine go on as if nothing had been asked.
func (f *freeze) undo(ctx context.Context, why error) error {
	f.files.unlink()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recovering)
	defer cancel()
	stays, err := f.m.wayBack(ctx, f.m.change)
	switch {
	case errors.Is(err, vm.ErrNotRunning):
		return fmt.Errorf("%w: %w", vm.ErrNotRunning, why)
	case err != nil:
		return errors.Join(why, fmt.Errorf("and it does not go on as it was: %w", err))
	case stays != nil:
		return errors.Join(why, fmt.Errorf("and it goes on with the overlay, which was not taken off again: %w", stays))
	}
	return why
}
