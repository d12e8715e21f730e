package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// The steps of a plan, in the order of the waves of a round. Relabel gives a
// machine the group's labels, beside whatever else is done.
const (
	DoStop    = "stop"
	DoRemove  = "remove"
	DoRelabel = "label"
	DoCreate  = "create"
	DoStart   = "start"
	DoAwait   = "await"
)

// waves are the places of the steps in a round.
var waves = []string{DoStop, DoRemove, DoRelabel, DoCreate, DoStart, DoAwait}

// Member is a machine as it was found.
type Member struct {
	Name string
	// Labels are all that it has; those of a fleet say whose it is.
	Labels map[string]string
	// Running: it executes or is about to. Healthy: it passes the check of its
	// group, so it is Running.
	Running, Healthy bool
	// Broken: it runs, and its boot has stopped. Late: it runs, is not Healthy, and
	// the time that its group's check gives it is over.
	Broken, Late bool
	// Ports are what it forwards; of those with a host port no other machine
	// may have the same at one time.
	Ports []vm.Forward
}

// inDoubt says whether a machine may serve somebody although it was not found
// healthy.
func (m *Member) inDoubt() bool { return m.Running && !m.Healthy && !m.Broken }

// ErrForeign: a machine that is not the fleet's has a name of the fleet.
var ErrForeign = errors.New("is not of this fleet")

// seat is the seat of a machine that a step makes. A surge machine's host ports are
// chosen at its start where a machine that is there has one of them.
func (g *Goal) seat(groupName, machine string, there []Member) Seat {
	if s := g.seats[machine]; s != nil {
		return *s
	}
	i := slices.IndexFunc(g.groups, func(gr group) bool { return gr.Name == groupName })
	gr := &g.groups[i]
	k := 1
	for surgeName(gr.Name, k) != machine {
		k++
	}
	s := gr.surge(g.digests[gr.Template], k)
	for _, m := range there {
		if m.Labels[LabelFleet] == g.Fleet.Name && m.Name != machine && clash(m.Ports, s.Ports) {
			s.Ports = chosenPorts(s.Ports)
			break
		}
	}
	return s
}

// clash says whether two machines with these ports cannot run at one time.
func clash(a, b []vm.Forward) bool {
	for _, x := range a {
		for _, y := range b {
			if x.HostPort != 0 && keyOf(x) == keyOf(y) && sameAddress(x, y) {
				return true
			}
		}
	}
	return false
}

// round is what is to be done next: the steps of one wave beside each other, and
// the waves one after the other.
type round []api.FleetStep

// Plan says all that is to be done to come from the machines that there are to
// the goal, if each step succeeds. There may be machines of others among them; one
// that has a name of the fleet is an [ErrForeign].
func (g *Goal) Plan(there []Member) (api.FleetPlan, error) {
	p := api.FleetPlan{Fleet: g.Fleet.Name, Steps: []api.FleetStep{}}
	have := slices.Clone(there)
	wave := 0
	for n := 0; ; n++ {
		r, err := g.next(have)
		if err != nil {
			return p, err
		}
		if len(r) == 0 {
			break
		}
		if n > g.mostRounds(len(there)) {
			return p, fmt.Errorf("fleet %s: the plan does not come to an end; please report this, with the document", g.Fleet.Name)
		}
		for _, do := range waves {
			steps := r.of(do)
			if len(steps) == 0 {
				continue
			}
			wave++
			for _, s := range steps {
				s.Wave = wave
				p.Steps = append(p.Steps, s)
			}
		}
		have = g.after(have, r)
	}
	p.Kept = g.kept(there, p.Steps)
	p.Hash = g.planHash(p)
	return p, nil
}

// mostRounds bounds how many rounds a plan can have with so many machines.
func (g *Goal) mostRounds(there int) int {
	n := there
	for _, gr := range g.groups {
		n = max(n, gr.Count)
	}
	return 4*n + 16
}

// kept counts the machines of the fleet that stay as they are, but for labels.
func (g *Goal) kept(there []Member, steps []api.FleetStep) (n int) {
	touched := make(map[string]bool)
	for _, s := range steps {
		touched[s.Machine] = touched[s.Machine] || s.Do != DoRelabel
	}
	for _, m := range there {
		if m.Labels[LabelFleet] == g.Fleet.Name && !touched[m.Name] {
			n++
		}
	}
	return n
}

// planHash stands for a plan: what is to be, and what is done for it.
func (g *Goal) planHash(p api.FleetPlan) string {
	return hash(struct {
		Fleet   api.Fleet
		Digests map[string]string
		Steps   []api.FleetStep
		Kept    int
	}{g.Fleet, g.digests, p.Steps, p.Kept})
}

func (r round) of(do string) (steps []api.FleetStep) {
	for _, s := range r {
		if s.Do == do {
			steps = append(steps, s)
		}
	}
	return steps
}

// after is what there is when a round has succeeded.
func (g *Goal) after(there []Member, r round) []Member {
	at := make(map[string]int, len(there))
	for i, m := range there {
		at[m.Name] = i
	}
	gone := make(map[string]bool)
	out := slices.Clone(there)
	for _, do := range waves {
		for _, s := range r.of(do) {
			i, ok := at[s.Machine]
			switch do {
			case DoStop:
				out[i].Running, out[i].Healthy, out[i].Broken, out[i].Late = false, false, false, false
			case DoRemove:
				gone[s.Machine] = true
			case DoRelabel:
				out[i].Labels = g.seats[s.Machine].Labels(g.Fleet.Name)
			case DoCreate:
				seat := g.seat(s.Group, s.Machine, there)
				m := Member{Name: seat.Name, Labels: seat.Labels(g.Fleet.Name), Ports: seat.Ports}
				if !ok {
					i = len(out)
					at[s.Machine] = i
					out = append(out, m)
				}
				out[i] = m
				delete(gone, s.Machine)
			case DoStart:
				out[i].Running = true
			case DoAwait:
				out[i].Healthy = true
			}
		}
	}
	return slices.DeleteFunc(out, func(m Member) bool { return gone[m.Name] })
}

// next is the next round; an empty one where all is as it is to be.
func (g *Goal) next(there []Member) (round, error) {
	mine, others, err := g.own(there)
	if err != nil {
		return nil, err
	}
	var r round
	free := newPorts(mine)
	byGroup := make(map[string][]Member)
	for _, m := range mine {
		name := m.Labels[LabelGroup]
		i := slices.IndexFunc(g.groups, func(gr group) bool { return gr.Name == name })
		seat := g.seats[m.Name]
		switch {
		case i < 0:
			r.takeDown(m, "the fleet has no group "+name+" any more")
			free.release(m)
		case seat != nil && seat.Group != g.groups[i].FleetGroup:
			r.takeDown(m, "its name is now of the group "+seat.Group.Name)
			free.release(m)
		default:
			byGroup[name] = append(byGroup[name], m)
		}
	}
	shifts := make([]*shift, len(g.groups))
	for i := range g.groups {
		gr := &g.groups[i]
		shifts[i] = newShift(g, gr, byGroup[gr.Name], free, others)
	}
	plan(shifts)
	left := 0
	for _, s := range shifts {
		r = append(r, s.round...)
		left += s.left()
	}
	if len(r) == 0 && left > 0 {
		return nil, fmt.Errorf("fleet %s: %d machines are to be replaced and each waits for a port of another: take the host ports out of the document, apply it, and put them in again", g.Fleet.Name, left)
	}
	return r, nil
}

// own divides the machines into those of the fleet and the names of the others.
func (g *Goal) own(there []Member) (mine []Member, others map[string]bool, err error) {
	var clash []string
	others = make(map[string]bool)
	for _, m := range there {
		if m.Labels[LabelFleet] == g.Fleet.Name {
			mine = append(mine, m)
			continue
		}
		others[m.Name] = true
		if g.seats[m.Name] != nil {
			of := "of no fleet"
			if f := m.Labels[LabelFleet]; f != "" {
				of = "of the fleet " + f
			}
			clash = append(clash, m.Name+" ("+of+")")
		}
	}
	if len(clash) > 0 {
		slices.Sort(clash)
		if len(clash) > 5 {
			clash = append(clash[:5], fmt.Sprintf("and %d more", len(clash)-5))
		}
		return nil, nil, fmt.Errorf("fleet %s: a machine that it would make is there and %w: %s: remove it, or give the group other names", g.Fleet.Name, ErrForeign, strings.Join(clash, ", "))
	}
	return mine, others, nil
}

// takeDown stops a machine that runs and removes it.
func (r *round) takeDown(m Member, why string) {
	if m.Running {
		r.add(DoStop, m.Labels[LabelGroup], m.Name, why)
	}
	r.add(DoRemove, m.Labels[LabelGroup], m.Name, why)
}

func (r *round) add(do, group, machine, why string) {
	*r = append(*r, api.FleetStep{Do: do, Group: group, Machine: machine, Why: why})
}

// ports knows which machine has which port of the host.
type ports map[portKey][]portHolder

type portKey struct {
	proto string
	port  int
}

type portHolder struct {
	machine string
	forward vm.Forward
}

func keyOf(f vm.Forward) portKey { return portKey{cmp.Or(f.Proto, "tcp"), f.HostPort} }

func newPorts(there []Member) ports {
	p := make(ports)
	for _, m := range there {
		p.take(m.Name, m.Ports)
	}
	return p
}

func (p ports) take(machine string, list []vm.Forward) {
	for _, f := range list {
		if f.HostPort != 0 {
			p[keyOf(f)] = append(p[keyOf(f)], portHolder{machine, f})
		}
	}
}

func (p ports) release(m Member) {
	for _, f := range m.Ports {
		p[keyOf(f)] = slices.DeleteFunc(p[keyOf(f)], func(h portHolder) bool { return h.machine == m.Name })
	}
}

// holder is another machine that has one of the ports, "" where none has.
func (p ports) holder(machine string, list []vm.Forward) string {
	for _, f := range list {
		if f.HostPort == 0 {
			continue
		}
		for _, h := range p[keyOf(f)] {
			if h.machine != machine && sameAddress(h.forward, f) {
				return h.machine
			}
		}
	}
	return ""
}
