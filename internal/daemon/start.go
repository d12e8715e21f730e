package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// startOptions say how a machine is started.
type startOptions struct {
	timeout time.Duration // of its boot; 0 is the default
	// boot is what goes on where another run left off; nil is a new one.
	boot *bootLog
	// again: in the place of a run that failed while it booted.
	again bool
	// install repeats an install phase that was interrupted.
	install bool
	// warm says whether it is started warm where it can be.
	warm api.Warm
	// wait is what the one who asked for it waits for.
	wait api.WaitTo
	// from is what it goes on from, nil to find out.
	from *frozenStart
	// warmRun is of a run that is started, or was, warm.
	warmRun *warmRun
	// wanted: only if the machine is wanted still (Last.Wanted), which a person
	// who stops it meanwhile ends.
	wanted bool
}

// errUnwanted: a person does not want the start any more.
var errUnwanted = errors.New("it was stopped before it was started")

// start starts the machine and returns when its guest executes. It runs to
// its end whatever becomes of the client: ctx is the daemon's.
func (m *machine) start(ctx context.Context, o startOptions) (_ *run, err error) {
	end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if m.running() == nil && m.mayRun() {
		// Not known to run, but a process may be there: a disk is never
		// given to a second one.
		if err := m.adopt(ctx); err != nil {
			return nil, err
		}
	}
	if m.running() != nil {
		return nil, fmt.Errorf("machine %s is %w: it runs already", m.name, store.ErrInUse)
	}
	if o.wanted && !m.last().Wanted {
		return nil, fmt.Errorf("machine %s: %w", m.name, errUnwanted)
	}
	m.setStarting(true)
	defer m.setStarting(false)
	there := m.d.underway.begin()
	defer func() {
		if o.warmRun == nil || err != nil {
			there()
		}
	}()
	select {
	case m.d.starts <- struct{}{}:
		defer func() { <-m.d.starts }()
	case <-ctx.Done():
		return nil, fmt.Errorf("start %s: %w", m.name, cause(ctx))
	}
	if err := m.settle(ctx, nil, vm.Spec{}); err != nil {
		return nil, fmt.Errorf("start %s: %w", m.name, err)
	}
	if o.boot == nil {
		o.boot = newBootLog()
	}
	if err := m.unchanged(ctx, m.d.store.IntactDisk(ctx, m.known())); err != nil {
		return nil, fmt.Errorf("start %s: %w", m.name, err)
	}
	if o.from == nil {
		if o.from, err = m.planWarm(ctx, o.warm, func(why string) { o.warn(m.name, why) }); err != nil {
			return nil, fmt.Errorf("start %s: %w", m.name, err)
		}
	}
	if err := m.intact(ctx); err != nil {
		return nil, fmt.Errorf("start %s: %w", m.name, err)
	}
	if err := m.d.guard.haveRoomIn("start "+m.name, m.known().Spec); err != nil {
		return nil, err
	}
	before := m.known()
	spec, installing, err := plan(before, o.install)
	if err != nil {
		return nil, err
	}
	// On stable storage before there is a process: whatever happens now, the
	// next daemon looks for it.
	next := func(rec *store.Machine) {
		rec.Last = rec.Last.Next()
		if installing {
			rec.Definition = inPhase(rec.Definition, api.InstallRuns)
		}
	}
	if o.from == nil && before.Warmth == nil {
		err = m.setRecord(next)
	} else {
		err = m.setRun(func(rec *store.Machine) {
			next(rec)
			rec.Warmth = o.from.warmth()
			if o.from != nil {
				rec.Identity = nil
			}
		})
	}
	if err != nil {
		return nil, err
	}
	if installing {
		m.beginInstall()
	}
	wanted := before.Last.Wanted
	machine, spec, err := m.startProcess(ctx, spec, &o)
	if err != nil {
		before.Last.Wanted = wanted && ctx.Err() != nil // the daemon ends: the next one does it
		err = errors.Join(fmt.Errorf("start %s: %w", m.name, err),
			m.setRecord(func(rec *store.Machine) { rec.Last, rec.Definition = before.Last, before.Definition }))
		m.endInstall(err)
		return nil, err
	}
	info := machine.Info()
	m.d.log.Info("started", "machine", m.name, "pid", info.PID, "accel", info.Accel)
	if info.AccelNote != "" {
		m.d.log.Warn("no KVM", "machine", m.name, "reason", info.AccelNote)
	}
	if o.from != nil {
		took := time.Since(info.StartedAt)
		o.boot.add(api.Event{Step: "boot", Machine: m.name, Text: "thawed after " + progress.Duration(took)})
		o.warmRun = &warmRun{fork: o.from.unit == "", timeout: o.timeout, agent: o.from.agent, prompted: make(chan struct{}), there: there}
	} else if before.Warmth != nil || m.known().Warmth != nil {
		_ = m.setRun(func(rec *store.Machine) { rec.Warmth = nil }) // an error is logged
	}
	if wanted || before.Last.Fresh {
		_ = m.setLast(func(l *store.Last) { l.Wanted, l.Fresh = false, false }) // an error is logged
	}
	return m.attach(machine, o, spec, installing), nil
}

// intact says what keeps a machine from being started at all.
func (m *machine) intact(ctx context.Context) error {
	rec := m.known()
	if rec.Definition != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.gone {
			return fmt.Errorf("%w: it is transient and has ended", store.ErrInUse)
		}
		return nil
	}
	return m.unchanged(ctx, m.d.store.Intact(ctx, rec.Digest))
}

// unchanged passes on why a machine's files are not what they were, and forgets that it
// is to be started: no next daemon tries again.
func (m *machine) unchanged(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, m.setLast(func(l *store.Last) { l.Wanted = false }))
	}
	return err
}

// finishStart starts a machine that was made to be started, or whose install
// phase is over, when the daemon ended before that. It is tried once.
func (m *machine) finishStart() {
	if m.running() != nil || !m.last().Wanted {
		return
	}
	o := startOptions{wanted: true}
	if m.known().Definition == nil {
		o.wanted = false
		if m.setLast(func(l *store.Last) { l.Wanted, l.Exit = false, nil }) != nil {
			return // logged
		}
	}
	m.d.log.Info("finishing a start that was broken off", "machine", m.name)
	m.d.background(func(ctx context.Context) {
		if _, err := m.start(ctx, o); err != nil {
			m.d.log.Error("not started", "machine", m.name, "error", err)
		}
	})
}

func (m *machine) setStarting(v bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.starting = v
}

// attach begins to supervise a running machine and to follow its boot. Who
// follows o.boot goes on with this one.
func (m *machine) attach(machine vm.Machine, o startOptions, spec vm.Spec, installing bool) *run {
	ctx, cancel := context.WithCancelCause(m.d.ctx)
	var watchers sync.WaitGroup
	r := &run{vm: machine, boot: o.boot, spec: spec, install: installing, again: o.again,
		warm: o.warmRun, ended: make(chan struct{}), end: func() { cancel(errStopping) }}
	if r.boot == nil {
		r.boot = newBootLog()
	}
	r.console = newConsole(machine.SerialSocket(), machine.SerialLog(), r.ended)
	m.mu.Lock()
	m.run = r
	last := m.rec.Last
	m.mu.Unlock()
	m.d.guard.wake()
	watchers.Go(func() { m.supervise(ctx, r) })
	switch {
	case r.warm != nil:
		m.attachWarm(ctx, r, last, &watchers)
	case last.Stage == boot.StageLogin && last.Problem == nil:
		// Adopted at its login prompt: nothing to watch.
		r.boot.add(api.Event{Step: "boot", Machine: m.name, Boot: &boot.Event{Stage: boot.StageLogin, Since: last.LoginIn}})
		r.boot.finish(nil)
	case last.Problem != nil:
		r.boot.add(api.Event{Step: "boot", Machine: m.name, Boot: &boot.Event{Stage: last.Stage}})
		r.boot.finish(bootError(m.name, last.Problem))
		// From its first byte: what came while no daemon ran may be a login.
		watchers.Go(func() { m.watchOn(ctx, r, 0) })
	default:
		watchers.Go(func() { m.watch(ctx, r, o.timeout) })
	}
	m.d.work.Go(func() {
		watchers.Wait()
		r.end()
	})
	return r
}

// supervise waits for the end of the machine's process and records it.
func (m *machine) supervise(ctx context.Context, r *run) {
	exit, err := r.vm.Wait(ctx)
	if ctx.Err() != nil {
		return // the daemon ends; the machine goes on
	}
	if err != nil {
		exit = vm.Exit{State: vm.StateCrashed, Reason: "lost: " + err.Error()}
	}
	m.d.log.Info("ended", "machine", m.name, "state", exit.State, "reason", exit.Reason)
	_ = m.recordEnd(exit) // an error is logged
	m.mu.Lock()
	m.run = nil
	m.gone = m.rec.Definition != nil && m.rec.Definition.Transient
	gone := m.gone
	m.mu.Unlock()
	close(r.ended)
	if err := r.vm.Release(); err != nil {
		m.d.log.Warn("release", "machine", m.name, "error", err)
	}
	if r.install {
		m.d.background(func(ctx context.Context) { m.afterInstall(ctx, r, exit) })
	}
	if gone {
		m.d.background(m.vanish)
	}
	if m.tidies() {
		m.d.background(m.tidy)
	}
}

// tidy settles a change of the machine's disk that could not be while its process ran,
// and removes what only a QEMU needed that knew the machine's layers by other names.
func (m *machine) tidy(ctx context.Context) {
	end, err := m.begin(ctx)
	if err != nil {
		return // it is removed, or the daemon ends: the next one does it
	}
	defer end()
	if m.running() != nil || m.mayRun() {
		return
	}
	if err := m.settle(ctx, nil, vm.Spec{}); err != nil {
		m.d.log.Error("a machine's disk is not settled after its end", "machine", m.name, "error", err)
	}
}

// watch follows the boot and records how it came out.
func (m *machine) watch(ctx context.Context, r *run, timeout time.Duration) {
	o := boot.Options{Timeout: timeout}
	if r.install {
		// It waits for a person as long as that person likes.
		o.Timeout, o.Stall = forever, forever
	}
	res, err := m.watchFrom(ctx, r, 0, o)
	switch {
	case err != nil && ctx.Err() != nil:
		r.boot.finish(cause(ctx))
	case err != nil:
		m.d.log.Error("watch the boot", "machine", m.name, "error", err)
		r.boot.finish(fmt.Errorf("machine %s runs, its boot is not watched: %w", m.name, err))
	case res.Problem != nil && res.Problem.Kind == boot.KindEnded && r.install: // afterInstall goes on
	case res.Problem != nil && res.Problem.Kind == boot.KindEnded && m.startAgain(r, timeout):
	case res.Problem != nil:
		m.tellExit(r, res.Problem)
		m.d.log.Warn("boot stopped", "machine", m.name, "stage", res.Stage.String(), "kind", res.Problem.Kind)
		m.record(r, res)
		r.boot.finish(bootError(m.name, res.Problem))
		m.watchOn(ctx, r, lastLine(r.vm.SerialLog()))
	default:
		m.record(r, res)
		r.boot.finish(nil)
	}
}

// startAgain starts a machine once more whose process failed by itself before
// the guest was at its login prompt: it may well come there the second time.
// False where that is not so, or the start failed too.
func (m *machine) startAgain(r *run, timeout time.Duration) bool {
	exit := m.exitOf(r)
	if exit == nil || !exit.Failed || r.again {
		return false
	}
	r.boot.add(api.Event{Step: "boot", Machine: m.name, Warning: "the machine failed while its guest booted, and is started again: " + exit.Reason})
	m.d.log.Warn("failed in its boot, starting again", "machine", m.name, "reason", exit.Reason)
	// Not the run's context, which ends with the run.
	_, err := m.start(m.d.ctx, startOptions{timeout: timeout, boot: r.boot, again: true, install: r.install})
	if err != nil {
		m.d.log.Error("not started again", "machine", m.name, "error", err)
	}
	return err == nil
}

// tellExit adds to a problem how the process ended, where it has failed.
func (m *machine) tellExit(r *run, p *boot.Problem) {
	if exit := m.exitOf(r); exit != nil && exit.State == vm.StateCrashed && p.Kind == boot.KindEnded {
		p.Cause = "the machine ended before a login prompt came: " + exit.Reason
	}
}

// exitOf is how a run ended; nil while it goes on, and when the next has begun.
func (m *machine) exitOf(r *run) *vm.Exit {
	if !ended(r) || m.running() != nil {
		return nil
	}
	return m.last().Exit
}

// forever is longer than any guest boots.
const forever = 10 * 365 * 24 * time.Hour

// watchOn waits for a guest that was given up, and reaches its login prompt
// after all: when its metadata service timed out, or somebody helped it along.
// It reads the serial log behind its first skip bytes.
func (m *machine) watchOn(ctx context.Context, r *run, skip int64) {
	for !ended(r) {
		res, err := m.watchFrom(ctx, r, skip, boot.Options{Timeout: forever, Stall: forever})
		switch {
		case err != nil:
			return
		case res.Login:
			r.boot.recovered() // first: who sees the login finds no error
			m.record(r, res)
			return
		}
		// Another dead end, or the same again: what comes after it may
		// still be a login.
		had := size(r.vm.SerialLog())
		skip = lastLine(r.vm.SerialLog())
		if !m.moreThan(ctx, r, had) {
			return
		}
	}
}

// moreThan waits until the serial log has more bytes than it had; false where
// nothing more will come.
func (m *machine) moreThan(ctx context.Context, r *run, had int64) bool {
	poll := time.NewTicker(250 * time.Millisecond)
	defer poll.Stop()
	for size(r.vm.SerialLog()) <= had {
		select {
		case <-poll.C:
		case <-r.ended:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func ended(r *run) bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// watchFrom follows the boot in the serial log behind its first skip bytes.
func (m *machine) watchFrom(ctx context.Context, r *run, skip int64, o boot.Options) (boot.Result, error) {
	serial, err := boot.Follow(ctx, r.vm.SerialLog(), r.ended)
	if err != nil {
		return boot.Result{}, err
	}
	defer func() { _ = serial.Close() }() // only read
	src := boot.Sources{Serial: serial}
	if skip == 0 {
		src.Screen = r.vm.ScreenText
	} else if _, err := io.CopyN(io.Discard, serial, skip); err != nil {
		return boot.Result{}, err
	}
	o.Hints = hints(m.known(), r)
	o.OnEvent = func(e boot.Event) {
		r.boot.add(api.Event{Step: "boot", Machine: m.name, Text: e.Line, Boot: &e})
	}
	return m.d.opts.Watch(ctx, src, o)
}

// hints tell the boot watcher of the machine.
func hints(rec store.Machine, r *run) boot.Hints {
	h := boot.Hints{Name: rec.Name, TCG: r.vm.Info().Accel == vm.AccelTCG}
	for _, d := range r.spec.Disks {
		if h.DiskBus == "" && d.Device == vm.DeviceDisk {
			h.DiskBus = string(d.Bus)
		}
		if rec.Definition == nil && d.Serial == "seed" {
			h.HasSeed = true
		}
	}
	// Where the person brought the disks, what they hold is not known.
	h.HasSeed = h.HasSeed || rec.Definition != nil
	return h
}

// record keeps how a boot came out.
func (m *machine) record(r *run, res boot.Result) {
	took := time.Since(r.vm.Info().StartedAt)
	_ = m.setLast(func(l *store.Last) { // an error is logged
		if m.run != r {
			return // it ended, which Exit tells; a next run may have begun
		}
		l.Stage, l.Problem = res.Stage, res.Problem
		if res.Login {
			l.LoginIn = took
		}
	})
	if res.Login {
		m.d.log.Info("login", "machine", m.name, "took", took.Round(time.Millisecond))
	}
}

func bootError(name string, p *boot.Problem) *api.Error {
	e := api.Errorf(api.CodeBoot, "machine %s does not reach its login prompt: it stopped at the stage %s: %s", name, p.Stage, p.Cause)
	e.Problem = p
	return e
}

// stopMachine ends the machine: the power button, and after timeout (0: 60 s)
// the power; with force the power at once. One that is paused for lack of space hears
// the button when there is some. A machine that does not run is stopped already. When ctx ends only the waiting does.
func (m *machine) stopMachine(ctx context.Context, req api.StopRequest, tell func(api.Event)) error {
	if req.Timeout <= 0 {
		req.Timeout = time.Minute
	}
	r, err := m.settled(ctx, req.Force)
	if r == nil || err != nil {
		return err
	}
	stopped := m.stopping(r)
	defer stopped()
	if !req.Force {
		if why := pauseReason(m.last(), r); why != "" {
			// It is not let go on for that: there is no space for what it would write.
			tell(api.Event{Step: "stop", Machine: m.name, Warning: fmt.Sprintf("machine %s is paused, and shuts down only when it goes on: %s; without space it is switched off after %s", m.name, why, req.Timeout)})
		}
		tell(api.Event{Step: "stop", Machine: m.name, Text: "power button pressed"})
		ended, err := m.powerDown(ctx, r, req.Timeout)
		if ended || err != nil {
			return err
		}
		warning := fmt.Sprintf("machine %s did not shut down within %s and is powered off", m.name, req.Timeout)
		if pauseReason(m.last(), r) != "" {
			warning = fmt.Sprintf("machine %s is still paused after %s and is powered off: what its guest had flushed is on its disk, what it held in its memory is lost", m.name, req.Timeout)
		}
		tell(api.Event{Step: "stop", Machine: m.name, Warning: warning})
	}
	return m.kill(ctx, r)
}

// settled returns the current run after a start that is under way; nil where
// the machine does not run (any more, with force).
func (m *machine) settled(ctx context.Context, force bool) (*run, error) {
	end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if m.running() == nil && m.mayRun() {
		if err := m.adoptOrKill(ctx, force); err != nil {
			return nil, err
		}
	}
	r := m.running()
	if r == nil && m.last().Wanted {
		// Between its install phase and the start after it.
		return nil, m.setLast(func(l *store.Last) { l.Wanted = false })
	}
	return r, nil
}

// pressAgain is after how long the power button is pressed again: a guest that
// is still booting does not hear it.
const pressAgain = 10 * time.Second

func (m *machine) powerDown(ctx context.Context, r *run, timeout time.Duration) (ended bool, err error) {
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	again := time.NewTicker(pressAgain)
	defer again.Stop()
	for {
		if err := r.vm.Shutdown(ctx); err != nil && !errors.Is(err, vm.ErrNotRunning) {
			return false, fmt.Errorf("stop %s: %w", m.name, err)
		}
		select {
		case <-r.ended:
			return true, nil
		case <-limit.C:
			return false, nil
		case <-ctx.Done():
			return false, fmt.Errorf("stop %s: %w", m.name, cause(ctx))
		case <-again.C:
		}
	}
}

// kill ends the process of a run and returns when it is gone.
func (m *machine) kill(ctx context.Context, r *run) error {
	if err := r.vm.Kill(ctx); err != nil && !errors.Is(err, vm.ErrNotRunning) {
		return fmt.Errorf("stop %s: %w", m.name, err)
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", m.name, cause(ctx))
	case <-m.d.ctx.Done():
		return fmt.Errorf("stop %s: %w", m.name, cause(m.d.ctx))
	}
}

// remove removes the machine with everything that it has, and its disks if
// asked to where they are not its own; one that runs only with force.
func (m *machine) remove(ctx context.Context, force, disks bool) error {
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if m.running() == nil && m.mayRun() {
		if err := m.adoptOrKill(ctx, force); err != nil {
			return err
		}
	}
	var also []string
	if disks {
		if also, err = m.removableDisks(ctx); err != nil {
			return err
		}
	}
	if r := m.running(); r != nil {
		if !force {
			return fmt.Errorf("machine %s is running (%w): stop it first, or remove it by force", m.name, store.ErrInUse)
		}
		defer m.stopping(r)()
		if err := m.kill(ctx, r); err != nil {
			return err
		}
	}
	if err := m.d.store.RemoveMachine(ctx, m.id, also...); err != nil {
		return err
	}
	m.forgotten()
	m.d.log.Info("removed", "machine", m.name, "id", m.id)
	return nil
}

// forgotten ends the life of a machine that is not in the store any more. The
// caller has op.
func (m *machine) forgotten() {
	m.mu.Lock()
	m.removed = true
	m.mu.Unlock()
	m.d.forget(m)
}
