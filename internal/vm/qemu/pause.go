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
	return nil
}

// Resume implements [vm.Pauser].
func (m *machine) Resume(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	if m.freezing { // which lets it go on at its end
		m.held.Store(false)
		return nil
	}
	if err := m.execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	m.held.Store(false)
	return nil
}

// WaitsForSpace implements [vm.SpaceWaiter].
func (m *machine) WaitsForSpace() bool { return m.full.Load() }
