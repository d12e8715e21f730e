package daemon

import (
	"context"
	"sync"
	"time"
)

// startsFirst is how long a guest's new identity may be put off for the starts of
// other machines.
const startsFirst = 30 * time.Second

// underway counts the machines on their way to their consoles: in a bulk those come
// first, and the processors are given to the guests' new identities when all are there.
// Its zero value is ready.
type underway struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n is 0 again; nil while it is 0
}

// begin counts one; done, which may be called again, takes it back.
func (u *underway) begin() (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n++; u.n == 1 {
		u.none = make(chan struct{})
	}
	return sync.OnceFunc(func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.n--; u.n == 0 {
			close(u.none)
			u.none = nil
		}
	})
}

// wait returns when there is none, or limit is over, or gone is closed, or ctx ends.
func (u *underway) wait(ctx context.Context, limit time.Duration, gone <-chan struct{}) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		u.mu.Lock()
		none := u.none
		u.mu.Unlock()
		if none == nil {
			return
		}
		select {
		case <-none: // one may have come since
		case <-timer.C:
			return
		case <-gone:
			return
		case <-ctx.Done():
			return
		}
	}
}
