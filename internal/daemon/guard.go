package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// guard keeps an eye on the space of the host: it pauses machines before their
// guests see an error, and lets them go on when there is space again.
//
// What it decides is on record before it is done (store.Last.Paused), so that a
// daemon that is killed at any instant leaves a machine paused only where the next
// one knows, and lets it go on.
type guard struct {
	d *Daemon
	// nudge wakes it up: a machine has begun to run, or the bounds have changed.
	nudge chan struct{}

	systems fileSystems

	mu      sync.Mutex
	watched map[*watch]bool
	limits  api.SpaceLimits
	used    int64     // by the home, as of measured
	nextUse time.Time // when that is to be measured again
}

// The pace of the guard. A guest is taken to write at most fastest bytes a
// second: what is free above the bound says how long it may sleep.
const (
	guardSlowest = time.Second
	guardFastest = 100 * time.Millisecond
	fastest      = 2 << 30
	// guardPatience is how long a machine may take to stop or go on.
	guardPatience = 10 * time.Second
	// guardAtOnce is how many machines are paused or let go on at one time.
	guardAtOnce = 16
)

func newGuard(ctx context.Context, d *Daemon) (*guard, error) {
	l, err := d.store.Limits(ctx)
	return &guard{d: d, nudge: make(chan struct{}, 1), limits: l, systems: fileSystems{log: d.log, mount: mountOf}}, err
}

// watch is work of the daemon's own that writes, such as the boot of a template that is
// warmed.
type watch struct {
	what, dir string
	end       context.CancelCauseFunc
}

// watching is ctx, which ends with the reason when space is short in dir or the home. stop
// must be called.
func (g *guard) watching(ctx context.Context, what, dir string) (watched context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{what: what, dir: dir, end: cancel}
	g.mu.Lock()
	if g.watched == nil {
		g.watched = make(map[*watch]bool)
	}
	g.watched[w] = true
	g.mu.Unlock()
	g.wake()
	return ctx, func() {
		g.mu.Lock()
		delete(g.watched, w)
		g.mu.Unlock()
		cancel(nil)
	}
}

// shortOf is the error of work that a watch has ended, err if none has.
func shortOf(ctx context.Context, err error) error {
	var e *api.Error
	if err != nil && errors.As(context.Cause(ctx), &e) && e.Code == api.CodeNoSpace {
		return e
	}
	return err
}

func (g *guard) watches() []*watch {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.watched))
}

func (g *guard) bounds() api.SpaceLimits {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limits
}

func (g *guard) setLimits(ctx context.Context, c api.SpaceChange) (api.SpaceLimits, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.limits
	if c.MinFree != nil {
		l.MinFree = *c.MinFree
	}
	if c.Quota != nil {
		l.Quota = *c.Quota
	}
	if err := g.d.store.SetLimits(ctx, l); err != nil {
		return l, err
	}
	g.limits, g.nextUse = l, time.Time{}
	g.wake()
	return l, nil
}

// wake makes the guard look at once.
func (g *guard) wake() {
	select {
	case g.nudge <- struct{}{}:
	default: // it will
	}
}

// run guards until ctx ends. While no machine runs it sleeps.
func (g *guard) run(ctx context.Context) {
	for {
		var again <-chan time.Time
		if wait, any := g.look(ctx); any {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-g.nudge:
		case <-again:
		}
	}
}

// verdict is what space says of a machine.
type verdict int

const (
	enough verdict = iota // it may go on
	scarce                // it stays as it is
	short                 // it is paused
)

// look decides of every running machine, and says when to look again; any is false
// where none runs.
func (g *guard) look(ctx context.Context) (wait time.Duration, any bool) {
	wait = guardSlowest
	limits := g.bounds()
	quota, quotaWhy := g.quota(ctx, limits)
	var group sync.WaitGroup
	defer group.Wait()
	slots := make(chan struct{}, guardAtOnce)
	known := make(map[string]room)
	sight := func(dir string) room {
		r, ok := known[dir]
		if !ok {
			r = g.room(dir, limits, glancePatience)
			known[dir] = r
		}
		wait = min(wait, r.pace())
		return r
	}
	for _, w := range g.watches() {
		any = true
		what, why := quota, quotaWhy
		if r := sight(w.dir); r.verdict() > what {
			what, why = r.verdict(), r.why()
		}
		if what == short {
			g.d.log.Warn("ended for lack of space", "what", w.what, "reason", why)
			w.end(noRoom(w.what, why))
		}
	}
	for _, m := range g.d.list() {
		r := m.running()
		if r == nil {
			continue
		}
		any = true
		what, why := quota, quotaWhy
		dirs, err := g.diskFolders(r.runningSpec(), glancePatience)
		if err != nil { // a folder that cannot be looked at changes nothing
			what = max(what, scarce)
		}
		for _, dir := range dirs {
			room := sight(dir)
			if v := room.verdict(); v > what {
				what, why = v, room.why()
			}
		}
		paused := m.last().Paused != ""
		if what == enough && !paused || what == scarce && (!paused || r.held.Load()) || what == short && paused && r.held.Load() {
			continue
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if what == enough {
				m.goOn(ctx, r)
			} else {
				m.hold(ctx, r, why)
			}
		})
	}
	return max(wait, guardFastest), any
}

// quota is what the home's own bound says of all machines.
func (g *guard) quota(ctx context.Context, l api.SpaceLimits) (verdict, string) {
	if l.Quota == 0 {
		return enough, ""
	}
	used := g.measured(ctx)
	// Half of what is kept free of a disk, or a twentieth of a small quota.
	slack := min(defaultMinFree/2, l.Quota/20)
	switch {
	case used > l.Quota:
		return short, overQuota(used, l.Quota)
	case used > l.Quota-slack:
		return scarce, overQuota(used, l.Quota)
	}
	return enough, ""
}

func overQuota(used, quota int64) string {
	return fmt.Sprintf("this home takes %s, and its quota is %s", progress.Bytes(used), progress.Bytes(quota))
}

// measured is what the home takes; it is measured again after twenty times what
// that took, so that the measuring never takes more than a twentieth of a processor.
func (g *guard) measured(ctx context.Context) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); !now.Before(g.nextUse) {
		if u, err := g.d.measure(ctx); err == nil {
			g.used = u.total()
		} else if ctx.Err() == nil {
			g.d.log.Warn("what the home takes is not known", "error", err)
		}
		g.nextUse = time.Now().Add(max(20*time.Since(now), guardFastest))
	}
	return g.used
}

// room is the space of a file system, as a folder on it shows it.
type room struct {
	dir         string
	free, least int64 // bytes
	err         error
}

func (g *guard) room(dir string, l api.SpaceLimits, patience time.Duration) room {
	free, total, err := g.space(dir, patience)
	return room{dir: dir, free: free, least: minFree(l.MinFree, total), err: err}
}

// space is statfs, within patience.
func (g *guard) space(dir string, patience time.Duration) (free, total int64, err error) {
	type answer struct {
		free, total int64
		err         error
	}
	a := new(answer) // written behind an error too
	if err := g.systems.ask(dir, patience, func() { a.free, a.total, a.err = g.statfs(dir) }); err != nil {
		return 0, 0, err
	}
	return a.free, a.total, a.err
}

func (g *guard) statfs(dir string) (free, total int64, err error) {
	if f := g.d.opts.Statfs; f != nil {
		return f(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	// Bavail: what the processes of a user get, who the machines' are.
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// verdict has a hysteresis: a machine goes on when there is half as much again as
// is to be kept free. A folder that cannot be looked at changes nothing.
func (r room) verdict() verdict {
	switch {
	case r.err != nil:
		return scarce
	case r.free < r.least:
		return short
	case r.free < r.least+r.least/2:
		return scarce
	}
	return enough
}

// pace is how soon the file system could be at its bound. Below it nothing of ours
// writes there any more.
func (r room) pace() time.Duration {
	if r.err != nil || r.free < r.least || r.free > r.least+fastest {
		return guardSlowest
	}
	return time.Duration(float64(r.free-r.least) / fastest * float64(time.Second))
}

func (r room) why() string {
	return fmt.Sprintf("%s has %s free, and %s are kept free", r.dir, progress.Bytes(r.free), progress.Bytes(r.least))
}

// spaceRemedy is what a person can do.
const spaceRemedy = "`lamina prune` removes what is not needed, `lamina space` shows and sets the bounds"

// diskFolders are the folders of the images that a machine may need space for,
// each once. The error is of images that could not be looked at in time.
func (g *guard) diskFolders(s vm.Spec, patience time.Duration) ([]string, error) {
	var out []string
	var errs []error
	seen := make(map[string]bool)
	for _, d := range s.Disks {
		dir := filepath.Dir(d.Path)
		if d.ReadOnly || d.Device != vm.DeviceDisk || d.Path == "" || seen[dir] {
			continue
		}
		grows := new(bool) // written behind an error too
		if err := g.systems.ask(d.Path, patience, func() { *grows = mayGrow(d) }); err != nil {
			errs = append(errs, err)
			continue
		}
		if *grows {
			seen[dir] = true
			out = append(out, dir)
		}
	}
	return out, errors.Join(errs...)
}

// mayGrow says whether a drive needs space of its folder.
func mayGrow(d vm.Disk) bool {
	st, err := os.Stat(d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false // not a file of this host
	case err == nil && (!st.Mode().IsRegular() || d.Format == "raw" && allocated(st) >= st.Size()):
		return false // a block device, or an image that has all its space
	}
	return true
}

// allocated is what a file takes on the host, in bytes.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// hold pauses a machine, which is on record first.
func (m *machine) hold(ctx context.Context, r *run, why string) {
	p, ok := r.vm.(vm.Pauser)
	if !ok {
		return // its driver stops it itself, when a write fails
	}
	if m.last().Paused == "" {
		m.d.log.Warn("pausing for lack of space", "machine", m.name, "reason", why)
		if m.setLast(func(l *store.Last) {
			if m.run == r {
				l.Paused = why
			}
		}) != nil {
			// Logged. Without a record the next daemon would not let it go on; and a
			// database that cannot be written is one more reason to pause.
			m.d.log.Warn("pausing without a record", "machine", m.name)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	if err := p.Pause(ctx); err != nil {
		if !errors.Is(err, vm.ErrNotRunning) && ctx.Err() == nil {
			m.d.log.Error("not paused", "machine", m.name, "error", err)
		}
		return // tried again at the next look
	}
	r.held.Store(true)
	r.holds.Add(1)
}

// goOn lets a machine go on that was held.
func (m *machine) goOn(ctx context.Context, r *run) {
	p, ok := r.vm.(vm.Pauser)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	if err := p.Resume(ctx); err != nil {
		if !errors.Is(err, vm.ErrNotRunning) && ctx.Err() == nil {
			m.d.log.Error("not let go on", "machine", m.name, "error", err)
		}
		return
	}
	r.held.Store(false)
	m.d.log.Info("goes on: there is space again", "machine", m.name)
	_ = m.setLast(func(l *store.Last) { // an error is logged; it is tried again
		if m.run == r {
			l.Paused = ""
		}
	})
}

// pauseReason is why a running machine's guest does not execute, "" where it does.
func pauseReason(last store.Last, r *run) string {
	if last.Paused != "" {
		return last.Paused + "; " + spaceRemedy
	}
	if w, ok := r.vm.(vm.SpaceWaiter); ok && w.WaitsForSpace() {
		return "a write of its guest found no space on the host, and waits for some; " + spaceRemedy
	}
	return ""
}

// haveRoom refuses what would take space where there is too little: in the home, and
// in the folders of dirs.
func (g *guard) haveRoom(what string, dirs ...string) error {
	limits := g.bounds()
	if v, why := g.quota(g.d.ctx, limits); v == short {
		return noRoom(what, why)
	}
	for _, dir := range append([]string{g.d.home.Data}, dirs...) {
		switch r := g.room(dir, limits, requestPatience); {
		case errors.Is(r.err, errSilent):
			return notSeen(what, r.err)
		case r.verdict() == short:
			return noRoom(what, r.why())
		}
	}
	return nil
}

// haveRoomIn is haveRoom with the folders of a machine's disks.
func (g *guard) haveRoomIn(what string, s vm.Spec) error {
	dirs, err := g.diskFolders(s, requestPatience)
	if err != nil {
		return notSeen(what, err)
	}
	return g.haveRoom(what, dirs...)
}

// haveRoomFor is haveRoom for what may write so many bytes into the home.
func (g *guard) haveRoomFor(what string, bytes int64) error {
	if err := g.haveRoom(what); err != nil {
		return err
	}
	limits := g.bounds()
	r := g.room(g.d.home.Data, limits, requestPatience)
	if r.err == nil && r.free-bytes < r.least {
		return noRoom(what, fmt.Sprintf("it may take %s; %s", progress.Bytes(bytes), r.why()))
	}
	if limits.Quota == 0 {
		return nil
	}
	if used := g.measured(g.d.ctx); used+bytes > limits.Quota {
		return noRoom(what, fmt.Sprintf("it may take %s; %s", progress.Bytes(bytes), overQuota(used, limits.Quota)))
	}
	return nil
}

// notSeen refuses what needs a file system that does not answer.
func notSeen(what string, err error) error {
	return api.Errorf(api.CodeFailed, "%s: %v", what, err)
}

func noRoom(what, why string) error {
	return api.Errorf(api.CodeNoSpace, "%s: there is too little space: %s: %s", what, why, spaceRemedy)
}
