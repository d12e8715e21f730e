// Package daemon owns running machines: it serves the API of package api on a
// unix socket, starts machines and supervises them, follows their boots, and
// takes over, when it starts, the machines that run already.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/catalog"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// ErrRunning: another daemon serves the home.
var ErrRunning = errors.New("another laminad serves this home already")

// Fetcher brings images to the local disk; *catalog.Fetcher is one.
type Fetcher interface {
	Fetch(ctx context.Context, ref string, o catalog.Options, progress func(api.Event)) (catalog.Result, error)
}

// Options are what a daemon is made of. Home and Driver are required.
type Options struct {
	Home    home.Home
	Driver  vm.Driver
	Fetcher Fetcher            // nil means a catalog.Fetcher in Home.Downloads
	Catalog []api.CatalogEntry // nil means catalog.Default
	Images  store.Images       // nil means package image
	Log     *slog.Logger       // nil discards

	// Listener is where clients come from. nil means a new socket at
	// Home.Socket, with mode 0600.
	Listener net.Listener
	// IdleExit ends the daemon when no machine ran and no client asked for
	// that long. 0 means never.
	IdleExit time.Duration
	// StartsAtOnce bounds how many machines are being started at one time.
	// 0 means the number of processors, at least 2.
	StartsAtOnce int

	// BootID tells the host's boots apart; "" is the kernel's.
	BootID string

	// Statfs stands in for statfs(2) in tests: the bytes that are free, and all.
	Statfs func(dir string) (free, total int64, err error)

	// Inspect looks into the image of a template; nil means package inspect.
	Inspect func(ctx context.Context, path, format string) (api.ImageInfo, error)

	// Guests reaches into guests; nil means their agents.
	Guests Guests
	// RenewalsAtOnce bounds how many guests that were started warm are being given
	// their identity at one time. 0 means one more than the number of processors.
	RenewalsAtOnce int

	// Seed and Watch stand in for seed.Build and boot.Watch in tests.
	Seed  func(seed.Config) ([]byte, error)
	Watch func(context.Context, boot.Sources, boot.Options) (boot.Result, error)
}

// Daemon serves one home. Make it with New, then call Serve.
type Daemon struct {
	opts   Options
	home   home.Home
	log    *slog.Logger
	store  *store.Store
	lock   *os.File
	server *http.Server
	idle   idle
	guard  *guard
	fleets fleets
	shares *shares
	// systems are the guests' systems that were met.
	systems systems
	// fetching is held, for reading, while a download is used: it must not go.
	fetching sync.RWMutex

	// ctx ends when the daemon does. What must not end with the request
	// that began it runs under ctx; work counts it.
	ctx    context.Context
	stop   context.CancelCauseFunc
	work   sync.WaitGroup
	starts chan struct{} // a slot for each machine being started
	// renewals has a slot for each guest that is being given its identity: apart from
	// starts, so that in a bulk the consoles come first.
	renewals chan struct{}
	underway underway
	closed   sync.Once

	// mu guards machines. Order of locks: machine.op,
	// machine.recording, mu, machine.mu.
	mu       sync.Mutex
	machines map[string]*machine // by name
}

// errStopping is the cause of the end of the daemon's context.
var errStopping = errors.New("the daemon is ending; machines go on")

// New takes the home's lock (ErrRunning where another daemon has it), opens
// the store, takes over the machines that run, and listens. ctx bounds only
// this. Serve or Close must follow.
func New(ctx context.Context, o Options) (*Daemon, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Catalog == nil {
		o.Catalog = catalog.Default()
	}
	if o.Fetcher == nil {
		o.Fetcher = &catalog.Fetcher{Dir: o.Home.Downloads()}
	}
	if o.Inspect == nil {
		o.Inspect = inspectFile
	}
	if o.Guests == nil {
		o.Guests = agents{}
	}
	if o.RenewalsAtOnce == 0 {
		o.RenewalsAtOnce = runtime.NumCPU() + 1
	}
	if o.Seed == nil {
		o.Seed = seed.Build
	}
	if o.Watch == nil {
		o.Watch = boot.Watch
	}
	if o.StartsAtOnce == 0 {
		o.StartsAtOnce = max(2, runtime.NumCPU())
	}
	d := &Daemon{opts: o, home: o.Home, log: o.Log, machines: make(map[string]*machine), shares: newShares(),
		starts: make(chan struct{}, o.StartsAtOnce), renewals: make(chan struct{}, o.RenewalsAtOnce)}
	d.ctx, d.stop = context.WithCancelCause(context.Background())
	if err := d.open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.home.Run, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(d.home.Data, 0o700); err != nil {
		return err
	}
	// A socket that systemd listens on tells nothing about a daemon.
	serves := func() bool { return d.opts.Listener == nil && answers(d.home.Socket()) }
	if d.lock, err = takeLock(ctx, d.home.Lock(), serves); err != nil {
		if errors.Is(err, ErrRunning) && !answers(d.home.Socket()) {
			err = fmt.Errorf("%w, and does not answer on %s: end it (its machines go on), or set XDG_RUNTIME_DIR to what it was when it started", err, d.home.Socket())
		}
		return err
	}
	d.store, err = store.Open(ctx, d.home, store.Options{Log: d.log, Images: d.opts.Images, End: d.endIn})
	if err != nil {
		return err
	}
	if d.guard, err = newGuard(ctx, d); err != nil {
		return err
	}
	if err := d.loadMachines(ctx); err != nil {
		return err
	}
	d.background(d.guard.run)
	d.background(d.digestLayers)
	if err := d.resumeFleets(ctx); err != nil {
		return err
	}
	if d.opts.Listener == nil {
		if err := d.listen(); err != nil {
			return err
		}
	}
	d.idle.begin(d.opts.IdleExit)
	d.server = &http.Server{
		Handler:           d.handler(),
		ConnContext:       withPeer,
		BaseContext:       func(net.Listener) context.Context { return d.ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
	return nil
}

// listen makes the daemon's own socket.
func (d *Daemon) listen() error {
	l, err := listen(d.home.Socket())
	if err != nil {
		return err
	}
	d.opts.Listener = l
	st, err := os.Lstat(d.home.Socket())
	if err != nil {
		return err
	}
	go d.endWithSocket(l, st)
	return nil
}

// Serve answers clients until ctx ends, a client asks for the end, or nothing
// was to do for Options.IdleExit; then it lets go of the machines, which go
// on, and closes the daemon.
func (d *Daemon) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(d.opts.Listener) }()
	d.log.Info("listening", "socket", d.opts.Listener.Addr().String(), "pid", os.Getpid(), "version", api.BuildVersion)
	go d.exitWhenIdle()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	case <-d.ctx.Done():
	}
	// New clients are refused at once; requests under way are told that the
	// daemon ends and get a moment to say so to their clients.
	d.stop(errStopping)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if e := d.server.Shutdown(grace); e != nil {
		d.log.Warn("some clients were cut off", "error", e)
		_ = d.server.Close()
	}
	d.Close()
	d.log.Info("ended")
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// Close lets go of everything, also of a daemon that never served. The
// machines go on.
func (d *Daemon) Close() {
	d.stop(errStopping)
	d.closed.Do(d.close)
}

func (d *Daemon) close() {
	if d.opts.Listener != nil {
		_ = d.opts.Listener.Close() // closed already after Serve
	}
	d.work.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.machines {
		m.release()
	}
	if d.store != nil {
		if err := d.store.Close(); err != nil {
			d.log.Error("close the state database", "error", err)
		}
	}
	if d.lock != nil {
		_ = d.lock.Close() // gives the lock back
	}
}

// endIn ends the machine that may run in a folder which is about to go.
func (d *Daemon) endIn(ctx context.Context, dir string) error {
	killer, ok := d.opts.Driver.(vm.Killer)
	if !ok {
		return nil
	}
	if err := killer.KillIn(ctx, dir); err != nil && !errors.Is(err, vm.ErrNotRunning) {
		return err
	}
	return nil
}

// background runs f under the daemon's context; Close waits for it.
func (d *Daemon) background(f func(ctx context.Context)) {
	d.work.Go(func() { f(d.ctx) })
}

// loadMachines makes the registry of the store's machines, takes over those
// that run, and starts those whose start was broken off.
func (d *Daemon) loadMachines(ctx context.Context) error {
	list, err := d.store.Machines(ctx)
	if err != nil {
		return err
	}
	unsettled, err := d.store.Unsettled(ctx)
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	all := make([]*machine, 0, len(list))
	for _, rec := range list {
		m := d.add(rec)
		all = append(all, m)
		settle := func() {
			if err := m.settle(ctx, nil, vm.Spec{}); err != nil {
				d.log.Error("a change of a disk is not settled", "machine", rec.Name, "error", err)
			}
		}
		if !m.mayRun() {
			if slices.Contains(unsettled, rec.ID) {
				settle()
			}
			continue
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := m.adopt(ctx); err != nil {
				d.log.Warn("machine not taken over", "machine", rec.Name, "error", err)
				d.background(m.adoptLater)
				return
			}
			if m.running() == nil && (slices.Contains(unsettled, rec.ID) || rec.Linked()) { // it has ended unseen
				settle()
			}
		})
	}
	group.Wait()
	if err := d.store.SweepMemory(ctx); err != nil {
		d.log.Error("the memory of a fork is left", "error", err)
	}
	all = slices.DeleteFunc(all, func(m *machine) bool { return m.unfinished(ctx) })
	d.autostart(all)
	for _, m := range all {
		m.finishStart()
	}
	return nil
}

// add puts a machine of the store into the registry.
func (d *Daemon) add(rec store.Machine) *machine {
	m := &machine{d: d, id: rec.ID, name: rec.Name, dir: d.home.Machine(rec.ID), op: make(chan struct{}, 1), rec: rec}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machines[rec.Name] = m
	return m
}

// forget takes a removed machine out of the registry. Its name was free since
// its row went: another machine may have it by now.
func (d *Daemon) forget(m *machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.machines[m.name] == m {
		delete(d.machines, m.name)
	}
}

// list returns all machines, in no order.
func (d *Daemon) list() []*machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Values(d.machines))
}

// find returns the machine with a name or id.
func (d *Daemon) find(ref string) (*machine, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.machines[ref]; ok {
		return m, nil
	}
	for _, m := range d.machines {
		if m.id == ref {
			return m, nil
		}
	}
	return nil, fmt.Errorf("machine %q: %w; `lamina ls` lists the machines", ref, store.ErrNotFound)
}

// busy counts the machines that run or are on their way, and the fleets that
// something is done with.
func (d *Daemon) busy() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, m := range d.machines {
		if m.active() {
			n++
		}
	}
	return n + d.fleets.active()
}
