package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

// tick is how often QEMU is asked for what it tells nobody.
const tick = 2 * time.Millisecond

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// wayBack lets a machine that is being frozen go on as it was: no migration is under
// way, the images are its own again, and what was put over them is taken off. stays is
// why an overlay is not; the machine goes on as well with it.
func (m *machine) wayBack(ctx context.Context, change recording) (stays, err error) {
	err = m.persist(ctx, func() error { return m.endMigration(ctx) })
	if err == nil {
		err = m.persist(ctx, func() error { return m.regain(ctx) })
	}
	if err == nil {
		err = m.persist(ctx, func() (err error) {
			stays, err = m.takeOff(ctx, change)
			return err
		})
	}
	if err == nil {
		err = m.step("images are on record")
	}
	// Whatever became of that, its guest is not kept stopped.
	if e := m.persist(ctx, func() error { return m.goOn(ctx) }); e != nil && !errors.Is(err, vm.ErrNotRunning) {
		err = errors.Join(err, e)
	}
	if err == nil {
		err = m.step("goes on")
	}
	if err == nil {
		err = change(func(r *record) { r.Freeze = nil })
	}
	return stays, err
}

// persist repeats what failed as the monitor was lost, which comes back.
func (m *machine) persist(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !errors.Is(err, qmp.ErrClosed) || errors.Is(err, vm.ErrNotRunning) {
			return err
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// stuckAfter is how long QEMU may take to cancel before it is helped.
const stuckAfter = 200 * time.Millisecond

// endMigration returns when no migration is under way any more.
func (m *machine) endMigration(ctx context.Context) error {
	var cancelled time.Time
	for {
		var q struct {
			Status string `json:"status"`
		}
		if err := m.execute(ctx, "query-migrate", nil, &q); err != nil {
			return err
		}
		if slices.Contains([]string{"", "none", migCompleted, migFailed, migCancelled}, q.Status) {
			return nil
		}
		var err error
		switch {
		case q.Status != migCancelling && cancelled.IsZero():
			err = m.execute(ctx, "migrate_cancel", nil, nil)
			cancelled = time.Now()
		case q.Status == migCancelling && cancelled.IsZero(): // by whoever died
			cancelled = time.Now()
		case q.Status == migCancelling && time.Since(cancelled) > stuckAfter:
			// QEMU loses the word between its look whether it is to cancel and its
			// wait before the switch-over, and waits for ever with the guest stopped
			// (seen in 7.2). This ends the wait; where it does not wait it does nothing.
			_ = m.execute(ctx, "migrate-continue", map[string]string{"state": migCancelling}, nil)
			cancelled = time.Now()
		}
		if err == nil {
			err = pause(ctx, tick)
		}
		if err != nil {
			return fmt.Errorf("QEMU does not end its migration (%s): %w", q.Status, err)
		}
	}
}

// goOn lets a guest go on after a migration; one that is held stays so, without a moment
// of execution, with its images in its hands again. One that has ended meanwhile stays as it is.
func (m *machine) goOn(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	if err := m.letGo(ctx, !m.held.Load()); err != nil {
		return err
	}
	if m.held.Load() { // since just now: that came before it was let go on, and goes for after
		if err := m.stopGuest(ctx); err != nil {
			return err
		}
	}
	m.freezing = false
	return nil
}

func (m *machine) letGo(ctx context.Context, resume bool) error {
	var status string
	for {
		var err error
		if status, err = m.queryStatus(ctx); err != nil {
			return err
		}
		// QEMU is about to change it by itself, and would not stand a command that
		// does.
		if status != statusFinishing {
			break
		}
		if err := pause(ctx, tick/2); err != nil {
			return fmt.Errorf("QEMU does not end its migration: %w", err)
		}
	}
	switch {
	case resume && (status == statusPaused || status == statusMigrated):
		return m.execute(ctx, "cont", nil, nil)
	case !resume && status == statusMigrated:
		return m.regain(ctx)
	case !resume && status == statusRunning:
		return m.execute(ctx, "stop", nil, nil)
	}
	return nil
}

// recoverFreeze lets a machine go on whose freezer died. The folder's lock must be
// held.
func (m *machine) recoverFreeze(ctx context.Context) error {
	n := m.noted()
	if n == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, recovering)
	defer cancel()
	if n.Snapshot {
		if err := m.notePaths(ctx, m.changeLocked); err != nil {
			return err
		}
		return m.changeLocked(func(r *record) { r.Freeze = nil })
	}
	m.held.Store(!n.Resume)
	for _, l := range n.Layers {
		if l.Off {
			_, err := m.wayBack(ctx, m.changeLocked)
			return err
		}
	}
	// What it uses it goes on with.
	err := m.endMigration(ctx)
	if err == nil {
		err = m.goOn(ctx)
	}
	if err == nil {
		err = m.notePaths(ctx, m.changeLocked)
	}
	if err == nil {
		err = m.changeLocked(func(r *record) { r.Freeze = nil })
	}
	return err
}
