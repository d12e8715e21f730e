package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// fakeEnv makes this test binary a daemon instead: its value says which one.
const fakeEnv = "LAMINA_CLIENT_TEST_DAEMON"

func TestMain(m *testing.M) {
	if kind := os.Getenv(fakeEnv); kind != "" {
		os.Exit(fakeDaemon(kind))
	}
	os.Exit(m.Run())
}

// fakeDaemon listens like laminad. "old" speaks another level of the API,
// "broken" ends with a message.
func fakeDaemon(kind string) int {
	if kind == "broken" {
		_, _ = os.Stderr.WriteString("laminad: state.db: not a database\n")
		return 3
	}
	h, err := home.Find()
	if err != nil {
		return 1
	}
	f, err := os.OpenFile(filepath.Join(h.Data, "starts"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 1
	}
	_, _ = f.WriteString(strings.Join(os.Args[1:], " ") + "\n")
	_ = f.Close()
	time.Sleep(50 * time.Millisecond) // others come meanwhile
	l, err := net.Listen("unix", h.Socket())
	if err != nil {
		return 1
	}
	level := api.Level
	if kind == "old" {
		level--
	}
	end := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, api.Version{API: level, PID: os.Getpid(), Version: kind})
	})
	mux.HandleFunc("POST /v1/shutdown", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(204)
		close(end)
	})
	go func() { _ = http.Serve(l, mux) }()
	select {
	case <-end:
	case <-time.After(time.Minute):
	}
	_ = l.Close()
	return 0
}

// daemonHome returns a home, with a laminad of the given kind in PATH, which
// is ended after the test.
func daemonHome(t *testing.T, kind string) home.Home {
	t.Helper()
	h := tempHome(t)
	t.Setenv(home.Env, h.Data)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	script := "#!/bin/sh\n" + fakeEnv + "=" + kind + " exec '" + self + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "laminad"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = New(h).Shutdown(ctx)
	})
	return h
}

func starts(t *testing.T, h home.Home) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.Data, "starts"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

func TestConnectStartsOneDaemon(t *testing.T) {
	h := daemonHome(t, "current")
	var wg sync.WaitGroup
	pids := make([]int, 8)
	for i := range pids {
		wg.Go(func() {
			c, err := Connect(t.Context(), h)
			if err != nil {
				t.Error(err)
				return
			}
			v, err := c.Version(t.Context())
			if err != nil {
				t.Error(err)
			}
			pids[i] = v.PID
		})
	}
	wg.Wait()
	if got := starts(t, h); len(got) != 1 || got[0] != "--idle-exit 5m" {
		t.Errorf("starts: %q, want one", got)
	}
	for _, p := range pids {
		if p != pids[0] || p == 0 {
			t.Errorf("process ids %v differ", pids)
		}
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pids[0]) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if session := fields[3]; session != strconv.Itoa(pids[0]) {
		t.Errorf("the daemon's session is %s, want its own (%d)", session, pids[0])
	}
}

func TestConnectReplacesAnotherLevel(t *testing.T) {
	h := daemonHome(t, "old")
	if err := lockedStart(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	// PATH still has the old one: it is replaced once, then reported.
	_, err := Connect(t.Context(), h)
	if err == nil || !strings.Contains(err.Error(), "install both programs from one build") {
		t.Errorf("daemon of another level: %v", err)
	}
	if got := starts(t, h); len(got) != 2 {
		t.Errorf("%d starts, want the first and its replacement", len(got))
	}
}

func lockedStart(ctx context.Context, h home.Home) error {
	unlock, err := lockStart(ctx, h)
	if err != nil {
		return err
	}
	defer unlock()
	return New(h).start(ctx)
}

func TestConnectTellsWhyTheDaemonEnded(t *testing.T) {
	h := daemonHome(t, "broken")
	_, err := Connect(t.Context(), h)
	if err == nil {
		t.Fatal("connected to a daemon that ended")
	}
	for _, want := range []string{"exit status 3", "not a database", h.DaemonLog()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
}

func TestConnectWithoutLaminad(t *testing.T) {
	h := tempHome(t)
	t.Setenv("PATH", t.TempDir())
	_, err := Connect(t.Context(), h)
	if err == nil || !strings.Contains(err.Error(), "laminad is neither at /") || !strings.Contains(err.Error(), "nor in PATH") {
		t.Errorf("without laminad: %v", err)
	}
}

func TestConnectWaitsForTheLockOnlyAsLongAsAsked(t *testing.T) {
	h := daemonHome(t, "current")
	unlock, err := lockStart(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, h); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("locked: %v", err)
	}
}

// TestConnectToADyingDaemon: the socket of a daemon that is being killed takes
// a connection and ends it; that is no daemon, and a new one is started.
func TestConnectToADyingDaemon(t *testing.T) {
	h := daemonHome(t, "current")
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", h.Socket())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 2 {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
		_ = l.Close() // removes the socket
	}()
	c, err := Connect(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPermissionDenied(t *testing.T) {
	c := New(home.At("/srv/other"))
	err := c.dialError(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)})
	if !strings.Contains(err.Error(), "another user") || !strings.Contains(err.Error(), home.Env) {
		t.Errorf("permission: %v", err)
	}
	if errors.Is(err, ErrNoDaemon) {
		t.Error("a daemon of another user would be started again")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lockStart(t.Context(), home.At(file)); err == nil || !strings.Contains(err.Error(), home.Env) {
		t.Errorf("home is a file: %v", err)
	}
}
