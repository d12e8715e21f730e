package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/vm"
)

// template imports an image with its own content under a name.
func (x *tester) template(name string) (t api.Template) {
	x.Helper()
	path := filepath.Join(filepath.Dir(x.image), name+".qcow2")
	if err := os.WriteFile(path, []byte("image of "+name), 0o600); err != nil {
		x.Fatal(err)
	}
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: path, Name: name}, &t))
	return t
}

// webFleet is a fleet of one group.
func webFleet(count int, change ...func(*api.FleetGroup)) api.Fleet {
	g := api.FleetGroup{Name: "web", Template: "one", Count: count, Health: api.Health{Interval: 10 * time.Millisecond}}
	for _, f := range change {
		f(&g)
	}
	return api.Fleet{Name: "shop", Groups: []api.FleetGroup{g}}
}

func of(template string) func(*api.FleetGroup) {
	return func(g *api.FleetGroup) { g.Template = template }
}

func (x *tester) plan(f api.Fleet) (p api.FleetPlan) {
	x.Helper()
	if _, e := x.call("POST", "/v1/fleets/plan", api.FleetRequest{Fleet: f}, &p); e != nil {
		x.Fatal(e)
	}
	return p
}

func (x *tester) apply(f api.Fleet) (s api.FleetState, list []api.Event, e *api.Error) {
	x.Helper()
	list, e = x.stream("POST", "/v1/fleets/apply", api.FleetRequest{Fleet: f}, &s)
	return s, list, e
}

func (x *tester) mustApply(f api.Fleet) api.FleetState {
	x.Helper()
	s, _, e := x.apply(f)
	if e != nil {
		x.Fatal(e)
	}
	if s.State != api.FleetApplied || s.Healthy != s.Wanted || len(s.Machines) != s.Wanted {
		x.Fatalf("fleet %+v", s)
	}
	if p := x.plan(f); len(p.Steps) > 0 || p.Kept != s.Wanted {
		x.Fatalf("still to be done: %+v", p)
	}
	return s
}

func (x *tester) fleet(name string) (s api.FleetState) {
	x.Helper()
	if _, e := x.call("GET", "/v1/fleets/"+name, nil, &s); e != nil {
		x.Fatal(e)
	}
	return s
}

func machineNames(list []api.Machine) string {
	var out []string
	for _, m := range list {
		out = append(out, m.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// TestFleet: a fleet from its first apply to its end.
func TestFleet(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	one, two := x.template("one"), x.template("two")
	secret := func(g *api.FleetGroup) {
		g.Password, g.UserData, g.Labels = "s3cret", []byte("#cloud-config\n"), map[string]string{"tier": "front"}
		g.Ports = []vm.Forward{{HostPort: 18080, GuestPort: 80}}
	}
	if p := x.plan(webFleet(3, secret)); len(p.Steps) != 9 || p.Hash == "" {
		t.Fatalf("%+v", p)
	}
	state := x.mustApply(webFleet(3, secret))
	if names := machineNames(state.Machines); names != "web-1 web-2 web-3" || state.Fleet.Groups[0].Digest != one.Digest {
		t.Errorf("%s, %+v", names, state.Fleet)
	}
	if g := state.Fleet.Groups[0]; g.Password != "" || g.UserData != nil {
		t.Errorf("secrets are shown: %+v", g)
	}
	b, err := os.ReadFile(x.home.Database() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	rec, err := x.d.store.Fleet(t.Context(), "shop")
	if err != nil || rec.Document.Groups[0].Password != "" || len(b) == 0 {
		t.Errorf("the password stays on record: %+v, %v", rec, err)
	}
	for i, m := range state.Machines {
		if m.Labels[fleet.LabelFleet] != "shop" || m.Labels[fleet.LabelGroup] != "web" || m.Labels["tier"] != "front" || m.State != api.Login || m.Digest != one.Digest || m.Template != "one" {
			t.Errorf("%s: %+v", m.Name, m)
		}
		if f := m.Spec.NICs[0].Forwards; !slices.ContainsFunc(f, func(f vm.Forward) bool { return f.HostPort == 18080+i }) {
			t.Errorf("%s: ports %+v", m.Name, f)
		}
	}
	ids := func(s api.FleetState) (out []string) {
		for _, m := range s.Machines {
			out = append(out, m.ID)
		}
		return out
	}
	// Labels and count replace nothing.
	other := func(g *api.FleetGroup) { g.Labels = map[string]string{"tier": "back"} }
	up := x.mustApply(webFleet(4, secret, other))
	if !slices.Equal(ids(up)[:3], ids(state)) || up.Machines[0].Labels["tier"] != "back" {
		t.Errorf("%v, then %v", ids(state), ids(up))
	}
	// The labels are on record.
	x.stop()
	x.start()
	if m := x.machine("web-1"); m.Labels["tier"] != "back" || m.Labels[fleet.LabelFleet] != "shop" {
		t.Errorf("labels after a restart: %v", m.Labels)
	}
	// Another template replaces all, one after the other.
	rolled := x.mustApply(webFleet(3, secret, other, of("two")))
	for i, m := range rolled.Machines {
		if m.Digest != two.Digest || slices.Contains(ids(up), m.ID) || m.Name != fmt.Sprintf("web-%d", i+1) {
			t.Errorf("%+v", m)
		}
	}
	if running, _ := driver.count(); running != 3 {
		t.Errorf("%d machines run", running)
	}
	var all []api.FleetState
	if _, e := x.call("GET", "/v1/fleets", nil, &all); e != nil || len(all) != 1 || all[0].Name != "shop" {
		t.Errorf("%+v, %v", all, e)
	}
	if _, e := x.stream("DELETE", "/v1/fleets/shop", nil, nil); e == nil || e.Code != api.CodeInUse || !strings.Contains(e.Message, "--force") {
		t.Errorf("remove a running fleet: %v", e)
	}
	x.must(x.stream("DELETE", "/v1/fleets/shop?force=1", nil, nil))
	if running, _ := driver.count(); running != 0 {
		t.Errorf("%d machines run", running)
	}
	if code, _ := x.call("GET", "/v1/fleets/shop", nil, nil); code != http.StatusNotFound {
		t.Errorf("status %d", code)
	}
	if entries, err := os.ReadDir(x.home.Machines()); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestFleetMovedTag: a name that stands for another template is a new template.
func TestFleetMovedTag(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	x.template("one")
	two := x.template("two")
	x.mustApply(webFleet(2))
	if _, err := x.d.store.Tag(t.Context(), two.Digest, "one", true); err != nil {
		t.Fatal(err)
	}
	p := x.plan(webFleet(2))
	if len(p.Steps) == 0 || !strings.Contains(p.Steps[3].Why, "its template one is now "+two.Digest[:12]) {
		t.Fatalf("%+v", p.Steps)
	}
	state := x.mustApply(webFleet(2))
	if state.Machines[0].Digest != two.Digest {
		t.Errorf("%+v", state.Machines[0])
	}
}

// TestFleetRefusals: what is wrong is said before anything is made.
func TestFleetRefusals(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	x.template("one")
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "one", Names: []string{"web-2"}}, nil))
	with := func(f func(*api.FleetGroup)) api.Fleet { return webFleet(3, f) }
	for name, c := range map[string]struct {
		f          api.Fleet
		code, want string
	}{
		"no name":      {api.Fleet{}, api.CodeInvalid, "a fleet needs a name"},
		"template":     {with(of("onw")), api.CodeNotFound, `group web: there is no template "onw"; did you mean one?`},
		"taken":        {webFleet(3), api.CodeExists, "web-2 (of no fleet): remove it, or give the group other names"},
		"count":        {webFleet(-1), api.CodeInvalid, "fleet shop: group web: count: -1 machines"},
		"disk":         {with(func(g *api.FleetGroup) { g.DiskSize = 512 }), api.CodeInvalid, "fleet shop: group web: a disk of 512 bytes is smaller than its template"},
		"key":          {with(func(g *api.FleetGroup) { g.SSHKeys = []string{"x"} }), api.CodeInvalid, "not an ssh public key"},
		"user-data":    {with(func(g *api.FleetGroup) { g.UserData, g.UserDataTemplate = []byte("{{.Nmae}}"), true }), api.CodeInvalid, "Nmae"},
		"machine":      {with(func(g *api.FleetGroup) { g.Memory = 1 }), api.CodeInvalid, "memory"},
		"label":        {with(func(g *api.FleetGroup) { g.Labels = map[string]string{"a b": "x"} }), api.CodeInvalid, "label"},
		"health":       {with(func(g *api.FleetGroup) { g.Health = api.Health{Check: "http", Port: 80} }), api.CodeInvalid, "not forwarded"},
		"warm":         {with(func(g *api.FleetGroup) { g.Warm, g.Name = api.WarmMust, "db" }), api.CodeInvalid, "fleet shop: group db: machines of template one cannot be started warm"},
		"another plan": {api.Fleet{Name: "shop"}, api.CodeInvalid, "look at the plan again"},
	} {
		t.Run(name, func(t *testing.T) {
			req := api.FleetRequest{Fleet: c.f}
			if name == "another plan" {
				req.Hash = "feed"
			}
			for _, what := range []string{"plan", "apply"} {
				if _, e := x.call("POST", "/v1/fleets/"+what, req, nil); e == nil || e.Code != c.code || !strings.Contains(e.Message, c.want) {
					t.Errorf("%s: %+v, want %s %s", what, e, c.code, c.want)
				}
			}
		})
	}
	mine := api.CloneRequest{Template: "one", Names: []string{"mine"}}
	mine.Labels = map[string]string{fleet.LabelFleet: "shop"}
	if _, e := x.stream("POST", "/v1/clones", mine, nil); e == nil || !strings.Contains(e.Message, "fleet") {
		t.Errorf("a machine that says it is of a fleet: %v", e)
	}
	var all []api.FleetState
	if _, e := x.call("GET", "/v1/fleets", nil, &all); e != nil || len(all) != 0 {
		t.Errorf("left: %+v, %v", all, e)
	}
	for _, path := range []string{"/v1/fleets/none", "/v1/fleets/none/wait"} {
		if code, _ := x.call("GET", path, nil, nil); code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, code)
		}
	}
	if code, _ := x.call("DELETE", "/v1/fleets/none", nil, nil); code != http.StatusNotFound {
		t.Errorf("delete: status %d", code)
	}
}

// TestFleetFails: a replacement that does not get to its login prompt stops the
// rollout; the old ones stay, and why is told.
func TestFleetFails(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	x.template("one")
	bad := x.template("bad")
	driver.script = func(m *fakeMachine) {
		if strings.Contains(m.backing(), bad.Digest) {
			m.say("Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n")
			return
		}
		bootToLogin(m)
	}
	before := x.mustApply(webFleet(2))
	_, list, e := x.apply(webFleet(2, of("bad")))
	if e == nil || e.Code != api.CodeBoot || e.Problem == nil || !strings.Contains(e.Message, "await web-surge-1: ") || !strings.Contains(e.Message, "`lamina logs web-surge-1`") {
		t.Fatalf("%+v", e)
	}
	if len(list) < 4 {
		t.Errorf("events: %+v", list)
	}
	state := x.fleet("shop")
	if state.State != api.FleetFailed || state.Problem != e.Message || state.Healthy != 2 || machineNames(state.Machines) != "web-1 web-2 web-surge-1" {
		t.Errorf("%+v", state)
	}
	for i, m := range before.Machines {
		if now := state.Machines[i]; now.ID != m.ID || now.State != api.Login {
			t.Errorf("%s: %+v", m.Name, now)
		}
	}
	if _, we := x.stream("GET", "/v1/fleets/shop/wait", nil, nil); we == nil || we.Message != e.Message {
		t.Errorf("wait: %v", we)
	}
	x.mustApply(webFleet(2)) // takes the surge machine away
}

// backing is what the machine's disk lies over.
func (m *fakeMachine) backing() string {
	b, err := os.ReadFile(m.spec.Disks[0].Path)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestFleetHealth: a check over a forwarded port.
func TestFleetHealth(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/up" {
			http.NotFound(w, r)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	x := serve(t, Options{Driver: &fakeDriver{script: bootAndWait}})
	x.template("one")
	port := l.Addr().(*net.TCPAddr).Port
	check := func(path string, timeout time.Duration) api.Fleet {
		f := webFleet(1, func(g *api.FleetGroup) {
			g.Ports = []vm.Forward{{HostPort: port, GuestPort: 80}}
			g.Health = api.Health{Check: "http", Port: 80, Path: path, Interval: 10 * time.Millisecond, Timeout: timeout}
		})
		return f
	}
	x.mustApply(check("/up", time.Minute))
	_, _, e := x.apply(check("/down", 300*time.Millisecond))
	if e == nil || !strings.Contains(e.Message, "await web-1: it is not healthy (http) 300ms after its start: its port 80 answers /down with 404") {
		t.Errorf("%v", e)
	}
}

// TestFleetGoesOn: an apply goes on without its client, one at a time, is waited
// for, and is broken off by the fleet's removal.
func TestFleetGoesOn(t *testing.T) {
	release := make(chan struct{})
	driver := &fakeDriver{script: func(m *fakeMachine) {
		<-release
		bootToLogin(m)
	}}
	x := serve(t, Options{Driver: driver})
	x.template("one")
	ctx, leave := context.WithCancel(t.Context())
	res := x.send(ctx, "POST", "/v1/fleets/apply", api.FleetRequest{Fleet: webFleet(2)})
	x.untilRunning(driver, 2)
	leave()
	_ = res.Body.Close()
	if _, e := x.call("POST", "/v1/fleets/apply", api.FleetRequest{Fleet: webFleet(3)}, nil); e == nil || e.Code != api.CodeInUse || !strings.Contains(e.Message, "lamina fleet wait shop") {
		t.Errorf("a second apply: %v", e)
	}
	if s := x.fleet("shop"); s.State != api.FleetApplying || s.Healthy != 0 || s.Wanted != 2 {
		t.Errorf("%+v", s)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		close(release)
	}()
	var state api.FleetState
	x.must(x.stream("GET", "/v1/fleets/shop/wait", nil, &state))
	if state.State != api.FleetApplied || state.Healthy != 2 {
		t.Errorf("%+v", state)
	}
	// Once more, over nothing to do.
	x.must(x.stream("GET", "/v1/fleets/shop/wait", nil, &state))

	release = make(chan struct{})
	defer close(release)
	done := make(chan *api.Error, 1)
	go func() {
		_, _, e := x.apply(webFleet(4))
		done <- e
	}()
	x.untilRunning(driver, 4)
	if _, e := x.stream("DELETE", "/v1/fleets/shop", nil, nil); e == nil || e.Code != api.CodeInUse {
		t.Errorf("remove what is being applied: %v", e)
	}
	x.must(x.stream("DELETE", "/v1/fleets/shop?force=1", nil, nil))
	if e := <-done; e == nil || !strings.Contains(e.Message, "is being removed") {
		t.Errorf("the apply: %v", e)
	}
	if running, _ := driver.count(); running != 0 {
		t.Errorf("%d machines run", running)
	}
}

func (x *tester) untilRunning(d *fakeDriver, n int) {
	x.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if running, _ := d.count(); running >= n {
			return
		}
		if time.Now().After(end) {
			x.Fatalf("%d machines do not run", n)
		}
	}
}

// TestFleetResumes: what a daemon leaves, the next one goes on with, over the
// templates that it began with.
func TestFleetResumes(t *testing.T) {
	release := make(chan struct{})
	driver := &fakeDriver{script: func(m *fakeMachine) {
		<-release
		bootToLogin(m)
	}}
	x := serve(t, Options{Driver: driver})
	one, two := x.template("one"), x.template("two")
	ctx, leave := context.WithCancel(t.Context())
	res := x.send(ctx, "POST", "/v1/fleets/apply", api.FleetRequest{Fleet: webFleet(3)})
	x.untilRunning(driver, 3)
	leave()
	_ = res.Body.Close()
	if _, err := x.d.store.Tag(t.Context(), two.Digest, "one", true); err != nil {
		t.Fatal(err)
	}
	x.stop()
	if err := func() error { // as it was when the daemon ended
		x.start()
		defer x.stop()
		rec, err := x.d.store.Fleet(t.Context(), "shop")
		if err == nil && rec.State != api.FleetApplying {
			err = fmt.Errorf("state %s", rec.State)
		}
		return err
	}(); err != nil {
		t.Fatal(err)
	}
	close(release)
	x.start()
	var state api.FleetState
	x.must(x.stream("GET", "/v1/fleets/shop/wait", nil, &state))
	if state.State != api.FleetApplied || state.Healthy != 3 || state.Machines[0].Digest != one.Digest {
		t.Errorf("%+v", state)
	}
	if _, starts := driver.count(); starts != 3 {
		t.Errorf("%d starts", starts)
	}
}

// TestFleetRemovalOnRecord: that a fleet is being removed is on record before what is under
// way with it has ended, and it goes also when who asked for that has gone.
func TestFleetRemovalOnRecord(t *testing.T) {
	driver := &fakeDriver{hold: make(chan struct{})}
	x := serve(t, Options{Driver: driver})
	x.template("one")
	applied := make(chan *api.Error, 1)
	go func() {
		_, _, e := x.apply(webFleet(2))
		applied <- e
	}()
	x.until("a machine is being started", func() bool { return driver.atOnce.Load() > 0 })
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "DELETE", "http://laminad/v1/fleets/shop?force=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		if res, err := x.client.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	x.until("the removal is on record", func() bool {
		rec, err := x.d.store.Fleet(t.Context(), "shop")
		return err == nil && rec.State == api.FleetRemoving
	})
	if driver.atOnce.Load() == 0 {
		t.Error("the start was over: nothing is proved")
	}
	leave()
	<-left
	close(driver.hold)
	if e := <-applied; e == nil {
		t.Error("the apply succeeded")
	}
	x.until("the fleet is gone", func() bool {
		code, _ := x.call("GET", "/v1/fleets/shop", nil, nil)
		running, _ := driver.count()
		return code == http.StatusNotFound && running == 0 && len(x.d.list()) == 0
	})
}

// TestPruneOfFleets: what a fleet is made of stays, also when its name has moved on and no
// machine needs it just now.
func TestPruneOfFleets(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	one, two, three := x.template("one"), x.template("two"), x.template("three")
	x.mustApply(webFleet(1))
	for _, m := range x.fleet("shop").Machines {
		x.remove(m.Name)
	}
	if _, err := x.d.store.Tag(t.Context(), two.Digest, "one", true); err != nil {
		t.Fatal(err)
	}
	var res api.PruneResult
	if _, e := x.call("POST", "/v1/prune", api.PruneRequest{Templates: true}, &res); e != nil {
		t.Fatal(e)
	}
	for _, k := range []struct {
		t    api.Template
		kept bool
	}{{one, true}, {two, true}, {three, false}} {
		if code, _ := x.call("GET", "/v1/templates/"+k.t.Digest, nil, nil); (code == http.StatusOK) != k.kept {
			t.Errorf("template %s: status %d; pruned %+v", k.t.Name, code, res.Items)
		}
	}
}
