package qcow2

import "sync"

// rangeLock locks ranges of guest clusters, shared or alone, in order of
// arrival. The number of ranges held at once is the number of requests in
// flight, so a list is enough. The zero value is ready.
type rangeLock struct {
	mu   sync.Mutex
	held []*rangeHold // in order of arrival, also those that still wait
}

// rangeHold is one range that is held or waited for.
type rangeHold struct {
	first, last int64 // clusters, inclusive
	alone       bool
	done        chan struct{} // closed on release; made by the first waiter
}

func (h *rangeHold) conflicts(o *rangeHold) bool {
	return (h.alone || o.alone) && h.first <= o.last && o.first <= h.last
}

// lock waits until no earlier conflicting range is held.
func (l *rangeLock) lock(first, last int64, alone bool) *rangeHold {
	h := &rangeHold{first: first, last: last, alone: alone}
	l.mu.Lock()
	l.held = append(l.held, h)
	for {
		var wait chan struct{}
		for _, o := range l.held {
			if o == h {
				break
			}
			if h.conflicts(o) {
				if o.done == nil {
					o.done = make(chan struct{})
				}
				wait = o.done
				break
			}
		}
		l.mu.Unlock()
		if wait == nil {
			return h
		}
		<-wait
		l.mu.Lock()
	}
}

// unlock gives a range back.
func (l *rangeLock) unlock(h *rangeHold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.held {
		if o == h {
			l.held = append(l.held[:i], l.held[i+1:]...)
			break
		}
	}
	if h.done != nil {
		close(h.done)
	}
}

// lockBytes locks the clusters that hold [off, off+n); n is at least 1.
func (img *Image) lockBytes(off, n int64, alone bool) *rangeHold {
	return img.guest.lock(img.g.cluster(off), img.g.cluster(off+n-1), alone)
}
