package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// reload takes over what the store has changed of a machine: its disk, and what that
// lies over.
func (m *machine) reload() error {
	m.recording.Lock()
	defer m.recording.Unlock()
	// Not the daemon's context: what is known is right also at its end.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	rec, err := m.d.store.Machine(ctx, m.id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rec = rec
	return nil
}

// settle decides, with the store, what became of a change of the machine's disk that
// was broken off. running is the run that there is, nil for none.
func (m *machine) settle(ctx context.Context, running vm.Machine, spec vm.Spec) error {
	if m.known().Definition != nil {
		return nil
	}
	path, err := writesTo(ctx, running, spec)
	if err != nil {
		m.settleAtEnd()
		return fmt.Errorf("machine %s: what it writes to is not known, and so what is to become of a change of its disk: %w", m.name, err)
	}
	m.recording.Lock()
	defer m.recording.Unlock()
	rec, err := m.d.store.SettleFreeze(ctx, m.id, path)
	if err != nil {
		m.settleAtEnd()
		return fmt.Errorf("machine %s: a change of its disk was broken off, and cannot be finished yet: %w", m.name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rec, m.unsettled = rec, false
	return nil
}

// settleAtEnd has a change that cannot be settled yet settled when the machine's
// process is gone: one that is being killed has closed its monitor before.
func (m *machine) settleAtEnd() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsettled = m.run != nil // else the next start, or daemon, tries again
}

// tidies says whether something is to be done when the machine's process is gone.
func (m *machine) tidies() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unsettled || m.rec.Linked()
}

// writesTo is the image of a machine's first drive, as its process itself says; "" where
// none runs.
func writesTo(ctx context.Context, running vm.Machine, spec vm.Spec) (string, error) {
	if running == nil {
		return "", nil
	}
	if d, ok := running.(vm.Described); ok {
		spec = d.RunningSpec()
	}
	if len(spec.Disks) == 0 {
		return "", nil
	}
	t, ok := running.(vm.ImageTeller)
	if !ok {
		return spec.Disks[0].Path, nil
	}
	path, err := t.DiskImage(ctx, spec.DiskNames()[0])
	if errors.Is(err, vm.ErrNotRunning) {
		return "", nil
	}
	return path, err
}

// beginDisk takes the machine's op for a change of what its disk lies over, and returns
// the run that there is, nil for none. end gives the op back.
func (m *machine) beginDisk(ctx context.Context) (r *run, end func(), err error) {
	end, err = m.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := m.readyDisk(ctx); err != nil {
		end()
		return nil, nil, err
	}
	return m.running(), end, nil
}

func (m *machine) readyDisk(ctx context.Context) error {
	if m.known().Definition != nil {
		return api.Errorf(api.CodeInvalid, "machine %s was made by `lamina install` or a definition, and its disks are not Lamina's: make a template of its disk by `lamina template import`, and machines of that", m.name)
	}
	if m.isStreaming() {
		return fmt.Errorf("machine %s is %w: its disk is being flattened: wait for that, or end it", m.name, store.ErrInUse)
	}
	if m.running() == nil && m.mayRun() {
		if err := m.adopt(ctx); err != nil {
			return err
		}
	}
	r := m.running()
	switch {
	case r == nil:
		return m.settle(ctx, nil, vm.Spec{})
	case m.tidies():
		return m.settle(ctx, r.vm, r.spec)
	}
	return nil
}

// needStopped refuses a running machine, with what else could be done.
func (m *machine) needStopped(r *run, instead string) error {
	if r == nil {
		return nil
	}
	return fmt.Errorf("machine %s is running (%w): `lamina stop %s` first%s", m.name, store.ErrInUse, m.name, instead)
}

func (m *machine) isStreaming() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.streaming
}

func (m *machine) setStreaming(v bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.streaming = v
}

// ownDrive is what the drive of the machine's own layer is called in a spec.
func (m *machine) ownDrive(spec vm.Spec) (string, error) {
	path := m.d.store.Disk(m.known())
	i := slices.IndexFunc(spec.Disks, func(d vm.Disk) bool { return d.Path == path })
	if i < 0 {
		return "", fmt.Errorf("machine %s does not run with its disk %s: stop and start it", m.name, path)
	}
	return spec.DiskNames()[i], nil
}

// flatten gives the machine a disk of its own. While it runs the op is not held: it
// can be stopped.
func (m *machine) flatten(ctx context.Context, s *events) error {
	r, end, err := m.beginDisk(ctx)
	if err != nil {
		return err
	}
	end = sync.OnceFunc(end)
	defer end()
	if m.known().Digest == "" {
		return nil
	}
	if err := m.roomToFlatten(ctx, r != nil); err != nil {
		return err
	}
	progress := func(done, total int64) {
		s.progress(api.Event{Step: "flatten", Machine: m.name, Current: done, Total: total})
	}
	if r == nil {
		if _, err := m.d.store.Flatten(ctx, m.id, progress); err != nil {
			return err
		}
		m.d.log.Info("flattened", "machine", m.name)
		return m.reload()
	}
	if _, ok := r.vm.(vm.DiskFlattener); !ok {
		return api.Errorf(api.CodeInvalid, "machine %s cannot be flattened while it runs: stop it first", m.name)
	}
	if err := m.d.store.BeginStream(ctx, m.id); err != nil {
		return err
	}
	m.setStreaming(true)
	end()
	return m.stream(ctx, r, progress)
}

// roomToFlatten: a new image is written of a disk that nobody writes to; into that of a
// machine that runs goes what is below it.
func (m *machine) roomToFlatten(ctx context.Context, running bool) error {
	rec := m.known()
	var size int64
	var err error
	if running {
		size, err = m.d.store.SizeOfCopy(ctx, rec.Digest)
	} else {
		_, size, err = m.d.store.DiskSizes(ctx, rec)
	}
	if err != nil {
		return fmt.Errorf("flatten %s: %w", m.name, err)
	}
	return m.d.guard.haveRoomFor("flatten "+m.name, size)
}

// stream flattens the disk of a run, or goes on with what an earlier daemon has begun,
// and records what came of it. The caller has set streaming.
func (m *machine) stream(ctx context.Context, r *run, progress func(done, total int64)) error {
	defer m.setStreaming(false)
	drive, err := m.ownDrive(r.runningSpec())
	if err == nil {
		err = r.vm.(vm.DiskFlattener).FlattenDisk(ctx, drive, progress)
	}
	if err == nil {
		m.d.log.Info("flattened while it ran", "machine", m.name)
	}
	_, ended := m.d.store.EndStream(ctx, m.id, err == nil)
	if errors.Is(ended, store.ErrNotFound) { // it was removed meanwhile
		return errors.Join(err, ended)
	}
	if err := errors.Join(err, ended); err != nil {
		return errors.Join(fmt.Errorf("machine %s: %w", m.name, err), m.reload())
	}
	return m.reload()
}

// goOnStreaming takes over the flattening that an earlier daemon has begun.
func (m *machine) goOnStreaming(r *run) {
	if _, ok := r.vm.(vm.DiskFlattener); !ok || !m.known().Streaming() {
		return
	}
	m.d.log.Info("going on to flatten", "machine", m.name)
	m.setStreaming(true)
	m.d.background(func(ctx context.Context) {
		if err := m.stream(ctx, r, nil); err != nil && ctx.Err() == nil {
			m.d.log.Error("not flattened", "machine", m.name, "error", err)
		}
	})
}

// diskError gives the errors of drivers their codes.
func diskError(err error) error {
	if errors.Is(err, vm.ErrNoLayer) {
		return api.Errorf(api.CodeInvalid, "%v", err)
	}
	return err
}
