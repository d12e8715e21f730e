package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	top, err := m.beginFlatten(ctx, id)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if top == "" {
		return nil
	}
	if err := m.awaitJob(ctx, flattenJob(id), progress); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := m.closeBelow(ctx, id, top); err != nil {
		return fmt.Errorf("%s: it is done, and an image that is not needed any more stays open: %w", what, err)
	}
	return nil
}

func flattenJob(id string) string { return "flatten-" + id }

// beginFlatten starts the job unless it runs. It returns the node that becomes
// flat; "" where it is.
func (m *machine) beginFlatten(ctx context.Context, id string) (top string, err error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	if top, err = m.topNode(ctx, id); err != nil {
		return "", err
	}
	if j, err := m.findJob(ctx, flattenJob(id)); err != nil || j != nil {
		return top, err
	}
	depth, err := m.depth(ctx, id)
	if err != nil || depth == 0 {
		return "", err
	}
	return top, m.execute(ctx, "block-stream", map[string]any{
		"job-id": flattenJob(id), "device": top,
		// Else how it ended is told once, and to nobody who was not there.
		"auto-dismiss": false,
	}, nil)
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

// awaitJob waits for the end of a job, which it takes off QEMU's list. When ctx
// ends it ends the job.
func (m *machine) awaitJob(ctx context.Context, id string, progress func(done, total int64)) error {
	tick := time.NewTicker(flattenEvery)
	defer tick.Stop()
	// ask outlives ctx by the time that the end of the job may take.
	ask, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(killTimeout, cancel) })()
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
			return jobEnd(ctx, j, cancelled)
		case progress != nil:
			progress(j.Current, j.Total)
		}
		if ctx.Err() != nil && !cancelled {
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
