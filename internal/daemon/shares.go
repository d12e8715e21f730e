package daemon

import (
	"sync"
	"time"
)

// shares remembers what the machines' processes take of the host's memory. To ask
// the kernel takes it a millisecond and more for each GiB that a guest uses, under a
// lock of that process, so that a list of a hundred machines is not to do so each time.
type shares struct {
	mu    sync.Mutex
	known map[int]share // by process id
	busy  bool          // somebody measures anew
	read  func(pid int) int64
}

type share struct {
	bytes int64
	at    time.Time
}

const (
	// shareFresh is how long a share counts as what it is now.
	shareFresh = 3 * time.Second
	// shareBudget is how long one list may measure; what is not known then comes
	// with the next one.
	shareBudget = 30 * time.Millisecond
)

func newShares() *shares { return &shares{known: make(map[int]share), read: residentShare} }

// of returns the proportional set size of a process in bytes: measured now if
// until is not over and no fresh one is known, else as it was last, 0 for never.
func (s *shares) of(pid int, until time.Time) int64 {
	s.mu.Lock()
	have, ok := s.known[pid]
	s.mu.Unlock()
	now := time.Now()
	if ok && now.Sub(have.at) < shareFresh || now.After(until) {
		return have.bytes
	}
	return s.measure(pid)
}

func (s *shares) measure(pid int) int64 {
	n := s.read(pid)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[pid] = share{n, time.Now()}
	return n
}

// refresh measures the processes whose shares are not fresh, one after the other, and
// forgets all others; unless somebody does.
func (s *shares) refresh(pids []int, stop func() bool) {
	s.mu.Lock()
	if s.busy {
		s.mu.Unlock()
		return
	}
	s.busy = true
	live := make(map[int]bool, len(pids))
	var old []int
	for _, pid := range pids {
		live[pid] = true
		if have, ok := s.known[pid]; !ok || time.Since(have.at) >= shareFresh {
			old = append(old, pid)
		}
	}
	for pid := range s.known {
		if !live[pid] {
			delete(s.known, pid)
		}
	}
	s.mu.Unlock()
	for _, pid := range old {
		if stop() {
			break
		}
		s.measure(pid)
	}
	s.mu.Lock()
	s.busy = false
	s.mu.Unlock()
}
