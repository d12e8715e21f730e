package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// fleetHost is the daemon's machines as a [fleet.Host].
type fleetHost struct {
	d    *Daemon
	goal *fleet.Goal
	hard bool // the fleet is removed: no guest is asked
}

// Look implements [fleet.Host].
func (h *fleetHost) Look(ctx context.Context) ([]fleet.Member, error) {
	if ctx.Err() != nil {
		return nil, cause(ctx)
	}
	groups := make(map[string]api.Health)
	for _, g := range h.goal.Fleet.Groups {
		groups[g.Name] = g.Health
	}
	var others []fleet.Member
	var mine []*machine
	for _, m := range h.d.list() {
		rec := m.known()
		if rec.Config.Labels[fleet.LabelFleet] == h.goal.Fleet.Name {
			mine = append(mine, m)
			continue
		}
		others = append(others, fleet.Member{Name: rec.Name, Labels: rec.Config.Labels})
	}
	return append(others, h.d.members(ctx, mine, groups)...), nil
}

// probesAtOnce is how many guests are asked for their health at one time.
const probesAtOnce = 32

// members looks at machines of one fleet; groups has the check of each group.
func (d *Daemon) members(ctx context.Context, list []*machine, groups map[string]api.Health) []fleet.Member {
	out := make([]fleet.Member, len(list))
	slots := make(chan struct{}, probesAtOnce)
	var group sync.WaitGroup
	for i, m := range list {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			out[i] = m.member(ctx, groups)
		})
	}
	group.Wait()
	return out
}

// member is the machine as the plan of its fleet sees it.
func (m *machine) member(ctx context.Context, groups map[string]api.Health) fleet.Member {
	rec, v := m.known(), m.view()
	out := fleet.Member{Name: rec.Name, Labels: rec.Config.Labels, Running: fleet.Runs(v.State)}
	for _, nic := range rec.Spec.NICs {
		out.Ports = append(out.Ports, nic.Forwards...)
	}
	check, ok := groups[rec.Config.Labels[fleet.LabelGroup]]
	if !ok || !out.Running {
		return out
	}
	out.Healthy = fleet.Probe(ctx, check, v) == nil
	if !out.Healthy {
		// What a port or an agent tells does not need a login prompt.
		out.Broken = v.State == api.Stuck && (check.Check == fleet.CheckLogin || check.Check == fleet.CheckReady)
		out.Late = fleet.Late(check, v)
	}
	return out
}

// view is the machine as a check of its health sees it.
func (m *machine) view() fleet.View {
	out := m.describeBy(time.Time{})
	v := fleet.View{State: out.State, Ready: out.Identity != nil}
	if out.Problem != nil {
		v.Problem = fmt.Sprintf("it stopped at the stage %s: %s", out.Problem.Stage, out.Problem.Cause)
	}
	if out.Warmth != nil {
		v.Problem = cmp.Or(v.Problem, out.Warmth.Problem)
	}
	if out.Run == nil {
		return v
	}
	v.StartedAt, v.Forwards = out.Run.StartedAt, out.Run.Forwards
	if r := m.running(); r != nil {
		if lamina, qga := agentSockets(m.dir, r.runningSpec()); lamina != "" || qga != "" {
			v.Agent = func(ctx context.Context) error { return m.askGuest(ctx, lamina, qga, nil) }
			v.Confirm = func(ctx context.Context) error { return m.askGuest(ctx, lamina, qga, m.isItself) }
		}
		if asks, ok := r.vm.(vm.ForwardProber); ok {
			v.Reached = asks.Reached
		}
	}
	return v
}

// askGuest connects to the agent in a guest, and asks it with ask if that is not nil.
func (m *machine) askGuest(ctx context.Context, lamina, qga string, ask func(context.Context, Guest) error) (err error) {
	g, err := m.d.opts.Guests.Open(ctx, lamina, qga)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if ask == nil {
		return nil
	}
	return ask(ctx, g)
}

// isItself asks a guest whether its host name is the one that its seed says.
func (m *machine) isItself(ctx context.Context, g Guest) error {
	res, err := g.Run(ctx, "hostname", nil)
	if err != nil {
		return err
	}
	rec := m.known()
	want := cmp.Or(rec.Config.Hostname, names.Hostname(rec.Name))
	// It may say its domain too.
	got, _, _ := strings.Cut(strings.TrimSpace(string(res.Output)), ".")
	if res.Status != 0 || !strings.EqualFold(got, want) {
		return fmt.Errorf("it says that it is %.64q, not %q", got, want)
	}
	return nil
}

// Room implements [fleet.Host].
func (h *fleetHost) Room(context.Context, int) error {
	return h.d.guard.haveRoom("new machines")
}

// Create implements [fleet.Host].
func (h *fleetHost) Create(ctx context.Context, seats []fleet.Seat) error {
	if err := h.Room(ctx, len(seats)); err != nil {
		return err
	}
	for len(seats) > 0 {
		g := seats[0].Group
		n := 1
		for n < len(seats) && seats[n].Group == g {
			n++
		}
		if err := h.createGroup(ctx, g, seats[:n]); err != nil {
			return err
		}
		seats = seats[n:]
	}
	return nil
}

// createGroup makes machines of one group: all, or none.
func (h *fleetHost) createGroup(ctx context.Context, g *api.FleetGroup, seats []fleet.Seat) error {
	t, err := h.d.store.Template(ctx, seats[0].Digest)
	if err != nil {
		return err
	}
	if !names.IsDigest(g.Template) {
		t.Name = g.Template // of several that it may have
	}
	todo := make([]store.NewMachine, 0, len(seats))
	var kept []byte // the same of all, but for a template of user-data
	for i, s := range seats {
		n, err := h.d.seatMachine(h.goal.Fleet.Name, s, t, i == 0 || g.UserDataTemplate)
		if err != nil {
			return fmt.Errorf("machine %s: %w", s.Name, err)
		}
		if n.Secrets != nil {
			kept = n.Secrets
		}
		n.Secrets = kept
		todo = append(todo, n)
	}
	if g.Warm != api.WarmNever {
		if err := h.d.overUnit(ctx, t, todo, g.Warm); err != nil {
			return err
		}
	}
	recs, err := h.d.store.CreateMachines(ctx, t, todo, nil)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		h.d.add(rec)
	}
	return nil
}

// seatMachine says what to make for a seat. With try what its guest is told is looked
// at, and kept; the seed is made of that at the first cold start.
func (d *Daemon) seatMachine(name string, s fleet.Seat, t api.Template, try bool) (store.NewMachine, error) {
	c := s.Config(name)
	if err := errors.Join(checkConfig(c, 1), checkLabels(c.Labels)); err != nil {
		return store.NewMachine{}, err
	}
	text, err := newUserData(c, s.Group.Template, s.Group.Count)
	if err != nil {
		return store.NewMachine{}, err
	}
	data := func() ([]byte, error) {
		return text(s.Index+1, s.Name, cmp.Or(c.Hostname, names.Hostname(s.Name)))
	}
	n, err := d.newMachine(s.Name, t, c, data)
	if err == nil && n.Seed != nil && try {
		n.Secrets, err = d.trySeed(s.Name, n, c, data)
	}
	n.Seed = nil
	return n, err
}

// Start implements [fleet.Host].
func (h *fleetHost) Start(ctx context.Context, name string) error {
	m, err := h.d.find(name)
	if err != nil {
		return err
	}
	if m.active() {
		return nil
	}
	o := startOptions{}
	if g := h.group(m); g != nil {
		if g.Health.Check == fleet.CheckLogin {
			// A little less, so that who watches the boot says why it is late.
			o.timeout = g.Health.Timeout - min(2*time.Second, g.Health.Timeout/10)
		}
		o.warm = g.Warm
		if o.warm == api.WarmMust && m.last().Started {
			o.warm = api.WarmAuto // what it has written since keeps it from that
		}
	}
	// Not ctx: a start is not broken off half-way.
	_, err = m.start(h.d.ctx, o)
	if errors.Is(err, store.ErrInUse) && m.running() != nil {
		return nil // somebody else has started it meanwhile
	}
	return err
}

// group is the group of the goal that a machine is of, nil where it has none.
func (h *fleetHost) group(m *machine) *api.FleetGroup {
	name := m.known().Config.Labels[fleet.LabelGroup]
	for i := range h.goal.Fleet.Groups {
		if g := &h.goal.Fleet.Groups[i]; g.Name == name {
			return g
		}
	}
	return nil
}

// Await implements [fleet.Host].
func (h *fleetHost) Await(ctx context.Context, name string, check api.Health) error {
	var m *machine
	err := fleet.Await(ctx, check, func(context.Context) (v fleet.View, err error) {
		if m, err = h.d.find(name); err != nil {
			return v, err
		}
		return m.view(), nil
	})
	if err == nil || m == nil {
		return err
	}
	if p := m.last().Problem; p != nil && ctx.Err() == nil {
		return &api.Error{Code: api.CodeBoot, Message: err.Error(), Problem: p}
	}
	return err
}

// stopPatience is how long a guest of a fleet may take to shut down.
const stopPatience = 30 * time.Second

// Stop implements [fleet.Host].
func (h *fleetHost) Stop(ctx context.Context, name string, hard bool) error {
	m, err := h.d.find(name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	hard = hard || h.hard || m.view().State == api.Paused
	return gone(m.stopMachine(ctx, api.StopRequest{Force: hard, Timeout: stopPatience}, func(api.Event) {}))
}

// gone is err unless it says that the machine is not there.
func gone(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// Remove implements [fleet.Host].
func (h *fleetHost) Remove(ctx context.Context, name string) error {
	m, err := h.d.find(name)
	if err != nil {
		return gone(err)
	}
	return gone(m.remove(ctx, h.hard, false))
}

// Relabel implements [fleet.Host].
func (h *fleetHost) Relabel(ctx context.Context, name string, labels map[string]string) error {
	m, err := h.d.find(name)
	if err != nil {
		return err
	}
	m.recording.Lock()
	defer m.recording.Unlock()
	if err := h.d.store.SetLabels(ctx, m.id, labels); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rec.Config.Labels = labels
	return nil
}
