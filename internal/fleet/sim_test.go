package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// sim is a host of machines that are values. It fails the test, by problem, when
// what a fleet holds to is broken.
type sim struct {
	mu       sync.Mutex
	machines map[string]*Member
	// left is how many changes are made before the host dies; negative never.
	left int
	ops  int
	// bad are the digests (as in marks) of templates that never get healthy.
	bad map[string]bool

	goal    *Goal
	floor   map[string]int // of healthy machines, by group
	usable  map[string]int // least of those that may serve somebody
	ceiling map[string]int
	before  map[*Member]bool
	full    error // what Room says
	problem string
}

var errDead = errors.New("the host died")

func newSim() *sim { return &sim{machines: make(map[string]*Member), left: -1} }

// hold begins to watch over what an apply of g must hold to.
func (s *sim) hold(g *Goal) {
	s.goal, s.problem = g, ""
	s.floor, s.usable, s.ceiling = make(map[string]int), make(map[string]int), make(map[string]int)
	s.before = make(map[*Member]bool)
	for _, m := range s.machines {
		s.before[m] = true
	}
	for _, gr := range g.groups {
		healthy, usable, total := s.count(gr.Name)
		s.floor[gr.Name] = min(healthy, gr.Count-gr.Rollout.MaxUnavailable)
		s.usable[gr.Name] = min(usable, gr.Count-gr.Rollout.MaxUnavailable)
		s.ceiling[gr.Name] = max(total, gr.Count+gr.Rollout.Surge)
	}
}

// count counts the machines of a group of the goal. Usable are those that are healthy,
// and those that were there before, are to be replaced and run.
func (s *sim) count(group string) (healthy, usable, total int) {
	for _, m := range s.machines {
		if m.Labels[LabelFleet] != s.goal.Fleet.Name || m.Labels[LabelGroup] != group {
			continue
		}
		if seat := s.goal.seats[m.Name]; seat != nil && seat.Group.Name != group {
			continue // goes, whatever it does
		}
		total++
		seat := s.goal.seats[m.Name]
		switch {
		case m.Healthy:
			healthy++
			usable++
		case s.before[m] && m.inDoubt() && (seat == nil || seat.Mark != m.Labels[LabelMark]):
			usable++
		}
	}
	return healthy, usable, total
}

// change makes one change, after which all must hold.
func (s *sim) change(what string, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return errDead
	}
	s.left--
	s.ops++
	if err := f(); err != nil {
		return err
	}
	for group := range s.floor {
		healthy, usable, total := s.count(group)
		if healthy < s.floor[group] || usable < s.usable[group] || total > s.ceiling[group] {
			s.problem = fmt.Sprintf("after %s: group %s has %d healthy and %d usable of %d machines; want at least %d and %d, at most %d", what, group, healthy, usable, total, s.floor[group], s.usable[group], s.ceiling[group])
		}
	}
	return nil
}

func (s *sim) Look(context.Context) ([]Member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 {
		return nil, errDead
	}
	out := make([]Member, 0, len(s.machines))
	for _, name := range slices.Sorted(maps.Keys(s.machines)) {
		out = append(out, *s.machines[name])
	}
	return out, nil
}

func (s *sim) Room(context.Context, int) error { return s.full }

func (s *sim) Create(_ context.Context, seats []Seat) error {
	for _, seat := range seats {
		err := s.change("create "+seat.Name, func() error {
			if s.machines[seat.Name] != nil {
				return fmt.Errorf("%s exists", seat.Name)
			}
			s.machines[seat.Name] = &Member{Name: seat.Name, Labels: seat.Labels(s.goal.Fleet.Name), Ports: seat.Config("").Forwards}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sim) with(what, name string, f func(*Member) error) error {
	return s.change(what+" "+name, func() error {
		m := s.machines[name]
		if m == nil {
			return fmt.Errorf("%s is not there", name)
		}
		return f(m)
	})
}

func (s *sim) Start(_ context.Context, name string) error {
	return s.with("start", name, func(m *Member) error {
		if m.Running {
			return fmt.Errorf("%s runs", name)
		}
		for _, o := range s.machines {
			if o != m && o.Running && clash(o.Ports, m.Ports) {
				return fmt.Errorf("%s has a port of %s", o.Name, name)
			}
		}
		m.Running = true
		return nil
	})
}

func (s *sim) Await(_ context.Context, name string, _ api.Health) error {
	return s.with("await", name, func(m *Member) error {
		if !m.Running || m.Broken {
			return fmt.Errorf("%s will never be healthy", name)
		}
		if s.bad[m.Labels[LabelMark][:4]] {
			m.Late = true
			return fmt.Errorf("%s does not get healthy", name)
		}
		m.Healthy, m.Late = true, false
		return nil
	})
}

func (s *sim) Stop(_ context.Context, name string, _ bool) error {
	return s.with("stop", name, func(m *Member) error {
		m.Running, m.Healthy, m.Broken, m.Late = false, false, false, false
		return nil
	})
}

func (s *sim) Remove(_ context.Context, name string) error {
	return s.with("remove", name, func(m *Member) error {
		if m.Running {
			return fmt.Errorf("%s runs", name)
		}
		delete(s.machines, name)
		return nil
	})
}

func (s *sim) Relabel(_ context.Context, name string, labels map[string]string) error {
	return s.with("label", name, func(m *Member) error {
		m.Labels = labels
		return nil
	})
}

// members are the machines as Look shows them.
func (s *sim) members() []Member {
	list, err := s.Look(context.Background())
	if err != nil {
		panic(err)
	}
	return list
}

func fw(host, guest int) vm.Forward {
	return vm.Forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: host, GuestPort: guest}
}
