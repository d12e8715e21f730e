package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

const (
	// reconnectPause is the time between two tries to get a lost monitor back.
	reconnectPause = time.Second
	// spacePause is the time between two tries of a write that found no
	// space on the host.
	spacePause = 5 * time.Second
)

// supervise follows the machine until it ends or is released.
func (m *machine) supervise() {
	m.mu.Lock()
	events := m.events.Events()
	m.mu.Unlock()
	var lost, full <-chan time.Time
	look := func() { // why it stopped, if it has; also when nobody listened
		full = nil
		waits := m.noteStop()
		m.full.Store(waits)
		if waits {
			full = time.After(m.spacePause)
		}
	}
	look()
	m.reconcile(context.Background())
	for {
		select {
		case e, open := <-events:
			if !open {
				events, lost = nil, time.After(reconnectPause)
				continue
			}
			m.note(e)
			switch {
			case e.Name == "STOP", e.Name == "RESUME":
				look()
			case e.Name == "GUEST_PANICKED" && m.spec().OnCrash == vm.ActionRestart:
				m.restartGuest()
			case e.Name == eventDeleted:
				m.noteDeleted(e)
			}
		case <-lost:
			if events, lost = m.reconnect(); events != nil {
				m.reconcile(context.Background())
				look()
			}
		case <-full:
			m.tryAgain()
			look()
		case <-m.proc.done:
			m.finish(events)
			return
		case <-m.released:
			return
		}
	}
}

// tryAgain lets a guest go on that waits for space. QEMU repeats the write; if
// there still is none it stops again.
func (m *machine) tryAgain() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	m.runMu.Lock()
	defer m.runMu.Unlock()
	if m.freezing {
		return // it is tried again when that is done
	}
	// Whoever stopped it meanwhile for another reason keeps it stopped.
	if status, err := m.queryStatus(ctx); err == nil && status == statusIOError && !m.held.Load() {
		_ = m.execute(ctx, "cont", nil, nil) // asked again later
	}
}

// restartGuest resets a guest that has panicked. One that is ending stays as it
// is.
func (m *machine) restartGuest() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	_ = m.execute(ctx, "system_reset", nil, nil)
}

// reconnect gets back a monitor that was lost while the process lives on.
func (m *machine) reconnect() (<-chan qmp.Event, <-chan time.Time) {
	if m.isReleased() || m.connect(context.Background()) != nil {
		return nil, time.After(reconnectPause)
	}
	if m.isReleased() { // meanwhile: Release has closed the old one
		_ = m.monitor().Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.events.Events(), nil
}

// note takes an event into the story.
func (m *machine) note(e qmp.Event) {
	m.mu.Lock()
	switch e.Name {
	case "SHUTDOWN":
		m.shutdown = decodeShutdown(e).Reason
	case "GUEST_PANICKED":
		m.panicked = true
	case "RESET":
		m.panicked = false
	}
	m.mu.Unlock()
}

// noteStop looks why the guest stopped, if it has. It ends a machine whose
// virtual CPU cannot go on: QEMU only keeps it for a debugger. It returns true
// for one that waits for space on the host's disk (QEMU reports every other
// error of a disk to the guest). One that a person stopped stays as it is.
func (m *machine) noteStop() (full bool) {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	status, err := m.queryStatus(ctx)
	if err != nil || status != statusInternalError {
		return err == nil && status == statusIOError // without an answer it is ending
	}
	m.mu.Lock()
	m.internal = true
	m.mu.Unlock()
	if m.onKVMFailure != nil {
		m.onKVMFailure(errInternal.Error())
	}
	if !m.quit(ctx) {
		// Nothing more can be done where even that fails; Kill tries again.
		_ = m.proc.signal(unix.SIGKILL)
	}
	return false
}

// finish closes the story of a process that has ended.
func (m *machine) finish(events <-chan qmp.Event) {
	m.drain(events)
	fallsBack := m.fallsBack()
	m.mu.Lock()
	m.exit = m.story.exit(fallsBack, m.proc.failed(), m.proc.status(), lastWords(m.dir))
	m.mu.Unlock()
	if err := m.cleanUp(); err != nil {
		m.mu.Lock()
		m.exit.Reason += fmt.Sprintf(" (left behind: %v)", err)
		m.mu.Unlock()
	}
	// The process is gone: there is nobody to close the connection to.
	_ = m.disconnect()
	close(m.ended)
}

// drain takes the last events, which are in the socket still.
func (m *machine) drain(events <-chan qmp.Event) {
	if events == nil {
		return
	}
	timeout := time.After(time.Second)
	for {
		select {
		case e, open := <-events:
			if !open {
				return
			}
			m.note(e)
		case <-timeout:
			return
		}
	}
}

// cleanUp removes the runtime files, unless they are another start's.
func (m *machine) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	unlock, err := home.LockFolder(ctx, m.dir)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRecord(m.dir)
	if err != nil || r.Process != m.record.Process {
		return nil // gone, or not ours
	}
	return r.removeRuntime(ctx, m.dir)
}

// fallsBack says whether a failure of KVM makes the machine's next start take
// TCG.
func (m *machine) fallsBack() bool {
	return m.record.Info.Accel == vm.AccelKVM && m.spec().Accel == vm.AccelAuto
}

// exit says why the process ended: failed is process.failed, words are the last
// of QEMU's log.
func (s story) exit(fallsBack, failed bool, status, words string) vm.Exit {
	crashed := func(why string) vm.Exit {
		if words != "" {
			why += ": " + words
		}
		return vm.Exit{State: vm.StateCrashed, Reason: why}
	}
	failure := func(why string) vm.Exit {
		e := crashed(why)
		e.Failed = true
		return e
	}
	stopped := func(by vm.Cause, why string) vm.Exit {
		return vm.Exit{State: vm.StateStopped, Cause: by, Reason: why}
	}
	switch {
	case s.internal && fallsBack:
		return failure(errInternal.Error() + ": KVM cannot run it on this host; the next start uses TCG")
	case s.internal:
		return crashed(errInternal.Error())
	case s.panicked, s.shutdown == "guest-panic":
		return crashed("the guest's kernel panicked")
	case s.shutdown == "guest-shutdown":
		return stopped(vm.CauseShutdown, "guest shut down")
	case s.shutdown == "guest-reset":
		return stopped(vm.CauseReset, "guest rebooted, which ends this machine")
	case s.killed, s.shutdown == "host-qmp-quit":
		return stopped(vm.CauseKilled, "killed")
	case s.shutdown == "host-signal":
		return stopped(vm.CauseKilled, "QEMU was ended by a signal")
	case s.shutdown != "":
		return crashed("QEMU ended: " + s.shutdown)
	case failed:
		return failure("QEMU ended: " + status)
	case status != "":
		return crashed("QEMU ended: " + status)
	}
	return crashed("QEMU ended without saying why")
}

// endedUnseen says how the machine that is on record in dir ended, if it has,
// by what it left behind: QEMU removes its pid file when it ends by itself, and
// says in its log that a signal has ended it. nil where there is nothing that
// tells. The folder's lock must be held.
func endedUnseen(dir string) *vm.Exit {
	r, err := readRecord(dir)
	if err != nil || r.Info.QEMU == "" {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, home.PIDFile)); !errors.Is(err, fs.ErrNotExist) {
		return &vm.Exit{State: vm.StateStopped, Cause: vm.CauseKilled, Reason: "killed, or lost with the host, while no daemon ran"}
	}
	words := lastWords(dir)
	switch {
	case strings.Contains(words, "terminating on signal"):
		return &vm.Exit{State: vm.StateStopped, Cause: vm.CauseKilled, Reason: "ended while no daemon ran: " + words}
	case words != "" && !strings.HasPrefix(words, "warning: "):
		return &vm.Exit{State: vm.StateCrashed, Reason: "ended while no daemon ran: " + words}
	}
	return &vm.Exit{State: vm.StateStopped, Cause: vm.CauseShutdown, Reason: "the guest ended while no daemon ran"}
}
