package virtinstall

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// slowDaemon has a machine that starts for as long as somebody waits for it, and
// stays when nobody does any more.
type slowDaemon struct {
	asked   chan struct{} // closed when the machine is there
	uuid    string        // of the machine, if not the one that was asked for
	removal *api.Error    // instead of a removal
	removed atomic.Int32
	spec    vm.Spec
}

func serveSlowly(t *testing.T, d *slowDaemon) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lmv") // short, for the socket's sake
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Setenv(home.Env, dir)
	at, err := home.Find()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at.Socket())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, api.Version{API: api.Level, PID: 1}) })
	mux.HandleFunc("POST /v1/define", func(w http.ResponseWriter, r *http.Request) {
		var req api.DefineRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		if d.spec = req.Spec; d.uuid != "" {
			d.spec.UUID = d.uuid
		}
		w.(http.Flusher).Flush()
		close(d.asked)
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /v1/machines/web", func(w http.ResponseWriter, _ *http.Request) {
		if d.removed.Load() > 0 {
			reply(w, 404, api.Error{Code: api.CodeNotFound, Message: "no machine web"})
			return
		}
		reply(w, 200, api.Machine{Name: "web", Spec: d.spec})
	})
	mux.HandleFunc("DELETE /v1/machines/web", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.FormValue("force") == "":
			reply(w, 409, api.Error{Code: api.CodeInUse, Message: "it runs"})
		case d.removal != nil:
			reply(w, 500, d.removal)
		default:
			d.removed.Add(1)
			w.WriteHeader(http.StatusNoContent)
		}
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// TestAborted: who breaks off while the machine starts is rid of it, or keeps the
// disks that it may be using.
func TestAborted(t *testing.T) {
	for name, c := range map[string]struct {
		daemon  *slowDaemon
		removed int32
		kept    string // what the error says, where something stays
	}{
		"taken back":  {daemon: &slowDaemon{}, removed: 1},
		"another's":   {daemon: &slowDaemon{uuid: "11111111-2222-4333-8444-555555555555"}},
		"it does not": {daemon: &slowDaemon{removal: &api.Error{Code: api.CodeFailed, Message: "no such luck"}}, kept: "no such luck"},
	} {
		t.Run(name, func(t *testing.T) {
			d := c.daemon
			d.asked = make(chan struct{})
			serveSlowly(t, d)
			doc, err := domxml.Parse([]byte(`<domain type="qemu"><name>web</name><uuid>01234567-89ab-4cde-8f01-23456789abcd</uuid>
				<memory>65536</memory><os><type arch="x86_64" machine="q35">hvm</type></os></domain>`))
			if err != nil {
				t.Fatal(err)
			}
			disk := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(disk, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			var domain, files, disks undo
			disks.add(removeFile(disk))
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-d.asked
				cancel()
			}()
			g := newGuest(&arguments{values: map[string][]string{}}, nil, Streams{Out: io.Discard, Err: io.Discard})
			_, err = newPlainHost().create(ctx, making{g: g, final: doc}, &domain)
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("broken off: %v", err)
			}
			err = takeBack(err, &domain, &files, &disks)
			var left *leftError
			if errors.As(err, &left) != (c.kept != "") || !strings.Contains(err.Error(), c.kept) {
				t.Errorf("says %v", err)
			}
			if _, err := os.Stat(disk); (err == nil) != (c.kept != "") {
				t.Errorf("the disk: %v", err)
			}
			if n := d.removed.Load(); n != c.removed {
				t.Errorf("%d removals", n)
			}
			if d.spec.HotplugPorts != hotplugPorts {
				t.Errorf("%d ports for drives", d.spec.HotplugPorts)
			}
		})
	}
}

// TestVNCAddress: where the server is, not where one usually is.
func TestVNCAddress(t *testing.T) {
	for want, m := range map[string]api.Machine{
		"0.0.0.0:5901": {Dir: "/m", Run: &vm.RunInfo{VNC: "0.0.0.0:5901"}},
		"/m/vnc.sock":  {Dir: "/m"},
	} {
		if got := vncAddress(m); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
