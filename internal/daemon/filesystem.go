package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/progress"
)

// errSilent: a file system does not answer. The wrapping error names the path and the
// remedy.
var errSilent = errors.New("the file system does not answer")

// How long a file system may take to answer a request, and the guard, which has other
// machines to look after. What is asked of one whose server is gone may not return for
// days, and cannot be broken off.
const (
	requestPatience = 3 * time.Second
	glancePatience  = 500 * time.Millisecond
)

// fileSystems asks file systems, and waits only so long for an answer. One question is
// under way at a time of a path, and none of a mount of which one is overdue: each
// keeps a thread.
type fileSystems struct {
	log   *slog.Logger
	mount func(path string) string // the mount point that a path lies in; "" is not known

	mu      sync.Mutex
	asked   map[string]*question // by path
	overdue int                  // of those
}

// question is what a file system has not answered yet.
type question struct {
	path, mount string
	since       time.Time
	overdue     bool // guarded by fileSystems.mu
	done        chan struct{}
}

// ask calls look, which looks at path, on another goroutine, and returns when it has
// returned, or with errSilent. What look has found may be read only without an error.
func (f *fileSystems) ask(path string, patience time.Duration, look func()) error {
	begun := time.Now()
	for {
		q, mine := f.question(path, look)
		if !q.wait(begun.Add(patience)) {
			f.isOverdue(q)
			return fmt.Errorf("%s: %w since %s: is it on a server that is gone? Bring that back, or unmount it (`umount -l`)",
				q.path, errSilent, progress.Duration(time.Since(q.since)))
		}
		if mine {
			return nil
		}
	}
}

// question returns the one that path has to wait for: mine says that it is the one asked
// for now.
func (f *fileSystems) question(path string, look func()) (q *question, mine bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if q := f.asked[path]; q != nil {
		return q, false
	}
	if f.overdue > 0 {
		mount := f.mount(path)
		for _, q := range f.asked {
			if q.overdue && q.mount != "" && q.mount == mount {
				return q, false
			}
		}
	}
	q = &question{path: path, since: time.Now(), done: make(chan struct{})}
	if f.asked == nil {
		f.asked = make(map[string]*question)
	}
	f.asked[path] = q
	go func() {
		look()
		f.answered(q)
	}()
	return q, true
}

func (f *fileSystems) answered(q *question) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.asked, q.path)
	if q.overdue {
		f.overdue--
		f.log.Info("the file system answers again", "path", q.path, "after", time.Since(q.since).Round(time.Millisecond))
	}
	close(q.done)
}

func (f *fileSystems) isOverdue(q *question) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-q.done: // just now
		return
	default:
	}
	if q.overdue {
		return
	}
	q.overdue, q.mount = true, f.mount(q.path)
	f.overdue++
	f.log.Warn(errSilent.Error(), "path", q.path, "mount", q.mount)
}

// wait says whether the answer came until then. One that is overdue already is not
// waited for.
func (q *question) wait(until time.Time) bool {
	select {
	case <-q.done:
		return true
	default:
	}
	left := time.Until(until)
	if late := time.Since(q.since); late > requestPatience {
		return false
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-q.done:
		return true
	case <-timer.C:
		return false
	}
}

// mountOf returns the mount point that a path lies in, by the names alone, as the
// kernel lists them: it touches no file system. "" where it cannot be told.
func mountOf(path string) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	best := ""
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescapeMount.Replace(fields[4])
		if len(point) >= len(best) && (point == "/" || path == point || strings.HasPrefix(path, point+"/")) {
			best = point
		}
	}
	return best
}

// unescapeMount: proc_pid_mountinfo(5).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
