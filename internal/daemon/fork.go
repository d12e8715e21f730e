package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// maxForks bounds the copies of one request.
const maxForks = 1000

// forkMachine makes running copies of a running machine.
func forkMachine(m *machine, r *http.Request, req api.ForkRequest, s *events) (api.ForkResult, error) {
	list, err := m.forkNames(r.Context(), req)
	if err == nil {
		err = checkWarm(api.WarmAuto, req.Wait)
	}
	if err != nil {
		return api.ForkResult{}, err
	}
	f, made, err := m.fork(r.Context(), list, req, s)
	out := api.ForkResult{Machines: make([]api.Machine, 0, len(made)), Pause: f.Pause, Written: f.Written}
	if err == nil && !req.NoWait {
		err = m.d.awaitForks(r.Context(), made, req.Wait, s)
	}
	for _, c := range made {
		out.Machines = append(out.Machines, c.describe())
	}
	return out, err
}

// forkNames are the names of the copies: those that were asked for, or NAME-1, NAME-2, ...
func (m *machine) forkNames(ctx context.Context, req api.ForkRequest) ([]string, error) {
	if len(req.Names) > 0 && req.Count > 0 {
		return nil, api.Errorf(api.CodeInvalid, "fork: give names or a count, not both")
	}
	if req.Count < 0 || req.Count > maxForks {
		return nil, api.Errorf(api.CodeInvalid, "fork: a count of %d: it is 1 to %d", req.Count, maxForks)
	}
	if len(req.Names) > 0 {
		list, err := names.ExpandMachines(req.Names)
		if err == nil && len(list) > maxForks {
			err = api.Errorf(api.CodeInvalid, "fork: %d names, at most %d are allowed", len(list), maxForks)
		}
		return list, err
	}
	var list []string
	for n := 1; len(list) < max(req.Count, 1); n++ {
		name := fmt.Sprintf("%s-%d", m.name, n)
		taken, err := m.d.store.Taken(ctx, name)
		if err != nil {
			return nil, err
		}
		if !taken {
			list = append(list, name)
		}
	}
	for _, name := range list {
		if err := names.CheckMachine(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// forked is a copy that runs.
type forked struct {
	*machine
	run *run
}

// fork freezes the machine, lets it go on, and starts its copies. Once it is frozen it
// is seen through, whatever becomes of the client.
func (m *machine) fork(ctx context.Context, list []string, req api.ForkRequest, s *events) (vm.FreezeResult, []forked, error) {
	r, end, err := m.beginDisk(ctx)
	if err != nil {
		return vm.FreezeResult{}, nil, err
	}
	defer end()
	freezer, drive, err := m.forkable(r)
	if err != nil {
		return vm.FreezeResult{}, nil, err
	}
	rec := m.known()
	if err := m.d.guard.haveRoomFor("fork "+m.name, r.runningSpec().Memory); err != nil {
		return vm.FreezeResult{}, nil, err
	}
	c := likeMachine(api.MachineConfig{}, rec.Config)
	todo, err := m.d.newMachines(list, api.Template{Name: rec.Template, Digest: rec.Digest, User: rec.User, Info: asImage(rec.Spec)}, c, false)
	if err != nil {
		return vm.FreezeResult{}, nil, err
	}
	if note := ownVNC(m.name, c, rec.Config); note != "" {
		s.send(api.Event{Warning: note})
	}
	for i := range todo {
		todo[i].Exit = notForked(m.name, todo[i].Name)
	}
	s.send(api.Event{Step: "fork", Machine: m.name, Text: "freezing " + m.name})
	f, err := m.d.store.BeginFreeze(ctx, m.id, todo, nil)
	if err != nil {
		return vm.FreezeResult{}, nil, err
	}
	res, err := freezer.Freeze(ctx, vm.FreezeRequest{RAM: f.RAM, State: f.State, Layers: map[string]string{drive: f.Overlay}})
	var recs []store.Machine
	if err == nil {
		_, recs, err = m.d.store.CommitFreeze(ctx, m.id)
	}
	if err != nil {
		// Whichever way it failed: what QEMU writes to now decides.
		err = fmt.Errorf("fork machine %s: %w", m.name, err)
		err = errors.Join(err, m.settle(context.WithoutCancel(ctx), r.vm, r.spec), m.reload())
		for _, rec := range m.d.store.Made(ctx, cloneIDs(f)) { // the error came behind the commit
			m.d.add(rec)
		}
		return vm.FreezeResult{}, nil, err
	}
	err = m.reload()
	m.digestLayer(f.Layer)
	m.d.log.Info("machine forked", "machine", m.name, "count", len(recs), "pause", res.Pause, "written", res.Written)
	from := &frozenStart{frozen: res.Frozen, disk: driveIndex(res.Frozen.Spec, drive)}
	made, failed := m.d.startForks(recs, from, req, s)
	err = errors.Join(err, failed, m.d.store.EndFreeze(context.WithoutCancel(ctx), m.id))
	return res, made, err
}

// notForked is on record of a copy until it is started. The memory of the instant goes
// with the daemon that has frozen it: to start it later by itself would be another
// thing than what was asked for, a boot, so that is left to the person.
func notForked(original, name string) *vm.Exit {
	return &vm.Exit{State: vm.StateStopped, Reason: fmt.Sprintf("it has the disk of %s at the instant of the fork, and was not started: the daemon ended before, and the memory of that instant is gone; `lamina start %s` boots it, as after a power failure", original, name)}
}

// forkable says what keeps a machine from being forked; drive is what the drive of
// its own layer is called.
func (m *machine) forkable(r *run) (f vm.Freezer, drive string, err error) {
	if r == nil {
		return nil, "", fmt.Errorf("%w: %s: fork copies a running machine; `lamina clone %s` copies one that is stopped", vm.ErrNotRunning, m.name, m.name)
	}
	if why := pauseReason(m.last(), r); why != "" {
		return nil, "", api.Errorf(api.CodeNoSpace, "machine %s is paused, and so would be its copies: %s", m.name, why)
	}
	f, ok := r.vm.(vm.Freezer)
	if _, can := m.d.opts.Driver.(vm.Thawer); !ok || !can {
		return nil, "", api.Errorf(api.CodeInvalid, "machine %s cannot be forked: `lamina clone %s` copies its disk", m.name, m.name)
	}
	drive, err = m.ownDrive(r.runningSpec())
	return f, drive, err
}

// driveIndex is the index of a drive in a spec.
func driveIndex(s vm.Spec, name string) int { return max(0, slices.Index(s.DiskNames(), name)) }

// startForks starts copies beside each other. Those that do not start are removed.
func (d *Daemon) startForks(recs []store.Machine, from *frozenStart, req api.ForkRequest, s *events) ([]forked, error) {
	all := make([]*machine, len(recs))
	for i, rec := range recs {
		all[i] = d.add(rec)
	}
	runs, errs := make([]*run, len(recs)), make([]error, len(recs))
	var group sync.WaitGroup
	for i, m := range all {
		group.Go(func() {
			s.send(api.Event{Step: "start", Machine: m.name, Text: "starting " + m.name})
			runs[i], errs[i] = m.start(d.ctx, startOptions{from: from, timeout: req.Timeout})
		})
	}
	group.Wait()
	var made []forked
	for i, m := range all {
		if errs[i] == nil {
			made = append(made, forked{m, runs[i]})
			continue
		}
		d.log.Error("a copy was not started", "machine", m.name, "error", errs[i])
		if err := m.remove(context.WithoutCancel(d.ctx), true, false); err != nil {
			errs[i] = errors.Join(errs[i], err)
		}
	}
	return made, together(all, errs)
}

// awaitForks follows copies until they are what was asked for.
func (d *Daemon) awaitForks(ctx context.Context, made []forked, to api.WaitTo, s *events) error {
	errs := make([]error, len(made))
	all := make([]*machine, len(made))
	var group sync.WaitGroup
	for i, f := range made {
		all[i] = f.machine
		group.Go(func() {
			if to == api.WaitPrompt {
				errs[i] = f.run.boot.followTo(ctx, s.send, f.run.warm.prompted)
				return
			}
			errs[i] = f.run.boot.follow(ctx, s.send)
		})
	}
	group.Wait()
	return together(all, errs)
}
