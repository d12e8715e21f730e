package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// renewTimeout is how long a guest may take to confirm its identity.
const renewTimeout = time.Minute

// promptTimeout is how long a console may take to answer.
const promptTimeout = 10 * time.Second

// KindIdentity is the kind of the problem of a guest that was started warm and has not
// confirmed that it is itself.
const KindIdentity = "identity"

// warmRun is a run that was started warm, until its guest is itself.
type warmRun struct {
	fork     bool
	timeout  time.Duration
	agent    string        // that answers in it; "" if that is not known
	there    func()        // nil, or tells that it is not on its way to its console any more
	prompted chan struct{} // closed when the console has answered, or is not waited for
	renewing atomic.Bool   // between prompt and ready
}

func (w *warmRun) arrived() {
	if w.there != nil {
		w.there()
	}
}

// becomeItself makes the guest of a run that was started warm its own machine: its
// console is asked for a sign of life, its identity renewed, its card plugged in.
func (m *machine) becomeItself(ctx context.Context, r *run) {
	w := m.known().Warmth
	if w == nil {
		w = &api.Warmth{}
	}
	if w.Prompt == 0 {
		var took time.Duration
		if r.warm.fork {
			// Its console is as somebody left the original's: nothing is typed there, not
			// even Enter behind a line that they had not entered.
			took = m.toldPrompt(r)
		} else {
			took = m.awaitPrompt(ctx, r)
		}
		if ctx.Err() == nil && !ended(r) {
			m.recordWarm(r, func(rec *store.Machine, w *api.Warmth) { w.Prompt, rec.Last.LoginIn = took, took })
		}
	}
	r.warm.arrived()
	r.warm.renewing.Store(true)
	defer r.warm.renewing.Store(false)
	close(r.warm.prompted)
	report, err := m.renewHeld(ctx, r)
	switch {
	case ctx.Err() != nil:
		r.boot.finish(cause(ctx)) // the daemon ends; the next one does it again
		return
	case ended(r):
		r.boot.finish(fmt.Errorf("machine %s has ended before its guest had confirmed its identity", m.name))
		return
	case err != nil && !errors.Is(err, agent.ErrUserData):
		m.unconfirmed(r, err)
		return
	}
	took := time.Since(r.vm.Info().StartedAt)
	problem := ""
	if err != nil {
		problem = err.Error()
		r.boot.add(api.Event{Step: "boot", Machine: m.name, Warning: problem})
	}
	m.recordWarm(r, func(rec *store.Machine, w *api.Warmth) {
		w.Ready, w.Problem = took, problem
		rec.Last.Stage, rec.Last.Problem = boot.StageLogin, nil
		rec.Identity = &api.Identity{Hostname: report.Hostname, MachineID: report.MachineID, Addresses: report.Addresses, HostKeys: report.HostKeys, User: report.User, At: report.At}
	})
	m.d.log.Info("ready", "machine", m.name, "took", took.Round(time.Millisecond))
	r.boot.add(api.Event{Step: "boot", Machine: m.name, Text: "ready after " + progress.Duration(took), Boot: &boot.Event{Stage: boot.StageLogin, Since: took}})
	r.boot.finish(nil)
}

// recordWarm changes what is on record of a warm run, if it is the current one.
func (m *machine) recordWarm(r *run, change func(*store.Machine, *api.Warmth)) {
	_ = m.setRun(func(rec *store.Machine) { // an error is logged
		if m.run != r {
			return
		}
		var w api.Warmth
		if rec.Warmth != nil {
			w = *rec.Warmth
		}
		change(rec, &w)
		rec.Warmth = &w // what was handed out stays as it is
	})
}

// unconfirmed records why a guest is not known to be itself.
func (m *machine) unconfirmed(r *run, err error) {
	p := &boot.Problem{Stage: boot.StageLogin, Kind: KindIdentity,
		Cause: "the guest has not confirmed that it has an identity of its own: " + err.Error(),
		Remedy: []string{
			"look at it: `lamina console " + m.name + "`",
			"start it anew: `lamina stop --force " + m.name + "` and `lamina start --cold " + m.name + "`",
		}}
	m.d.log.Warn("identity not confirmed", "machine", m.name, "error", err)
	m.recordWarm(r, func(rec *store.Machine, w *api.Warmth) {
		w.Problem = p.Cause
		rec.Last.Stage, rec.Last.Problem = boot.StageLogin, p
	})
	e := api.Errorf(api.CodeBoot, "machine %s runs, but %s", m.name, p.Cause)
	e.Problem = p
	r.boot.finish(e)
}

// awaitPrompt presses Enter on the guest's serial console until something comes
// back, and returns how long after the start that was; 0 if nothing came.
func (m *machine) awaitPrompt(ctx context.Context, r *run) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, promptTimeout)
	defer cancel()
	c := r.console
	if _, err := os.Lstat(c.socket); err != nil {
		return 0 // it has no serial port that is ours
	}
	if err := c.join(ctx); err != nil {
		m.d.log.Warn("the console is not reached", "machine", m.name, "error", err)
		return 0
	}
	defer c.leave()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		more := c.woken()
		if err := c.write([]byte("\n")); err != nil {
			return 0
		}
		select {
		case <-more:
			return m.toldPrompt(r)
		case <-again.C:
		case <-r.ended:
			return 0
		case <-ctx.Done():
			return 0
		}
	}
}

// toldPrompt says that the guest goes on, and after what time since its start.
func (m *machine) toldPrompt(r *run) time.Duration {
	took := time.Since(r.vm.Info().StartedAt)
	r.boot.add(api.Event{Step: "boot", Machine: m.name, Text: "prompt after " + progress.Duration(took)})
	return took
}

// renewHeld is renew, and once more where the guest was held for lack of space
// meanwhile.
func (m *machine) renewHeld(ctx context.Context, r *run) (agent.Report, error) {
	for {
		before := r.holds.Load()
		report, err := m.renew(ctx, r)
		if err == nil || errors.Is(err, agent.ErrUserData) || ctx.Err() != nil || ended(r) ||
			before == r.holds.Load() && !r.held.Load() {
			return report, err
		}
		for r.held.Load() {
			select {
			case <-time.After(heldEvery):
			case <-r.ended:
				return report, err
			case <-ctx.Done():
				return report, err
			}
		}
	}
}

// heldEvery is how exactly it is known for how long a guest was held.
const heldEvery = 250 * time.Millisecond

// executing is ctx until the run has ended or its guest has executed for as long as it
// has to become itself; the time in which it was held does not count.
func (r *run) executing(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := r.warm.timeout
	if limit <= 0 {
		limit = renewTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for left := limit; left > 0; {
			step := min(left, heldEvery)
			select {
			case <-time.After(step):
			case <-r.ended: // an agent that is gone with its machine is not waited for
				cancel(nil)
				return
			case <-ctx.Done():
				return
			}
			if !r.held.Load() {
				left -= step
			}
		}
		cancel(fmt.Errorf("not within %s", limit))
	}()
	return ctx, func() { cancel(nil) }
}

// renew gives the guest its identity. It can be done again, also by the next daemon.
func (m *machine) renew(ctx context.Context, r *run) (agent.Report, error) {
	m.d.underway.wait(ctx, startsFirst, r.ended)
	outer := ctx
	ctx, cancel := r.executing(outer)
	defer cancel()
	// Before there is a turn: a guest without an agent would keep others from theirs.
	lamina, qga := agentSockets(m.dir, r.runningSpec())
	if r.warm.agent == string(agent.KindLamina) {
		qga = "" // and nobody need be asked who is there
	}
	g, err := m.d.opts.Guests.Open(ctx, lamina, qga)
	if err != nil {
		return agent.Report{}, err
	}
	leave := true
	defer func() {
		if leave {
			_ = g.Close() // what counts is known
		}
	}()
	select {
	case m.d.renewals <- struct{}{}:
		defer func() { <-m.d.renewals }()
	case <-r.ended:
		return agent.Report{}, vm.ErrNotRunning
	case <-outer.Done():
		return agent.Report{}, cause(outer)
	}
	ctx, cancelTurn := r.executing(outer)
	defer cancelTurn()
	id, err := m.newIdentity(r)
	if err != nil {
		return agent.Report{}, err
	}
	if err := m.retireCards(ctx, g, r); err != nil {
		return agent.Report{}, err
	}
	report, err := g.Renew(ctx, id)
	if err != nil && !errors.Is(err, agent.ErrUserData) {
		return report, err
	}
	// Asked for only where it may be another one: a key exchange costs a guest without
	// hardware virtualization too much to have each do it.
	if addr := sshAddress(cardForwards(r.runningSpec())); report.ServerUnknown && addr != "" {
		if err := report.CheckServed(ctx, addr); err != nil {
			return agent.Report{}, err
		}
	}
	if err := m.knowHost(report); err != nil {
		return report, err
	}
	leave = false
	m.d.background(func(ctx context.Context) { m.syncRenewed(ctx, g) })
	return report, err
}

// sshAddress is where the host reaches the guest's SSH server, "" for nowhere.
func sshAddress(forwards []vm.Forward) string {
	for _, f := range forwards {
		if f.GuestPort != 22 || f.Proto == "udp" || f.HostPort == 0 {
			continue
		}
		host := f.HostAddr
		if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		return net.JoinHostPort(host, strconv.Itoa(f.HostPort))
	}
	return ""
}

// syncRenewed has the guest write out who it is: after a power failure it is to be
// the same.
func (m *machine) syncRenewed(ctx context.Context, g Guest) {
	ctx, cancel := context.WithTimeout(ctx, guestSyncTime)
	defer cancel()
	if _, err := g.Run(ctx, "sync", nil); err != nil && ctx.Err() == nil {
		m.d.log.Debug("the guest has not written out its identity", "machine", m.name, "error", err)
	}
	_ = g.Close() // only asked
}

// newIdentity makes up who the guest is to be.
func (m *machine) newIdentity(r *run) (agent.Identity, error) {
	rec := m.known()
	kept, err := m.d.store.Secrets(m.id)
	if err != nil {
		return agent.Identity{}, err
	}
	told, err := readSecrets(kept)
	if err != nil {
		return agent.Identity{}, err
	}
	c := seedConfig(m.name, rec.Spec, rec.Config, told)
	for _, n := range rec.Spec.NICs {
		c.MACs = append(c.MACs, n.MAC)
	}
	keys, err := agent.NewHostKeys()
	if err != nil {
		return agent.Identity{}, err
	}
	withSeed := len(c.UserData) > 0 || len(c.MetaData) > 0 || len(c.NetworkConfig) > 0
	return agent.Identity{Seed: c, MachineID: agent.NewMachineID(), HostKeys: keys, InUse: r.warm.fork,
		Plug: func(ctx context.Context) error { return m.plugOwn(ctx, r, withSeed) }}, nil
}

// plugOwn plugs in the machine's own cards, and its seed where its guest is to read
// that. What is there already stays.
func (m *machine) plugOwn(ctx context.Context, r *run, withSeed bool) error {
	spec, now := m.known().Spec, r.runningSpec()
	if withSeed {
		// What it is made of stays: the next daemon may have to do this again.
		if err := m.makeSeed(true); err != nil {
			return err
		}
		path := m.file(home.SeedFile)
		if !slices.ContainsFunc(now.Disks, func(d vm.Disk) bool { return d.Path == path }) {
			plugger, ok := r.vm.(vm.DiskPlugger)
			if !ok {
				return cannot("drives cannot be added to it")
			}
			disk := vm.SeedDisk(path, vm.BusVirtio)
			disk.Target = "vdz"
			if _, err := plugger.PlugDisk(ctx, disk); err != nil {
				return err
			}
		}
	}
	plugger, ok := r.vm.(vm.NICPlugger)
	if !ok {
		return cannot("cards cannot be added to it")
	}
	for _, n := range spec.NICs {
		if slices.ContainsFunc(now.NICs, func(o vm.NIC) bool { return strings.EqualFold(o.MAC, n.MAC) }) {
			continue
		}
		if _, err := plugger.PlugNIC(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// retireCards takes the addresses from the cards that a guest had when it was forked.
// Their cables are out, and stay so: they have another machine's hardware address.
func (m *machine) retireCards(ctx context.Context, g Guest, r *run) error {
	own := m.known().Spec.NICs
	var old []string
	for _, n := range r.runningSpec().NICs {
		if !slices.ContainsFunc(own, func(o vm.NIC) bool { return strings.EqualFold(o.MAC, n.MAC) }) {
			old = append(old, strings.ToLower(n.MAC))
		}
	}
	if len(old) == 0 {
		return nil
	}
	// Addresses are digits, letters and colons.
	script := `for d in /sys/class/net/*; do
 read -r a <"$d/address" || continue
 case " ` + strings.Join(old, " ") + ` " in
 *" $a "*) ip addr flush dev "${d##*/}"; ip link set "${d##*/}" down ;;
 esac
done 2>/dev/null
for p in udhcpc dhclient; do pkill -x $p || killall $p; done >/dev/null 2>&1
:`
	_, err := g.Run(ctx, script, nil)
	return err
}

// knowHost writes the guest's host keys, and who lets the keys of people in, where
// `lamina ssh` looks for them. The user outlives a cold start, which does not tell.
func (m *machine) knowHost(report agent.Report) error {
	var b bytes.Buffer
	for _, k := range report.HostKeys {
		fmt.Fprintf(&b, "lamina-%s %s\n", m.id, k)
	}
	return errors.Join(m.keepFile(home.KnownHosts, b.Bytes()), m.keepFile(home.SSHUserFile, []byte(report.User)))
}

// keepFile writes a file of the machine's folder, as a whole, if there is anything to
// write.
func (m *machine) keepFile(name string, content []byte) error {
	if len(content) == 0 {
		return nil
	}
	path := m.file(name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// file is the path of a file in the machine's folder.
func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

// secrets are what a seed is made of beside what is on record of its machine.
type secrets struct {
	Password string `json:"password,omitempty"`
	UserData []byte `json:"userData,omitempty"`
}

// keep is what the store keeps of them; nil for none.
func (s secrets) keep() ([]byte, error) {
	if s.Password == "" && len(s.UserData) == 0 {
		return nil, nil
	}
	return json.Marshal(s)
}

func readSecrets(b []byte) (s secrets, err error) {
	if b == nil {
		return s, nil
	}
	return s, json.Unmarshal(b, &s)
}

// seedConfig is what the seed of a machine says.
func seedConfig(name string, spec vm.Spec, c api.MachineConfig, s secrets) seed.Config {
	return seed.Config{
		InstanceID: spec.UUID, Hostname: cmp.Or(c.Hostname, names.Hostname(name)),
		User: c.User, SSHKeys: c.SSHKeys, Password: s.Password, UserData: s.UserData,
	}
}
