package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/vm"
)

// warmDriver is a fakeDriver whose machines can be frozen and thawed.
type warmDriver struct {
	*fakeDriver

	mu     sync.Mutex
	known  map[*fakeMachine]*warmMachine
	refuse error // a thaw fails
	qemu   string
	guess  vm.Accel // what a start would take, as far as is known
	noKey  error    // keys cannot be told
}

func newWarmDriver() *warmDriver {
	return &warmDriver{fakeDriver: &fakeDriver{}, qemu: "fake", guess: vm.AccelTCG, known: map[*fakeMachine]*warmMachine{}}
}

func (d *warmDriver) setRefuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

// setKey sets what is known of the host's accelerator.
func (d *warmDriver) setKey(guess vm.Accel, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.guess, d.noKey = guess, err
}

// upgrade gives the host another QEMU.
func (d *warmDriver) upgrade(version string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.qemu = version
}

func (d *warmDriver) wrap(m vm.Machine, err error) (vm.Machine, error) {
	if err != nil {
		return nil, err
	}
	f := m.(*fakeMachine)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known[f] == nil {
		d.known[f] = &warmMachine{fakeMachine: f, d: d, now: f.spec.Clone()}
	}
	return d.known[f], nil
}

func (d *warmDriver) Start(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	return d.wrap(d.fakeDriver.Start(ctx, spec, dir))
}

func (d *warmDriver) Adopt(ctx context.Context, dir string) (vm.Machine, error) {
	return d.wrap(d.fakeDriver.Adopt(ctx, dir))
}

func (d *warmDriver) KillIn(ctx context.Context, dir string) error {
	m, err := d.fakeDriver.Adopt(ctx, dir)
	if err != nil {
		return err
	}
	return m.Kill(ctx)
}

func (d *warmDriver) FrozenKey(_ context.Context, s vm.Spec) (vm.FrozenKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	accel := s.Accel
	if accel == vm.AccelAuto || accel == "" {
		accel = d.guess
	}
	return vm.FrozenKey{QEMU: d.qemu, CPUs: s.CPUs, Memory: s.Memory, Accel: accel}, d.noKey
}

func (d *warmDriver) Thaw(ctx context.Context, spec vm.Spec, from vm.Frozen, dir string) (vm.Machine, error) {
	d.mu.Lock()
	refuse := d.refuse
	d.mu.Unlock()
	if refuse != nil {
		return nil, refuse
	}
	if _, err := os.Stat(from.RAM); err != nil {
		return nil, err
	}
	if key, _ := d.FrozenKey(ctx, spec); key != from.Key {
		return nil, fmt.Errorf("%w: %s", vm.ErrOtherHost, keyDifference(from.Key, key))
	}
	return d.Start(ctx, spec, dir)
}

// warmMachine is a fakeMachine that takes devices while it runs.
type warmMachine struct {
	*fakeMachine
	d *warmDriver

	plug sync.Mutex
	now  vm.Spec
}

func (m *warmMachine) RunningSpec() vm.Spec {
	m.plug.Lock()
	defer m.plug.Unlock()
	return m.now.Clone()
}

func (m *warmMachine) PlugDisk(_ context.Context, d vm.Disk) (vm.Disk, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	m.now.Disks = append(m.now.Disks, d)
	return d, nil
}

func (m *warmMachine) UnplugDisk(_ context.Context, name string) (vm.Disk, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	i, err := m.now.FindDisk(name)
	if err != nil {
		return vm.Disk{}, err
	}
	d := m.now.Disks[i]
	m.now.Disks = slices.Delete(m.now.Disks, i, i+1)
	return d, nil
}

func (m *warmMachine) PlugNIC(_ context.Context, n vm.NIC) (vm.NIC, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	n.Forwards = slices.Clone(n.Forwards)
	for i := range n.Forwards {
		if n.Forwards[i].HostPort == 0 {
			n.Forwards[i].HostPort = 50000
		}
	}
	m.now.NICs = append(m.now.NICs, n)
	return n, nil
}

func (m *warmMachine) UnplugNIC(context.Context, string) (vm.NIC, error) {
	return vm.NIC{}, vm.ErrNoHotplug
}

func (m *warmMachine) SetLink(context.Context, string, vm.LinkState) error { return nil }

func (m *warmMachine) Freeze(_ context.Context, r vm.FreezeRequest) (vm.FreezeResult, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	for _, path := range []string{r.RAM, r.State} {
		if err := os.WriteFile(path, []byte("frozen"), 0o600); err != nil {
			return vm.FreezeResult{}, err
		}
	}
	frozen := m.now.Clone()
	key, _ := m.d.FrozenKey(context.Background(), frozen)
	for drive, overlay := range r.Layers {
		i, err := m.now.FindDisk(drive)
		if err != nil {
			return vm.FreezeResult{}, err
		}
		m.now.Disks[i].Path = overlay
	}
	if r.End {
		m.exitWith(vm.Exit{State: vm.StateStopped, Cause: vm.CauseKilled, Reason: "killed"})
	}
	return vm.FreezeResult{Frozen: vm.Frozen{RAM: r.RAM, State: r.State, Spec: frozen, Key: key}, Pause: time.Millisecond}, nil
}

// warmImages knows whether something was written to an overlay.
type warmImages struct{ fakeImages }

func (warmImages) Empty(_ context.Context, path string) (bool, error) {
	b, err := os.ReadFile(path)
	return !bytes.ContainsRune(b, '\n'), err
}

// fakeGuests are guests whose agent does as it is told.
type fakeGuests struct {
	mu     sync.Mutex
	hold   chan struct{} // nil, or what renewals and WaitReady wait for
	fail   error         // of a renewal
	renews int

	strange atomic.Bool // the script does not know their SSH server
}

func (g *fakeGuests) set(hold chan struct{}, fail error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hold, g.fail = hold, fail
}

func (g *fakeGuests) now() (chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.renews++
	return g.hold, g.fail
}

func (g *fakeGuests) Open(context.Context, string, string) (Guest, error) { return fakeGuest{g}, nil }

type fakeGuest struct{ all *fakeGuests }

func (fakeGuest) Kind() agent.Kind              { return agent.KindLamina }
func (fakeGuest) Prepare(context.Context) error { return nil }
func (fakeGuest) Close() error                  { return nil }
func (fakeGuest) Run(context.Context, string, []byte) (agent.Result, error) {
	return agent.Result{}, nil
}

func (g fakeGuest) WaitReady(ctx context.Context) error {
	hold, _ := g.all.now()
	return await(ctx, hold)
}

func await(ctx context.Context, hold chan struct{}) error {
	if hold == nil {
		return nil
	}
	select {
	case <-hold:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g fakeGuest) Renew(ctx context.Context, id agent.Identity) (agent.Report, error) {
	hold, fail := g.all.now()
	if err := await(ctx, hold); err != nil {
		return agent.Report{}, err
	}
	if fail != nil {
		return agent.Report{}, fail
	}
	if err := id.Plug(ctx); err != nil {
		return agent.Report{}, err
	}
	keys, err := id.HostKeys.Public()
	return agent.Report{Hostname: id.Seed.Hostname, MachineID: id.MachineID, Addresses: []string{"10.0.2.15"}, HostKeys: keys, User: "admin", At: time.Now(), ServerUnknown: g.all.strange.Load()}, err
}
