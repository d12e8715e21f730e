package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// drawFleet makes a valid fleet. Its names and ports are few, so that fleets
// are in each other's way.
func drawFleet(t *rapid.T, label string) (api.Fleet, map[string]string) {
	f := api.Fleet{Name: "shop"}
	digests := map[string]string{"one": strings.Repeat("1", 64), "two": strings.Repeat("2", 64)}
	for i, name := range []string{"web", "db"} {
		if !rapid.Bool().Draw(t, label+" "+name) {
			continue
		}
		g := api.FleetGroup{Name: name, Template: rapid.SampledFrom([]string{"one", "two"}).Draw(t, "template"), Count: rapid.IntRange(0, 5).Draw(t, "count")}
		g.Rollout = api.Rollout{Surge: rapid.IntRange(0, 3).Draw(t, "surge"), MaxUnavailable: rapid.IntRange(0, 3).Draw(t, "unavailable")}
		g.CPUs = rapid.IntRange(1, 2).Draw(t, "cpus")
		g.Names = rapid.SampledFrom([]string{"", name + "{1..9}", name + "{9..1}", name + "-{3..9}"}).Draw(t, "names")
		if port := rapid.IntRange(0, 3).Draw(t, "port"); port > 0 {
			g.Ports = []vm.Forward{fw(8000+100*i+port, 80)}
		}
		if rapid.Bool().Draw(t, "label") {
			g.Labels = map[string]string{"tier": name}
		}
		f.Groups = append(f.Groups, g)
	}
	// The groups change places in the ports, and one takes the names of the other.
	if len(f.Groups) == 2 && rapid.Bool().Draw(t, "swap") {
		f.Groups[0].Ports, f.Groups[1].Ports = f.Groups[1].Ports, f.Groups[0].Ports
	}
	return f, digests
}

func drawGoal(t *rapid.T, label string) *Goal {
	f, digests := drawFleet(t, label)
	g, err := New(f, digests)
	if err != nil {
		t.Fatalf("%+v: %v", f, err)
	}
	g.atOnce = 1
	return g
}

// disturb does to the machines what people and guests do.
func disturb(t *rapid.T, s *sim) {
	for _, m := range s.members() {
		m := s.machines[m.Name]
		switch rapid.IntRange(0, 9).Draw(t, "fate of "+m.Name) {
		case 0:
			*m = Member{Name: m.Name, Labels: m.Labels, Ports: m.Ports}
		case 1:
			m.Healthy, m.Broken = false, m.Running
		case 2:
			m.Healthy, m.Late = false, m.Running
		case 3:
			delete(s.machines, m.Name)
		}
	}
}

// check is rapid.Check, more often: a run is cheap.
func check(t *testing.T, prop func(*rapid.T)) {
	for range 10 {
		rapid.Check(t, prop)
	}
}

// TestPlanProperties: whatever there is, and wherever an apply dies, the next one
// brings the fleet to what it is to be, never takes more machines than it may,
// never has more than it may, and has nothing to do after that.
func TestPlanProperties(t *testing.T) {
	check(t, func(t *rapid.T) {
		s := newSim()
		for i := range rapid.IntRange(1, 3).Draw(t, "applies") {
			g := drawGoal(t, fmt.Sprint("fleet ", i))
			s.hold(g)
			s.left = rapid.SampledFrom([]int{-1, 1, 2, 3, 5, 8, 13, 21}).Draw(t, "dies after")
			if err := g.Apply(t.Context(), s, func(api.Event) {}); err != nil && !errors.Is(err, errDead) {
				t.Fatal(err)
			}
			if s.problem != "" {
				t.Fatal(s.problem)
			}
			s.left = -1
			disturb(t, s)
		}
		s.machines["other"] = &Member{Name: "other", Running: true, Healthy: true}
		g := drawGoal(t, "last fleet")
		plan, err := g.Plan(s.members())
		if err != nil {
			t.Fatal(err)
		}
		checkPlan(t, g, s, plan)
		s.hold(g)
		s.ops = 0
		if err := g.Apply(t.Context(), s, func(api.Event) {}); err != nil {
			t.Fatal(err)
		}
		if s.problem != "" {
			t.Fatal(s.problem)
		}
		if s.ops != len(plan.Steps) {
			t.Fatalf("%d steps were planned and %d done", len(plan.Steps), s.ops)
		}
		checkConverged(t, g, s)
	})
}

// checkPlan carries a plan out, literally.
func checkPlan(t *rapid.T, g *Goal, s *sim, p api.FleetPlan) {
	at := newSim()
	for name, m := range s.machines {
		c := *m
		at.machines[name] = &c
	}
	at.hold(g)
	wave := 0
	for _, step := range p.Steps {
		if step.Wave != wave && step.Wave != wave+1 || step.Why == "" || step.Group == "" {
			t.Fatalf("step %+v after wave %d", step, wave)
		}
		wave = step.Wave
		var err error
		if step.Do == DoCreate {
			err = at.Create(t.Context(), []Seat{g.seat(step.Group, step.Machine, at.members())})
		} else {
			err = g.step(t.Context(), at, step, at.members())
		}
		if err != nil || at.problem != "" {
			t.Fatalf("step %+v: %v %s", step, err, at.problem)
		}
	}
	checkConverged(t, g, at)
}

func checkConverged(t *rapid.T, g *Goal, s *sim) {
	want := 1
	for _, gr := range g.groups {
		want += gr.Count
		for _, seat := range gr.seats {
			m := s.machines[seat.Name]
			if m == nil || !m.Healthy || m.Labels[LabelMark] != seat.Mark || m.Labels["tier"] != gr.Labels["tier"] || m.Labels[LabelGroup] != gr.Name {
				t.Fatalf("%s is %+v, want %+v", seat.Name, m, seat)
			}
		}
	}
	if len(s.machines) != want || s.machines["other"] == nil {
		t.Fatalf("%d machines, want %d: %v", len(s.machines), want, s.members())
	}
	again, err := g.Plan(s.members())
	if err != nil || len(again.Steps) > 0 || again.Kept != want-1 {
		t.Fatalf("there is still to do: %+v, %v", again, err)
	}
}

// TestRolloutStops: a template whose machines do not get healthy takes no more
// than it may, and the next one goes on from there.
func TestRolloutStops(t *testing.T) {
	check(t, func(t *rapid.T) {
		s, count := newSim(), rapid.IntRange(1, 6).Draw(t, "count")
		rollout := api.Rollout{Surge: rapid.IntRange(0, 2).Draw(t, "surge"), MaxUnavailable: rapid.IntRange(0, 2).Draw(t, "unavailable")}
		apply := func(template string) error {
			f := api.Fleet{Name: "shop", Groups: []api.FleetGroup{{Name: "web", Template: template, Count: count, Rollout: rollout}}}
			g, err := New(f, map[string]string{"one": strings.Repeat("1", 64), "bad": strings.Repeat("b", 64), "two": strings.Repeat("2", 64)})
			if err != nil {
				t.Fatal(err)
			}
			g.atOnce = 1
			s.hold(g)
			return g.Apply(t.Context(), s, func(api.Event) {})
		}
		s.bad = map[string]bool{"bbbb": true}
		if err := apply("one"); err != nil {
			t.Fatal(err)
		}
		var failed *StepError
		if err := apply("bad"); !errors.As(err, &failed) || failed.Step.Do != DoAwait {
			t.Fatalf("a bad template: %v", err)
		}
		healthy, _, _ := s.count("web")
		if s.problem != "" || healthy < count-max(rollout.MaxUnavailable, 0) {
			t.Fatalf("%s; %d of %d healthy", s.problem, healthy, count)
		}
		if err := apply("two"); err != nil || s.problem != "" {
			t.Fatal(err, s.problem)
		}
		if healthy, _, total := s.count("web"); healthy != count || total != count {
			t.Fatalf("%d of %d healthy, want %d", healthy, total, count)
		}
	})
}

// TestDoubt: machines that run and did not answer, as their host is slow or has paused
// them all, are not taken beyond what a rollout may, and none is where there is no
// room for another.
func TestDoubt(t *testing.T) {
	for _, rollout := range []api.Rollout{{Surge: 1}, {MaxUnavailable: 1}} {
		web := api.FleetGroup{Name: "web", Template: "t", Count: 5, Rollout: rollout}
		s := newSim()
		g := goal(t, web, "1")
		s.hold(g)
		if err := g.Apply(t.Context(), s, func(api.Event) {}); err != nil {
			t.Fatal(err)
		}
		for _, m := range s.machines {
			m.Healthy, m.Late = false, true
		}
		g = goal(t, web, "2")
		s.full = errors.New("no room")
		s.hold(g)
		if err := g.Apply(t.Context(), s, func(api.Event) {}); !errors.Is(err, s.full) {
			t.Error(err)
		}
		running := 0
		for _, m := range s.machines {
			if m.Running {
				running++
			}
		}
		if running != 5 || s.problem != "" {
			t.Errorf("%+v: %d machines run, want 5; %s", rollout, running, s.problem)
		}
		s.full = nil
		if err := g.Apply(t.Context(), s, func(api.Event) {}); err != nil || s.problem != "" {
			t.Error(err, s.problem)
		}
		if healthy, _, total := s.count("web"); healthy != 5 || total != 5 {
			t.Errorf("%+v: %d of %d healthy", rollout, healthy, total)
		}
	}
}

// goal makes a goal of one group for the tests of what a plan says.
func goal(t *testing.T, g api.FleetGroup, digest string) *Goal {
	t.Helper()
	got, err := New(api.Fleet{Name: "shop", Groups: []api.FleetGroup{g}}, map[string]string{g.Template: strings.Repeat(digest, 64)})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func text(p api.FleetPlan) string {
	var b strings.Builder
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "%d %s %s\n", s.Wave, s.Do, s.Machine)
	}
	return b.String()
}

// TestPlanText holds plans against what a person would write down.
func TestPlanText(t *testing.T) {
	web := api.FleetGroup{Name: "web", Template: "t", Count: 2}
	s := newSim()
	step := func(name string, g *Goal, want, why string) {
		t.Helper()
		p, err := g.Plan(s.members())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(strings.TrimSpace(text(p)), "\n", ", "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
		if len(p.Steps) > 0 && !strings.Contains(p.Steps[0].Why, why) {
			t.Errorf("%s: because %q, want %q", name, p.Steps[0].Why, why)
		}
		s.hold(g)
		if err := g.Apply(context.Background(), s, func(api.Event) {}); err != nil {
			t.Fatal(err)
		}
	}
	step("first", goal(t, web, "1"), "1 create web-1, 1 create web-2, 2 start web-1, 2 start web-2, 3 await web-1, 3 await web-2", "not there")
	step("again", goal(t, web, "1"), "", "")
	step("a moved template", goal(t, web, "2"), "1 create web-surge-1, 2 start web-surge-1, 3 await web-surge-1, "+
		"4 stop web-1, 5 remove web-1, 6 create web-1, 7 start web-1, 8 await web-1, "+
		"9 stop web-2, 10 remove web-2, 11 create web-2, 12 start web-2, 13 await web-2, 14 stop web-surge-1, 15 remove web-surge-1", "stands in")
	web.Rollout = api.Rollout{MaxUnavailable: 1}
	step("only the rollout", goal(t, web, "2"), "", "")
	web.CPUs = 2
	step("in place", goal(t, web, "2"), "1 stop web-1, 2 remove web-1, 3 create web-1, 4 start web-1, 5 await web-1, "+
		"6 stop web-2, 7 remove web-2, 8 create web-2, 9 start web-2, 10 await web-2", "other resources")
	web.Labels = map[string]string{"a": "b"}
	step("labels", goal(t, web, "2"), "1 label web-1, 1 label web-2", "labels")
	web.Count = 4
	step("up", goal(t, web, "2"), "1 create web-3, 1 create web-4, 2 start web-3, 2 start web-4, 3 await web-3, 3 await web-4", "not there")
	s.machines["web-2"].Healthy, s.machines["web-2"].Broken = false, true
	step("broken", goal(t, web, "2"), "1 stop web-2, 2 start web-2, 3 await web-2", "its boot has stopped")
	web.Count = 3
	step("down", goal(t, web, "2"), "1 stop web-4, 2 remove web-4", "one too many")
	web.Ports = []vm.Forward{fw(8080, 80)}
	web.Rollout = api.Rollout{MaxUnavailable: 3}
	step("ports, all at once", goal(t, web, "2"), "1 stop web-1, 1 stop web-2, 1 stop web-3, 2 remove web-1, 2 remove web-2, 2 remove web-3, "+
		"3 create web-1, 3 create web-2, 3 create web-3, 4 start web-1, 4 start web-2, 4 start web-3, 5 await web-1, 5 await web-2, 5 await web-3", "other ports")
	web.Name = "front"
	step("another group", goal(t, web, "2"), "1 stop web-1, 1 stop web-2, 1 stop web-3, 2 remove web-1, 2 remove web-2, 2 remove web-3, "+
		"3 create front-1, 3 create front-2, 3 create front-3, 4 start front-1, 4 start front-2, 4 start front-3, 5 await front-1, 5 await front-2, 5 await front-3", "no group web")
}

// TestOwnKeys: who applies a document is no reason to replace machines, though their keys
// are for each that is made.
func TestOwnKeys(t *testing.T) {
	web := api.FleetGroup{Name: "web", Template: "t", Count: 1}
	web.SSHKeys = []string{"named"}
	a := goal(t, web, "1").groups[0].seats[0]
	web.OwnKeys = []string{"mine"}
	b := goal(t, web, "1").groups[0].seats[0]
	if a.Mark != b.Mark {
		t.Errorf("another person: %s", changed(a.Mark, b.Mark, "t"))
	}
	if keys := b.Config("shop").SSHKeys; !slices.Equal(keys, []string{"named", "mine"}) {
		t.Errorf("keys %q", keys)
	}
	web.SSHKeys = append(web.SSHKeys, "more")
	if c := goal(t, web, "1").groups[0].seats[0]; c.Mark == a.Mark {
		t.Error("a key of the document is not in the mark")
	}
}

// TestForeign: a machine that is not the fleet's is never touched.
func TestForeign(t *testing.T) {
	g := goal(t, api.FleetGroup{Name: "web", Template: "t", Count: 3}, "1")
	_, err := g.Plan([]Member{{Name: "web-2"}, {Name: "web-3", Labels: map[string]string{LabelFleet: "lab"}}})
	if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "web-2 (of no fleet), web-3 (of the fleet lab)") {
		t.Errorf("%v", err)
	}
	// A surge machine goes by.
	s := newSim()
	s.hold(g)
	if err := g.Apply(t.Context(), s, func(api.Event) {}); err != nil {
		t.Fatal(err)
	}
	s.machines["web-surge-1"] = &Member{Name: "web-surge-1"}
	p, err := goal(t, api.FleetGroup{Name: "web", Template: "t", Count: 3}, "2").Plan(s.members())
	if err != nil || p.Steps[0].Machine != "web-surge-2" {
		t.Errorf("%+v, %v", p.Steps, err)
	}
}

// TestPlanHash: it changes with what is to be and with what is there.
func TestPlanHash(t *testing.T) {
	web := api.FleetGroup{Name: "web", Template: "t", Count: 2}
	a, err := goal(t, web, "1").Plan(nil)
	b, err2 := goal(t, web, "1").Plan([]Member{{Name: "x"}})
	c, err3 := goal(t, web, "2").Plan(nil)
	web.Rollout.Surge = 2
	d, err4 := goal(t, web, "1").Plan(nil)
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	if a.Hash != b.Hash || a.Hash == c.Hash || a.Hash == d.Hash {
		t.Error(a.Hash, b.Hash, c.Hash, d.Hash)
	}
}

func BenchmarkPlan(b *testing.B) {
	s := newSim()
	web := api.FleetGroup{Name: "web", Template: "t", Count: 1000}
	digests := map[string]string{"t": strings.Repeat("1", 64)}
	g, err := New(api.Fleet{Name: "shop", Groups: []api.FleetGroup{web}}, digests)
	if err != nil {
		b.Fatal(err)
	}
	s.hold(g)
	if err := g.Apply(b.Context(), s, func(api.Event) {}); err != nil {
		b.Fatal(err)
	}
	g, err = New(api.Fleet{Name: "shop", Groups: []api.FleetGroup{web}}, map[string]string{"t": strings.Repeat("2", 64)})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := g.Plan(s.members()); err != nil {
			b.Fatal(err)
		}
	}
}
