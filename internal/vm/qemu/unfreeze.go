package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// freezeNote is on record while overlays are about to come over images, or to go
// again: what another process needs to let the machine go on.
//
// While a drive uses its overlay, and until the guest writes to the image below again,
// the overlay holds all that was written. Before that the overlay's file is removed. So,
// whoever dies when: an overlay that is there and holds something is the drive's image.
type freezeNote struct {
	// Snapshot: the overlays only; the guest executes, or not, as it did.
	Snapshot bool `json:"snapshot,omitempty"`
	// Resume: the guest executed, and is to.
	Resume bool `json:"resume"`
	// Layers are the overlays, by drive; each is open as Node, and in use if it is
	// the drive's topmost one.
	Layers map[string]noteLayer `json:"layers,omitempty"`
}

type noteLayer struct {
	Node      string `json:"node"`
	Path      string `json:"path"`
	Below     string `json:"below"` // the drive's image before it, open as BelowNode
	BelowNode string `json:"belowNode"`
	// Off: it is being taken off again. If the drive does not use it, the image below
	// holds all of it.
	Off bool `json:"off,omitempty"`
}

// overlay is one of a note's.
type overlay struct {
	id string // the drive
	noteLayer
}

func unfreezeJob(id string) string { return "unfreeze-" + id }

// recording is how a record is changed: [machine.change] or changeLocked.
type recording func(func(*record)) error

func (m *machine) noted() *freezeNote {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Freeze
}

// changeNote changes the note, if there is one. Others may be reading the old one.
func (r *record) changeNote(f func(*freezeNote)) {
	if r.Freeze == nil {
		return
	}
	n := *r.Freeze
	n.Layers = maps.Clone(n.Layers)
	f(&n)
	r.Freeze = &n
}

// noteLayers puts on record what is about to be done with overlays.
func (m *machine) noteLayers(ctx context.Context, n freezeNote, layers []layer) error {
	n.Layers = map[string]noteLayer{}
	for i := range layers {
		l := &layers[i]
		if err := m.nameLayer(ctx, l); err != nil {
			return err
		}
		n.Layers[l.id] = noteLayer{Node: l.overlay, Path: l.path, Below: l.disk.Path, BelowNode: l.node}
	}
	return m.change(func(r *record) { r.Freeze = &n })
}

// sortOverlays returns the overlays that drives use, and closes the others.
func (m *machine) sortOverlays(ctx context.Context) (used []overlay, err error) {
	n := m.noted()
	if n == nil {
		return nil, nil
	}
	for _, id := range slices.Sorted(maps.Keys(n.Layers)) {
		o := overlay{id, n.Layers[id]}
		top, err := m.topNode(ctx, id)
		switch {
		case errors.Is(err, vm.ErrNoDevice): // unplugged, with its images
		case err != nil:
			return nil, err
		case top == o.Node:
			used = append(used, o)
		default:
			if err := m.closeOverlay(ctx, o); err != nil {
				return nil, err
			}
		}
	}
	return used, nil
}

// closeOverlay closes an overlay that its drive does not use. The file of one that was
// taken off goes first: from then on the image below counts.
func (m *machine) closeOverlay(ctx context.Context, o overlay) error {
	var gone error
	if o.Off {
		gone = removeDurably(o.Path)
		if err := m.step("overlay removed"); err != nil {
			return err
		}
		if err := m.endJob(ctx, unfreezeJob(o.id)); err != nil {
			return errors.Join(gone, err)
		}
	}
	if err := m.execute(ctx, "blockdev-del", map[string]string{"node-name": o.Node}, nil); err != nil && !notFound(err) {
		return errors.Join(gone, err)
	}
	return gone
}

// syncPatience is how long a stopped guest waits for the host's disk.
const syncPatience = 5 * time.Second

// removeDurably removes a file also for a power loss, but for a host's disk that does
// not answer.
func removeDurably(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- syncPath(filepath.Dir(path)) }()
	select {
	case err := <-done:
		return err
	case <-time.After(syncPatience):
		return nil
	}
}

// notePaths closes the overlays that are not in use, and puts on record which images
// the drives use.
func (m *machine) notePaths(ctx context.Context, change recording) error {
	used, err := m.sortOverlays(ctx)
	if err != nil || m.noted() == nil {
		return err
	}
	paths := map[string]string{}
	for id, l := range m.noted().Layers {
		paths[id] = l.Below
	}
	for _, o := range used {
		paths[o.id] = o.Path
	}
	return change(func(r *record) {
		for i, id := range r.DiskIDs {
			if path := paths[id]; path != "" {
				r.Spec.Disks[i].Path = path
			}
		}
	})
}

// takeOff makes the images below the overlays the drives' again, with what was written
// to the overlays since. The guest may execute meanwhile; at the end it may be stopped.
// stays says why the machine stays with overlays, which is as good for its guest; err,
// that it is not known what it uses.
func (m *machine) takeOff(ctx context.Context, change recording) (stays, err error) {
	used, err := m.sortOverlays(ctx)
	if err != nil {
		return nil, err
	}
	if len(used) > 0 {
		if stays = m.bringBack(ctx, change, used); stays != nil {
			// A job that is left alone would go on to write to what nobody changes any more.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
			defer cancel()
			for _, o := range used {
				if err := m.endJob(ctx, unfreezeJob(o.id)); err != nil {
					return stays, err
				}
			}
		}
	}
	// Not given up half-way: what is used must be on record.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	return stays, m.notePaths(ctx, change)
}

// bringBack copies what overlays hold into the images below, and makes these the
// drives' own. That happens while the guest is stopped, so that either image
// is right until the overlay's file is gone.
func (m *machine) bringBack(ctx context.Context, change recording, used []overlay) error {
	err := change(func(r *record) {
		r.changeNote(func(n *freezeNote) {
			for _, o := range used {
				l := n.Layers[o.id]
				l.Off = true
				n.Layers[o.id] = l
			}
		})
	})
	if err == nil {
		err = m.step("taking off noted")
	}
	for _, o := range used {
		if err == nil {
			err = m.beginTakeOff(ctx, o)
		}
	}
	if err == nil {
		err = m.step("written back")
	}
	for _, o := range used {
		if err == nil {
			err = m.awaitReady(ctx, unfreezeJob(o.id))
		}
	}
	if err == nil {
		err = m.step("ready")
	}
	if err == nil {
		err = m.stopGuest(ctx)
	}
	if err == nil {
		err = m.step("stopped")
	}
	for _, o := range used {
		if err == nil {
			err = m.completeJob(ctx, unfreezeJob(o.id))
		}
		if err == nil {
			err = m.step("taken off")
		}
	}
	return err
}

// beginTakeOff starts the job, unless whoever died has.
func (m *machine) beginTakeOff(ctx context.Context, o overlay) error {
	j, err := m.findJob(ctx, unfreezeJob(o.id))
	if err != nil || j != nil {
		return err
	}
	args := map[string]any{"job-id": unfreezeJob(o.id), "device": o.Node, "base-node": o.BelowNode, "auto-dismiss": false}
	return m.execute(ctx, "block-commit", args, nil)
}

// awaitReady waits until a job that copies down has caught up.
func (m *machine) awaitReady(ctx context.Context, id string) error {
	for {
		j, err := m.findJob(ctx, id)
		switch {
		case err != nil:
			return err
		case j == nil:
			return errNoJob
		case j.Status == "ready":
			return nil
		case j.Status == "concluded":
			return cmp.Or(jobEnd(ctx, j, false), errNoJob)
		}
		if err := pause(ctx, tick); err != nil {
			return err
		}
	}
}

// completeJob ends a job that is ready.
func (m *machine) completeJob(ctx context.Context, id string) error {
	if err := m.execute(ctx, "job-complete", map[string]string{"id": id}, nil); err != nil {
		return err
	}
	for {
		j, err := m.findJob(ctx, id)
		switch {
		case err != nil:
			return err
		case j == nil:
			return errNoJob
		case j.Status == "concluded":
			return jobEnd(ctx, j, false)
		}
		if err := pause(ctx, tick); err != nil {
			return err
		}
	}
}

// endJob returns when there is no such job any more. One that copies down leaves its
// drive as it was.
func (m *machine) endJob(ctx context.Context, id string) error {
	for {
		j, err := m.findJob(ctx, id)
		switch {
		case err != nil:
			return err
		case j == nil:
			return nil
		case j.Status == "concluded":
			if err := m.execute(ctx, "job-dismiss", map[string]string{"id": id}, nil); err != nil && !notFound(err) {
				return err
			}
			return nil
		}
		// It may be ending by itself: the next look tells.
		_ = m.execute(ctx, "job-cancel", map[string]string{"id": id}, nil)
		if err := pause(ctx, tick); err != nil {
			return fmt.Errorf("QEMU does not end its work on a disk (job %s): %w", id, err)
		}
	}
}

// stopGuest stops a guest that executes; one that does not stays as it is.
func (m *machine) stopGuest(ctx context.Context) error {
	status, err := m.queryStatus(ctx)
	if err == nil && status == statusRunning {
		err = m.execute(ctx, "stop", nil, nil)
	}
	return err
}

// step is where tests end things.
func (m *machine) step(name string) error {
	if m.atStep == nil {
		return nil
	}
	return m.atStep(name)
}
