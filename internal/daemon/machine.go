package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// machine is a machine of the store and, while it runs, its process.
type machine struct {
	d             *Daemon
	id, name, dir string

	// op is held by whoever changes what the machine does (starts it, kills
	// it, removes it), one at a time. It is not held while a boot is
	// followed or a shutdown waited for, so that those can be overruled.
	op chan struct{}

	// recording is held from a change of rec.Last to the end of its commit:
	// what is on the disk must not be older than what was changed last.
	recording sync.Mutex

	// mu guards what follows; it is never held while anything is waited for.
	mu       sync.Mutex
	rec      store.Machine
	run      *run // nil while it does not run
	starting bool
	removed  bool
	install  *installRun // that is under way, nil where none is
	gone     bool        // a transient one that has ended
	// streaming: what its disk lies over is being copied into it while it runs.
	streaming bool
	// unsettled: a change of its disk was broken off, and is settled when its process
	// is gone.
	unsettled bool
}

// run is one life of a machine's process.
type run struct {
	vm      vm.Machine
	boot    *bootLog
	console *console
	ended   chan struct{} // closed when the process is gone and that is recorded
	spec    vm.Spec       // what it was started with
	install bool          // it is the install phase
	again   bool          // started after one that failed while it booted
	held    atomic.Bool   // paused by this daemon's guard
	holds   atomic.Int64  // how often it was held
	warm    *warmRun      // started warm; nil for a cold start
	end     func()        // lets go of it: ends what watches it, not the process
}

// begin takes the machine's op, or says why not. end gives it back.
func (m *machine) begin(ctx context.Context) (end func(), err error) {
	select {
	case m.op <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("machine %s: waiting for another request: %w", m.name, cause(ctx))
	}
	m.mu.Lock()
	removed := m.removed
	m.mu.Unlock()
	if removed {
		<-m.op
		return nil, fmt.Errorf("machine %q: %w", m.name, store.ErrNotFound)
	}
	return func() { <-m.op }, nil
}

// running returns the current run, nil where there is none.
func (m *machine) running() *run {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run
}

// needRun is running for requests that make no sense without.
func (m *machine) needRun() (*run, error) {
	if r := m.running(); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("%w: %s: `lamina start %s` starts it", vm.ErrNotRunning, m.name, m.name)
}

// active says whether the machine runs or is on its way.
func (m *machine) active() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run != nil || m.starting
}

// mayRun says whether a process of the machine may be there although this
// daemon did not start it.
func (m *machine) mayRun() bool {
	if m.last().Running {
		return true
	}
	for _, f := range []string{home.PIDFile, home.RunFile, home.QMPSocket} {
		if _, err := os.Lstat(filepath.Join(m.dir, f)); err == nil {
			return true
		}
	}
	return false
}

// release lets go of a run without ending it.
func (m *machine) release() {
	if r := m.running(); r != nil {
		r.end()
		if err := r.vm.Release(); err != nil {
			m.d.log.Warn("release", "machine", m.name, "error", err)
		}
	}
}

// last is what is known of the last run.
func (m *machine) last() store.Last {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.Last
}

// setLast changes what is recorded of the last run. The record is best
// effort where the machine itself goes on: the error is logged and returned.
// change is called with m.mu held.
func (m *machine) setLast(change func(*store.Last)) error {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	change(&m.rec.Last)
	last := m.rec.Last
	m.mu.Unlock()
	// Not the daemon's context: what is known is kept also at its end.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := m.d.store.SetLast(ctx, m.id, last)
	if err != nil {
		m.d.log.Error("record the state of a machine", "machine", m.name, "error", err)
	}
	return err
}

// setRecord is setLast for all that changes of a machine: change, too, is called
// with m.mu held, and replaces Definition and Spec.Disks as a whole.
func (m *machine) setRecord(change func(*store.Machine)) error {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	change(&m.rec)
	rec := m.rec
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := m.d.store.SetRecord(ctx, m.id, store.Record{Spec: rec.Spec, Last: rec.Last, Definition: rec.Definition})
	if err != nil {
		m.d.log.Error("record the state of a machine", "machine", m.name, "error", err)
	}
	return err
}

// known is what is recorded of the machine.
func (m *machine) known() store.Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec
}

// describe is the machine as clients see it: without its passwords.
func (m *machine) describe() api.Machine { return m.describeBy(time.Now().Add(shareBudget)) }

// describeBy is describe that measures what takes time only until then.
func (m *machine) describeBy(until time.Time) api.Machine {
	m.mu.Lock()
	rec, r, starting := m.rec, m.run, m.starting
	m.mu.Unlock()
	out := api.Machine{
		ID: rec.ID, Name: rec.Name, Template: rec.Template, Digest: rec.Digest, CreatedAt: rec.CreatedAt,
		Dir: m.dir, Spec: rec.Spec.WithoutSecrets(), DiskSize: m.d.store.DiskSize(rec), User: rec.User,
		Stage: rec.Last.Stage, LoginIn: rec.Last.LoginIn, Problem: rec.Last.Problem, Exit: rec.Last.Exit,
		Definition: shown(rec.Definition), Autostart: rec.Last.Autostart,
		Labels: rec.Config.Labels, Base: rec.Digest, Identity: rec.Identity,
	}
	if rec.Identity != nil && rec.Identity.User != "" {
		out.User = rec.Identity.User // its word, not what the image is known for
	}
	if r != nil {
		info := r.vm.Info()
		out.Run, out.Memory, out.SSHPort = &info, m.d.shares.of(info.PID, until), sshPort(info.Forwards)
		out.Stage, out.Exit = r.boot.stage(), nil
		if r.warm != nil {
			out.Warmth = rec.Warmth
			// Its cards came while it ran.
			info.Forwards = cardForwards(r.runningSpec())
			out.SSHPort = sshPort(info.Forwards)
		}
	}
	out.State = state(rec.Last, r, starting)
	if r != nil {
		if out.PauseReason = pauseReason(rec.Last, r); out.PauseReason != "" {
			out.State = api.Paused
		}
	}
	return out
}

// shown is a definition as clients see it; d stays as it is.
func shown(d *api.Definition) *api.Definition {
	if d == nil || d.Install == nil {
		return d
	}
	out, install := *d, *d.Install
	install.Spec = install.Spec.WithoutSecrets()
	out.Install = &install
	return &out
}

// state is what the machine does now.
func (m *machine) state() api.MachineState {
	m.mu.Lock()
	last, r, starting := m.rec.Last, m.run, m.starting
	m.mu.Unlock()
	if r != nil && pauseReason(last, r) != "" {
		return api.Paused
	}
	return state(last, r, starting)
}

// state is the one place that says what a machine does.
func state(last store.Last, r *run, starting bool) api.MachineState {
	switch {
	case r != nil:
		switch {
		case last.Problem != nil:
			return api.Stuck
		case r.warm != nil && r.warm.renewing.Load():
			return api.Renewing
		case last.Stage == boot.StageLogin:
			return api.Login
		case r.install:
			return api.Installing
		case r.boot.over():
			return api.Running
		}
		return api.Starting
	case starting:
		return api.Starting
	case last.Running:
		return api.Running // by all that is known: it could not be taken over
	case !last.Started:
		return api.Defined
	case last.Exit != nil && last.Exit.State == vm.StateCrashed:
		return api.Crashed
	}
	return api.Stopped
}

// cardForwards are the forwarded ports of all cards.
func cardForwards(s vm.Spec) []vm.Forward {
	out := []vm.Forward{}
	for _, n := range s.NICs {
		out = append(out, n.Forwards...)
	}
	return out
}

// sshPort is the host port that leads to the guest's SSH server.
func sshPort(forwards []vm.Forward) int {
	for _, f := range forwards {
		if f.GuestPort == 22 && f.Proto == "tcp" {
			return f.HostPort
		}
	}
	return 0
}

// adopt takes over the machine's process if one runs. The caller has op, or
// is New.
func (m *machine) adopt(ctx context.Context) error {
	machine, err := m.d.opts.Driver.Adopt(ctx, m.dir)
	if errors.Is(err, vm.ErrNotRunning) {
		return m.endedUnseen(err)
	}
	if err != nil {
		return fmt.Errorf("machine %s may still run and cannot be reached (`lamina stop --force %s` ends it): %w", m.name, m.name, err)
	}
	m.d.log.Info("taken over", "machine", m.name, "pid", machine.Info().PID)
	if err := m.settle(ctx, machine, m.known().Spec); err != nil {
		// It goes on as it is; what uses its disk tries again.
		m.d.log.Error("a change of a disk is not settled", "machine", m.name, "error", err)
	}
	if m.last().Wanted {
		_ = m.setLast(func(l *store.Last) { l.Wanted = false }) // an error is logged
	}
	rec := m.known()
	installing := rec.Definition != nil && rec.Definition.Phase == api.InstallRuns
	spec := rec.Spec
	if installing {
		spec = rec.Definition.Install.Spec
		m.beginInstall()
	}
	o := startOptions{}
	if rec.Warmth != nil {
		o.warmRun = &warmRun{fork: rec.Warmth.Unit == "", prompted: make(chan struct{})}
	}
	m.goOnStreaming(m.attach(machine, o, spec, installing))
	return nil
}

// adoptLater tries again, ever more rarely, to take over a process that could not be
// reached: it may answer by then, or be gone, and nobody else would see that before
// the next request.
func (m *machine) adoptLater(ctx context.Context) {
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, time.Minute) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		end, err := m.begin(ctx)
		if err != nil {
			return // it is removed, or the daemon ends
		}
		err = nil
		if m.running() == nil && m.mayRun() {
			err = m.adopt(ctx)
		}
		if err == nil && m.running() == nil {
			err = m.settle(ctx, nil, vm.Spec{})
		}
		end()
		if err == nil {
			return
		}
		m.d.log.Debug("machine not taken over", "machine", m.name, "error", err)
	}
}

// endedUnseen records the end of a machine that is meant to run and does not;
// notRunning may tell how it came.
func (m *machine) endedUnseen(notRunning error) error {
	if !m.last().Running {
		return nil
	}
	exit := vm.Exit{State: vm.StateStopped, Reason: "ended while no daemon ran"}
	var told *vm.EndedError
	if errors.As(notRunning, &told) {
		exit = told.Exit
	}
	return m.recordEnd(exit)
}

// adoptOrKill is adopt that, with force, ends a process that cannot be reached.
func (m *machine) adoptOrKill(ctx context.Context, force bool) error {
	err := m.adopt(ctx)
	killer, ok := m.d.opts.Driver.(vm.Killer)
	if err == nil || !force || !ok {
		return err
	}
	m.d.log.Warn("killing a process that cannot be reached", "machine", m.name, "error", err)
	if kerr := killer.KillIn(ctx, m.dir); kerr != nil && !errors.Is(kerr, vm.ErrNotRunning) {
		return errors.Join(err, kerr)
	}
	return m.recordEnd(vm.Exit{State: vm.StateStopped, Cause: vm.CauseKilled, Reason: "killed; it did not answer"})
}
