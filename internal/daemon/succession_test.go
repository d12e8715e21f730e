package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
)

// TestOneDaemonForTheData: the folder of the sockets is another one with and
// without XDG_RUNTIME_DIR, and a user's is emptied when he logs out. Whatever
// becomes of it, the data has one daemon.
func TestOneDaemonForTheData(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	other := x.opts
	other.Home.Run = filepath.Join(x.home.Data, "elsewhere")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	d, err := New(ctx, other)
	if err == nil {
		d.Close()
	}
	if !errors.Is(err, ErrRunning) {
		t.Fatalf("a second daemon on the same data: %v", err)
	}
	if !strings.Contains(err.Error(), other.Home.Socket()) {
		t.Errorf("%v", err)
	}

	if err := os.RemoveAll(x.home.Run); err != nil {
		t.Fatal(err)
	}
	x.ended() // since no client can reach it
	x.start()
	if _, e := x.call("GET", "/v1/version", nil, nil); e != nil {
		t.Error(e)
	}
	// Another's socket in its place is left alone.
	if err := os.Remove(x.home.Socket()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", x.home.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	x.ended()
	if _, err := os.Lstat(x.home.Socket()); err != nil {
		t.Errorf("the socket of another one was removed: %v", err)
	}
}

// TestNextWaitsForLast: a daemon that ends gives the lock back a little after
// it has closed its socket. The next one, which a command starts at once, waits
// for that.
func TestNextWaitsForLast(t *testing.T) {
	h := shortHome(t)
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		t.Fatal(err)
	}
	last, err := takeLock(t.Context(), h.Lock(), func() bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = last.Close() })
	x := serve(t, Options{Home: h, Driver: &fakeDriver{}})
	if _, e := x.call("GET", "/v1/version", nil, nil); e != nil {
		t.Error(e)
	}
}

// TestTooLate: a request that comes when the daemon has made up its mind to end
// is cut off: answered, the client would believe in this daemon.
func TestTooLate(t *testing.T) {
	var i idle
	i.begin(time.Nanosecond)
	time.Sleep(time.Millisecond)
	if !i.enter() || i.over() {
		t.Fatal("over with a request under way")
	}
	i.leave()
	time.Sleep(time.Millisecond)
	if !i.over() || i.enter() {
		t.Fatal("a request enters when it is over")
	}
	x := serve(t, Options{Driver: &fakeDriver{}})
	handler := x.d.handler()
	x.d.stop(errStopping)
	defer func() {
		if got := recover(); got != http.ErrAbortHandler {
			t.Errorf("answered by an ending daemon (%v)", got)
		}
	}()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "/v1/version", nil)
	if err != nil {
		t.Fatal(err)
	}
	handler.ServeHTTP(&refusalRecorder{header: http.Header{}}, req)
}

// TestNameTakenAgain: the name of a machine is free before the removal of the
// machine has come to its end.
func TestNameTakenAgain(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{script: bootAndWait}})
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m", NoWait: true}, nil))
	old, err := x.d.find("m")
	if err != nil {
		t.Fatal(err)
	}
	rec := old.rec
	rec.ID = "0123456789ab"
	next := x.d.add(rec)
	x.d.forget(old)
	if got, err := x.d.find("m"); got != next {
		t.Errorf("the new machine is forgotten: %v", err)
	}
	x.d.forget(next)
	if _, err := x.d.find("m"); err == nil {
		t.Error("not forgotten")
	}
	x.d.mu.Lock()
	x.d.machines["m"] = old
	x.d.mu.Unlock()
}

// TestRecordsInOrder: what is on the disk of a machine's last run is what was
// changed last, however many change it.
func TestRecordsInOrder(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{script: bootAndWait}})
	x.must(x.stream("POST", "/v1/machines", api.RunRequest{Image: x.image, Name: "m", NoWait: true}, nil))
	m, err := x.d.find("m")
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				if err := m.setLast(func(l *store.Last) { l.LoginIn++ }); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		rec, err := x.d.store.Machine(t.Context(), m.id)
		if err != nil || rec.Last.LoginIn != m.last().LoginIn {
			t.Fatalf("%d on disk, changed last to %d: %v", rec.Last.LoginIn, m.last().LoginIn, err)
		}
	}
}
