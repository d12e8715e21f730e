package daemon

import (
	"io"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
)

// cost is the time of processors that f takes, of this process with the daemon in it:
// what the host does beside does not count, nor how long f waits for that.
func cost(t *testing.T, f func()) time.Duration {
	t.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	f()
	return used() - before
}

// cheapest is the least cost of some.
func cheapest(t *testing.T, n int, f func()) time.Duration {
	t.Helper()
	best := time.Hour
	for range n {
		best = min(best, cost(t, f))
	}
	return best
}

// TestThousand: a thousand machines are defined, listed and taken over again in
// the time, and with the memory, that the design allows for them; ten run.
func TestThousand(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	first := x.run("one")
	var made []api.Machine
	within(t, "defining a thousand", cost(t, func() {
		x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: first.Digest, Names: []string{"m-{0001..1000}"}}, &made))
	}), 4*time.Second)
	if len(made) != 1000 {
		t.Fatalf("%d machines", len(made))
	}
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: first.Digest, Names: []string{"r-{1..10}"}, Start: true}, nil))
	list := func() {
		res := x.send(t.Context(), "GET", "/v1/machines", nil)
		n, err := io.Copy(io.Discard, res.Body)
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
		if err != nil || n < 100_000 {
			t.Errorf("a list of %d bytes, %v", n, err)
		}
	}
	within(t, "the list of a thousand", cheapest(t, 5, list), 100*time.Millisecond)
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapInuse > 80<<20 {
		t.Errorf("a thousand machines take %d MiB of heap", mem.HeapInuse>>20)
	}
	within(t, "the end", cost(t, x.stop), 3*time.Second)
	within(t, "the next start", cost(t, x.start), 3*time.Second)
	if m := x.machine("r-7"); m.State != api.Login {
		t.Errorf("r-7 is %s", m.State)
	}
	list()
}

// within fails where something took too long.
func within(t *testing.T, what string, took, most time.Duration) {
	t.Helper()
	t.Logf("%s: %s", what, took)
	if took > most*slowdown {
		t.Errorf("%s took %s, and at most %s is allowed", what, took, most)
	}
}
