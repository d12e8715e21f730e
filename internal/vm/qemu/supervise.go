package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

// reconnectPause is the time between two tries to get a lost monitor back.
const reconnectPause = time.Second

// supervise follows the machine until it ends or is released.
func (m *machine) supervise() {
	m.mu.Lock()
	events := m.events.Events()
	m.mu.Unlock()
	var again <-chan time.Time
	for {
		select {
		case e, open := <-events:
			if open {
				m.note(e)
				continue
			}
			events, again = nil, time.After(reconnectPause)
		case <-again:
			events, again = m.reconnect()
		case <-m.proc.done:
			m.finish(events)
			return
		case <-m.released:
			return
		}
	}
}

// reconnect gets back a monitor that was lost while the process lives on.
func (m *machine) reconnect() (<-chan qmp.Event, <-chan time.Time) {
	if m.isReleased() || m.connect(context.Background()) != nil {
		return nil, time.After(reconnectPause)
	}
	if m.isReleased() { // meanwhile: Release has closed the old one
		_ = m.monitor().Close()
	}
	m.noteStop() // it may have come when nobody listened
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
	if e.Name == "STOP" {
		m.noteStop()
	}
}

// noteStop looks why the guest stopped, if it has. It ends a machine whose
// virtual CPU cannot go on: QEMU only keeps it for a debugger. One that waits for
// space on the disk, or was stopped by a person, stays.
func (m *machine) noteStop() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	status, err := m.queryStatus(ctx)
	if err != nil || status != statusInternalError {
		return // without an answer the process is ending
	}
	m.mu.Lock()
	m.internal = true
	m.mu.Unlock()
	if m.onKVMFailure != nil {
		m.onKVMFailure(errInternal.Error())
	}
	if !m.quit(ctx) {
		// Nothing more can be done where even that fails; Kill tries again.
		_ = m.proc.signal(9)
	}
}

// finish closes the story of a process that has ended.
func (m *machine) finish(events <-chan qmp.Event) {
	m.drain(events)
	m.mu.Lock()
	m.exit = m.story.exit(m.fallsBack(), m.proc.status(), lastWords(m.dir))
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
			if e.Name != "STOP" { // there is nobody left to ask why
				m.note(e)
			}
		case <-timeout:
			return
		}
	}
}

// cleanUp removes the runtime files, unless they are another start's.
func (m *machine) cleanUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	unlock, err := lockDir(ctx, m.dir)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRecord(m.dir)
	if err != nil || r.Process != m.record.Process {
		return nil // gone, or not ours
	}
	return removeRuntime(m.dir)
}

// fallsBack says whether a failure of KVM makes the machine's next start take
// TCG.
func (m *machine) fallsBack() bool {
	return m.record.Info.Accel == vm.AccelKVM && m.record.Spec.Accel == vm.AccelAuto
}

// exit says why the process ended. Words are the last of QEMU's log.
func (s story) exit(fallsBack bool, status, words string) vm.Exit {
	crashed := func(why string) vm.Exit {
		if words != "" {
			why += ": " + words
		}
		return vm.Exit{State: vm.StateCrashed, Reason: why}
	}
	stopped := func(why string) vm.Exit { return vm.Exit{State: vm.StateStopped, Reason: why} }
	switch {
	case s.internal && fallsBack:
		return crashed(errInternal.Error() + ": KVM cannot run it on this host; the next start uses TCG")
	case s.internal:
		return crashed(errInternal.Error())
	case s.panicked, s.shutdown == "guest-panic":
		return crashed("the guest's kernel panicked")
	case s.shutdown == "guest-shutdown":
		return stopped("guest shut down")
	case s.shutdown == "guest-reset":
		return stopped("guest rebooted, which ends this machine")
	case s.killed, s.shutdown == "host-qmp-quit":
		return stopped("killed")
	case s.shutdown == "host-signal":
		return stopped("QEMU was ended by a signal")
	case s.shutdown != "":
		return crashed("QEMU ended: " + s.shutdown)
	case status != "":
		return crashed("QEMU ended: " + status)
	}
	return crashed("QEMU ended without saying why")
}

// errNoScreen: QEMU gave no picture.
var errNoScreen = errors.New("the screen cannot be read")
