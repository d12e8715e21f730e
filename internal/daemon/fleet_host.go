package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/home"
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
	if lamina, qga := m.agentSockets(); lamina != "" || qga != "" {
		v.Agent = func(ctx context.Context) error {
			c, err := agent.Dial(ctx, lamina, qga)
			if err != nil {
				return err
			}
			return c.Close()
		}
	}
	if r := m.running(); r != nil {
		if asks, ok := r.vm.(vm.ForwardProber); ok {
			v.Reached = asks.Reached
		}
	}
	return v
}

// Create implements [fleet.Host].
func (h *fleetHost) Create(ctx context.Context, seats []fleet.Seat) error {
	if err := h.d.guard.haveRoom("new machines"); err != nil {
		return err
	}
	templates := make(map[string]api.Template)
	todo := make(map[string][]store.NewMachine)
	var order []string
	for _, s := range seats {
		t, ok := templates[s.Digest]
		if !ok {
			var err error
			if t, err = h.d.store.Template(ctx, s.Digest); err != nil {
				return err
			}
			if !names.IsDigest(s.Group.Template) {
				t.Name = s.Group.Template // of several that it may have
			}
			templates[s.Digest], order = t, append(order, s.Digest)
		}
		n, err := h.d.seatMachine(h.goal.Fleet.Name, s, t)
		if err != nil {
			return fmt.Errorf("machine %s: %w", s.Name, err)
		}
		todo[s.Digest] = append(todo[s.Digest], n)
	}
	for _, digest := range order {
		recs, err := h.d.store.CreateMachines(ctx, templates[digest], todo[digest], nil)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			h.d.add(rec)
		}
	}
	return nil
}

// seatMachine says what to make for a seat.
func (d *Daemon) seatMachine(name string, s fleet.Seat, t api.Template) (store.NewMachine, error) {
	c := s.Config(name)
	if err := checkConfig(c, 1); err != nil {
		return store.NewMachine{}, err
	}
	if err := checkLabels(c.Labels); err != nil {
		return store.NewMachine{}, err
	}
	text, err := newUserData(c, s.Group.Template, s.Group.Count)
	if err != nil {
		return store.NewMachine{}, err
	}
	return d.newMachine(s.Name, t, c, func() ([]byte, error) {
		return text(s.Index+1, s.Name, cmp.Or(c.Hostname, names.Hostname(s.Name)))
	})
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
	if g := h.group(m); g != nil && g.Health.Check == fleet.CheckLogin {
		o.timeout = g.Health.Timeout // so that who watches the boot says why
	}
	// Not ctx: a start is not broken off half-way.
	_, err = m.start(h.d.ctx, o)
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

// agentSockets are the unix sockets of the channels to the guest's agents, "" for
// one that the machine has not.
func (m *machine) agentSockets() (lamina, qga string) {
	for i, c := range m.known().Spec.Channels {
		path := cmp.Or(c.Path, filepath.Join(m.dir, home.ChannelSocket(i)))
		switch c.Target {
		case vm.ChannelLamina:
			lamina = path
		case vm.ChannelAgent:
			qga = path
		}
	}
	return lamina, qga
}
