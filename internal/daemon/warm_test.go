package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// warmTester is a daemon with the template t.
func warmTester(t *testing.T) (*tester, *warmDriver, *fakeGuests) {
	t.Helper()
	d, g := newWarmDriver(), &fakeGuests{}
	x := serve(t, Options{Driver: d, Guests: g, Images: warmImages{}})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "t"}, nil))
	return x, d, g
}

func (x *tester) warm() (u api.WarmUnit) {
	x.Helper()
	x.must(x.stream("POST", "/v1/templates/t/warm", api.WarmRequest{}, &u))
	return u
}

func (x *tester) cloneWarm(req api.CloneRequest) ([]api.Machine, []api.Event, *api.Error) {
	x.Helper()
	var list []api.Machine
	req.Template, req.Start = "t", true
	events, e := x.stream("POST", "/v1/clones", req, &list)
	return list, events, e
}

// TestWarmStart takes machines from a warm unit to their identities.
func TestWarmStart(t *testing.T) {
	x, d, _ := warmTester(t)
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"early"}, Warm: api.WarmMust}); e == nil || !strings.Contains(e.Message, "no warm unit") {
		t.Errorf("without a unit: %v", e)
	}
	u := x.warm()
	if again := x.warm(); again.ID != u.ID || !u.Fits {
		t.Errorf("warmed twice: %+v, %+v", u, again)
	}
	if running, _ := d.count(); running != 0 {
		t.Errorf("%d machines run after the warming", running)
	}
	list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"w-{1..2}"}, Warm: api.WarmMust})
	if e != nil {
		t.Fatal(e)
	}
	for _, m := range list {
		if m.State != api.Login || m.Warmth == nil || m.Warmth.Unit != u.ID || m.Warmth.Ready == 0 || m.Base != u.Layer || m.Identity == nil || m.Identity.Hostname != m.Name || m.SSHPort != 50000 {
			t.Errorf("%+v", m)
		}
		b, err := os.ReadFile(x.home.Machine(m.ID) + "/" + home.KnownHosts)
		if err != nil || strings.Count(string(b), "lamina-"+m.ID+" ") != 2 {
			t.Errorf("known_hosts of %s: %q, %v", m.Name, b, err)
		}
		if b, err := os.ReadFile(x.home.Machine(m.ID) + "/" + home.SSHUserFile); err != nil || string(b) != "admin" || m.User != "admin" {
			t.Errorf("the user of %s: %q, %q, %v", m.Name, m.User, b, err)
		}
		if s := d.machine(t, x.home.Machine(m.ID)).spec; len(s.NICs) != 0 || len(s.Disks) != 1 || s.UUID != m.Spec.UUID {
			t.Errorf("%s was thawed as %+v", m.Name, s)
		}
	}
	if list[0].Identity.MachineID == list[1].Identity.MachineID || list[0].Identity.HostKeys[0] == list[1].Identity.HostKeys[0] {
		t.Errorf("two machines are one: %+v, %+v", list[0].Identity, list[1].Identity)
	}
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"big"}, Warm: api.WarmMust, MachineConfig: api.MachineConfig{Memory: 2 << 30}}); e == nil || !strings.Contains(e.Message, "memory 1024 MiB, not 2048 MiB") {
		t.Errorf("another memory: %v", e)
	}
	if list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"cold"}, Warm: api.WarmNever}); e != nil || list[0].Warmth != nil || list[0].Base != u.Digest {
		t.Errorf("cold: %+v, %v", list, e)
	}
	// What was made cold, and never started, is started warm.
	var made []api.Machine
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"later"}}, &made))
	var m api.Machine
	x.must(x.stream("POST", "/v1/machines/later/start", api.StartRequest{}, &m))
	if m.Warmth == nil || m.Base != u.Layer {
		t.Errorf("started later: %+v", m)
	}
	// Its next start is of its own disk.
	x.write(m.Spec.Disks[0].Path)
	x.must(x.stream("POST", "/v1/machines/later/stop", api.StopRequest{}, nil))
	var again api.Machine
	x.must(x.stream("POST", "/v1/machines/later/start", api.StartRequest{}, &again))
	if again.Warmth != nil || again.Identity == nil || again.Base != u.Layer {
		t.Errorf("started again: %+v", again)
	}
}

// TestWarmRefused is a unit that cannot be thawed.
func TestWarmRefused(t *testing.T) {
	x, d, _ := warmTester(t)
	u := x.warm()
	d.setRefuse(vm.ErrOtherHost)
	list, events, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}})
	if e != nil || list[0].State != api.Login || list[0].Warmth != nil || list[0].Base != u.Digest {
		t.Fatalf("%+v, %v", list, e)
	}
	told := false
	for _, e := range events {
		told = told || strings.Contains(e.Warning, u.ID) && strings.Contains(e.Warning, "cold")
	}
	if !told {
		t.Errorf("nobody was told: %+v", events)
	}
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"b"}, Warm: api.WarmMust}); e == nil || !strings.Contains(e.Message, "--cold") {
		t.Errorf("must be warm: %v", e)
	}
	// It stays, and starts cold when it is told to.
	var m api.Machine
	x.must(x.stream("POST", "/v1/machines/b/start", api.StartRequest{Warm: api.WarmNever}, &m))
	if m.State != api.Login || m.Base != u.Digest {
		t.Errorf("%+v", m)
	}
	if err := os.Truncate(x.home.Unit(u.ID)+"/"+home.RAMFile, 1); err != nil {
		t.Fatal(err)
	}
	if list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"c"}}); e != nil || list[0].Warmth != nil {
		t.Errorf("a cut RAM file: %+v, %v", list, e)
	}
}

// TestRenewal is what becomes of a guest that does not confirm who it is, and of one
// whose daemon ends meanwhile.
func TestRenewal(t *testing.T) {
	x, _, g := warmTester(t)
	x.warm()
	g.set(nil, errors.New("it is stubborn"))
	_, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}})
	if e == nil || e.Code != api.CodeBoot || e.Problem == nil || e.Problem.Kind != KindIdentity {
		t.Fatalf("%+v", e)
	}
	if m := x.machine("a"); m.State != api.Stuck || m.SSHPort != 0 || m.Identity != nil || !strings.Contains(m.Warmth.Problem, "stubborn") {
		t.Errorf("%+v", m)
	}
	hold := make(chan struct{})
	g.set(hold, nil)
	list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"b"}, Wait: api.WaitPrompt})
	if e != nil || list[0].State != api.Renewing || list[0].Warmth.Prompt == 0 || list[0].SSHPort != 0 {
		t.Fatalf("%+v, %v", list, e)
	}
	x.stop()
	g.set(nil, nil)
	x.start()
	if m := x.await("b", api.Login); m.Identity == nil || m.Warmth.Prompt != list[0].Warmth.Prompt || m.Warmth.Ready == 0 {
		t.Errorf("%+v", m)
	}
	if m := x.machine("a"); m.State != api.Stuck {
		t.Errorf("%+v", m)
	}
}

// TestHeldTime: the time in which a guest is held does not count against it.
func TestHeldTime(t *testing.T) {
	r := &run{ended: make(chan struct{}), warm: &warmRun{timeout: 20 * time.Millisecond}}
	r.held.Store(true)
	ctx, cancel := r.executing(t.Context())
	defer cancel()
	select {
	case <-ctx.Done():
		t.Fatal("its time is over while it is held")
	case <-time.After(100 * time.Millisecond):
	}
	r.held.Store(false)
	<-ctx.Done()
	if err := context.Cause(ctx); !strings.Contains(err.Error(), "not within 20ms") {
		t.Error(err)
	}
}

// TestWarmBrokenOff leaves nothing.
func TestWarmBrokenOff(t *testing.T) {
	x, d, g := warmTester(t)
	g.set(make(chan struct{}), nil)
	ctx, cancel := context.WithCancel(t.Context())
	res := x.send(ctx, "POST", "/v1/templates/t/warm", api.WarmRequest{})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		g.mu.Lock()
		n := g.renews
		g.mu.Unlock()
		if n > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the guest is not asked")
		}
	}
	cancel()
	_ = res.Body.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		running, _ := d.count()
		left, err := os.ReadDir(x.home.Warm())
		if err != nil {
			t.Fatal(err)
		}
		if running == 0 && len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d machines run, left %v", running, left)
		}
	}
	var units []api.WarmUnit
	if _, e := x.call("GET", "/v1/warm", nil, &units); e != nil || len(units) != 0 {
		t.Errorf("%v, %v", units, e)
	}
}

// TestFork copies a running machine.
func TestFork(t *testing.T) {
	x, d, _ := warmTester(t)
	list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}})
	if e != nil {
		t.Fatal(e)
	}
	var f api.ForkResult
	x.must(x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{Count: 2}, &f))
	if len(f.Machines) != 2 || f.Pause == 0 {
		t.Fatalf("%+v", f)
	}
	a := x.machine("a")
	for i, m := range f.Machines {
		if m.Name != []string{"a-1", "a-2"}[i] || m.State != api.Login || m.Warmth == nil || m.Warmth.Unit != "" || m.Warmth.Prompt == 0 || m.Base != a.Base || m.SSHPort != 50000 {
			t.Errorf("%+v", m)
		}
		s := d.machine(t, x.home.Machine(m.ID)).spec
		if len(s.NICs) != 1 || s.NICs[0].Link != vm.LinkDown || len(s.NICs[0].Forwards) > 0 || s.NICs[0].MAC == m.Spec.NICs[0].MAC || s.Disks[0].Path != m.Spec.Disks[0].Path {
			t.Errorf("%s was thawed as %+v", m.Name, s)
		}
	}
	if a.State != api.Login || a.Base == list[0].Base || a.Spec.Disks[0].Path == list[0].Spec.Disks[0].Path {
		t.Errorf("the original: %+v", a)
	}
	if _, err := os.Lstat(x.home.Machine(a.ID) + "/" + home.RAMFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy of its memory is left: %v", err)
	}
	d.setRefuse(errors.New("no memory"))
	if _, e := x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{Names: []string{"z"}}, nil); e == nil || !strings.Contains(e.Message, "no memory") {
		t.Errorf("%v", e)
	}
	if _, e := x.call("GET", "/v1/machines/z", nil, nil); e == nil {
		t.Error("a copy that did not start is there")
	}
	x.must(x.stream("POST", "/v1/machines/a/stop", api.StopRequest{}, nil))
	if _, e := x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{}, nil); e == nil || !strings.Contains(e.Message, "lamina clone") {
		t.Errorf("of a stopped one: %v", e)
	}
}

// TestForkBrokenOff: a copy that the daemon died before it started says so, is started by
// nobody but a person, and then once.
func TestForkBrokenOff(t *testing.T) {
	x, d, _ := warmTester(t)
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}}); e != nil {
		t.Fatal(e)
	}
	// From its making to its start the record has the reason.
	for range cap(x.d.starts) {
		x.d.starts <- struct{}{}
	}
	forked := make(chan *api.Error, 1)
	go func() {
		_, e := x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{Count: 1}, nil)
		forked <- e
	}()
	var rec store.Machine
	x.until("the copy is made", func() (is bool) {
		var err error
		rec, err = x.d.store.Machine(t.Context(), "a-1")
		return err == nil
	})
	if rec.Last.Exit == nil || !strings.Contains(rec.Last.Exit.Reason, "lamina start a-1") {
		t.Errorf("on record: %+v", rec.Last)
	}
	for range cap(x.d.starts) {
		<-x.d.starts
	}
	if e := <-forked; e != nil {
		t.Fatal(e)
	}
	if m := x.machine("a-1"); m.State != api.Login || m.Exit != nil {
		t.Errorf("started: %s, %+v", m.State, m.Exit)
	}
	// As a daemon leaves it that dies between the commit and the start.
	a, err := x.d.find("a")
	if err != nil {
		t.Fatal(err)
	}
	rec = a.known()
	todo, err := x.d.newMachines([]string{"b"}, api.Template{Name: rec.Template, Digest: rec.Digest}, api.MachineConfig{}, false)
	if err != nil {
		t.Fatal(err)
	}
	todo[0].Exit = notForked("a", "b")
	f, err := x.d.store.BeginFreeze(t.Context(), a.id, todo, nil)
	if err == nil {
		_, err = a.running().vm.(vm.Freezer).Freeze(t.Context(), vm.FreezeRequest{RAM: f.RAM, State: f.State, Layers: map[string]string{"vda": f.Overlay}})
	}
	if err == nil {
		_, _, err = x.d.store.CommitFreeze(t.Context(), a.id)
	}
	if err != nil {
		t.Fatal(err)
	}
	x.stop()
	_, before := d.count()
	x.start()
	m := x.machine("b")
	if _, starts := d.count(); m.State != api.Defined || m.Exit == nil || !strings.Contains(m.Exit.Reason, "`lamina start b` boots it") || starts != before {
		t.Errorf("after the restart: %s, %+v, %d starts", m.State, m.Exit, starts-before)
	}
	if _, err := os.Lstat(f.RAM); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the copy of the memory is left: %v", err)
	}
	x.must(x.stream("POST", "/v1/machines/b/start", api.StartRequest{}, nil))
	if _, e := x.stream("POST", "/v1/machines/b/start", api.StartRequest{}, nil); e == nil || e.Code != api.CodeInUse {
		t.Errorf("started twice: %v", e)
	}
	if _, starts := d.count(); starts != before+1 || x.machine("b").Exit != nil {
		t.Errorf("%d starts, %+v", starts-before, x.machine("b").Exit)
	}
}

// TestForkConsole: nothing is typed on a copy's console, where somebody may have left a
// line that they had not entered; a machine of a warm unit is asked for its prompt.
func TestForkConsole(t *testing.T) {
	x, d, _ := warmTester(t)
	x.warm()
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}, Warm: api.WarmMust}); e != nil {
		t.Fatal(e)
	}
	x.must(x.stream("POST", "/v1/machines/a/fork", api.ForkRequest{}, nil))
	for name, typed := range map[string]bool{"a": true, "a-1": false} {
		log := d.machine(t, x.home.Machine(x.machine(name).ID)).SerialLog()
		var text string
		x.until("its guest has booted", func() bool {
			b, err := os.ReadFile(log)
			text = string(b)
			return err == nil && strings.Contains(text, "guest login: ")
		})
		if got := strings.Contains(strings.ReplaceAll(text, "\r\n", ""), "\n"); got != typed {
			t.Errorf("%s: typed %v: %q", name, got, text)
		}
	}
}

// TestColdInPlaceOfWarm: what is on record of a start that falls back to a cold one says so
// before there is a process: the next daemon would take its boot for a warm one.
func TestColdInPlaceOfWarm(t *testing.T) {
	x, d, _ := warmTester(t)
	u := x.warm()
	d.setRefuse(errFake)
	d.hold = make(chan struct{})
	done := make(chan *api.Error, 1)
	go func() {
		_, e := x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"a"}, Start: true}, nil)
		done <- e
	}()
	x.until("its process is being started", func() bool { return d.atOnce.Load() > 0 })
	if rec, err := x.d.store.Machine(t.Context(), "a"); err != nil || rec.Warmth != nil || rec.Digest != u.Digest || !rec.Last.Running {
		t.Errorf("on record: %+v, over %s, %+v, %v", rec.Warmth, rec.Digest, rec.Last, err)
	}
	close(d.hold)
	if e := <-done; e != nil {
		t.Error(e)
	}
}

// TestPruneUnits: units stay where it is not known what they could be used with: which
// accelerator a start takes is a guess until one was tried.
func TestPruneUnits(t *testing.T) {
	x, d, _ := warmTester(t)
	u := x.warm()
	prune := func() string {
		t.Helper()
		var res api.PruneResult
		if _, e := x.call("POST", "/v1/prune", api.PruneRequest{DryRun: true}, &res); e != nil {
			t.Fatal(e)
		}
		return fmt.Sprint(res.Items)
	}
	d.setKey(vm.AccelKVM, nil)
	if got := prune(); strings.Contains(got, u.ID) {
		t.Errorf("a host of which it is not known whether KVM works: %s", got)
	}
	d.setKey(vm.AccelTCG, errFake)
	if got := prune(); strings.Contains(got, u.ID) {
		t.Errorf("a QEMU that cannot be asked: %s", got)
	}
	d.setKey(vm.AccelTCG, nil)
	d.upgrade("9.9")
	if got := prune(); !strings.Contains(got, u.ID) || !strings.Contains(got, "9.9") {
		t.Errorf("another QEMU: %s", got)
	}
}

// TestColdDespiteDamage: --cold starts what lies over a damaged unit, over its template.
func TestColdDespiteDamage(t *testing.T) {
	x, d, _ := warmTester(t)
	u := x.warm()
	d.setRefuse(errFake)
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}, Warm: api.WarmMust}); e == nil {
		t.Fatal("started")
	}
	d.setRefuse(nil)
	for _, name := range []string{home.RAMFile, home.StateFile} {
		if err := os.Remove(x.home.Unit(u.ID) + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(x.home.LayerDisk(u.Layer)); err != nil {
		t.Fatal(err)
	}
	var m api.Machine
	for _, e := range x.must(x.stream("POST", "/v1/machines/a/start", api.StartRequest{Warm: api.WarmNever}, &m)) {
		if e.Warning != "" {
			t.Errorf("of what was asked for: %s", e.Warning)
		}
	}
	if m.State != api.Login || m.Base != u.Digest || m.Warmth != nil {
		t.Errorf("%+v", m)
	}
}

// TestMadeBehindCommit: copies that were made, of a request that failed after that, are
// machines like others: they are seen, can be removed, and nothing of them is in the way.
func TestMadeBehindCommit(t *testing.T) {
	x, _, _ := warmTester(t)
	for name, r := range map[string]struct {
		verb string
		body any
	}{
		"f": {"fork", api.ForkRequest{Names: []string{"f"}}}, "c": {"clone", api.CloneMachineRequest{Names: []string{"c"}}},
	} {
		from := "of-" + name
		list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{from}})
		if e != nil {
			t.Fatal(e)
		}
		// The name by which QEMU has its layer open cannot be kept: that comes behind the commit.
		block := list[0].Dir + "/.link.new"
		if err := os.MkdirAll(block+"/x", 0o700); err != nil {
			t.Fatal(err)
		}
		if e := second(x.stream("POST", "/v1/machines/"+from+"/"+r.verb, r.body, nil)); e == nil {
			t.Errorf("%s: no error", r.verb)
		}
		if m, now := x.machine(name), x.machine(from); m.State != api.Defined || now.State != api.Login || m.Base == list[0].Base || m.Base != now.Base {
			t.Errorf("%s: %s over %s; of %s over %s, before %s", r.verb, m.State, m.Base, now.State, now.Base, list[0].Base)
		}
		if err := os.RemoveAll(block); err != nil {
			t.Fatal(err)
		}
		x.must(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{}, nil))
		x.remove(name)
		x.remove(from)
	}
	if list, err := x.d.store.Unsettled(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("unsettled %q, %v", list, err)
	}
}
