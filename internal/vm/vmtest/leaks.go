package vmtest

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Cycles is how often machines come and go in [NoLeaks], and Workers how many
// do so at once.
const (
	Cycles  = 100
	Workers = 4
)

// NoLeaks runs cycle Cycles times, numbered from 0, from Workers goroutines each
// of which has a number too; before that each worker runs it twice, so that what
// is made once is there. It fails the test if one of the counts, or this
// process's descriptors, children, goroutines or temporary files, has grown.
//
// It sets TMPDIR.
func NoLeaks(t *testing.T, counts map[string]func() int, cycle func(worker int)) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	all := map[string]func() int{
		"descriptors":     func() int { return Descriptors(t, os.Getpid()) },
		"child processes": func() int { return Processes(t, func(_, parent int) bool { return parent == os.Getpid() }) },
		"goroutines":      runtime.NumGoroutine,
		"temporary files": func() int { return Files(t, tmp) },
	}
	maps.Copy(all, counts)
	run := func(times int) {
		var wg sync.WaitGroup
		for w := range Workers {
			wg.Go(func() {
				for range times {
					cycle(w)
				}
			})
		}
		wg.Wait()
	}
	run(2) // the second start finds what the first left, such as its log
	before := map[string]int{}
	for name, count := range all {
		before[name] = settled(count)
	}
	begin := time.Now()
	run(Cycles / Workers)
	t.Logf("%d cycles in %v", Cycles, time.Since(begin).Round(time.Millisecond))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		n := all[name]()
		// What has been let go of may take a moment to be gone.
		for end := time.Now().Add(10 * time.Second); n > before[name] && time.Now().Before(end); n = all[name]() {
			time.Sleep(10 * time.Millisecond)
		}
		if n > before[name] {
			t.Errorf("%s: %d after %d cycles, %d before", name, n, Cycles, before[name])
		}
	}
}

// settled returns a count that has been the same, or higher, for a while: its
// least value, as what is on its way out must not be counted as there.
func settled(count func() int) int {
	least := count()
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		least = min(least, count())
	}
	return least
}

// Descriptors counts the open files of a process.
func Descriptors(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", itoa(pid), "fd"))
	if err != nil {
		t.Error(err)
	}
	return len(entries)
}

// Files counts what lies in folders and all below them.
func Files(t testing.TB, dirs ...string) int {
	t.Helper()
	n := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error {
			n++
			if os.IsNotExist(err) { // gone meanwhile
				return nil
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	return n
}

// Processes counts the processes, zombies included, that match.
func Processes(t testing.TB, match func(pid, parent int) bool) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Error(err)
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err == nil && match(pid, parentOf(b)) {
			n++
		}
	}
	return n
}

// parentOf reads a process's parent from its stat; its name may hold anything.
func parentOf(stat []byte) int {
	_, rest, _ := strings.Cut(string(stat[max(0, strings.LastIndexByte(string(stat), ')')):]), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0
	}
	pid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return pid
}
