package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// installRun is an install phase from its start to the restart after it, for
// those who wait for that.
type installRun struct {
	over chan struct{} // closed when err is set
	err  error
}

// plan says what a machine's next start runs, and whether that is its install
// phase; repeat asks for one that was interrupted.
func plan(rec store.Machine, repeat bool) (spec vm.Spec, install bool, err error) {
	d := rec.Definition
	switch {
	case d == nil || d.Install == nil || d.Phase == api.Installed:
		if repeat {
			return spec, false, api.Errorf(api.CodeInvalid, "machine %s has no install phase to repeat", rec.Name)
		}
	case d.Phase == api.NotInstalled || repeat:
		return d.Install.Spec, true, nil
	}
	return rec.Spec, false, nil
}

// inPhase is a definition in another phase.
func inPhase(d *api.Definition, phase api.InstallPhase) *api.Definition {
	changed := *d
	changed.Phase = phase
	return &changed
}

// recordEnd records how the machine's run ended, and if it was its install
// phase what comes next, as one step: whatever happens then, the next daemon
// goes on from there.
func (m *machine) recordEnd(exit vm.Exit) error {
	return m.setRecord(func(rec *store.Machine) {
		l := &rec.Last
		if d := rec.Definition; d != nil && d.Phase == api.InstallRuns {
			if over := exit.Cause == vm.CauseShutdown || exit.Cause == vm.CauseReset; over && !l.Stopping {
				rec.Definition = inPhase(d, api.Installed)
				l.Wanted = !d.Install.NoRestart && !d.Transient
			} else {
				rec.Definition = inPhase(d, api.Interrupted)
			}
		}
		l.Running, l.Stopping, l.Paused, l.Exit = false, false, "", &exit
	})
}

// stopping notes that a person ends a run, so that the end of an install phase
// is not taken for the guest's own. The returned function ends that.
func (m *machine) stopping(r *run) (stopped func()) {
	if !r.install {
		return func() {}
	}
	_ = m.setLast(func(l *store.Last) { l.Stopping = true }) // an error is logged
	return func() {
		if m.running() == r && m.last().Stopping {
			_ = m.setLast(func(l *store.Last) { l.Stopping = false }) // as above
		}
	}
}

// beginInstall notes that the install phase runs.
func (m *machine) beginInstall() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.install == nil {
		m.install = &installRun{over: make(chan struct{})}
	}
}

// endInstall tells those who wait that the install phase is over, and err what
// became of the restart.
func (m *machine) endInstall(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.install != nil {
		m.install.err = err
		close(m.install.over)
		m.install = nil
	}
}

// afterInstall goes on when the run of an install phase has ended.
func (m *machine) afterInstall(ctx context.Context, r *run, exit vm.Exit) {
	rec := m.known()
	d := rec.Definition
	switch {
	case d.Phase == api.Interrupted && !r.boot.over() && m.startAgain(r, 0):
		return
	case d.Phase == api.Interrupted:
		r.boot.finish(api.Errorf(api.CodeFailed, "the install of %s ended before it was over: %s", m.name, exit.Reason))
		m.endInstall(nil)
		return
	}
	m.forgetInstall(ctx)
	goesOn, err := false, error(nil)
	if rec.Last.Wanted {
		goesOn, err = m.startInstalled(ctx, r)
	}
	if !goesOn {
		r.boot.finish(err)
	}
	m.endInstall(err)
}

// startInstalled starts the machine as it is to be, after its install phase r;
// goesOn says that the new run goes on with the story of r's boot.
func (m *machine) startInstalled(ctx context.Context, r *run) (goesOn bool, err error) {
	o := startOptions{wanted: true}
	if !r.boot.over() {
		o.boot = r.boot
		o.boot.add(api.Event{Step: "start", Machine: m.name, Text: "the install phase of " + m.name + " is over, starting it"})
	}
	m.d.log.Info("installed, starting", "machine", m.name)
	next, err := m.start(ctx, o)
	switch {
	case errors.Is(err, store.ErrInUse) && m.running() != nil:
		return false, nil // somebody else was faster
	case errors.Is(err, errUnwanted):
		m.d.log.Info("not started after its install", "machine", m.name, "reason", err)
		return false, err
	case err != nil:
		m.d.log.Error("not started after its install", "machine", m.name, "error", err)
		return false, err
	}
	return next.boot == r.boot, nil
}

// forgetInstall removes what only the install phase needed.
func (m *machine) forgetInstall(ctx context.Context) {
	rec := m.known()
	d, err := m.d.store.EndInstall(context.WithoutCancel(ctx), rec)
	if err != nil {
		m.d.log.Error("files of an install are not removed yet", "machine", m.name, "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rec.Definition == rec.Definition {
		m.rec.Definition = d
	}
}

// getWait answers when a machine has ended or is installed.
func (d *Daemon) getWait(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	what := api.WaitFor(r.FormValue("for"))
	if what != api.WaitEnd && what != api.WaitInstalled {
		return api.Errorf(api.CodeInvalid, "wait for %q: it is %s or %s", what, api.WaitEnd, api.WaitInstalled)
	}
	s := newEvents(w)
	s.send(api.Event{Step: "wait", Machine: m.name})
	err = m.waitFor(r.Context(), what)
	if d.ctx.Err() != nil {
		// Cut off, the client asks the next daemon.
		panic(http.ErrAbortHandler)
	}
	s.done(m.describe(), err)
	return nil
}

func (m *machine) waitFor(ctx context.Context, what api.WaitFor) error {
	m.mu.Lock()
	run, install := m.run, m.install
	m.mu.Unlock()
	over := closed
	switch {
	case what == api.WaitEnd && run != nil:
		over = run.ended
	case what == api.WaitInstalled && install != nil:
		over = install.over
	}
	select {
	case <-over:
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", m.name, cause(ctx))
	}
	if what == api.WaitInstalled && install != nil {
		return install.err
	}
	return nil
}
