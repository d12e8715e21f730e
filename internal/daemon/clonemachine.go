package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu"
)

// cloneMachine makes machines of a machine: its disk becomes a layer that all go on
// over, the machine itself too.
func cloneMachine(m *machine, r *http.Request, req api.CloneMachineRequest, s *events) ([]api.Machine, error) {
	list, err := names.ExpandMachines(req.Names)
	if err == nil && len(list) == 0 {
		err = api.Errorf(api.CodeInvalid, "clone: no name given")
	}
	if err != nil {
		return nil, err
	}
	made, err := m.clone(r.Context(), list, req, s)
	if err == nil && req.Start {
		start := api.CloneRequest{NoWait: req.NoWait, Timeout: req.Timeout}
		err = m.d.launchAll(r.Context(), made, start, s)
	}
	out := make([]api.Machine, 0, len(made))
	for _, c := range made {
		out = append(out, c.describe())
	}
	return out, err
}

func (m *machine) clone(ctx context.Context, list []string, req api.CloneMachineRequest, s *events) ([]*machine, error) {
	r, end, err := m.beginDisk(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	rec := m.known()
	c := likeMachine(req.MachineConfig, rec.Config)
	if err := checkConfig(c, len(list)); err != nil {
		return nil, err
	}
	if err := m.d.guard.haveRoomFor("clone "+m.name, int64(len(list)+1)*emptyLayer); err != nil {
		return nil, err
	}
	todo, err := m.d.newMachines(list, api.Template{Name: rec.Template, Digest: rec.Digest, User: rec.User, Info: asImage(rec.Spec)}, c, req.Start)
	if err != nil {
		return nil, err
	}
	for _, note := range []string{ksmNote(c, ksmRun), ownVNC(m.name, c, rec.Config)} {
		if note != "" {
			s.send(api.Event{Warning: note})
		}
	}
	if rec.Last.Started {
		s.send(api.Event{Machine: m.name, Warning: sharesIdentity(m.name)})
	}
	told := func(name string) {
		s.send(api.Event{Step: "overlay", Machine: name, Text: "machine " + name + " made"})
	}
	s.send(api.Event{Step: "freeze", Machine: m.name})
	var recs []store.Machine
	if r == nil {
		_, recs, err = m.d.store.CloneMachine(ctx, m.id, todo, told)
	} else {
		recs, err = m.cloneRunning(ctx, r, todo, told)
	}
	made := make([]*machine, 0, len(recs))
	for _, c := range recs { // also with an error: one that came behind the commit
		made = append(made, m.d.add(c))
	}
	if err != nil {
		return made, errors.Join(err, m.reload())
	}
	m.d.log.Info("machine cloned", "machine", m.name, "count", len(made), "running", r != nil)
	return made, m.reload()
}

// cloneRunning freezes the disk of a machine that goes on. Its guest is asked to
// write out what it holds first; what it does not, its clones do not have, as after
// a power failure.
func (m *machine) cloneRunning(ctx context.Context, r *run, todo []store.NewMachine, told func(string)) ([]store.Machine, error) {
	snap, ok := r.vm.(vm.DiskSnapshotter)
	if !ok {
		return nil, api.Errorf(api.CodeInvalid, "machine %s cannot be cloned while it runs: stop it first", m.name)
	}
	drive, err := m.ownDrive(r.runningSpec())
	if err != nil {
		return nil, err
	}
	f, err := m.d.store.BeginFreeze(ctx, m.id, todo, told)
	if err != nil {
		return nil, err
	}
	m.syncGuest(ctx, r)
	err = snap.SnapshotDisks(ctx, map[string]string{drive: f.Overlay})
	if err == nil {
		_, made, err := m.d.store.CommitFreeze(ctx, m.id)
		if err == nil {
			m.digestLayer(f.Layer)
			return made, nil
		}
		err = errors.Join(err, m.settle(ctx, r.vm, r.spec))
		return m.d.store.Made(ctx, cloneIDs(f)), err
	}
	// Whichever way it failed: what QEMU writes to now decides.
	return nil, errors.Join(fmt.Errorf("clone machine %s: %w", m.name, err), m.settle(context.WithoutCancel(ctx), r.vm, r.spec))
}

// cloneIDs are the ids of a freeze's clones.
func cloneIDs(f store.Freeze) []string {
	ids := make([]string, len(f.Clones))
	for i, c := range f.Clones {
		ids[i] = c.ID
	}
	return ids
}

// guestSyncTime is how long a guest may take to write out what it holds.
const guestSyncTime = 10 * time.Second

// syncGuest has the guest write out its caches, where an agent in it answers. Its
// file systems are not frozen (guest-fsfreeze-freeze): a daemon that dies in between
// would leave a guest behind that hangs for good, and what a journal protects is
// whole without.
func (m *machine) syncGuest(ctx context.Context, r *run) {
	lamina, qga := agentSockets(m.dir, r.runningSpec())
	if lamina == "" && qga == "" {
		return
	}
	// An agent that is there answers at once.
	dial, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := agent.Dial(dial, lamina, qga)
	if err != nil {
		m.d.log.Debug("no agent to write out the caches", "machine", m.name, "error", err)
		return
	}
	defer func() { _ = c.Close() }() // only asked
	ctx, stop := context.WithTimeout(ctx, guestSyncTime)
	defer stop()
	if _, err := c.Run(ctx, "sync", nil); err != nil {
		m.d.log.Warn("the guest has not written out its caches", "machine", m.name, "error", err)
	}
}

// agentSockets are the sockets of a machine's channels to the agents, "" for a channel
// that it has not.
func agentSockets(dir string, s vm.Spec) (lamina, qga string) {
	for i, c := range s.Channels {
		path := c.Path
		if path == "" {
			path = filepath.Join(dir, qemu.ChannelSocket(i))
		}
		switch {
		case c.Type != vm.CharUnix || !c.Listen:
		case c.Target == vm.ChannelLamina:
			lamina = path
		case c.Target == vm.ChannelAgent:
			qga = path
		}
	}
	return lamina, qga
}

// digestLayer finds out the digest of a layer that was frozen while its machine ran,
// in the background.
func (m *machine) digestLayer(key string) {
	m.d.background(func(ctx context.Context) {
		if err := m.d.store.RecordDigest(ctx, key); err != nil && ctx.Err() == nil {
			m.d.log.Warn("the digest of a layer is not known yet", "layer", key, "error", err)
		}
	})
}

// digestLayers does so for the layers that an earlier daemon has left without.
func (d *Daemon) digestLayers(ctx context.Context) {
	keys, err := d.store.Undigested(ctx)
	for _, key := range keys {
		if ctx.Err() != nil {
			return
		}
		err = errors.Join(err, d.store.RecordDigest(ctx, key))
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("the digests of some layers are not known yet", "error", err)
	}
}

// likeMachine fills in what a person has not said of a clone with what its original
// was asked to be.
func likeMachine(c, original api.MachineConfig) api.MachineConfig {
	pick := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	if c.CPUs == 0 {
		c.CPUs = original.CPUs
	}
	if c.Memory == 0 {
		c.Memory = original.Memory
	}
	pick((*string)(&c.Bus), string(original.Bus))
	pick((*string)(&c.Cache), string(original.Cache))
	pick((*string)(&c.Accel), string(original.Accel))
	pick(&c.Machine, original.Machine)
	if !c.NoSeed && original.NoSeed && c.Hostname == "" && c.User == "" && c.Password == "" && len(c.UserData) == 0 {
		c.NoSeed, c.SSHKeys = true, nil
	}
	if !c.NoSeed {
		pick(&c.User, original.User)
		if len(c.SSHKeys) == 0 {
			c.SSHKeys = original.SSHKeys
		}
	}
	c.KSM, c.Balloon = c.KSM || original.KSM, c.Balloon || original.Balloon
	if original.VNC == vm.VNCUnix || original.VNC == vm.VNCNone { // an address only one can have
		pick(&c.VNC, original.VNC)
	}
	if len(c.Forwards) == 0 {
		c.Forwards = slices.Clone(original.Forwards)
		for i := range c.Forwards {
			c.Forwards[i].HostPort = 0 // one that is free: the original has its own
		}
	}
	c.Labels = likeLabels(c.Labels, original.Labels)
	return c
}

// likeLabels adds those of the original, but for what tells that it is of a fleet: its
// copies are not.
func likeLabels(labels, original map[string]string) map[string]string {
	all := maps.Clone(original)
	maps.DeleteFunc(all, func(name, _ string) bool { return noFleetLabels(map[string]string{name: ""}) != nil })
	if all == nil {
		return labels
	}
	maps.Copy(all, labels)
	return all
}

// sharesIdentity tells a person what the disks of copies have in common with that of their
// original, which has run.
func sharesIdentity(name string) string {
	return fmt.Sprintf("the copies of %s have its machine-id and its SSH host keys on their disks, until their guests make others (cloud-init does so for the host keys alone): "+
		"`lamina template create --generalise %s` makes a template whose machines share neither, `lamina fork %s` gives running copies their own", name, name, name)
}

// ownVNC tells a person that copies do not have their original's VNC server.
func ownVNC(name string, copies, original api.MachineConfig) string {
	if copies.VNC != "" || original.VNC == "" || original.VNC == vm.VNCUnix || original.VNC == vm.VNCNone {
		return ""
	}
	return fmt.Sprintf("the VNC server of %s is at %s, which only one machine can have: its copies have theirs at a socket (--vnc says otherwise)", name, original.VNC)
}
