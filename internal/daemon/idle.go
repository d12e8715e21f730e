package daemon

import (
	"sync"
	"time"
)

// idle knows how long no client has asked for anything.
type idle struct {
	limit time.Duration // 0: never

	mu     sync.Mutex
	active int
	since  time.Time // the last request's end, or the start
	closed bool      // the daemon ends: nobody may enter
}

func (i *idle) begin(limit time.Duration) { i.limit, i.since = limit, time.Now() }

// enter counts a request, which leave ends; false where it comes too late.
func (i *idle) enter() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return false
	}
	i.active++
	return true
}

func (i *idle) leave() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.active--
	i.since = time.Now()
}

// touch begins the time anew: a machine runs.
func (i *idle) touch() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.since = time.Now()
}

// over says whether there was nothing to do for long enough; then no request
// enters any more.
func (i *idle) over() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = i.active == 0 && time.Since(i.since) >= i.limit
	return i.closed
}

// exitWhenIdle ends the daemon when it has had nothing to do for long enough.
func (d *Daemon) exitWhenIdle() {
	if d.idle.limit <= 0 {
		return
	}
	tick := time.NewTicker(max(d.idle.limit/20, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		if d.busy() > 0 {
			d.idle.touch()
		}
		if d.idle.over() {
			d.log.Info("nothing to do", "for", d.idle.limit)
			d.stop(errStopping)
			return
		}
	}
}
