package fleet

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// shift finds the next round of one group. What it holds to at every instant of
// the round, whichever of its steps have been done:
//
//   - no more machines than Count and Surge together, or than there are already;
//   - no fewer healthy ones than Count less MaxUnavailable, unless there are fewer
//     already: then none of the healthy ones is taken;
//   - no fewer of those that may serve somebody than that, unless there are fewer
//     already. To them belong, beside the healthy ones, those that run and have not
//     shown to be healthy when they were asked: the host may be slow, or have paused
//     them, and what they hold would be lost for an answer that came late.
//
// Machines that do not run, or whose boot has stopped, serve nobody: they are taken
// first and without counting. Then come those in doubt.
type shift struct {
	goal   *Goal
	group  *group
	ports  ports           // of all machines of the fleet; those taken are released
	others map[string]bool // names that are not the fleet's

	seats  []place
	extras []*Member          // the first is to go first
	onWay  []*Member          // surge machines that are waited for
	at     map[string]*Member // all machines of the group

	total  int // machines that there are
	spare  int // healthy machines that may be taken
	usable int // machines, healthy or in doubt, that may be taken
	round  round
}

// place is a seat and who is there.
type place struct {
	*Seat
	has      *Member
	outdated bool // who is there is to be replaced
	taken    bool // in this round
	made     bool // in this round
}

func newShift(g *Goal, gr *group, list []Member, ports ports, others map[string]bool) *shift {
	s := &shift{goal: g, group: gr, ports: ports, others: others, total: len(list), at: make(map[string]*Member, len(list))}
	for i := range list {
		m := &list[i]
		s.at[m.Name] = m
		if m.Healthy {
			s.spare++
		}
		if g.seats[m.Name] == nil {
			s.extras = append(s.extras, m)
		}
	}
	least := gr.Count - gr.Rollout.MaxUnavailable
	s.usable, s.spare = s.spare-least, max(0, s.spare-least)
	for i := range gr.seats {
		p := place{Seat: &gr.seats[i], has: s.at[gr.seats[i].Name]}
		p.outdated = p.has != nil && p.has.Labels[LabelMark] != p.Mark
		s.seats = append(s.seats, p)
	}
	slices.SortFunc(s.extras, s.goesFirst)
	return s
}

// most is how many machines there may be.
func (s *shift) most() int { return s.group.Count + s.group.Rollout.Surge }

// goesFirst orders extras: surge machines last, as they are what the fleet is to
// be, and the highest number first.
func (s *shift) goesFirst(a, b *Member) int {
	last := func(m *Member) int {
		if s.isSurge(m) {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(last(a), last(b)), cmp.Compare(trailing(b.Name), trailing(a.Name)), strings.Compare(b.Name, a.Name))
}

// isSurge says whether an extra is a surge machine of this goal.
func (s *shift) isSurge(m *Member) bool {
	number, ok := strings.CutPrefix(m.Name, s.group.Name+"-surge-")
	k, err := strconv.Atoi(number)
	return ok && err == nil && k >= 1 && k <= MaxMachines && m.Labels[LabelMark] == s.group.surge(s.digest(), k).Mark
}

func (s *shift) digest() string { return s.goal.digests[s.group.Template] }

// trailing is the number that a name ends with, -1 without.
func trailing(name string) int {
	digits := name[len(strings.TrimRight(name, "0123456789")):]
	n, err := strconv.Atoi(digits)
	if err != nil {
		return -1
	}
	return n
}

// plan finds the next round of all groups, which may wait for each other's ports.
func plan(shifts []*shift) {
	for _, s := range shifts {
		s.takeUseless()
	}
	way := make(map[string]string)
	for _, s := range shifts {
		s.inTheWay(way)
	}
	for _, s := range shifts {
		s.takeExtras(way)
		s.takeOutdated(way)
	}
	for _, s := range shifts {
		s.rebuild()
	}
}

// inTheWay adds who has a port of an empty seat, and whose.
func (s *shift) inTheWay(way map[string]string) {
	for i := range s.seats {
		if p := &s.seats[i]; p.empty() {
			if holder := s.ports.holder(p.Name, p.Ports); holder != "" {
				way[holder] = p.Name
			}
		}
	}
}

// rebuild is the part of the round that makes and starts machines.
func (s *shift) rebuild() {
	waits, made := s.settle(), s.fill()
	if waits+made+len(s.round) == 0 && s.takeBlocked() {
		made = s.fill()
	}
	switch {
	case s.left() > 0:
		s.reinforce()
	case waits+made == 0:
		for len(s.extras) > 0 {
			s.takeExtra(0, "it is one too many")
		}
	}
	s.relabel()
}

// take stops and removes a machine of the group.
func (s *shift) take(m *Member, why string) {
	s.round.takeDown(*m, why)
	s.ports.release(*m)
	s.total--
	if m.Healthy {
		s.spare--
	}
	if m.Healthy || m.inDoubt() {
		s.usable--
	}
}

// leave takes a machine from its seat, which is then empty.
func (s *shift) leave(p *place) {
	s.take(p.has, s.why(p))
	p.taken = true
}

// why says for what a machine is replaced.
func (s *shift) why(p *place) string {
	return changed(p.has.Labels[LabelMark], p.Mark, s.group.Template)
}

func (s *shift) takeExtra(i int, why string) {
	s.take(s.extras[i], why)
	s.extras = slices.Delete(s.extras, i, i+1)
}

// empty says whether a machine is to be made at the seat.
func (p *place) empty() bool { return (p.has == nil || p.taken) && !p.made }

// stale says whether a machine at the seat is still to be replaced.
func (p *place) stale() bool { return p.outdated && !p.taken }

// left counts the seats whose machines are still to be made or replaced.
func (s *shift) left() (n int) {
	for i := range s.seats {
		if p := &s.seats[i]; p.empty() || p.stale() {
			n++
		}
	}
	return n
}

// takeUseless takes what serves nobody, and then of what is in doubt as many as
// can be spared. A surge machine on its way is waited for where there is work for it.
func (s *shift) takeUseless() {
	work := s.left() > 0
	var healthy, doubtful []*Member
	for _, m := range s.extras {
		switch {
		case m.Healthy:
			healthy = append(healthy, m)
		case work && !m.Broken && !m.Late && s.total <= s.most() && s.isSurge(m):
			s.onWay = append(s.onWay, m)
		case m.inDoubt():
			doubtful = append(doubtful, m)
			s.usable++
		default:
			s.take(m, "it is one too many")
		}
	}
	s.extras = healthy
	for i := range s.seats {
		switch p := &s.seats[i]; {
		case !p.stale() || p.has.Healthy:
		case p.has.inDoubt():
			s.usable++
		default:
			s.leave(p)
		}
	}
	for _, m := range doubtful {
		if s.usable > 0 {
			s.take(m, "it is one too many")
		}
	}
	for i := range s.seats {
		if p := &s.seats[i]; s.usable > 0 && p.stale() && p.has.inDoubt() {
			s.leave(p)
		}
	}
}

// takeExtras takes extras that are in the way of a machine that is to be made: they
// have its port, or its place.
func (s *shift) takeExtras(way map[string]string) {
	for i := 0; i < len(s.extras) && s.spare > 0; {
		if seat, ok := way[s.extras[i].Name]; ok {
			s.takeExtra(i, "it has a port of "+seat)
		} else {
			i++
		}
	}
	ready := 0 // to be made at once, if there is room
	for i := range s.seats {
		if p := &s.seats[i]; p.empty() && s.ports.holder(p.Name, p.Ports) == "" {
			ready++
		}
	}
	for s.spare > 0 && len(s.extras) > 0 && s.total+ready > s.most() {
		s.takeExtra(0, "it is one too many")
	}
}

// takeOutdated takes as many outdated machines as can be spared: first those that
// have the port of an empty seat, then those whose seat can be filled again at once.
func (s *shift) takeOutdated(way map[string]string) {
	for _, wants := range []func(*place) bool{
		func(p *place) bool { return way[p.Name] != "" },
		func(p *place) bool { return s.ports.holder(p.Name, p.Ports) == "" },
	} {
		for i := 0; i < len(s.seats) && s.spare > 0; i++ {
			if p := &s.seats[i]; p.stale() && wants(p) {
				s.leave(p)
			}
		}
	}
}

// takeBlocked takes one machine although its seat cannot be filled yet, as another
// machine has its port: where each waits for another, one must begin.
func (s *shift) takeBlocked() bool {
	for i := range s.seats {
		if p := &s.seats[i]; s.spare > 0 && p.stale() {
			s.leave(p)
			return true
		}
	}
	return false
}

// settle starts, or waits for, machines that are what they are to be and not
// healthy. It returns how many they are.
func (s *shift) settle() (n int) {
	for i := range s.seats {
		if p := &s.seats[i]; p.has != nil && !p.outdated && !p.has.Healthy {
			s.wake(p.has)
			n++
		}
	}
	for _, m := range s.onWay {
		s.wake(m)
	}
	return n + len(s.onWay)
}

// wake brings a machine to its health, without making it anew: what it holds stays.
func (s *shift) wake(m *Member) {
	why := "it is not healthy yet"
	switch {
	case !m.Running:
		why = "it does not run"
		s.round.add(DoStart, s.group.Name, m.Name, why)
	case m.Broken:
		why = "its boot has stopped"
		s.round.add(DoStop, s.group.Name, m.Name, why)
		s.round.add(DoStart, s.group.Name, m.Name, why)
	}
	s.round.add(DoAwait, s.group.Name, m.Name, why)
}

// fill makes machines at the empty seats and returns how many.
func (s *shift) fill() (n int) {
	for i := range s.seats {
		p := &s.seats[i]
		if !p.empty() || s.total >= s.most() || s.ports.holder(p.Name, p.Ports) != "" {
			continue
		}
		why := "it is not there"
		if p.outdated {
			why = s.why(p)
		}
		s.make(*p.Seat, why)
		p.made = true
		n++
	}
	return n
}

// make makes and starts a machine.
func (s *shift) make(seat Seat, why string) {
	for _, do := range []string{DoCreate, DoStart, DoAwait} {
		s.round.add(do, s.group.Name, seat.Name, why)
	}
	s.ports.take(seat.Name, seat.Ports)
	s.total++
}

// reinforce makes surge machines, so that others can be spared in the next round.
func (s *shift) reinforce() {
	for n, k := min(s.left(), s.most()-s.total), 1; n > 0 && s.spare <= 0 && k <= MaxMachines; k++ {
		name := surgeName(s.group.Name, k)
		if s.at[name] != nil || s.others[name] || s.goal.seats[name] != nil {
			continue
		}
		for _, do := range []string{DoCreate, DoStart, DoAwait} {
			s.round.add(do, s.group.Name, name, "it stands in while others are replaced")
		}
		s.total++
		n--
	}
}

// relabel gives machines that stay the labels of the group.
func (s *shift) relabel() {
	for i := range s.seats {
		p := &s.seats[i]
		if p.has != nil && !p.outdated && !maps.Equal(p.has.Labels, p.labels) {
			s.round.add(DoRelabel, s.group.Name, p.Name, "its labels differ")
		}
	}
}
