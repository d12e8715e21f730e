package daemon

import (
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// fastest runs f some times and returns the shortest: what the host does
// beside is not what is measured.
func fastestOf(n int, f func()) time.Duration {
	best := time.Hour
	for range n {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	return best
}

// TestThousand: a thousand machines are defined, listed and taken over again in
// the time, and with the memory, that the design allows for them; ten run.
func TestThousand(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	first := x.run("one")
	begin := time.Now()
	var made []api.Machine
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: first.Digest, Names: []string{"m-{0001..1000}"}}, &made))
	within(t, "defining a thousand", time.Since(begin), 6*time.Second)
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
	within(t, "the list of a thousand", fastestOf(5, list), 60*time.Millisecond)
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapInuse > 80<<20 {
		t.Errorf("a thousand machines take %d MiB of heap", mem.HeapInuse>>20)
	}
	begin = time.Now()
	x.stop()
	within(t, "the end", time.Since(begin), 3*time.Second)
	begin = time.Now()
	x.start()
	within(t, "the next start", time.Since(begin), 3*time.Second)
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
