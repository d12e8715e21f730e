package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/home"
)

// tempHome returns a home whose socket's path is short enough, wherever the
// test's own folder lies.
func tempHome(t *testing.T) home.Home {
	t.Helper()
	dir, err := os.MkdirTemp("", "lamina-client-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return home.At(dir)
}

// serve runs a daemon made of handlers, by net/http, which is what the real
// one uses.
func serve(t *testing.T, h home.Home, mux http.Handler) *Client {
	t.Helper()
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", h.Socket())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return New(h)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func event(w http.ResponseWriter, e api.Event) {
	_ = json.NewEncoder(w).Encode(e)
	w.(http.Flusher).Flush()
}

func result(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func TestEveryRoute(t *testing.T) {
	h := tempHome(t)
	var seen []string
	var bodies []string
	mux := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen = append(seen, r.Method+" "+r.URL.RequestURI())
		bodies = append(bodies, string(b))
		switch {
		case r.URL.Path == "/v1/version":
			answer(w, 200, api.Version{API: api.Level, PID: 7})
		case r.Method == "DELETE" || r.URL.Path == "/v1/shutdown":
			w.WriteHeader(204)
		case strings.HasSuffix(r.URL.Path, "/tag"), strings.HasSuffix(r.URL.Path, "/prune"), strings.HasSuffix(r.URL.Path, "/space"):
			answer(w, 200, map[string]any{"name": "x", "freed": 1})
		case r.URL.Path == "/v1/lineage":
			answer(w, 200, []api.LineageNode{{ID: "x"}})
		case r.Method == "POST" || strings.HasSuffix(r.URL.Path, "/boot"):
			event(w, api.Event{Step: "step"})
			var v any = api.Machine{Name: "m"}
			if r.URL.Path == "/v1/clones" || r.URL.Path == "/v1/machines/web/clone" {
				v = []api.Machine{{Name: "m"}}
			}
			event(w, api.Event{Done: true, Result: result(v)})
		case strings.HasSuffix(r.URL.Path, "s") || strings.HasSuffix(r.URL.Path, "catalog"):
			answer(w, 200, []map[string]string{{"name": "x"}})
		case strings.HasSuffix(r.URL.Path, "/log"), strings.HasSuffix(r.URL.Path, "/screen"):
			_, _ = io.WriteString(w, "raw bytes")
		default:
			answer(w, 200, map[string]string{"name": "x"})
		}
	})
	c := serve(t, h, mux)
	ctx := t.Context()
	steps := 0
	on := func(api.Event) { steps++ }
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	v, err := c.Version(ctx)
	fail(err)
	if v.PID != 7 {
		t.Errorf("version %+v", v)
	}
	cat, err := c.Catalog(ctx)
	fail(err)
	_, err = c.Pull(ctx, api.PullRequest{Ref: "debian:12"}, on)
	fail(err)
	ts, err := c.Templates(ctx)
	fail(err)
	_, err = c.ImportTemplate(ctx, api.ImportRequest{Source: "/a.qcow2", Name: "web"}, on)
	fail(err)
	tm, err := c.Template(ctx, "debian:12/ä ?")
	fail(err)
	_, err = c.VerifyTemplate(ctx, "web", on)
	fail(err)
	fail(c.RemoveTemplate(ctx, "web"))
	ms, err := c.Machines(ctx)
	fail(err)
	if len(cat) != 1 || len(ts) != 1 || len(ms) != 1 || tm.Name != "x" {
		t.Errorf("lists: %v %v %v %v", cat, ts, ms, tm)
	}
	m, err := c.Run(ctx, api.RunRequest{Image: "/a.qcow2"}, on)
	fail(err)
	if m.Name != "m" {
		t.Errorf("run: %+v", m)
	}
	cl, err := c.Clone(ctx, api.CloneRequest{Template: "web", Names: []string{"w-{01..10}"}}, on)
	fail(err)
	if len(cl) != 1 {
		t.Errorf("clone: %+v", cl)
	}
	_, err = c.Machine(ctx, "web")
	fail(err)
	fail(c.Remove(ctx, "web", false))
	fail(c.Remove(ctx, "web", true))
	_, err = c.Start(ctx, "web", api.StartRequest{NoWait: true}, on)
	fail(err)
	_, err = c.Stop(ctx, "web", api.StopRequest{Force: true}, on)
	fail(err)
	fail(c.Boot(ctx, "web", on))
	log, err := c.Log(ctx, "web", true, 10)
	fail(err)
	text, err := io.ReadAll(log)
	fail(err)
	fail(log.Close())
	if string(text) != "raw bytes" {
		t.Errorf("log: %q", text)
	}
	all, err := c.Log(ctx, "web", false, -1)
	fail(err)
	fail(all.Close())
	png, err := c.Screen(ctx, "web", "png")
	fail(err)
	if string(png) != "raw bytes" {
		t.Errorf("screen: %q", png)
	}
	layers(ctx, t, c, on)
	fail(c.Shutdown(ctx))
	if steps != 14 {
		t.Errorf("%d events, want one of each of 14 streams", steps)
	}
	want := strings.Fields(`GET_/v1/version GET_/v1/catalog POST_/v1/pull GET_/v1/templates POST_/v1/templates
		GET_/v1/templates/debian:12%2F%C3%A4%20%3F POST_/v1/templates/web/verify DELETE_/v1/templates/web GET_/v1/machines POST_/v1/machines
		POST_/v1/clones GET_/v1/machines/web DELETE_/v1/machines/web DELETE_/v1/machines/web?force=1 POST_/v1/machines/web/start
		POST_/v1/machines/web/stop GET_/v1/machines/web/boot GET_/v1/machines/web/log?follow=1&tail=10 GET_/v1/machines/web/log
		GET_/v1/machines/web/screen?format=png GET_/v1/templates?all=1 POST_/v1/templates/a%2Fb/tag POST_/v1/templates/web/export
		POST_/v1/template-from GET_/v1/lineage POST_/v1/machines/web/clone POST_/v1/machines/web/commit POST_/v1/machines/web/flatten
		POST_/v1/machines/web/rebase POST_/v1/prune GET_/v1/space PUT_/v1/space POST_/v1/shutdown`)
	for i, w := range want {
		if w = strings.Replace(w, "_", " ", 1); i >= len(seen) || seen[i] != w {
			t.Fatalf("request %d: %q, want %q", i, seen[i:], w)
		}
	}
	if bodies[2] != `{"ref":"debian:12"}` {
		t.Errorf("body of pull: %s", bodies[2])
	}
}

// layers asks for all that has to do with layers and space.
func layers(ctx context.Context, t *testing.T, c *Client, on EventFunc) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	_, err := c.AllTemplates(ctx)
	fail(err)
	_, err = c.TagTemplate(ctx, "a/b", api.TagRequest{Name: "x"})
	fail(err)
	fail(c.ExportTemplate(ctx, "web", api.ExportRequest{Path: "/x"}, on))
	_, err = c.TemplateFrom(ctx, api.TemplateFromRequest{Machine: "web"}, on)
	fail(err)
	nodes, err := c.Lineage(ctx)
	fail(err)
	cl, err := c.CloneMachine(ctx, "web", api.CloneMachineRequest{Names: []string{"x"}}, on)
	fail(err)
	_, err = c.Commit(ctx, "web", api.CommitRequest{}, on)
	fail(err)
	_, err = c.Flatten(ctx, "web", on)
	fail(err)
	_, err = c.Rebase(ctx, "web", api.RebaseRequest{Template: "x"}, on)
	fail(err)
	pruned, err := c.Prune(ctx, api.PruneRequest{DryRun: true})
	fail(err)
	_, err = c.Space(ctx)
	fail(err)
	_, err = c.SetSpace(ctx, api.SpaceChange{})
	fail(err)
	if len(nodes) != 1 || len(cl) != 1 || pruned.Freed != 1 {
		t.Errorf("lineage %v, clones %v, pruned %+v", nodes, cl, pruned)
	}
}

func TestRefusals(t *testing.T) {
	h := tempHome(t)
	problem := &boot.Problem{Kind: "no-bootable-disk", Stage: boot.StageFirmware}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/machines/none", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 404, api.Errorf(api.CodeNotFound, "there is no machine %q", "none"))
	})
	mux.HandleFunc("GET /v1/machines/odd", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "odd", 500) })
	mux.HandleFunc("GET /v1/machines/mute", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("GET /v1/machines/garbage", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") })
	mux.HandleFunc("POST /v1/machines", func(w http.ResponseWriter, _ *http.Request) {
		event(w, api.Event{Done: true, Error: &api.Error{Code: api.CodeBoot, Message: "no", Problem: problem}})
	})
	mux.HandleFunc("POST /v1/clones", func(w http.ResponseWriter, _ *http.Request) {
		event(w, api.Event{Step: "overlay"})
		panic(http.ErrAbortHandler) // the daemon dies
	})
	c := serve(t, h, mux)
	for name, want := range map[string]api.Error{
		"none":     {Code: api.CodeNotFound, Message: `there is no machine "none"`},
		"odd":      {Code: api.CodeFailed, Message: "odd"},
		"mute":     {Code: api.CodeFailed, Message: "the daemon answered with HTTP status 503"},
		"no/route": {Code: api.CodeNotFound, Message: "404 page not found"},
	} {
		_, err := c.Machine(t.Context(), name)
		var e *api.Error
		if !errors.As(err, &e) || *e != want {
			t.Errorf("%s: %#v, want %+v", name, err, want)
		}
	}
	if _, err := c.Machine(t.Context(), "garbage"); err == nil || !strings.Contains(err.Error(), "/v1/machines/garbage") {
		t.Errorf("garbage: %v", err)
	}
	_, err := c.Run(t.Context(), api.RunRequest{}, nil)
	var e *api.Error
	if !errors.As(err, &e) || e.Problem == nil || e.Problem.Kind != problem.Kind {
		t.Errorf("run: %#v", err)
	}
	_, err = c.Clone(t.Context(), api.CloneRequest{}, nil)
	if err == nil || !strings.Contains(err.Error(), "ended in the middle") || !strings.Contains(err.Error(), h.DaemonLog()) {
		t.Errorf("daemon that dies: %v", err)
	}
}

func TestCancel(t *testing.T) {
	h := tempHome(t)
	gone := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/pull", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		event(w, api.Event{Step: "download"})
		<-r.Context().Done()
		close(gone)
	})
	c := serve(t, h, mux)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user said so")
	_, err := c.Pull(ctx, api.PullRequest{}, func(api.Event) { cancel(why) })
	if !errors.Is(err, why) {
		t.Errorf("cancelled pull: %v", err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the daemon did not learn that the client went")
	}
}

// TestLargeAnswer reads a body of many chunks with odd sizes.
func TestLargeAnswer(t *testing.T) {
	h := tempHome(t)
	var want bytes.Buffer
	for i := range 5000 {
		fmt.Fprintf(&want, "line %d %s\n", i, strings.Repeat("x", i%97))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/machines/web/log", func(w http.ResponseWriter, _ *http.Request) {
		for b, n := want.Bytes(), 1; len(b) > 0; n = n%7919 + 13 {
			k := min(n, len(b))
			_, _ = w.Write(b[:k])
			w.(http.Flusher).Flush()
			b = b[k:]
		}
	})
	c := serve(t, h, mux)
	r, err := c.Log(t.Context(), "web", false, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes came, %d were sent, or they differ", len(got), want.Len())
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestConsole(t *testing.T) {
	h := tempHome(t)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/machines/web/console", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "lamina-console" || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
			http.Error(w, "no upgrade", 400)
			return
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: lamina-console\r\n\r\nlogin: ")
		_ = buf.Flush()
		line, _ := buf.ReadString('\r')
		_, _ = conn.Write([]byte("you said " + line + "\x00\xff"))
		_ = conn.Close()
	})
	mux.HandleFunc("POST /v1/machines/off/console", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 409, api.Errorf(api.CodeInvalid, "machine off is not running"))
	})
	mux.HandleFunc("POST /v1/machines/plain/console", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) })
	c := serve(t, h, mux)
	con, err := c.Console(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := con.Write([]byte("root\r")); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(con)
	if err != nil || string(got) != "login: you said root\r\x00\xff" {
		t.Errorf("console: %q, %v", got, err)
	}
	_ = con.Close()
	var e *api.Error
	if _, err := c.Console(t.Context(), "off"); !errors.As(err, &e) {
		t.Errorf("console of a stopped machine: %v", err)
	}
	if _, err := c.Console(t.Context(), "plain"); err == nil || !strings.Contains(err.Error(), "200") {
		t.Errorf("console without upgrade: %v", err)
	}
}

// TestBadAnswers feeds what no HTTP server would say.
func TestBadAnswers(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":       "",
		"not http":      "SSH-2.0-OpenSSH\r\n",
		"no status":     "HTTP/1.1 two hundred\r\n\r\n",
		"short header":  "HTTP/1.1 200 OK\r\nContent-",
		"short body":    "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
		"length":        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
		"chunk size":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
		"chunk cut":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{",
		"no last chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
		"long line":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("0", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			h := tempHome(t)
			if err := os.MkdirAll(h.Run, 0o700); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", h.Socket())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.ReadAtLeast(conn, make([]byte, 4096), 10)
				_, _ = io.WriteString(conn, text)
				_ = conn.Close()
			}()
			if v, err := New(h).Version(t.Context()); err == nil {
				t.Errorf("version %+v from %.40q", v, text)
			}
		})
	}
}

func TestSocketErrors(t *testing.T) {
	h := tempHome(t)
	_, err := New(h).Version(t.Context())
	if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), h.Socket()) {
		t.Errorf("no socket: %v", err)
	}
	// A socket file that nobody listens on.
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", h.Socket())
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err = New(h).Version(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("refused: %v", err)
	}
	long := home.At(filepath.Join(h.Data, strings.Repeat("long", 30)))
	_, err = New(long).Version(t.Context())
	if err == nil || errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), "107") || !strings.Contains(err.Error(), home.Env) {
		t.Errorf("long path: %v", err)
	}
}
