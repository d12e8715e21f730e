// Package qemu runs machines with a QEMU binary and nothing else.
//
// A machine is one QEMU process in the machine's folder. It is on record in
// that folder (home.RunFile), so that a later process can adopt it; it needs
// nobody to keep running. QEMU 6.0 or later is needed.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
)

// Options are the choices of [New]. The zero value works.
type Options struct {
	// Binary is the QEMU program; "" looks for qemu-system-x86_64 in PATH,
	// then for qemu-kvm where Fedora's kin keep it.
	Binary string
	// CacheDir is the folder in which the driver remembers whether KVM
	// works on this host, and what its QEMU says of itself; "" remembers that for the
	// life of the Driver only.
	CacheDir string
}

// Driver starts machines as QEMU processes. It is safe for concurrent use.
type Driver struct {
	opts  Options
	kvm   *kvmMemory
	ports portPicker
	facts *factsMemory

	// noSandbox: this QEMU was built without its seccomp filter.
	noSandbox atomic.Bool
	// kvmDevice is the path of /dev/kvm, another one in tests.
	kvmDevice string
	// kvmWatch is how long the first guest under KVM on a host is watched
	// before the start counts as good, kvmGlance how long every later one.
	kvmWatch, kvmGlance time.Duration
	// spacePause is that of the constant, shorter in tests.
	spacePause time.Duration
}

// New returns a driver.
func New(opts Options) *Driver {
	return &Driver{
		opts:      opts,
		kvm:       newKVMMemory(opts.CacheDir),
		facts:     newFactsMemory(opts.CacheDir),
		kvmDevice: kvmDevice,
		kvmWatch:  2 * time.Second,
		kvmGlance: 100 * time.Millisecond,

		spacePause: spacePause,
	}
}

var (
	_ vm.Driver = (*Driver)(nil)
	_ vm.Killer = (*Driver)(nil)
)

// startTimeout bounds the time from the start of QEMU to its monitor's
// greeting, on the slowest of hosts.
const startTimeout = 60 * time.Second

// Start implements [vm.Driver]. It fills in the spec's defaults. The folder
// is made if it is not there.
func (d *Driver) Start(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	spec = spec.WithDefaults()
	m, err := d.start(ctx, spec, dir)
	if err != nil {
		return nil, fmt.Errorf("start machine %q: %w", spec.Name, err)
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, spec vm.Spec, dir string) (*machine, error) {
	l, unlock, err := d.begin(ctx, spec, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return d.startAccelerated(ctx, l)
}

// begin makes a folder ready in which nothing runs, and keeps it locked.
func (d *Driver) begin(ctx context.Context, spec vm.Spec, dir string) (l launch, unlock func(), err error) {
	if err := errors.Join(spec.Validate(), spec.CheckFiles()); err != nil {
		return l, nil, err
	}
	binary, err := d.binaryOf(spec)
	if err != nil {
		return l, nil, err
	}
	dir, err = prepareDir(dir)
	if err != nil {
		return l, nil, err
	}
	unlock, err = home.LockFolder(ctx, dir)
	if err != nil {
		return l, nil, err
	}
	p, r, err := findRunning(ctx, dir)
	if p != nil {
		err = errors.Join(fmt.Errorf("it already runs, as process %d", r.Process.PID), p.letGo())
	}
	if err == nil {
		err = rotateLogs(dir)
	}
	if err != nil {
		unlock()
		return l, nil, err
	}
	return launch{driver: d, binary: binary, dir: dir, spec: spec}, unlock, nil
}

// startAccelerated tries KVM where that may work, and TCG after it.
func (d *Driver) startAccelerated(ctx context.Context, l launch) (*machine, error) {
	if l.spec.Accel == vm.AccelTCG {
		return l.run(ctx, vm.AccelTCG, "", 0)
	}
	host, err := hostKey(l.binary)
	if err != nil {
		return nil, err
	}
	m, failure, err := d.startKVM(ctx, l, host)
	if err == nil || ctx.Err() != nil {
		return m, err
	}
	if l.spec.Accel == vm.AccelKVM {
		if failure.reason == "" { // QEMU's complaint is about something else
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s", vm.ErrNoKVM, failure.reason)
	}
	if failure.reason == "" {
		failure.reason = err.Error()
	}
	m, err = l.run(ctx, vm.AccelTCG, "KVM does not run this machine, and without it all is much slower: "+failure.String(), 0)
	if err == nil && failure.blamed {
		// The same machine runs without KVM, so it was KVM. Where this
		// cannot be kept, the next process finds out again.
		_ = d.kvm.learn(host, cpuKey(l.spec), kvmVerdict{Reason: failure.reason})
	}
	return m, err
}

// kvmFailure says why KVM does not run a machine.
type kvmFailure struct {
	reason     string // "" where the error may well have another cause
	blamed     bool   // this start showed it: not a lock or a lack of memory that passes
	remembered bool   // from an earlier one
}

func (f kvmFailure) String() string {
	if f.remembered {
		return f.reason + " (found at an earlier start)"
	}
	return f.reason
}

// startKVM starts under KVM, where that is not known to fail.
func (d *Driver) startKVM(ctx context.Context, l launch, host string) (*machine, kvmFailure, error) {
	if err := openKVM(d.kvmDevice); err != nil {
		return nil, kvmFailure{reason: err.Error()}, err
	}
	v, known := d.kvm.recall(host, cpuKey(l.spec))
	if known && !v.Works && l.spec.Accel == vm.AccelAuto {
		return nil, kvmFailure{reason: v.Reason, remembered: true}, vm.ErrNoKVM
	}
	watch := d.kvmWatch
	if known && v.Works {
		watch = d.kvmGlance
	}
	l.onKVMFailure = d.kvmFailed(host, cpuKey(l.spec))
	m, err := l.run(ctx, vm.AccelKVM, "", watch)
	if err != nil {
		return nil, kvmFailure{reason: kvmComplaint(err), blamed: blamesKVM(err)}, err
	}
	_ = d.kvm.learn(host, cpuKey(l.spec), kvmVerdict{Works: true}) // as above
	return m, kvmFailure{}, nil
}

// kvmFailed returns what a machine under KVM calls when it cannot go on.
func (d *Driver) kvmFailed(host, cpu string) func(reason string) {
	return func(reason string) {
		// A lost note costs the next start another try, no more.
		_ = d.kvm.learn(host, cpu, kvmVerdict{Reason: reason})
	}
}

// prepareDir returns dir without symbolic links, as /proc shows it, and made
// for its owner alone.
func prepareDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// rotateLogs keeps the serial log of the start before, and empties QEMU's.
func rotateLogs(dir string) error {
	serial := filepath.Join(dir, home.SerialLogFile)
	err := os.Rename(serial, filepath.Join(dir, home.SerialLogOld))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Made here, so that it is its owner's alone whatever QEMU's umask.
	for _, path := range []string{serial, filepath.Join(dir, home.QEMULogFile)} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// findRunning returns the process that runs in dir, nil if none does; then
// the leftovers of a dead one are gone. The folder's lock must be held.
func findRunning(ctx context.Context, dir string) (*process, record, error) {
	r, err := readRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, r, removeRuntime(dir)
	case errors.Is(err, errDamaged):
		return nil, r, removeDamaged(dir, err)
	case err != nil:
		return nil, r, err
	}
	if r.Info.QEMU == "" {
		// Its starter died before the guest executed.
		if err := killStray(ctx, dir, r.Spec.UUID); err != nil {
			return nil, r, err
		}
		return nil, r, r.removeRuntime(ctx, dir)
	}
	p, err := adopt(r.Process)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, r, r.removeRuntime(ctx, dir)
	}
	return p, r, err
}

// removeDamaged removes a record that cannot be read, with the other leftovers:
// a host that lost its power may not have kept what was in it, and no machine
// either. damage is the error where a process is there for all that.
func removeDamaged(dir string, damage error) error {
	ids, err := findAny(dir)
	if err != nil {
		return errors.Join(damage, err)
	}
	if len(ids) > 0 {
		return fmt.Errorf("%w: end QEMU process %d, which works in that folder, and remove the file", damage, ids[0].PID)
	}
	return removeRuntime(dir)
}

// killStray ends a guest that has not executed yet: nothing of it is lost.
func killStray(ctx context.Context, dir, uuid string) error {
	ids, err := findStray(dir, uuid)
	if err != nil {
		return err
	}
	for _, id := range ids {
		p, err := adopt(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.kill(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Adopt implements [vm.Driver].
func (d *Driver) Adopt(ctx context.Context, dir string) (vm.Machine, error) {
	m, err := d.adopt(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("machine in %s: %w", dir, err)
	}
	return m, nil
}

func (d *Driver) adopt(ctx context.Context, dir string) (*machine, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, vm.ErrNotRunning
	}
	dir, err := prepareDir(dir)
	if err != nil {
		return nil, err
	}
	unlock, err := home.LockFolder(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	m, err := d.takeOver(ctx, dir)
	if errors.Is(err, errDied) {
		m, err = d.takeOver(ctx, dir) // finds what it has left
	}
	return m, err
}

// errDied: a process ended while it was being taken over.
var errDied = errors.New("it has just ended")

// takeOver is adopt for whoever holds the folder's lock.
func (d *Driver) takeOver(ctx context.Context, dir string) (*machine, error) {
	unseen := endedUnseen(dir) // before what tells of it is cleaned up
	p, r, err := findRunning(ctx, dir)
	if err != nil {
		return nil, err
	}
	if p == nil {
		if unseen != nil {
			return nil, &vm.EndedError{Exit: *unseen}
		}
		return nil, vm.ErrNotRunning
	}
	m, err := attach(ctx, p, r, dir)
	if err != nil {
		err = fmt.Errorf("QEMU process %d does not answer: %w", p.PID, p.orDied(ctx, err))
		return nil, errors.Join(err, p.letGo())
	}
	if err := errors.Join(m.resumeStart(ctx), m.recoverFreeze(ctx)); err != nil {
		err = p.orDied(ctx, err)
		return nil, errors.Join(err, m.Release())
	}
	if r.Info.Accel == vm.AccelKVM {
		m.onKVMFailure = d.adoptedKVMFailed(cpuKey(r.Spec))
	}
	m.spacePause, m.ports = d.spacePause, &d.ports
	go m.supervise()
	return m, nil
}

// dyingTime is how long a process whose monitor is closed may take to be gone: it writes
// nothing any more, and gives back its memory.
const dyingTime = 5 * time.Second

// orDied returns err, and [errDied] where the process has closed its monitor because
// it ends: a killed one does that some milliseconds before it is gone.
func (p *process) orDied(ctx context.Context, err error) error {
	closed := slices.ContainsFunc([]error{qmp.ErrClosed, io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.ECONNREFUSED, unix.EPIPE}, func(e error) bool {
		return errors.Is(err, e)
	})
	if !closed {
		return err
	}
	select {
	case <-p.done:
		return errors.Join(err, errDied)
	case <-time.After(dyingTime):
	case <-ctx.Done():
	}
	return err
}

// KillIn implements [vm.Killer].
func (d *Driver) KillIn(ctx context.Context, dir string) error {
	if err := d.killIn(ctx, dir); err != nil {
		return fmt.Errorf("machine in %s: %w", dir, err)
	}
	return nil
}

func (d *Driver) killIn(ctx context.Context, dir string) error {
	dir, err := prepareDir(dir)
	if err != nil {
		return err
	}
	unlock, err := home.LockFolder(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	p, r, err := findRunning(ctx, dir)
	if err != nil {
		return err
	}
	if p == nil {
		return vm.ErrNotRunning
	}
	if err := p.kill(ctx); err != nil {
		return errors.Join(err, p.letGo())
	}
	return r.removeRuntime(ctx, dir)
}

// adoptedKVMFailed is kvmFailed for a machine of another process, whose QEMU
// may not be installed any more; then there is nothing to remember.
func (d *Driver) adoptedKVMFailed(cpu string) func(reason string) {
	binary, err := findBinary(d.opts.Binary)
	if err != nil {
		return nil
	}
	host, err := hostKey(binary)
	if err != nil {
		return nil
	}
	return d.kvmFailed(host, cpu)
}
