package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// The daemon of the crash test is this test binary in another process, whose
// machines are processes that outlive it.
const envFleetDaemon = "LAMINA_DAEMON_TEST_FLEET" // the home

// procDriver runs machines that are processes which sleep, and hold a lock on a file
// beside their disk as QEMU does on the disk.
type procDriver struct{}

const (
	procLock = "in-use.lock"
	procTwo  = "two.log" // somebody wanted to start a second one
)

func (procDriver) Start(_ context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	lock, err := os.OpenFile(filepath.Join(dir, procLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }() // the process has its own
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = os.WriteFile(filepath.Join(dir, procTwo), nil, 0o600)
		return nil, fmt.Errorf("two processes on one disk: %w", err)
	}
	text := "[    0.000000] Linux version 6.1.0\r\n\r\nguest login: "
	if err := os.WriteFile(filepath.Join(dir, home.SerialLogFile), []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("sleep", "300")
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }()
	pid := filepath.Join(dir, home.PIDFile)
	if err := os.WriteFile(pid+".new", []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return nil, err
	}
	return &procMachine{dir, cmd.Process.Pid}, os.Rename(pid+".new", pid)
}

func (procDriver) Adopt(_ context.Context, dir string) (vm.Machine, error) {
	m := &procMachine{dir: dir}
	// One that was killed between the process and its pid file is found by its lock,
	// as QEMU is by its folder.
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !m.runs() {
			return nil, vm.ErrNotRunning
		}
		if b, err := os.ReadFile(filepath.Join(dir, home.PIDFile)); err == nil {
			if m.pid, err = strconv.Atoi(string(b)); err == nil && sleeps(m.pid) {
				return m, nil
			}
		}
		m.pid = lockOwner(dir)
		if m.pid != 0 {
			return m, nil
		}
	}
	return nil, errors.New("the process is not found")
}

type procMachine struct {
	dir string
	pid int
}

// runs says whether a process holds the lock.
func (m *procMachine) runs() bool {
	lock, err := os.Open(filepath.Join(m.dir, procLock))
	if err != nil {
		return false
	}
	defer func() { _ = lock.Close() }()
	return unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

func sleeps(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasPrefix(string(b), "sleep\x00")
}

// lockOwner finds the process that holds the lock of a folder open.
func lockOwner(dir string) int {
	procs, _ := filepath.Glob("/proc/[0-9]*/fd/3")
	for _, fd := range procs {
		if to, err := os.Readlink(fd); err == nil && to == filepath.Join(dir, procLock) {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
			if sleeps(pid) {
				return pid
			}
		}
	}
	return 0
}

func (m *procMachine) Info() vm.RunInfo {
	return vm.RunInfo{PID: m.pid, StartedAt: time.Now(), Accel: vm.AccelTCG, QEMU: "none"}
}
func (m *procMachine) State(context.Context) (vm.State, error)      { return vm.StateRunning, nil }
func (m *procMachine) SerialSocket() string                         { return filepath.Join(m.dir, home.SerialSock) }
func (m *procMachine) SerialLog() string                            { return filepath.Join(m.dir, home.SerialLogFile) }
func (m *procMachine) Release() error                               { return nil }
func (m *procMachine) ScreenPNG(context.Context) ([]byte, error)    { return nil, errFake }
func (m *procMachine) ScreenText(context.Context) ([]string, error) { return nil, nil }
func (m *procMachine) Shutdown(ctx context.Context) error           { return m.Kill(ctx) }
func (m *procMachine) Wait(ctx context.Context) (vm.Exit, error) {
	for m.runs() {
		select {
		case <-ctx.Done():
			return vm.Exit{}, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	_ = os.Remove(filepath.Join(m.dir, home.PIDFile))
	return vm.Exit{State: vm.StateStopped, Cause: vm.CauseKilled, Reason: "killed"}, nil
}

func (m *procMachine) Kill(context.Context) error {
	if err := syscall.Kill(m.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(envFleetDaemon); dir != "" {
		d, err := New(context.Background(), Options{Home: home.At(dir), Driver: procDriver{}, Images: fakeImages{}, Fetcher: fakeFetcher{}})
		if err == nil {
			err = d.Serve(context.Background())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// daemonProcess is a daemon that can be killed, and its client.
type daemonProcess struct {
	*tester
	cmd *exec.Cmd
}

func (p *daemonProcess) begin() {
	p.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), envFleetDaemon+"="+p.home.Data)
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		p.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		// The one before may have left its socket to a process that it was just about
		// to start, for some moments.
		res, err := p.client.Get("http://laminad/v1/version")
		if err == nil {
			var v api.Version
			err = json.NewDecoder(res.Body).Decode(&v)
			_ = res.Body.Close()
			if err == nil && v.PID == p.cmd.Process.Pid {
				return
			}
		}
		if time.Now().After(end) {
			p.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

func (p *daemonProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// TestFleetKilled kills the daemon at random instants of applies and removals. The
// next daemon goes on each time; no machine is lost, left over, or started twice
// on one disk. LAMINA_FLEET_KILLS is how often, 12 without.
func TestFleetKilled(t *testing.T) {
	kills := 12
	if n, err := strconv.Atoi(os.Getenv("LAMINA_FLEET_KILLS")); err == nil {
		kills = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	// The client's half of the other tests, over a daemon of another process.
	x := serve(t, Options{Driver: &fakeDriver{}})
	x.stop()
	p := &daemonProcess{tester: x}
	p.begin()
	t.Cleanup(func() {
		p.kill()
		for _, dir := range p.folders() {
			if pid := lockOwner(dir); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	templates := map[string]string{"one": p.template("one").Digest, "two": p.template("two").Digest}
	resumed := 0
	for i := range kills {
		count := 1 + random.IntN(5)
		f := webFleet(count, func(g *api.FleetGroup) {
			g.Template = []string{"one", "two"}[random.IntN(2)]
			g.Rollout = api.Rollout{Surge: random.IntN(3), MaxUnavailable: random.IntN(3)}
			g.CPUs = 1 + random.IntN(2)
		})
		remove := i%5 == 4
		ctx, cancel := context.WithCancel(t.Context())
		var asked sync.WaitGroup
		asked.Go(func() { p.ask(ctx, f, remove) })
		time.Sleep(time.Duration(random.IntN(120)) * time.Millisecond)
		p.kill()
		cancel()
		asked.Wait()
		p.begin()
		// What it had begun it ends by itself.
		var state api.FleetState
		res := p.send(t.Context(), "GET", "/v1/fleets/shop/wait", nil)
		if res.StatusCode == 200 {
			_, e := p.read(res.Body, &state)
			if e != nil && e.Code != api.CodeNotFound {
				t.Fatalf("kill %d: %v", i, e)
			}
		}
		_ = res.Body.Close()
		if state.Name != "" {
			resumed++
		}
		if remove {
			continue
		}
		got := p.mustApply(f)
		for _, m := range got.Machines {
			if m.Digest != templates[f.Groups[0].Template] || m.State != api.Login || m.Labels[fleet.LabelGroup] != "web" {
				t.Errorf("kill %d: %+v", i, m)
			}
		}
		p.whole(got)
	}
	if _, e := p.stream("DELETE", "/v1/fleets/shop?force=1", nil, nil); e != nil && e.Code != api.CodeNotFound {
		t.Fatal(e)
	}
	p.whole(api.FleetState{})
	if resumed == 0 {
		t.Error("no kill came after the beginning of an apply")
	}
}

// ask applies or removes the fleet; the answer may break off.
func (p *daemonProcess) ask(ctx context.Context, f api.Fleet, remove bool) {
	method, path := "POST", "/v1/fleets/apply"
	if remove {
		method, path = "DELETE", "/v1/fleets/shop?force=1"
	}
	body, err := json.Marshal(api.FleetRequest{Fleet: f})
	if err != nil {
		p.Error(err)
		return
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://laminad"+path, bytes.NewReader(body))
	if err != nil {
		p.Error(err)
		return
	}
	if res, err := p.client.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, res.Body) // it breaks off
		_ = res.Body.Close()
	}
}

// folders are the folders of the machines.
func (p *daemonProcess) folders() []string {
	list, err := filepath.Glob(filepath.Join(p.home.Machines(), "*"))
	if err != nil {
		p.Fatal(err)
	}
	return list
}

// whole says that there is what a fleet has, and nothing else: a folder and one
// process for each machine, and both templates.
func (p *daemonProcess) whole(f api.FleetState) {
	p.Helper()
	list := p.folders()
	if len(list) != len(f.Machines) {
		p.Fatalf("%d machines, and the folders %v", len(f.Machines), list)
	}
	for _, dir := range list {
		if _, err := os.Stat(filepath.Join(dir, procTwo)); err == nil {
			p.Errorf("%s: a machine was started twice", dir)
		}
		if m := (&procMachine{dir: dir}); !m.runs() {
			p.Errorf("%s: its machine does not run", dir)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/fd/3")
	n := 0
	for _, fd := range procs {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, p.home.Machines()) {
			n++
		}
	}
	if n != len(f.Machines) {
		p.Errorf("%d processes for %d machines", n, len(f.Machines))
	}
	var templates []api.Template
	if _, e := p.call("GET", "/v1/templates", nil, &templates); e != nil || len(templates) != 2 {
		p.Errorf("templates: %v, %v", templates, e)
	}
}
