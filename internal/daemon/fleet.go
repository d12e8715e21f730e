package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/nearest"
	"github.com/lamina-vm/lamina/internal/store"
)

// fleets are what is under way with fleets: for each at most one apply or removal.
// What is to be is on record before anything is done for it, so that the next
// daemon goes on where this one ended.
type fleets struct {
	mu  sync.Mutex
	now map[string]*fleetWork // by name
}

// fleetWork is an apply or a removal that is under way. It goes on when the client
// that asked for it goes.
type fleetWork struct {
	what   string // for a person
	log    *bootLog
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when it is over and recorded
}

// noFleetLabels refuses the labels of a fleet's machines for others: a fleet
// removes what says that it is its own.
func noFleetLabels(labels map[string]string) error {
	for _, k := range []string{fleet.LabelFleet, fleet.LabelGroup, fleet.LabelMark} {
		if _, ok := labels[k]; ok {
			return api.Errorf(api.CodeInvalid, "the label %s is for the machines of fleets: call yours otherwise", k)
		}
	}
	return nil
}

// maxFleetEvents bounds what is kept of one apply for who looks on later.
const maxFleetEvents = 20_000

// begin registers work on a fleet, or says what is under way.
func (f *fleets) begin(name, what string, cancel context.CancelCauseFunc) (*fleetWork, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.now[name]; w != nil {
		return nil, api.Errorf(api.CodeInUse, "fleet %s is being %s: `lamina fleet wait %s` waits for it, `lamina fleet rm --force %s` breaks it off", name, w.what, name, name)
	}
	w := &fleetWork{what: what, log: newBootLog(), cancel: cancel, done: make(chan struct{})}
	w.log.most = maxFleetEvents
	if f.now == nil {
		f.now = make(map[string]*fleetWork)
	}
	f.now[name] = w
	return w, nil
}

// end takes work off the register.
func (f *fleets) end(name string, w *fleetWork, err error) {
	f.mu.Lock()
	delete(f.now, name)
	f.mu.Unlock()
	w.log.finish(err)
	close(w.done)
}

func (f *fleets) under(name string) *fleetWork {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now[name]
}

// active counts the fleets that something is done with.
func (f *fleets) active() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.now)
}

// errBrokenOff: a person removes the fleet.
var errBrokenOff = errors.New("the fleet is being removed")

// fleetGoal makes a goal of a fleet with the templates that its names stand for
// now, and makes sure that machines of it can be made.
func (d *Daemon) fleetGoal(ctx context.Context, f api.Fleet) (*fleet.Goal, error) {
	f = fleet.Complete(f)
	if err := fleet.Check(f); err != nil {
		return nil, err
	}
	templates := make(map[string]api.Template)
	digests := make(map[string]string)
	for i := range f.Groups {
		g := &f.Groups[i]
		t, ok := templates[g.Template]
		if !ok {
			var err error
			t, err = d.store.Template(ctx, g.Template)
			if errors.Is(err, store.ErrNotFound) {
				return nil, d.noTemplate(ctx, f.Name, g)
			}
			if err != nil {
				return nil, fmt.Errorf("fleet %s: group %s: %w", f.Name, g.Name, err)
			}
			templates[g.Template], digests[g.Template] = t, t.Digest
		}
		g.Digest = t.Digest
	}
	goal, err := fleet.New(f, digests)
	if err != nil {
		return nil, err
	}
	for i := range f.Groups {
		g := &f.Groups[i]
		if err := d.checkGroup(f.Name, g, templates[g.Template]); err != nil {
			return nil, inGroup(f.Name, g.Name, err)
		}
	}
	return goal, nil
}

// checkGroup finds what would keep a group's machines from being made.
func (d *Daemon) checkGroup(name string, g *api.FleetGroup, t api.Template) error {
	seat := fleet.Seat{Name: g.Name + "-1", Group: g, Ports: g.Ports}
	if g.DiskSize != 0 && g.DiskSize < t.VirtualSize {
		return api.Errorf(api.CodeInvalid, "a disk of %d bytes is smaller than its template %s with %d", g.DiskSize, g.Template, t.VirtualSize)
	}
	_, err := d.seatMachine(name, seat, t, true)
	return err
}

// checkWarmUnits says what keeps machines that a plan makes from being started warm,
// where they must be.
func (d *Daemon) checkWarmUnits(ctx context.Context, f api.Fleet, plan api.FleetPlan) error {
	for i := range f.Groups {
		g := &f.Groups[i]
		made := slices.ContainsFunc(plan.Steps, func(s api.FleetStep) bool { return s.Group == g.Name && s.Do == fleet.DoCreate })
		if g.Warm != api.WarmMust || !made {
			continue
		}
		t, err := d.store.Template(ctx, g.Digest)
		if err != nil {
			return err
		}
		n, err := d.seatMachine(f.Name, fleet.Seat{Name: g.Name + "-1", Group: g, Ports: g.Ports}, t, false)
		if err == nil {
			err = d.overUnit(ctx, t, []store.NewMachine{n}, g.Warm)
		}
		if err != nil {
			return inGroup(f.Name, g.Name, err)
		}
	}
	return nil
}

// inGroup says which group an error is about, also where it has a code already.
func inGroup(name, group string, err error) error {
	return &api.Error{Code: apiError(err).Code, Message: fmt.Sprintf("fleet %s: group %s: %v", name, group, err)}
}

// noTemplate says which template may have been meant.
func (d *Daemon) noTemplate(ctx context.Context, name string, g *api.FleetGroup) error {
	hint := "`lamina template import` makes one"
	if list, err := d.store.Templates(ctx); err == nil {
		var known []string
		for _, t := range list {
			known = append(known, cmp.Or(t.Name, t.Digest[:12]))
		}
		if near := nearest.Word(g.Template, known); near != "" {
			hint = "did you mean " + near + "?"
		}
	}
	return api.Errorf(api.CodeNotFound, "fleet %s: group %s: there is no template %q; %s", name, g.Name, g.Template, hint)
}

// recordedGoal is the goal of a fleet that was being applied, with the templates
// that it began with.
func recordedGoal(f store.Fleet) (*fleet.Goal, error) {
	digests := make(map[string]string)
	doc := f.Document
	if f.State == api.FleetRemoving {
		doc.Groups = nil
	}
	for _, g := range doc.Groups {
		digests[g.Template] = g.Digest
	}
	return fleet.New(doc, digests)
}

func (d *Daemon) postFleetPlan(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.FleetRequest](w, r)
	if err != nil {
		return err
	}
	_, plan, err := d.planFleet(r.Context(), req)
	if err != nil {
		return err
	}
	answer(w, plan)
	return nil
}

// planFleet says what an apply would do, and refuses a plan other than the one
// that was asked for.
func (d *Daemon) planFleet(ctx context.Context, req api.FleetRequest) (*fleet.Goal, api.FleetPlan, error) {
	goal, err := d.fleetGoal(ctx, req.Fleet)
	if err != nil {
		return nil, api.FleetPlan{}, err
	}
	there, err := (&fleetHost{d: d, goal: goal}).Look(ctx)
	if err != nil {
		return nil, api.FleetPlan{}, err
	}
	plan, err := goal.Plan(there)
	if errors.Is(err, fleet.ErrForeign) {
		err = &api.Error{Code: api.CodeExists, Message: err.Error()}
	}
	if err == nil && req.Hash != "" && req.Hash != plan.Hash {
		err = api.Errorf(api.CodeInvalid, "fleet %s: what is to be done is not what was shown any more: a machine or a template has changed meanwhile: look at the plan again", req.Fleet.Name)
	}
	if err == nil {
		err = d.checkWarmUnits(ctx, goal.Fleet, plan)
	}
	if made := func(s api.FleetStep) bool { return s.Do == fleet.DoCreate }; err == nil && slices.ContainsFunc(plan.Steps, made) {
		err = d.guard.haveRoom("new machines")
	}
	return goal, plan, err
}

func (d *Daemon) postFleetApply(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.FleetRequest](w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(d.ctx)
	work, err := d.fleets.begin(req.Fleet.Name, "applied", cancel)
	if err != nil {
		cancel(nil)
		return err
	}
	goal, plan, err := d.planFleet(r.Context(), req)
	rec := store.Fleet{Name: req.Fleet.Name, State: api.FleetApplying, Hash: plan.Hash, At: time.Now()}
	if err == nil {
		rec.Document = goal.Fleet
		err = d.store.SetFleet(r.Context(), rec)
	}
	if err != nil {
		d.fleets.end(req.Fleet.Name, work, err)
		cancel(nil)
		return err
	}
	d.log.Info("fleet is applied", "fleet", rec.Name, "steps", len(plan.Steps))
	d.background(func(context.Context) { d.applyFleet(ctx, rec, goal, work) })
	d.followFleet(w, r, rec.Name, work)
	return nil
}

// followFleet tells a client of what is done with a fleet until it is over.
func (d *Daemon) followFleet(w http.ResponseWriter, r *http.Request, name string, work *fleetWork) {
	s := newEvents(w)
	err := work.log.follow(r.Context(), s.send)
	if d.ctx.Err() != nil {
		// Cut off, the client asks the next daemon, which goes on.
		panic(http.ErrAbortHandler)
	}
	if err == nil {
		<-work.done
		var state api.FleetState
		state, err = d.fleetState(r.Context(), name)
		var e *api.Error
		if work.what == "removed" && errors.As(err, &e) && e.Code == api.CodeNotFound {
			state, err = api.FleetState{Name: name, State: api.FleetRemoved}, nil // as was asked
		}
		s.done(state, err)
		return
	}
	s.done(nil, err)
}

// applyFleet carries an apply, or the end of a fleet, out and records how it ended.
// When the daemon ends, the record stays as it is: the next one goes on.
func (d *Daemon) applyFleet(ctx context.Context, rec store.Fleet, goal *fleet.Goal, work *fleetWork) {
	host := &fleetHost{d: d, goal: goal, hard: rec.State == api.FleetRemoving}
	err := goal.Apply(ctx, host, work.log.add)
	work.cancel(nil)
	switch {
	case d.ctx.Err() != nil:
		err = cause(d.ctx)
	case ctx.Err() != nil && err != nil && errors.Is(context.Cause(ctx), errBrokenOff):
		err = errBrokenOff // who breaks it off records it
	default:
		err = d.recordFleet(rec, err)
	}
	d.fleets.end(rec.Name, work, err)
}

// recordFleet records how an apply, or a removal, came out, and returns that.
func (d *Daemon) recordFleet(rec store.Fleet, err error) error {
	// What is known is kept also at the daemon's end.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err == nil && rec.State == api.FleetRemoving {
		d.log.Info("fleet removed", "fleet", rec.Name)
		return d.store.RemoveFleet(ctx, rec.Name)
	}
	removing := rec.State == api.FleetRemoving
	rec.Document, rec.At = withoutSecrets(rec.Document), time.Now()
	var told *api.Error
	if err != nil {
		told = fleetError(rec, err)
		rec.State, rec.Problem = api.FleetFailed, told.Message
		d.log.Error("fleet failed", "fleet", rec.Name, "error", told.Message)
	} else {
		rec.State, rec.Problem = api.FleetApplied, ""
		d.log.Info("fleet applied", "fleet", rec.Name)
	}
	if now, rerr := d.store.Fleet(ctx, rec.Name); rerr == nil && now.State == api.FleetRemoving && !removing {
		return errors.Join(err, errBrokenOff) // it stays on record that it goes
	}
	if rerr := d.store.SetFleet(ctx, rec); rerr != nil {
		d.log.Error("record the state of a fleet", "fleet", rec.Name, "error", rerr)
		return errors.Join(err, rerr)
	}
	if told != nil {
		return told
	}
	return nil
}

// fleetError says what failed, what that means for the fleet, and what to do.
func fleetError(rec store.Fleet, err error) *api.Error {
	inner := apiError(err)
	out := &api.Error{Code: inner.Code, Problem: inner.Problem}
	remedy := "mend that, and apply the document again: it goes on from here"
	var step *fleet.StepError
	if errors.As(err, &step) && step.Step.Do == fleet.DoAwait {
		remedy = fmt.Sprintf("the machines that were not replaced yet stay; `lamina logs %s` shows what its guest says; mend the template or the document and apply it again, which goes on from here", step.Step.Machine)
	}
	if rec.State == api.FleetRemoving {
		remedy = "mend that, and remove the fleet again"
	}
	out.Message = fmt.Sprintf("fleet %s: %v: %s", rec.Name, err, remedy)
	return out
}

// withoutSecrets is a fleet as it is kept and shown once it is not needed to make
// machines of.
func withoutSecrets(f api.Fleet) api.Fleet {
	f.Groups = slices.Clone(f.Groups)
	for i := range f.Groups {
		g := &f.Groups[i]
		g.Password, g.VNCPassword, g.UserData = "", "", nil
	}
	return f
}

// resumeFleets goes on with what was under way when the last daemon ended.
func (d *Daemon) resumeFleets(ctx context.Context) error {
	list, err := d.store.Fleets(ctx)
	if err != nil {
		return err
	}
	for _, rec := range list {
		if rec.State != api.FleetApplying && rec.State != api.FleetRemoving {
			continue
		}
		goal, err := recordedGoal(rec)
		if err != nil {
			_ = d.recordFleet(rec, err) // logged
			continue
		}
		work, ctx, err := d.beginFleet(rec)
		if err != nil {
			return err
		}
		d.log.Info("going on with a fleet", "fleet", rec.Name, "state", rec.State)
		d.background(func(context.Context) { d.applyFleet(ctx, rec, goal, work) })
	}
	return nil
}

// beginFleet registers the work of a record.
func (d *Daemon) beginFleet(rec store.Fleet) (*fleetWork, context.Context, error) {
	what := "applied"
	if rec.State == api.FleetRemoving {
		what = "removed"
	}
	ctx, cancel := context.WithCancelCause(d.ctx)
	work, err := d.fleets.begin(rec.Name, what, cancel)
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	return work, ctx, nil
}

func (d *Daemon) getFleets(w http.ResponseWriter, r *http.Request) error {
	list, err := d.store.Fleets(r.Context())
	if err != nil {
		return err
	}
	// Beside each other: one whose machines do not answer takes its time.
	out := make([]api.FleetState, len(list))
	slots := make(chan struct{}, 16)
	var group sync.WaitGroup
	for i, rec := range list {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			out[i] = d.describeFleet(r.Context(), rec)
		})
	}
	group.Wait()
	answer(w, out)
	return nil
}

func (d *Daemon) getFleet(w http.ResponseWriter, r *http.Request) error {
	state, err := d.fleetState(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	answer(w, state)
	return nil
}

func (d *Daemon) fleetState(ctx context.Context, name string) (api.FleetState, error) {
	rec, err := d.store.Fleet(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		err = api.Errorf(api.CodeNotFound, "there is no fleet %q; `lamina fleet ls` shows what there is", name)
	}
	if err != nil {
		return api.FleetState{}, err
	}
	return d.describeFleet(ctx, rec), nil
}

// describeFleet is a fleet as clients see it.
func (d *Daemon) describeFleet(ctx context.Context, rec store.Fleet) api.FleetState {
	out := api.FleetState{Name: rec.Name, State: rec.State, Problem: rec.Problem, Hash: rec.Hash, Fleet: withoutSecrets(rec.Document), At: rec.At, Machines: []api.Machine{}}
	list := d.fleetMachines(rec.Name)
	for _, m := range list {
		out.Machines = append(out.Machines, m.describe())
	}
	groups := make(map[string]api.Health)
	for _, g := range rec.Document.Groups {
		out.Wanted += g.Count
		groups[g.Name] = g.Health
	}
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	for _, member := range d.members(ctx, list, groups) {
		if member.Healthy {
			out.Healthy++
		}
	}
	return out
}

// lookPatience bounds how long a fleet is asked for its health when it is shown.
const lookPatience = 2 * time.Second

// fleetMachines are the machines of a fleet, by name.
func (d *Daemon) fleetMachines(name string) []*machine {
	list := slices.DeleteFunc(d.list(), func(m *machine) bool { return m.known().Config.Labels[fleet.LabelFleet] != name })
	slices.SortFunc(list, func(a, b *machine) int { return strings.Compare(a.name, b.name) })
	return list
}

// getFleetWait tells of what is under way with a fleet, and returns when nothing is.
func (d *Daemon) getFleetWait(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if work := d.fleets.under(name); work != nil {
		d.followFleet(w, r, name, work)
		return nil
	}
	state, err := d.fleetState(r.Context(), name)
	if err != nil {
		return err
	}
	if state.State == api.FleetFailed {
		err = &api.Error{Code: api.CodeFailed, Message: state.Problem}
	}
	newEvents(w).done(state, err)
	return nil
}

// deleteFleet removes a fleet with its machines. What is under way with it is
// broken off.
func (d *Daemon) deleteFleet(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	force, err := flag(r, "force")
	if err != nil {
		return err
	}
	rec, err := d.store.Fleet(r.Context(), name)
	list := d.fleetMachines(name)
	switch {
	case errors.Is(err, store.ErrNotFound) && len(list) == 0:
		return api.Errorf(api.CodeNotFound, "there is no fleet %q; `lamina fleet ls` shows what there is", name)
	case errors.Is(err, store.ErrNotFound): // machines without a record are removed too
		rec = store.Fleet{Name: name, Document: api.Fleet{Name: name}}
	case err != nil:
		return err
	}
	if running := slices.DeleteFunc(slices.Clone(list), func(m *machine) bool { return !m.active() }); len(running) > 0 && !force {
		return api.Errorf(api.CodeInUse, "fleet %s: %d of its machines run, %s among them: remove it by force (--force), which switches them off", name, len(running), running[0].name)
	}
	work := d.fleets.under(name)
	switch {
	case work != nil && !force:
		return api.Errorf(api.CodeInUse, "fleet %s is being %s: wait for that, or remove it by force (--force)", name, work.what)
	case work != nil && work.what == "removed":
		d.followRemoval(w, r, work)
		return nil
	}
	rec.State, rec.Problem, rec.At, rec.Document = api.FleetRemoving, "", time.Now(), withoutSecrets(rec.Document)
	goal, err := recordedGoal(rec)
	if err != nil {
		return err
	}
	// Before anything is broken off: whatever happens now, no daemon goes on with that.
	if err := d.store.SetFleet(r.Context(), rec); err != nil {
		return err
	}
	began := make(chan begun, 1)
	d.background(func(ctx context.Context) { d.removeFleet(ctx, rec, goal, began) })
	select {
	case b := <-began:
		if b.err != nil {
			return b.err
		}
		d.followRemoval(w, r, b.work)
		return nil
	case <-r.Context().Done():
		return cause(r.Context())
	}
}

// begun is work on a fleet, or why there is none.
type begun struct {
	work *fleetWork
	err  error
}

// removeFleet breaks off what is under way with a fleet, and removes it.
func (d *Daemon) removeFleet(ctx context.Context, rec store.Fleet, goal *fleet.Goal, began chan<- begun) {
	for {
		work, wctx, err := d.beginFleet(rec)
		if err == nil {
			// The apply may have recorded how it came out.
			if err = d.store.SetFleet(ctx, rec); err != nil {
				work.cancel(nil)
				d.fleets.end(rec.Name, work, err)
				began <- begun{err: err}
				return
			}
			began <- begun{work: work}
			d.applyFleet(wctx, rec, goal, work)
			return
		}
		if now := d.fleets.under(rec.Name); now != nil {
			if now.what == "removed" {
				began <- begun{work: now}
				return
			}
			now.cancel(errBrokenOff)
			select {
			case <-now.done:
			case <-ctx.Done():
				began <- begun{err: cause(ctx)}
				return
			}
		}
	}
}

func (d *Daemon) followRemoval(w http.ResponseWriter, r *http.Request, work *fleetWork) {
	s := newEvents(w)
	s.done(nil, work.log.follow(r.Context(), s.send))
}

// fleetRoutes are the routes of fleets.
func (d *Daemon) fleetRoutes() map[string]func(http.ResponseWriter, *http.Request) error {
	return map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/fleets":             d.getFleets,
		"GET /v1/fleets/{name}":      d.getFleet,
		"GET /v1/fleets/{name}/wait": d.getFleetWait,
		"POST /v1/fleets/plan":       d.postFleetPlan,
		"POST /v1/fleets/apply":      d.postFleetApply,
		"DELETE /v1/fleets/{name}":   d.deleteFleet,
	}
}
