package qemu

import (
	"context"
	"fmt"
)

// Pause implements [vm.Pauser].
func (m *machine) Pause(ctx context.Context) error {
	before := m.held.Swap(true) // first: the supervisor lets no one go on from here
	if err := m.execute(ctx, "stop", nil, nil); err != nil {
		m.held.Store(before)
		return fmt.Errorf("pause: %w", err)
	}
	return m.noteResume(false)
}

// noteResume puts on record whether a machine that is being frozen is to go on.
func (m *machine) noteResume(on bool) error {
	if m.noted() == nil {
		return nil
	}
	return m.change(func(r *record) { r.changeNote(func(n *freezeNote) { n.Resume = on }) })
}

// Resume implements [vm.Pauser].
func (m *machine) Resume(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	if m.freezing { // which lets it go on at its end
		m.held.Store(false)
		return m.noteResume(true)
	}
	if err := m.execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	m.held.Store(false)
	return nil
}

// WaitsForSpace implements [vm.SpaceWaiter].
func (m *machine) WaitsForSpace() bool { return m.full.Load() }
