package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// TestRestart: machines outlive the daemon, and the next one has them back in
// the state in which they are.
func TestRestart(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	login := x.run("login")
	x.run("dies")
	driver.script = bootAndWait
	var booting, stopped api.Machine
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "booting", NoWait: true}, &booting))
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "stopped", NoWait: true}, &stopped))
	x.must(x.stream("POST", "/v1/machines/stopped/stop", api.StopRequest{Force: true}, nil))
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: login.Template, Names: []string{"new"}}, nil))
	dies := driver.machine(t, x.machine("dies").Dir)

	x.stop()
	dies.end(vm.StateStopped, "behind our back")
	driver.machine(t, booting.Dir).say("[    1.0] still here\r\n")
	if running, _ := driver.count(); running != 2 {
		t.Errorf("%d machines run without a daemon, want 2", running)
	}
	x.start()
	for name, want := range map[string]api.MachineState{"login": api.Login, "booting": api.Starting, "dies": api.Stopped, "stopped": api.Stopped, "new": api.Defined} {
		if m := x.machine(name); m.State != want {
			t.Errorf("%s is %s, want %s", name, m.State, want)
		}
	}
	m := x.machine("login")
	if m.LoginIn != login.LoginIn || m.SSHPort != login.SSHPort || m.Run == nil {
		t.Errorf("%+v", m)
	}
	if m := x.machine("dies"); m.Exit == nil || !strings.Contains(m.Exit.Reason, "no daemon") {
		t.Errorf("%+v", m.Exit)
	}
	// The boot is followed from the log's first byte.
	driver.machine(t, booting.Dir).say("\r\n\r\nguest login: ")
	m = x.await("booting", api.Login)
	if since := time.Since(m.Run.StartedAt); m.LoginIn <= 0 || m.LoginIn > since {
		t.Errorf("login in %s, started %s ago", m.LoginIn, since)
	}
	events, e := x.stream("GET", "/v1/machines/booting/boot", nil, nil)
	if got := fmt.Sprint(stages(events)); e != nil || !strings.Contains(got, "kernel") {
		t.Errorf("%s, %v", got, e)
	}
	// A process is there although the state says otherwise: never a second.
	x.stop()
	if err := x.tamper(`UPDATE machines SET last = '{}' WHERE name = 'login'`); err != nil {
		t.Fatal(err)
	}
	x.start()
	if _, e := x.stream("POST", "/v1/machines/login/start", nil, nil); e == nil || e.Code != api.CodeInUse {
		t.Errorf("%v", e)
	}
	if running, starts := driver.count(); running != 2 || starts != 4 {
		t.Errorf("%d machines after %d starts", running, starts)
	}
}

// TestBrokenOffStart: a run that the daemon's end broke off between the making
// of the machine and its start is finished by the next daemon, once.
func TestBrokenOffStart(t *testing.T) {
	driver := &fakeDriver{slow: time.Minute}
	x := serve(t, Options{Driver: driver})
	res := x.send(t.Context(), "POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m"})
	defer func() { _ = res.Body.Close() }()
	x.await("m", api.Starting)
	x.stop() // in the middle of the start
	driver.slow = 0
	x.start()
	m := x.await("m", api.Login)

	// Killed before the start, and just after it was put on record.
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: m.Template, Names: []string{"before", "after", "plain"}}, nil))
	x.stop()
	for name, last := range map[string]string{"before": `{"wanted":true}`, "after": `{"wanted":true,"started":true,"running":true}`} {
		if err := x.tamper(`UPDATE machines SET last = json_patch(last, '` + last + `') WHERE name = '` + name + `'`); err != nil {
			t.Fatal(err)
		}
	}
	x.start()
	x.await("before", api.Login)
	x.await("after", api.Login)
	if m := x.machine("plain"); m.State != api.Defined {
		t.Errorf("%s", m.State)
	}

	// What was stopped since stays so.
	for _, name := range []string{"m", "before"} {
		x.must(x.stream("POST", "/v1/machines/"+name+"/stop", api.StopRequest{Force: true}, nil))
	}
	x.stop()
	x.start()
	time.Sleep(100 * time.Millisecond)
	for _, name := range []string{"m", "before"} {
		if m := x.machine(name); m.State != api.Stopped {
			t.Errorf("%s is %s", name, m.State)
		}
	}
}

// TestUnreachable: a machine that may run but cannot be reached is not started
// again, nor removed.
func TestUnreachable(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	m := x.run("m")
	x.stop()
	x.opts.Driver = unreachable{driver}
	x.start()
	if m := x.machine("m"); m.State != api.Running || m.Run != nil {
		t.Errorf("%s, %+v", m.State, m.Run)
	}
	if _, e := x.stream("POST", "/v1/machines/m/start", nil, nil); e == nil || !strings.Contains(e.Message, "may still run") {
		t.Errorf("start: %v", e)
	}
	if _, e := x.call("DELETE", "/v1/machines/m?force=1", nil, nil); e == nil || !strings.Contains(e.Message, "may still run") {
		t.Errorf("remove: %v", e)
	}
	if _, err := os.Stat(m.Dir); err != nil {
		t.Error(err)
	}
	x.stop()
	x.opts.Driver = driver
	x.start()
	if m := x.machine("m"); m.State != api.Login {
		t.Errorf("%+v", m)
	}
}

// TestUnreachableForNow: a process that could not be reached when the daemon came is
// taken over when it answers, and found to be gone when it is, without a request.
func TestUnreachableForNow(t *testing.T) {
	for _, ends := range []bool{false, true} {
		driver := &fakeDriver{}
		x := serve(t, Options{Driver: driver, Images: realImages{}})
		m := x.run("m")
		var answers atomic.Bool
		x.stop()
		x.opts.Driver = reachableLater{driver, &answers}
		x.start()
		if _, err := x.d.store.BeginFreeze(t.Context(), m.ID, nil, nil); err != nil {
			t.Fatal(err)
		}
		if m := x.machine("m"); m.State != api.Running || m.Run != nil {
			t.Errorf("%s, %+v", m.State, m.Run)
		}
		want := api.Login
		if ends {
			want = api.Stopped
			if err := driver.machine(t, m.Dir).Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		answers.Store(true)
		x.until("it is found", func() bool { return x.machine("m").State == want })
		x.until("the change of its disk is settled", func() bool {
			list, err := x.d.store.Unsettled(t.Context())
			return err == nil && len(list) == 0
		})
	}
}

// reachableLater cannot take over before answers is set.
type reachableLater struct {
	*fakeDriver
	answers *atomic.Bool
}

func (d reachableLater) Adopt(ctx context.Context, dir string) (vm.Machine, error) {
	if !d.answers.Load() {
		return nil, errFake
	}
	return d.fakeDriver.Adopt(ctx, dir)
}

// TestUnreachableKilled: by force it is stopped, and removed, without an answer.
func TestUnreachableKilled(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	stopped, removed := x.run("stopped"), x.run("removed")
	x.stop()
	x.opts.Driver = killable{unreachable{driver}}
	x.start()
	if _, e := x.stream("POST", "/v1/machines/stopped/stop", api.StopRequest{}, nil); e == nil || !strings.Contains(e.Message, "may still run") {
		t.Errorf("stop: %v", e)
	}
	x.must(x.stream("POST", "/v1/machines/stopped/stop", api.StopRequest{Force: true}, nil))
	if m := x.machine("stopped"); m.State != api.Stopped || m.Exit == nil || !strings.Contains(m.Exit.Reason, "killed") {
		t.Errorf("%+v", m)
	}
	if _, e := x.call("DELETE", "/v1/machines/removed?force=1", nil, nil); e != nil {
		t.Error(e)
	}
	if running, _ := driver.count(); running != 0 {
		t.Errorf("%d processes run", running)
	}
	if _, err := os.Stat(removed.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	x.must(x.stream("POST", "/v1/machines/stopped/start", nil, nil))
	if _, err := os.Stat(stopped.Dir); err != nil {
		t.Error(err)
	}
}

// TestUnreachableInstallKilled: an install phase that is ended by force without
// an answer is interrupted, and nothing is started after it.
func TestUnreachableInstallKilled(t *testing.T) {
	driver := &fakeDriver{script: installer}
	x := serve(t, Options{Driver: driver})
	if m := x.define(x.definition("web")); m.Definition.Phase != api.InstallRuns {
		t.Fatalf("%+v", m.Definition)
	}
	x.stop()
	x.opts.Driver = killable{unreachable{driver}}
	x.start()
	x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{Force: true}, nil))
	m, last := x.machine("web"), x.d.machines["web"].last()
	if m.State != api.Stopped || m.Definition.Phase != api.Interrupted || last.Wanted || m.Exit == nil || m.Exit.Cause != vm.CauseKilled {
		t.Errorf("%s, %+v, wanted %v, %+v", m.State, m.Definition, last.Wanted, m.Exit)
	}
	if running, starts := driver.count(); running != 0 || starts != 1 {
		t.Errorf("%d run, %d starts", running, starts)
	}
}

// killable ends machines that it cannot adopt.
type killable struct{ unreachable }

func (d killable) KillIn(_ context.Context, dir string) error {
	m, err := d.fakeDriver.Adopt(context.Background(), dir)
	if err == nil {
		err = m.Kill(context.Background())
	}
	return err
}

type unreachable struct{ *fakeDriver }

func (unreachable) Adopt(context.Context, string) (vm.Machine, error) { return nil, errFake }

// TestFailedBoot: a machine whose process fails by itself in the boot is started
// again, once; whoever follows the boot is told, and follows the second one.
func TestFailedBoot(t *testing.T) {
	for _, c := range []struct {
		failures, starts int
		exit             vm.Exit
		state            api.MachineState
	}{
		{1, 2, vm.Exit{State: vm.StateCrashed, Reason: "an assertion", Failed: true}, api.Login},
		{2, 2, vm.Exit{State: vm.StateCrashed, Reason: "an assertion", Failed: true}, api.Crashed},
		{1, 1, vm.Exit{State: vm.StateCrashed, Reason: "signal: killed"}, api.Crashed},
		{1, 1, vm.Exit{State: vm.StateStopped, Reason: "killed"}, api.Stopped},
	} {
		var begun atomic.Int32
		driver := &fakeDriver{script: func(m *fakeMachine) {
			if int(begun.Add(1)) > c.failures {
				bootToLogin(m)
				return
			}
			bootAndWait(m)
			m.exitWith(c.exit)
		}}
		x := serve(t, Options{Driver: driver})
		events, e := x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m"}, nil)
		if (e == nil) != (c.state == api.Login) {
			t.Errorf("%+v: %v", c, e)
		}
		if told := strings.Contains(fmt.Sprint(events), "is started again: an assertion"); told != (c.starts == 2) {
			t.Errorf("%+v: %v", c, events)
		}
		if e != nil && c.exit.State == vm.StateCrashed && !strings.Contains(e.Message, c.exit.Reason) {
			t.Errorf("%+v: %v", c, e)
		}
		if _, starts := driver.count(); starts != c.starts {
			t.Errorf("%+v: %d starts", c, starts)
		}
		if m := x.machine("m"); m.State != c.state {
			t.Errorf("%+v: %s", c, m.State)
		}
		x.stop()
	}
}

// TestStop: a guest that does not hear the power button loses its power, and
// force does not wait for those who are polite.
func TestStop(t *testing.T) {
	driver := &fakeDriver{deaf: true}
	x := serve(t, Options{Driver: driver})
	x.run("a")
	events := x.must(x.stream("POST", "/v1/machines/a/stop", api.StopRequest{Timeout: 50 * time.Millisecond}, nil))
	if !strings.Contains(fmt.Sprint(events), "powered off") {
		t.Errorf("%v", events)
	}
	x.run("b")
	polite := make(chan *api.Error, 1)
	go func() {
		_, e := x.stream("POST", "/v1/machines/b/stop", nil, nil)
		polite <- e
	}()
	time.Sleep(50 * time.Millisecond)
	x.must(x.stream("POST", "/v1/machines/b/stop", api.StopRequest{Force: true}, nil))
	if e := <-polite; e != nil {
		t.Error(e)
	}
}

// TestClientLeaves: what a client that goes takes with it, and what not.
func TestClientLeaves(t *testing.T) {
	driver := &fakeDriver{script: bootAndWait}
	block := make(chan struct{})
	x := serve(t, Options{Driver: driver, Fetcher: fakeFetcher{block: block}})

	// An import ends with its client, a run too as long as it imports.
	for _, path := range []string{"/v1/templates", "/v1/pull", "/v1/machines"} {
		body := map[string]any{"/v1/templates": api.ImportRequest{Source: x.image}, "/v1/pull": api.PullRequest{Ref: x.image},
			"/v1/machines": api.RunRequest{Image: x.image, Name: "m"}}[path]
		ctx, cancel := context.WithCancel(t.Context())
		res := x.send(ctx, "POST", path, body)
		cancel()
		_ = res.Body.Close()
	}
	for end := time.Now().Add(5 * time.Second); x.d.requests() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("requests go on without their clients")
		}
	}
	close(block)
	x.nothingLeft()

	// A machine that is made stays, is started, and its boot is followed.
	ctx, cancel := context.WithCancel(t.Context())
	res := x.send(ctx, "POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m"})
	x.await("m", api.Starting)
	cancel()
	_ = res.Body.Close()
	for m := x.machine("m"); m.Run == nil; m = x.machine("m") {
		time.Sleep(time.Millisecond)
	}
	driver.machine(t, x.machine("m").Dir).say("\r\nguest login: ")
	x.await("m", api.Login)
}

func (d *Daemon) requests() int {
	d.idle.mu.Lock()
	defer d.idle.mu.Unlock()
	return d.idle.active
}

// TestOneProcess sends requests for one machine from all sides: there is
// never a second process, nothing hangs, and what remains is told rightly.
func TestOneProcess(t *testing.T) {
	driver := &fakeDriver{slow: time.Millisecond}
	x := serve(t, Options{Driver: driver})
	x.run("m")
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for n := range 12 {
				switch (i + n) % 4 {
				case 0, 1:
					_, e := x.stream("POST", "/v1/machines/m/start", api.StartRequest{NoWait: n%2 == 0}, nil)
					if e != nil && strings.Contains(e.Message, "two processes") {
						t.Error(e)
					}
				case 2:
					_, _ = x.stream("POST", "/v1/machines/m/stop", api.StopRequest{Force: true}, nil)
				case 3:
					x.machine("m")
				}
			}
		})
	}
	group.Wait()
	running, _ := driver.count()
	if m := x.machine("m"); (m.Run != nil) != (running == 1) {
		t.Errorf("%s, while %d processes run", m.State, running)
	}
	for range 4 {
		group.Go(func() { _, _ = x.call("DELETE", "/v1/machines/m?force=1", nil, nil) })
	}
	group.Wait()
	if _, e := x.call("GET", "/v1/machines/m", nil, nil); e == nil || e.Code != api.CodeNotFound {
		t.Errorf("%v", e)
	}
	if running, _ := driver.count(); running != 0 {
		t.Errorf("%d processes run", running)
	}
	if entries, err := os.ReadDir(x.home.Machines()); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestLock(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	st, err := os.Stat(x.home.Socket())
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	_, err = New(t.Context(), x.opts)
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second daemon: %v", err)
	}
	if _, e := x.call("GET", "/v1/version", nil, nil); e != nil {
		t.Errorf("after that: %v", e)
	}
	if code, _ := x.call("POST", "/v1/shutdown", nil, nil); code != http.StatusNoContent {
		t.Errorf("status %d", code)
	}
	x.ended()
	if _, err := os.Stat(x.home.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	// A killed daemon leaves its socket.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: x.home.Socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	x.start()
	if _, e := x.call("GET", "/v1/version", nil, nil); e != nil {
		t.Error(e)
	}
	x.stop()
	if err := os.WriteFile(x.home.Socket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), x.opts); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a file in the socket's place: %v", err)
	}
	long := x.opts
	long.Home = home.At(x.home.Data + "/" + strings.Repeat("long", 30))
	if _, err := New(t.Context(), long); err == nil || !strings.Contains(err.Error(), "LAMINA_HOME") {
		t.Errorf("a long path: %v", err)
	}
}

// TestIdleExit: a daemon that was started on demand ends when there is nothing
// to do, and not while a machine runs or a client waits.
func TestIdleExit(t *testing.T) {
	driver := &fakeDriver{script: bootAndWait}
	x := serve(t, Options{Driver: driver, IdleExit: 150 * time.Millisecond})
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m", NoWait: true}, nil))
	time.Sleep(400 * time.Millisecond)
	select {
	case err := <-x.done:
		t.Fatalf("ended while a machine runs: %v", err)
	default:
	}
	x.must(x.stream("POST", "/v1/machines/m/stop", nil, nil))
	began := time.Now()
	x.ended()
	if took := time.Since(began); took < 100*time.Millisecond || took > 3*time.Second {
		t.Errorf("ended after %s", took)
	}
}

// TestEndTellsClients: clients that wait are told why they do not get more.
func TestEndTellsClients(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{script: bootAndWait}})
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m", NoWait: true}, nil))
	res := x.send(t.Context(), "GET", "/v1/machines/m/boot", nil)
	defer func() { _ = res.Body.Close() }()
	log := x.send(t.Context(), "GET", "/v1/machines/m/log?follow=1", nil)
	defer func() { _ = log.Body.Close() }()
	console := x.dialConsole("m")
	began := time.Now()
	x.stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the end took %s", took)
	}
	if _, e := x.read(res.Body, nil); e == nil || !strings.Contains(e.Message, "machines go on") {
		t.Errorf("%v", e)
	}
	if _, err := io.ReadAll(log.Body); err == nil {
		t.Error("the log looks whole")
	}
	if err := console.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, console); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the console stays open")
	}
}

// TestForeignPeer: who is neither the daemon's user nor root is refused.
func TestForeignPeer(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _ = a.Close() }()
	defer func() { _ = b.Close() }()
	if checkPeer(a) == nil {
		t.Error("a connection without credentials is accepted")
	}
	if os.Getuid() != 0 {
		t.Fatal("this test runs as root")
	}
	if err := allowed(1, 1000); err == nil || !strings.Contains(err.Error(), "user 1 ") {
		t.Errorf("%v", err)
	}
	for _, uid := range []int{0, 1000} {
		if err := allowed(uid, 1000); err != nil {
			t.Error(err)
		}
	}
	d := &Daemon{log: serve(t, Options{Driver: &fakeDriver{}}).d.log}
	rec := &refusalRecorder{header: http.Header{}}
	req, err := http.NewRequestWithContext(context.WithValue(t.Context(), peerKey{}, errFake), "GET", "/v1/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	d.handler().ServeHTTP(rec, req)
	if rec.status != http.StatusForbidden {
		t.Errorf("status %d", rec.status)
	}
}

type refusalRecorder struct {
	header http.Header
	status int
}

func (r *refusalRecorder) Header() http.Header         { return r.header }
func (r *refusalRecorder) Write(b []byte) (int, error) { return len(b), nil }
func (r *refusalRecorder) WriteHeader(s int)           { r.status = s }
