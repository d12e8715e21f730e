package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

// newMachine says what to make for one name. data is the user-data of its guest.
func (d *Daemon) newMachine(name string, t api.Template, c api.MachineConfig, data func() ([]byte, error)) (store.NewMachine, error) {
	// The store puts the machine's own paths in the place of these, which do
	// for finding out what the file system can do.
	dir := filepath.Join(d.home.Machines(), "new")
	spec := vm.Spec{
		Name: name, CPUs: c.CPUs, Memory: c.Memory, Machine: c.Machine, Accel: c.Accel, RNG: true,
		Graphics: vm.Graphics{VNC: c.VNC},
		NICs:     []vm.NIC{{Forwards: forwards(c.Forwards)}},
		Disks:    []vm.Disk{{Path: filepath.Join(dir, home.DiskFile), Format: "qcow2", Bus: c.Bus, Cache: c.Cache, Discard: true, BootIndex: 1}},
	}
	d.fit(&spec, t.Info)
	if !c.NoSeed {
		spec.Disks = append(spec.Disks, vm.SeedDisk(filepath.Join(dir, home.SeedFile), spec.Disks[0].Bus))
	}
	var err error
	if spec.Displays, err = displays(c); err != nil {
		return store.NewMachine{}, err
	}
	withIdentity(&spec)
	withMemory(&spec, c)
	spec = spec.WithDefaults()
	if spec.Chipset() == vm.MachineQ35 {
		spec.HotplugPorts = hotplugPorts
	}
	if err := spec.Validate(); err != nil {
		return store.NewMachine{}, api.Errorf(api.CodeInvalid, "%v", err)
	}
	n := store.NewMachine{Name: name, User: cmp.Or(c.User, t.User), Config: c, Spec: spec, Size: c.DiskSize}
	if !c.NoSeed {
		n.Seed = func() ([]byte, error) {
			ud, err := data()
			if err != nil {
				return nil, err
			}
			return d.opts.Seed(seedConfig(name, spec, c, secrets{c.Password, ud}))
		}
	}
	return n, nil
}

// hotplugPorts is how many drives a machine takes while it runs, where each needs
// a port that is there from the start.
const hotplugPorts = 2

// displays is the VNC server of a machine whose screen others may reach, nil for
// one that only this host does.
func displays(c api.MachineConfig) ([]vm.Display, error) {
	if c.VNC == "" || c.VNC == vm.VNCUnix || c.VNC == vm.VNCNone {
		if c.VNCTLS != "" || c.InsecureGraphics || c.VNCPassword != "" && c.VNC == vm.VNCNone {
			return nil, api.Errorf(api.CodeInvalid, "a VNC password, TLS or insecure graphics is for a VNC server with an address: say --vnc ADDR:DISPLAY")
		}
		if c.VNCPassword == "" {
			return nil, nil
		}
		return []vm.Display{{Type: vm.DisplayVNC, Password: c.VNCPassword}}, nil
	}
	host, number, err := net.SplitHostPort(c.VNC)
	n, nerr := strconv.Atoi(number)
	if err != nil || nerr != nil || n < 0 || n > 65535-vncPort {
		return nil, api.Errorf(api.CodeInvalid, "VNC at %q: it is unix, none, or ADDR:DISPLAY such as 127.0.0.1:1", c.VNC)
	}
	d := vm.Display{Type: vm.DisplayVNC, Listen: host, Port: vncPort + n, Password: c.VNCPassword, TLS: c.VNCTLS, Insecure: c.InsecureGraphics}
	if !d.Exposed() && d.Password == "" && d.TLS == "" {
		return nil, nil // Graphics says it all
	}
	return []vm.Display{d}, nil
}

// vncPort is that of VNC's display 0.
const vncPort = 5900

// forwards adds a way to the guest's SSH server to what the user wants, unless
// that has one.
func forwards(user []vm.Forward) []vm.Forward {
	if slices.ContainsFunc(user, func(f vm.Forward) bool { return f.GuestPort == 22 && f.Proto != "udp" }) {
		return user
	}
	return append([]vm.Forward{{Proto: "tcp", HostAddr: "127.0.0.1", GuestPort: 22}}, user...)
}

// checkConfig finds what does not depend on the machine's name.
func checkConfig(c api.MachineConfig, count int) error {
	switch {
	case c.DiskSize < 0:
		return api.Errorf(api.CodeInvalid, "disk size %d is negative", c.DiskSize)
	case c.DiskSize%512 != 0:
		return api.Errorf(api.CodeInvalid, "disk size %d is not a multiple of 512", c.DiskSize)
	case c.NoSeed && (len(c.SSHKeys) > 0 || c.Password != "" || len(c.UserData) > 0 || c.User != "" || c.Hostname != ""):
		return api.Errorf(api.CodeInvalid, "host name, user, SSH keys, password and user-data reach the guest by the seed: leave them out or allow the seed")
	case c.UserDataTemplate && len(c.UserData) == 0:
		return api.Errorf(api.CodeInvalid, "the template of the user-data is empty: leave it out")
	case count > 1 && c.Hostname != "":
		return api.Errorf(api.CodeInvalid, "%d machines cannot all have the host name %q: leave it out, and each has its own name", count, c.Hostname)
	case count > 1 && slices.ContainsFunc(c.Forwards, func(f vm.Forward) bool { return f.HostPort != 0 }):
		return api.Errorf(api.CodeInvalid, "%d machines cannot all have the same host port: leave it out, and one is chosen for each", count)
	}
	return nil
}

// create makes machines of a template; start says that they are to be started
// next, if need be by the next daemon, and warm whether from a warm unit.
func (d *Daemon) create(ctx context.Context, t api.Template, list []string, c api.MachineConfig, start bool, warm api.Warm, s *events) ([]*machine, error) {
	if err := checkConfig(c, len(list)); err != nil {
		return nil, err
	}
	if err := d.guard.haveRoomFor("new machines", int64(len(list))*emptyLayer); err != nil {
		return nil, err
	}
	todo, err := d.newMachines(list, t, c, start)
	if err != nil {
		return nil, err
	}
	if start && warm != api.WarmNever {
		if err := d.overUnit(ctx, t, todo, warm); err != nil {
			return nil, err
		}
	}
	if note := ksmNote(c, ksmRun); note != "" {
		s.send(api.Event{Warning: note})
	}
	recs, err := d.store.CreateMachines(ctx, t, todo, func(name string) {
		s.send(api.Event{Step: "overlay", Machine: name, Text: "machine " + name + " made"})
	})
	if err != nil {
		return nil, err
	}
	made := make([]*machine, 0, len(recs))
	for _, rec := range recs {
		made = append(made, d.add(rec))
	}
	d.log.Info("machines made", "template", t.Name, "digest", t.Digest, "count", len(made), "first", made[0].name)
	return made, nil
}

// newMachines says what to make for many names. What cannot be made for one of
// them is found here, before anything is.
func (d *Daemon) newMachines(list []string, t api.Template, c api.MachineConfig, start bool) ([]store.NewMachine, error) {
	if err := checkLabels(c.Labels); err != nil {
		return nil, err
	}
	if err := noFleetLabels(c.Labels); err != nil {
		return nil, err
	}
	data, err := newUserData(c, cmp.Or(t.Name, t.Digest), len(list))
	if err != nil {
		return nil, err
	}
	todo := make([]store.NewMachine, 0, len(list))
	var kept []byte // the same of all, but for a template of user-data
	for i, name := range list {
		own := func() ([]byte, error) { return data(i+1, name, cmp.Or(c.Hostname, names.Hostname(name))) }
		n, err := d.newMachine(name, t, c, own)
		if err != nil {
			return nil, err
		}
		n.Start = start
		if n.Seed != nil && (i == 0 || c.UserDataTemplate) {
			if kept, err = d.trySeed(name, n, c, own); err != nil {
				return nil, err
			}
		}
		n.Seed, n.Secrets = nil, kept // made at the first cold start
		todo = append(todo, n)
	}
	return todo, nil
}

// trySeed makes the seed of a machine, and forgets it: what is wrong with that of the
// tenth is told before the first is made. It returns what is kept to make it of.
func (d *Daemon) trySeed(name string, n store.NewMachine, c api.MachineConfig, data func() ([]byte, error)) ([]byte, error) {
	ud, err := data()
	if err != nil {
		return nil, err
	}
	if _, err := n.Seed(); err != nil {
		return nil, api.Errorf(api.CodeInvalid, "machine %s: %v", name, err)
	}
	return secrets{c.Password, ud}.keep()
}

// launch starts a machine, tells of its boot, and returns at the login prompt,
// or when the guest executes if noWait. The start goes on when ctx ends; only
// the telling does not.
func (d *Daemon) launch(ctx context.Context, m *machine, o startOptions, noWait bool, s *events) error {
	s.send(api.Event{Step: "start", Machine: m.name, Text: "starting " + m.name})
	if o.boot == nil {
		o.boot = newBootLog()
	}
	type started struct {
		r   *run
		err error
	}
	done := make(chan started, 1)
	d.background(func(ctx context.Context) {
		r, err := m.start(ctx, o)
		if err != nil {
			err = m.undo(err)
		}
		done <- started{r, err}
	})
	var r *run
	select {
	case v := <-done:
		if v.err != nil {
			d.log.Error("not started", "machine", m.name, "error", v.err)
			return v.err
		}
		r = v.r
	case <-ctx.Done():
		return cause(ctx)
	}
	info := r.vm.Info()
	if info.AccelNote != "" {
		s.send(api.Event{Machine: m.name, Warning: "KVM is not used: " + info.AccelNote})
	}
	s.send(api.Event{Step: "start", Machine: m.name, Text: fmt.Sprintf("%s runs (%s)", m.name, info.Accel)})
	if noWait {
		r.boot.warnings(s.send)
		return nil
	}
	if r.warm != nil && o.wait == api.WaitPrompt {
		return r.boot.followTo(ctx, s.send, r.warm.prompted)
	}
	return r.boot.follow(ctx, s.send)
}

func (d *Daemon) postMachines(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.RunRequest](w, r)
	if err != nil {
		return err
	}
	if req.Image == "" {
		return api.Errorf(api.CodeInvalid, "run: no image given")
	}
	if req.Name != "" {
		if err := names.CheckMachine(req.Name); err != nil {
			return err
		}
		// Before minutes are spent on the image.
		if taken, err := d.store.Taken(r.Context(), req.Name); err != nil {
			return err
		} else if taken {
			return fmt.Errorf("machine %s %w: choose another name, or remove it", req.Name, store.ErrExists)
		}
	}
	if err := errors.Join(checkConfig(req.MachineConfig, 1), checkWarm(req.Warm, req.Wait)); err != nil {
		return err
	}
	s := newEvents(w)
	m, err := d.runImage(r.Context(), req, s)
	if err != nil {
		s.done(nil, err)
		return nil
	}
	err = d.launch(r.Context(), m, startOptions{timeout: req.Timeout, warm: req.Warm, wait: req.Wait}, req.NoWait, s)
	s.done(m.describe(), err)
	return nil
}

// runImage makes the machine of a run request: until it is made the request
// is undone when the client goes.
func (d *Daemon) runImage(ctx context.Context, req api.RunRequest, s *events) (*machine, error) {
	t, err := d.store.Template(ctx, req.Image)
	if errors.Is(err, store.ErrNotFound) {
		t, err = d.importImage(ctx, api.ImportRequest{Source: req.Image, Format: req.Format}, s)
	}
	if err != nil {
		return nil, err
	}
	if req.Name == "" {
		var failed error
		req.Name = names.Make(cmp.Or(t.Name, names.FromSource(t.Source)), func(n string) bool {
			taken, err := d.store.Taken(ctx, n)
			failed = errors.Join(failed, err)
			return taken
		})
		if failed != nil {
			return nil, failed
		}
	}
	made, err := d.create(ctx, t, []string{req.Name}, req.MachineConfig, true, req.Warm, s)
	if err != nil {
		return nil, err
	}
	return made[0], nil
}

func (d *Daemon) postClones(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.CloneRequest](w, r)
	if err != nil {
		return err
	}
	list, err := names.ExpandMachines(req.Names)
	if err != nil {
		return err
	}
	if err := checkWarm(req.Warm, req.Wait); err != nil {
		return err
	}
	if !req.Start && req.Warm != api.WarmAuto {
		return api.Errorf(api.CodeInvalid, "clone: cold and warm say how machines are started, and these are not")
	}
	t, err := d.store.Template(r.Context(), req.Template)
	if err != nil {
		return err
	}
	s := newEvents(w)
	made, err := d.create(r.Context(), t, list, req.MachineConfig, req.Start, req.Warm, s)
	if err == nil && req.Start {
		err = d.launchAll(r.Context(), made, req, s)
	}
	out := make([]api.Machine, 0, len(made))
	for _, m := range made {
		out = append(out, m.describe())
	}
	s.done(out, err)
	return nil
}

// launchAll launches machines beside each other; Options.StartsAtOnce bounds
// how many QEMUs are being started at one time.
func (d *Daemon) launchAll(ctx context.Context, list []*machine, req api.CloneRequest, s *events) error {
	var group sync.WaitGroup
	errs := make([]error, len(list))
	for i, m := range list {
		group.Go(func() {
			errs[i] = d.launch(ctx, m, startOptions{timeout: req.Timeout, warm: req.Warm, wait: req.Wait}, req.NoWait, s)
		})
	}
	group.Wait()
	return together(list, errs)
}

// together is the error of several machines: the first one's code and problem,
// and what happened to each, one a line.
func together(list []*machine, errs []error) error {
	var failed []string
	var first *api.Error
	for i, err := range errs {
		if err == nil {
			continue
		}
		if first == nil {
			first = apiError(err)
		}
		failed = append(failed, list[i].name+": "+err.Error())
	}
	if first == nil || len(list) == 1 {
		return errors.Join(errs...)
	}
	return &api.Error{Code: first.Code, Problem: first.Problem,
		Message: fmt.Sprintf("%d of %d machines: %s", len(failed), len(list), strings.Join(failed, "\n"))}
}
