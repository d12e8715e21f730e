package daemon

import (
	"context"
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
)

// maxBootEvents bounds what is kept of one boot. A guest passes seven stages
// and has a few things worth telling; one that says more says it in its log.
const maxBootEvents = 1000

// bootLog is what happened in one boot, or in one apply of a fleet, for any number of readers, each of
// which sees it from the first event.
type bootLog struct {
	most int // events that are kept

	mu     sync.Mutex
	events []api.Event
	last   boot.Stage
	done   bool
	err    error         // why there was no login, if done
	more   chan struct{} // closed at the next change
}

func newBootLog() *bootLog { return &bootLog{most: maxBootEvents, more: make(chan struct{})} }

func (l *bootLog) add(e api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Boot != nil {
		l.last = e.Boot.Stage
	}
	if len(l.events) >= l.most {
		return
	}
	l.events = append(l.events, e)
	l.wake()
}

// finish says that the boot is watched no more: at login (nil), or why not.
func (l *bootLog) finish(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return
	}
	l.done, l.err = true, err
	l.wake()
}

// recovered says that the login prompt came after all.
func (l *bootLog) recovered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = nil
	l.wake()
}

func (l *bootLog) wake() {
	close(l.more)
	l.more = make(chan struct{})
}

func (l *bootLog) over() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done
}

func (l *bootLog) stage() boot.Stage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// follow passes every event to f, from the first, until the boot is over (then
// it returns how) or ctx ends.
func (l *bootLog) follow(ctx context.Context, f func(api.Event)) error {
	return l.followTo(ctx, f, nil)
}

// followTo is follow that is also over, without an error, when enough is closed.
func (l *bootLog) followTo(ctx context.Context, f func(api.Event), enough <-chan struct{}) error {
	for seen := 0; ; {
		over := isClosed(enough) // what was added before that is told
		l.mu.Lock()
		fresh, done, err, more := l.events[seen:], l.done, l.err, l.more
		l.mu.Unlock()
		for _, e := range fresh {
			f(e)
		}
		seen += len(fresh)
		if done {
			return err
		}
		if over {
			return nil
		}
		select {
		case <-more:
		case <-enough:
		case <-ctx.Done():
			return cause(ctx)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// warnings passes on the warnings so far.
func (l *bootLog) warnings(f func(api.Event)) {
	l.mu.Lock()
	events := l.events
	l.mu.Unlock()
	for _, e := range events {
		if e.Warning != "" {
			f(e)
		}
	}
}
