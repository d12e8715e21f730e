package qemuimg

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// meter shows how far a long operation is: with -p on standard output at every
// step, and on SIGUSR1 once.
type meter struct {
	t      *tool
	step   float64 // percent
	wanted bool    // -p
	sig    chan os.Signal
	done   chan struct{}

	mu      sync.Mutex // guards what follows, and the output
	show    bool       // wanted, begun and not yet ended
	percent float64
	shown   float64
}

// newMeter starts to listen for SIGUSR1. Without it the signal would end the
// program, as it does while other verbs run. step is the least change in
// percent that is shown.
func (t *tool) newMeter(show bool, step float64) *meter {
	m := t.newMeterLater(show, step)
	m.begin()
	return m
}

// newMeterLater is newMeter for verbs that show nothing before the first
// update.
func (t *tool) newMeterLater(show bool, step float64) *meter {
	m := &meter{t: t, wanted: show, step: step, sig: make(chan os.Signal, 1), done: make(chan struct{})}
	signal.Notify(m.sig, syscall.SIGUSR1)
	go func() {
		for {
			select {
			case <-m.done:
				return
			case <-m.sig:
				m.mu.Lock()
				if m.show {
					m.print()
				} else {
					t.stderrf("    (%3.2f/100%%)\n", m.percent)
				}
				m.mu.Unlock()
			}
		}
	}()
	return m
}

// begin shows that nothing is done yet. The caller holds mu, or is alone.
func (m *meter) begin() {
	if m.wanted && !m.show {
		m.show = true
		m.print()
	}
}

// update is the callback of package image.
func (m *meter) update(done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begin()
	if total > 0 {
		m.percent = float64(done) * 100 / float64(total)
	}
	if m.show && (m.percent >= m.shown+m.step || done == total && m.shown < 100) {
		m.print()
	}
}

func (m *meter) print() {
	m.shown = m.percent
	m.t.printf("    (%3.2f/100%%)\r", m.percent)
	m.t.flush()
}

// finish shows that everything is done.
func (m *meter) finish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.percent = 100
	if m.show && m.shown < 100 {
		m.print()
	}
	m.endLine()
}

// again shows that everything is done even if that is shown already, as verbs
// of the stock tool do whose work reports it too.
func (m *meter) again() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begin()
	m.percent = 100
	if m.show {
		m.print()
	}
}

// end ends the line after a failure.
func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLine()
}

func (m *meter) endLine() {
	if m.wanted {
		m.wanted, m.show = false, false
		m.t.printf("\n")
		m.t.flush()
	}
}

// stop ends the listening.
func (m *meter) stop() {
	signal.Stop(m.sig)
	close(m.done)
}
