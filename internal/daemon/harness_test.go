package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// tester is a daemon under test and its client.
type tester struct {
	testing.TB
	home   home.Home
	opts   Options
	d      *Daemon
	done   chan error
	log    *lockedBuffer
	client *http.Client
	image  string // a file to make templates of
}

// shortHome returns a home whose path leaves room for socket names.
func shortHome(t testing.TB) home.Home {
	dir, err := os.MkdirTemp("", "lmd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return home.At(dir)
}

// serve starts a daemon with the given driver and ends it with the test.
func serve(t testing.TB, o Options) *tester {
	t.Helper()
	x := &tester{TB: t, home: o.Home, opts: o, log: &lockedBuffer{}}
	if x.home.Data == "" {
		x.home = shortHome(t)
	}
	x.opts.Home = x.home
	switch x.opts.Images.(type) {
	case nil:
		x.opts.Images = fakeImages{}
	case realImages:
		x.opts.Images = nil
	}
	if x.opts.Fetcher == nil {
		x.opts.Fetcher = fakeFetcher{}
	}
	x.opts.Log = slog.New(slog.NewTextHandler(x.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	x.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", x.home.Socket())
		}}}
	x.image = filepath.Join(t.TempDir(), "guest.qcow2")
	if err := os.WriteFile(x.image, bytes.Repeat([]byte("image"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	x.start()
	t.Cleanup(func() {
		x.stop()
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", x.log.String())
		}
	})
	return x
}

func (x *tester) start() {
	x.Helper()
	d, err := New(x.Context(), x.opts)
	if err != nil {
		x.Fatal(err)
	}
	x.d, x.done = d, make(chan error, 1)
	go func() { x.done <- d.Serve(context.Background()) }()
}

// stop ends the daemon, not the machines.
func (x *tester) stop() {
	if x.d == nil {
		return
	}
	x.d.stop(errStopping)
	x.ended()
}

// ended waits for the end of the daemon.
func (x *tester) ended() {
	x.Helper()
	select {
	case err := <-x.done:
		if err != nil {
			x.Error(err)
		}
	case <-time.After(20 * time.Second):
		x.Fatal("the daemon does not end")
	}
	x.d = nil
}

// send makes a request.
func (x *tester) send(ctx context.Context, method, path string, body any) *http.Response {
	x.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		x.Fatal(err)
	}
	if raw, ok := body.(string); ok {
		b = []byte(raw)
	}
	if body == nil {
		b = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://laminad"+path, bytes.NewReader(b))
	if err != nil {
		x.Fatal(err)
	}
	res, err := x.client.Do(req)
	if err != nil {
		x.Fatal(err)
	}
	return res
}

// call makes a request whose answer is a value, and returns its status.
func (x *tester) call(method, path string, body, into any) (int, *api.Error) {
	x.Helper()
	res := x.send(x.Context(), method, path, body)
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 400 {
		var e api.Error
		if err := json.NewDecoder(res.Body).Decode(&e); err != nil || e.Message == "" || e.Code == "" {
			x.Fatalf("%s %s: status %d without a reason: %v", method, path, res.StatusCode, err)
		}
		return res.StatusCode, &e
	}
	if into != nil {
		if err := json.NewDecoder(res.Body).Decode(into); err != nil {
			x.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return res.StatusCode, nil
}

// read reads a stream of events to its end.
func (x *tester) read(r io.Reader, into any) (list []api.Event, failed *api.Error) {
	x.Helper()
	for dec := json.NewDecoder(r); ; {
		var e api.Event
		if err := dec.Decode(&e); err != nil {
			x.Fatalf("the stream ended without its last event: %v", err)
		}
		list = append(list, e)
		if !e.Done {
			continue
		}
		if e.Error == nil && into != nil {
			if err := json.Unmarshal(e.Result, into); err != nil {
				x.Fatal(err)
			}
		}
		return list, e.Error
	}
}

// stream makes a request that answers with events.
func (x *tester) stream(method, path string, body, into any) ([]api.Event, *api.Error) {
	x.Helper()
	res := x.send(x.Context(), method, path, body)
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 400 {
		var e api.Error
		if err := json.NewDecoder(res.Body).Decode(&e); err != nil {
			x.Fatal(err)
		}
		return nil, &e
	}
	return x.read(res.Body, into)
}

// must fails the test where an operation failed.
func (x *tester) must(list []api.Event, e *api.Error) []api.Event {
	x.Helper()
	if e != nil {
		x.Fatal(e)
	}
	return list
}

func (x *tester) machine(name string) (m api.Machine) {
	x.Helper()
	if _, e := x.call("GET", "/v1/machines/"+name, nil, &m); e != nil {
		x.Fatal(e)
	}
	return m
}

// await waits until a machine is in a state.
func (x *tester) await(name string, want api.MachineState) api.Machine {
	x.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var m api.Machine
		_, e := x.call("GET", "/v1/machines/"+name, nil, &m)
		if e == nil && m.State == want {
			return m
		}
		if time.Now().After(end) {
			x.Fatalf("machine %s is %q (%v), want %s", name, m.State, e, want)
		}
	}
}

// run makes and starts a machine and waits for its login.
func (x *tester) run(name string) (m api.Machine) {
	x.Helper()
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: name}, &m))
	return m
}

// nothingLeft fails the test unless the home is as if nothing had been made.
func (x *tester) nothingLeft() {
	x.Helper()
	for _, dir := range []string{x.home.Machines(), x.home.Templates()} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			x.Errorf("left behind in %s: %v, %v", dir, entries, err)
		}
	}
}

// dialConsole attaches to a machine's console.
func (x *tester) dialConsole(name string) net.Conn {
	x.Helper()
	c, err := net.Dial("unix", x.home.Socket())
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, "POST /v1/machines/"+name+"/console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: lamina-console\r\nContent-Length: 0\r\n\r\n")
	if err != nil {
		x.Fatal(err)
	}
	head := x.readUntil(c, "\r\n\r\n")
	if !strings.HasPrefix(head, "HTTP/1.1 101 ") {
		x.Fatalf("console: %q", head)
	}
	return c
}

// readUntil reads, byte by byte, until what came ends with want.
func (x *tester) readUntil(c net.Conn, want string) string {
	x.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		x.Fatal(err)
	}
	var got []byte
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte(want)); {
		if _, err := c.Read(b); err != nil {
			x.Fatalf("after %q: %v; want %q", got, err, want)
		}
		got = append(got, b[0])
	}
	return string(got)
}

// stages lists the boot stages that events tell of.
func stages(list []api.Event) (out []string) {
	for _, e := range list {
		if e.Boot != nil {
			out = append(out, e.Boot.Stage.String())
		}
	}
	return slices.Compact(out)
}

// lockedBuffer is a log for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
	at map[string]func() // see when
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for text, f := range l.at {
		if bytes.Contains(p, []byte(text)) {
			f()
		}
	}
	return l.b.Write(p)
}

// when has f called as a line with text is logged, before what logs it goes on.
func (l *lockedBuffer) when(text string, f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[string]func(){}
	}
	l.at[text] = f
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var errFake = errors.New("no such luck")
