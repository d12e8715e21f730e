package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// flattenEvery is how often a job is asked how far it is.
const flattenEvery = 200 * time.Millisecond

// job is what query-jobs says of one.
type job struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Current int64  `json:"current-progress"`
	Total   int64  `json:"total-progress"`
	Error   string `json:"error"`
}

// FlattenDisk implements [vm.DiskFlattener]. The job is QEMU's own, with a name
// that follows from the drive: it goes on when this process ends without a word, and
// the next one finds it.
func (m *machine) FlattenDisk(ctx context.Context, name string, progress func(done, total int64)) error {
	_, d, id, err := m.findDisk(name)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("flatten drive %q", name)
	if err := layerDrive(name, d); err != nil {
		return err
	}
	top, runs, err := m.beginFlatten(ctx, id)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	flush := func(ctx context.Context) error { return m.flushNode(ctx, top, d.Path) }
	if runs {
		if err := m.awaitJob(ctx, flattenJob(id), flush, progress); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	// The header is written by now, not more; or everything, by whoever was here before.
	if err := flush(ctx); err != nil {
		return fmt.Errorf("%s: it is done, and not all of it is on the host's disk: %w", what, err)
	}
	if err := m.closeBelow(ctx, id, top); err != nil {
		return fmt.Errorf("%s: it is done, and an image that is not needed any more stays open: %w", what, err)
	}
	return nil
}

func flattenJob(id string) string { return "flatten-" + id }

// beginFlatten starts the job unless it runs. It returns the node that becomes
// flat, and whether there is a job: none where it is flat.
func (m *machine) beginFlatten(ctx context.Context, id string) (top string, runs bool, err error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	if top, err = m.topNode(ctx, id); err != nil {
		return "", false, err
	}
	if j, err := m.findJob(ctx, flattenJob(id)); err != nil || j != nil {
		return top, true, err
	}
	depth, err := m.depth(ctx, id)
	if err != nil || depth == 0 {
		return top, false, err
	}
	return top, true, m.execute(ctx, "block-stream", map[string]any{
		"job-id": flattenJob(id), "device": top,
		// The header loses its backing file only behind what was copied: see flushNode.
		"auto-finalize": false,
		// Else how it ended is told once, and to nobody who was not there.
		"auto-dismiss": false,
	}, nil)
}

// flushNode writes out what QEMU and the host hold of an image. A stream leaves what it has
// copied in QEMU's cache of the tables (qcow2 writes these back at a flush only), and
// then writes the header in which the backing file is missing right away: a QEMU that is
// killed would leave an image in which nothing is. QEMU's monitor has no other
// command that flushes one node; it does not tell of errors, the host's sync does.
func (m *machine) flushNode(ctx context.Context, node, path string) error {
	f, err := os.Open(path) // before the flush: what fails in between is told to this one too
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var said string
	err = m.execute(ctx, "human-monitor-command", map[string]string{"command-line": fmt.Sprintf("qemu-io %s flush", node)}, &said)
	if err != nil {
		return err
	}
	if said = strings.TrimSpace(said); said != "" {
		return fmt.Errorf("flush %s: %s", node, said)
	}
	return f.Sync()
}

// depth is how many images a drive has below its own.
func (m *machine) depth(ctx context.Context, id string) (int, error) {
	var all []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			Depth int `json:"backing_file_depth"`
		} `json:"inserted"`
	}
	if err := m.execute(ctx, "query-block", nil, &all); err != nil {
		return 0, err
	}
	for _, b := range all {
		if b.Inserted != nil && matchesDevice(b.QDev, deviceID(id)) {
			return b.Inserted.Depth, nil
		}
	}
	return 0, fmt.Errorf("%w: QEMU has no drive %s", vm.ErrNoDevice, id)
}

func (m *machine) findJob(ctx context.Context, id string) (*job, error) {
	var list []job
	if err := m.execute(ctx, "query-jobs", nil, &list); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(j job) bool { return j.ID == id })
	if i < 0 {
		return nil, nil
	}
	return &list[i], nil
}

// errNoJob: somebody else has taken note of how the job ended.
var errNoJob = errors.New("the job is gone")

// awaitJob waits for the end of a job, which it takes off QEMU's list. What the job does
// last it does behind flush. When ctx ends it ends the job.
func (m *machine) awaitJob(ctx context.Context, id string, flush func(context.Context) error, progress func(done, total int64)) error {
	tick := time.NewTicker(flattenEvery)
	defer tick.Stop()
	// ask outlives ctx by the time that the end of the job may take.
	ask, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(killTimeout, cancel) })()
	var failed error // of flush
	for cancelled := false; ; {
		j, err := m.findJob(ask, id)
		switch {
		case ask.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case j == nil:
			return errNoJob
		case j.Status == "concluded":
			if err := m.execute(ask, "job-dismiss", map[string]string{"id": id}, nil); err != nil {
				return err
			}
			return cmp.Or(failed, jobEnd(ctx, j, cancelled))
		case j.Status == "pending" && failed == nil && ctx.Err() == nil:
			if failed = flush(ask); failed == nil {
				// One that another process has finalized is over: the next look tells.
				_ = m.execute(ask, "job-finalize", map[string]string{"id": id}, nil)
			}
		case progress != nil:
			progress(j.Current, j.Total)
		}
		if (ctx.Err() != nil || failed != nil) && !cancelled {
			cancelled = true
			// It may have ended by itself: the next look tells.
			_ = m.execute(ask, "job-cancel", map[string]string{"id": id}, nil)
		}
		select {
		case <-tick.C:
		case <-m.proc.done:
			return vm.ErrNotRunning
		}
	}
}

// jobEnd is how a job came out. One that was done before it could be cancelled is
// done.
func jobEnd(ctx context.Context, j *job, cancelled bool) error {
	switch {
	case cancelled && j.Error != "":
		return context.Cause(ctx)
	case j.Error != "":
		return errors.New(j.Error)
	case j.Current < j.Total:
		return errors.New("it was cancelled by somebody else")
	}
	return nil
}

// closeBelow closes the images that lay below a drive's and were opened by
// snapshots; those that came with the first one QEMU has closed.
func (m *machine) closeBelow(ctx context.Context, id, top string) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	nodes, err := m.nodesOf(ctx, id)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if layerNumber(n, id) < 0 || layerNumber(n, id) >= layerNumber(top, id) {
			continue
		}
		if err := m.execute(ctx, "blockdev-del", map[string]string{"node-name": n}, nil); err != nil && !notFound(err) {
			return err
		}
	}
	return nil
}
