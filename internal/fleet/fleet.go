// Package fleet brings the machines of a host to what a declared set of them
// says: which ones to make, to replace and to remove, in which order, and when a
// new one counts as there.
//
// A [Goal] is a fleet as it is to be. [Goal.Plan] compares it with the machines
// that there are and says all that is to be done; it is a pure function.
// [Goal.Apply] does it over a [Host], round by round: it looks at the machines,
// takes the next round of the plan, carries it out and looks again. So what was
// interrupted at any instant, or changed meanwhile, is gone on with by applying
// the same goal once more.
//
// # Terms
//
// A seat is one of the Count places of a group, with a fixed name, index and host
// ports. A machine at a seat is current if its mark (see [Mark]) is the seat's,
// else outdated. A machine of the group without a seat is an extra: one of
// more seats than there are now, or a surge machine, made for the time of a
// rollout under the name GROUP-surge-N.
package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/vm"
)

// The labels of a fleet's machines. A person may not set them.
const (
	LabelFleet = "fleet"
	LabelGroup = "group"
	LabelMark  = "fleet-mark"
)

// Bounds of a fleet.
const (
	MaxGroups   = 256
	MaxMachines = 2000 // of all groups, with their surge
	MaxPorts    = 64   // of a group
	MaxLabels   = 64   // of a group
	MaxUserData = 1 << 20
)

// The checks of [api.Health].
const (
	CheckLogin = "login"
	CheckReady = "ready"
	CheckAgent = "agent"
	CheckTCP   = "tcp"
	CheckHTTP  = "http"
	CheckNone  = "none"
)

// Defaults of [api.Health].
const (
	DefaultTimeout  = 5 * time.Minute
	DefaultInterval = time.Second
)

// Complete puts the defaults where the fleet says nothing. What it returns shares
// no slice of groups with f.
func Complete(f api.Fleet) api.Fleet {
	f.Groups = append([]api.FleetGroup(nil), f.Groups...)
	for i := range f.Groups {
		g := &f.Groups[i]
		if g.Rollout.Surge == 0 && g.Rollout.MaxUnavailable == 0 {
			g.Rollout.Surge = 1
		}
		g.Health.Check = cmp.Or(g.Health.Check, CheckLogin)
		g.Health.Timeout = cmp.Or(g.Health.Timeout, DefaultTimeout)
		g.Health.Interval = cmp.Or(g.Health.Interval, DefaultInterval)
		if g.Health.Check == CheckHTTP {
			g.Health.Path = cmp.Or(g.Health.Path, "/")
		}
	}
	return f
}

// Seat is a machine as it is to be.
type Seat struct {
	Name  string
	Group *api.FleetGroup // of the goal; not to be changed
	Index int             // from 0; of a surge machine beyond Count
	Surge bool
	// Ports are what the machine forwards: the group's, with its own host ports.
	Ports  []vm.Forward
	Digest string // of its template
	Mark   string
	labels map[string]string // those of Labels
}

// Config is what the machine is made with: the group's configuration with the
// machine's own ports and labels.
func (s Seat) Config(fleet string) api.MachineConfig {
	c := s.Group.MachineConfig
	c.Forwards = append(append([]vm.Forward(nil), c.Forwards...), s.Ports...)
	c.SSHKeys = append(append([]string(nil), c.SSHKeys...), s.Group.OwnKeys...)
	c.Labels = s.Labels(fleet)
	return c
}

// Labels are the labels that the machine is to have.
func (s Seat) Labels(fleet string) map[string]string {
	labels := make(map[string]string, len(s.Group.Labels)+3)
	for k, v := range s.Group.Labels {
		labels[k] = v
	}
	labels[LabelFleet], labels[LabelGroup], labels[LabelMark] = fleet, s.Group.Name, s.Mark
	return labels
}

// Goal is a fleet as it is to be, with the templates that its names stand for.
// It does not change and is safe for concurrent use.
type Goal struct {
	Fleet   api.Fleet         // complete
	digests map[string]string // by FleetGroup.Template
	groups  []group
	seats   map[string]*Seat // by name, without surge
	atOnce  int              // steps of a wave
}

// group is a group of a goal.
type group struct {
	*api.FleetGroup
	seats []Seat
}

// New makes a goal of a fleet. digests has the digest of each group's template by
// what the group calls it. An error wraps [names.ErrInvalid].
func New(f api.Fleet, digests map[string]string) (*Goal, error) {
	f = Complete(f)
	if err := Check(f); err != nil {
		return nil, err
	}
	g := &Goal{Fleet: f, digests: digests, seats: make(map[string]*Seat), atOnce: atOnce}
	for i := range f.Groups {
		fg := &f.Groups[i]
		if digests[fg.Template] == "" {
			return nil, fmt.Errorf("%w: fleet %s: group %s: template %q is not known", names.ErrInvalid, f.Name, fg.Name, fg.Template)
		}
		list, err := seatNames(fg)
		if err != nil {
			return nil, err
		}
		gr := group{FleetGroup: fg, seats: make([]Seat, 0, fg.Count)}
		for index, name := range list {
			s := Seat{Name: name, Group: fg, Index: index, Ports: portsAt(fg.Ports, index), Digest: digests[fg.Template]}
			s.Mark = Mark(s)
			s.labels = s.Labels(f.Name)
			gr.seats = append(gr.seats, s)
		}
		for j := range gr.seats {
			g.seats[gr.seats[j].Name] = &gr.seats[j]
		}
		g.groups = append(g.groups, gr)
	}
	return g, nil
}

// Template is the digest that a group's template stands for.
func (g *Goal) Template(ref string) string { return g.digests[ref] }

// seatNames are the names of a group's seats.
func seatNames(g *api.FleetGroup) ([]string, error) {
	if g.Names == "" {
		list := make([]string, g.Count)
		for i := range list {
			list[i] = g.Name + "-" + strconv.Itoa(i+1)
		}
		return list, nil
	}
	list, err := names.ExpandMachines([]string{g.Names})
	if err != nil {
		return nil, err
	}
	if len(list) < g.Count {
		return nil, fmt.Errorf("%w: %s makes %d names, which are too few for %d machines: make it wider, or lower the count", names.ErrInvalid, g.Names, len(list), g.Count)
	}
	return list[:g.Count], nil
}

// surgeName is the name of a group's k-th surge machine, k from 1.
func surgeName(group string, k int) string { return group + "-surge-" + strconv.Itoa(k) }

// surge is the seat of a group's k-th surge machine, k from 1.
func (gr *group) surge(digest string, k int) Seat {
	s := Seat{Name: surgeName(gr.Name, k), Group: gr.FleetGroup, Index: gr.Count + k - 1, Surge: true, Digest: digest}
	s.Ports = portsAt(gr.Ports, s.Index)
	s.Mark = Mark(s)
	return s
}

// mostSurge is how many surge machines of a group there may ever be: as many as
// can be missing at their seats at one time.
func mostSurge(g *api.FleetGroup) int {
	return g.Rollout.Surge + min(g.Rollout.MaxUnavailable, g.Count)
}

// portsAt are the ports of the machine with an index.
func portsAt(ports []vm.Forward, index int) []vm.Forward {
	out := append([]vm.Forward(nil), ports...)
	for i := range out {
		if out[i].HostPort != 0 {
			out[i].HostPort += index
		}
	}
	return out
}

// chosenPorts are ports whose host side is chosen at the start.
func chosenPorts(ports []vm.Forward) []vm.Forward {
	out := append([]vm.Forward(nil), ports...)
	for i := range out {
		out[i].HostPort = 0
	}
	return out
}

// hash is a short digest of a value's JSON.
func hash(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
