package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
)

// The test binary stands in for QEMU where this variable is set, and does what
// it says; it starts a machine and waits to be killed where the other one is.
const (
	fakeEnv    = "LAMINA_TEST_FAKE_QEMU"
	starterEnv = "LAMINA_TEST_STARTER"
)

func TestMain(m *testing.M) {
	switch {
	case slices.Contains(os.Args, "-uuid") && os.Getenv(fakeEnv) != "":
		os.Exit(fakeQEMU(os.Getenv(fakeEnv), os.Args[1:]))
	case os.Getenv(starterEnv) != "":
		os.Exit(starter(os.Getenv(starterEnv)))
	}
	os.Exit(m.Run())
}

// fakeQEMU behaves as a QEMU does on hosts that tests cannot have.
func fakeQEMU(behaviour string, args []string) int {
	value := func(option string) string {
		if i := slices.Index(args, option); i >= 0 && i+1 < len(args) {
			return args[i+1]
		}
		return ""
	}
	kvm := value("-accel") == "kvm"
	die := func(words string) int {
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: warning: not important")
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: "+words)
		return 1
	}
	switch {
	case behaviour == "kvm-refused" && kvm:
		return die("failed to initialize kvm: Permission denied")
	case behaviour == "locked-once" && kvm:
		if _, err := os.Stat("was-locked"); err != nil {
			_ = os.WriteFile("was-locked", nil, 0o600)
			return die(`-blockdev {}: Failed to get "write" lock`)
		}
	case behaviour == "bad-option":
		return die("-device nonsense: not a device")
	case behaviour == "no-seccomp" && value("-sandbox") != "":
		return die("-sandbox " + value("-sandbox") + ": seccomp support is disabled")
	case behaviour == "port-race":
		if _, err := os.Stat("raced"); err != nil {
			_ = os.WriteFile("raced", []byte(value("-netdev")), 0o600)
			return die("-netdev " + value("-netdev") + ": Could not set up host forwarding rule 'tcp::1-:22'")
		}
	case behaviour == "port-always":
		return die("Could not set up host forwarding rule 'tcp::1-:22'")
	case behaviour == "deaf":
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(time.Minute)
		return 1
	}
	stop := time.Duration(-1)
	if kvm {
		switch behaviour {
		case "internal-soon":
			stop = 100 * time.Millisecond
		case "internal-late":
			stop = 600 * time.Millisecond
		}
	}
	why := "internal-error"
	if behaviour == "disk-full" {
		stop, why = 0, "io-error"
	}
	return fakeMonitor(stop, why)
}

// fakeMonitor serves QMP, one client after another, until quit. The guest
// stops with status why so long after it was let go, each time but the third.
func fakeMonitor(stop time.Duration, why string) int {
	l, err := net.Listen("unix", home.QMPSocket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	f := fakeGuest{status: "prelaunch", stop: stop, why: why}
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		if f.serve(conn) {
			return 0
		}
	}
}

type fakeGuest struct {
	status string
	stop   time.Duration
	why    string
	conts  int
	fails  <-chan time.Time
}

// serve says whether the client sent quit.
func (f *fakeGuest) serve(conn net.Conn) bool {
	commands := make(chan map[string]any)
	go func() {
		in := bufio.NewScanner(conn)
		for in.Scan() {
			var c map[string]any
			if json.Unmarshal(in.Bytes(), &c) == nil {
				commands <- c
			}
		}
		close(commands)
	}()
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(conn, format+"\r\n", args...) }
	say(`{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}, "package": ""}, "capabilities": []}}`)
	for {
		select {
		case <-f.fails:
			f.status = f.why
			say(`{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "STOP"}`)
		case c, open := <-commands:
			if !open {
				return false
			}
			answer := "{}"
			switch c["execute"] {
			case "cont":
				f.status = "running"
				f.conts++
				if f.stop >= 0 && f.conts != 3 {
					f.fails = time.After(f.stop)
				}
			case "query-status":
				answer = fmt.Sprintf(`{"status": %q}`, f.status)
			case "quit":
				say(`{"return": {}, "id": %q}`, c["id"])
				say(`{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}`)
				return true
			}
			say(`{"return": %s, "id": %q}`, answer, c["id"])
		}
	}
}

// fakeDriver returns a driver that runs the fake QEMU on a host with KVM.
func fakeDriver(t *testing.T, behaviour, cacheDir string) *Driver {
	t.Helper()
	t.Setenv(fakeEnv, behaviour)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := New(Options{Binary: self, CacheDir: cacheDir})
	d.kvmDevice = "/dev/null"
	d.kvmWatch, d.kvmGlance = 400*time.Millisecond, 10*time.Millisecond
	return d
}

// requireIn fails the test unless every part is in text.
func requireIn(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in %q", p, text)
		}
	}
}
