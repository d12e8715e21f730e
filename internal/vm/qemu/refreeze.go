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

// thawAgain ends whatever migration is under way and lets the guest go on, unless it is
// held; also when the monitor has to come back for that.
func (m *machine) thawAgain(ctx context.Context) error {
	for {
		err := m.endMigration(ctx)
		if err == nil {
			err = m.goOn(ctx)
		}
		if !errors.Is(err, qmp.ErrClosed) || errors.Is(err, vm.ErrNotRunning) {
			return err
		}
		if perr := pause(ctx, 100*time.Millisecond); perr != nil {
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

// goOn lets a guest go on after a migration; one that is held stays so, with its images
// in its hands again. One that has ended meanwhile stays as it is.
func (m *machine) goOn(ctx context.Context) error {
	m.runMu.Lock()
	defer m.runMu.Unlock()
	if err := m.letGo(ctx, !m.held.Load()); err != nil {
		return err
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
		// That it executes for a moment is the price: nothing else makes QEMU open
		// its images again.
		if err := m.execute(ctx, "cont", nil, nil); err != nil {
			return err
		}
		return m.execute(ctx, "stop", nil, nil)
	case !resume && status == statusRunning:
		return m.execute(ctx, "stop", nil, nil)
	}
	return nil
}

// completeJob waits until a job that copies down has caught up, and ends it.
func (m *machine) completeJob(ctx context.Context, id string) error {
	for completing := false; ; {
		j, err := m.findJob(ctx, id)
		switch {
		case err != nil:
			return err
		case j == nil:
			return errNoJob
		case j.Status == "ready" && !completing:
			completing = true
			if err := m.execute(ctx, "job-complete", map[string]string{"id": id}, nil); err != nil {
				return err
			}
		case j.Status == "concluded":
			if err := m.execute(ctx, "job-dismiss", map[string]string{"id": id}, nil); err != nil {
				return err
			}
			return jobEnd(ctx, j, false)
		}
		if err := pause(ctx, tick); err != nil {
			return err
		}
	}
}

// dropNote closes the overlays that did not come into use, notes those that did,
// and ends the note with change.
func (m *machine) dropNote(ctx context.Context, change func(func(*record)) error) error {
	m.mu.Lock()
	n := m.record.Freeze
	m.mu.Unlock()
	if n == nil {
		return nil
	}
	paths := map[string]string{}
	for id, l := range n.Layers {
		paths[id] = l.Below
		nodes, err := m.nodesOf(ctx, id)
		if err != nil {
			return err
		}
		if !slices.Contains(nodes, l.Node) {
			continue // it was not opened yet
		}
		top, err := m.topNode(ctx, id)
		if err != nil {
			return err
		}
		if top == l.Node {
			paths[id] = l.Path
			continue
		}
		if err := m.execute(ctx, "blockdev-del", map[string]string{"node-name": l.Node}, nil); err != nil && !notFound(err) {
			return err
		}
	}
	return change(func(r *record) {
		for i, id := range r.DiskIDs {
			if path := paths[id]; path != "" {
				r.Spec.Disks[i].Path = path
			}
		}
		r.Freeze = nil
	})
}

// recoverFreeze lets a machine go on whose freezer died. The folder's lock must be
// held.
func (m *machine) recoverFreeze(ctx context.Context) error {
	if m.record.Freeze == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, recovering)
	defer cancel()
	if err := m.endMigration(ctx); err != nil {
		return err
	}
	m.held.Store(!m.record.Freeze.Resume)
	if err := m.goOn(ctx); err != nil {
		return err
	}
	for id := range m.record.Freeze.Layers { // its freezer was about to take it off again
		j, err := m.findJob(ctx, unfreezeJob(id))
		if err != nil {
			return err
		}
		if j == nil {
			continue
		}
		if err := m.completeJob(ctx, j.ID); err != nil {
			return err
		}
	}
	return m.dropNote(ctx, m.changeLocked)
}
