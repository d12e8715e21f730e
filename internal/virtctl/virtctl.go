// Package virtctl shows the machines of a libvirt as those of package api, for
// the verbs of package cli: made by virt-install, virsh or by us, they are listed
// and managed alike.
package virtctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domain"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// Machines are the domains of one libvirt. Its methods are safe for concurrent
// use; what libvirt refuses is an *api.Error.
type Machines struct{ conn *libvirt.Conn }

// Open connects to the libvirt at uri. Close ends that.
func Open(ctx context.Context, uri string) (*Machines, error) {
	c, err := libvirt.Connect(ctx, uri)
	if err != nil {
		return nil, err
	}
	return &Machines{conn: c}, nil
}

// Close ends the connection.
func (v *Machines) Close() error { return v.conn.Close() }

// Machines lists all domains by name, as libvirt orders them.
func (v *Machines) Machines(ctx context.Context) ([]api.Machine, error) {
	list, err := v.conn.Domains(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	out := make([]api.Machine, 0, len(list))
	for _, d := range list {
		m, err := v.describe(ctx, d)
		if errors.Is(err, libvirt.ErrNotFound) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, refusal(err)
		}
		out = append(out, m)
	}
	return out, nil
}

// Machine returns the domain with a name.
func (v *Machines) Machine(ctx context.Context, name string) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	m, err := v.describe(ctx, d)
	return m, refusal(err)
}

func (v *Machines) find(ctx context.Context, name string) (*libvirt.Domain, error) {
	d, err := v.conn.LookupDomain(ctx, name)
	return d, refusal(err)
}

// refusal gives an error of libvirt the code that clients act on.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	code := ""
	switch {
	case errors.Is(err, libvirt.ErrNotFound):
		code = api.CodeNotFound
	case errors.Is(err, libvirt.ErrExists):
		code = api.CodeExists
	case errors.Is(err, libvirt.ErrInvalid), errors.Is(err, libvirt.ErrUnsupported), errors.Is(err, libvirt.ErrBadXML):
		code = api.CodeInvalid
	default:
		return err
	}
	return &api.Error{Code: code, Message: err.Error()}
}

// describe is a domain as clients see it.
func (v *Machines) describe(ctx context.Context, d *libvirt.Domain) (api.Machine, error) {
	m := api.Machine{ID: d.UUID(), Name: d.Name()}
	state, _, err := d.State(ctx)
	if err != nil {
		return m, err
	}
	// As of our own machines: what the next start takes.
	root, err := document(ctx, d, true)
	if err != nil {
		return m, err
	}
	// A transient domain has no autostart, and says so with an error.
	m.Autostart, _ = d.Autostart(ctx)
	m.State = machineState(state)
	m.Spec = wholeSpec(root)
	if state.Active() {
		live, err := document(ctx, d, false)
		if err != nil {
			return m, err
		}
		m.Run = &vm.RunInfo{Accel: accel(live), Forwards: []vm.Forward{}, VNC: vncAddress(live)}
	}
	if !v.conn.Remote() {
		m.DiskSize = allocated(m.Spec.Disks)
	}
	return m, nil
}

func document(ctx context.Context, d *libvirt.Domain, inactive bool) (*domxml.Element, error) {
	text, err := d.XML(ctx, libvirt.XMLOptions{Inactive: inactive})
	if err != nil {
		return nil, err
	}
	root, err := domxml.Parse([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("document of domain %q: %w", d.Name(), err)
	}
	return root, nil
}

func machineState(s libvirt.State) api.MachineState {
	switch s {
	case libvirt.Paused, libvirt.PMSuspended:
		return api.Paused
	case libvirt.ShutOff, libvirt.NoState:
		return api.Stopped
	case libvirt.Crashed:
		return api.Crashed
	}
	return api.Running
}

func accel(root *domxml.Element) vm.Accel {
	if root.Attr("type") == "kvm" {
		return vm.AccelKVM
	}
	return vm.AccelTCG
}

// wholeSpec is a document as a machine, as far as package domain can tell; what
// it leaves out of the drives is not left out here.
func wholeSpec(root *domxml.Element) vm.Spec {
	short := readSpec(root)
	r, err := domain.Read(root)
	if err != nil {
		return short
	}
	whole := r.Spec.WithDefaults()
	if len(whole.Disks) != len(short.Disks) {
		whole.Disks = short.Disks
	}
	return whole
}

// readSpec reads of a document what the verbs show. What it does not know it
// leaves out: a domain is listed whatever it has.
func readSpec(root *domxml.Element) vm.Spec {
	s := vm.Spec{
		Name: root.Get("./name"), UUID: root.Get("./uuid"), Title: root.Get("./title"),
		Machine: root.Get("./os/type/@machine"), Accel: accel(root),
		Graphics: vm.Graphics{VNC: vm.VNCNone}, Disks: []vm.Disk{}, NICs: []vm.NIC{},
	}
	s.CPUs, _ = strconv.Atoi(root.Get("./vcpu")) // 0 is shown where it is none
	if n, err := strconv.ParseInt(root.Get("./memory"), 10, 64); err == nil {
		s.Memory = n << 10 // libvirt gives KiB
	}
	devices := root.Child("devices")
	for _, e := range devices.All("disk") {
		s.Disks = append(s.Disks, readDisk(e))
	}
	for _, e := range devices.All("interface") {
		s.NICs = append(s.NICs, vm.NIC{Model: e.Get("./model/@type"), MAC: e.Get("./mac/@address")})
	}
	return s
}

// vncAddress is where a running domain's VNC server listens, "" for none.
func vncAddress(root *domxml.Element) string {
	for _, e := range root.Child("devices").All("graphics") {
		switch {
		case e.Attr("type") != "vnc":
		case e.Attr("socket") != "":
			return e.Attr("socket")
		case e.Attr("port") != "" && e.Attr("port") != "-1":
			return net.JoinHostPort(cmp.Or(e.Attr("listen"), "127.0.0.1"), e.Attr("port"))
		}
	}
	return ""
}

func readDisk(e *domxml.Element) vm.Disk {
	d := vm.Disk{
		Device: vm.DiskDevice(e.Attr("device")), Format: e.Get("./driver/@type"), Cache: vm.Cache(e.Get("./driver/@cache")),
		Bus: vm.Bus(e.Get("./target/@bus")), Target: e.Get("./target/@dev"), Serial: e.Get("./serial"),
		ReadOnly: e.Child("readonly") != nil || e.Attr("device") == "cdrom",
	}
	d.Path = diskSource(e)
	if d.Cache == "" || d.Cache == "default" {
		d.Cache = vm.CacheWriteback // QEMU's own
	}
	return d
}

// diskSource is the file or block device of a disk, or of its <backingStore>;
// "" where it is neither.
func diskSource(e *domxml.Element) string {
	if f := e.Get("./source/@file"); f != "" {
		return f
	}
	return e.Get("./source/@dev")
}

// allocated is what the writable image files of a domain take on this host.
func allocated(disks []vm.Disk) (size int64) {
	for _, d := range disks {
		st, err := os.Lstat(d.Path)
		if d.ReadOnly || err != nil || !st.Mode().IsRegular() {
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			size += sys.Blocks * 512
		}
	}
	return size
}

// Start starts a domain. Its boot is not followed.
func (v *Machines) Start(ctx context.Context, name string, req api.StartRequest, on client.EventFunc) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	if req.Install {
		return api.Machine{}, api.Errorf(api.CodeInvalid, "machine %s is a libvirt's, which keeps no install phase: run `lamina install --reinstall %s`", name, name)
	}
	tell(on, api.Event{Step: "start", Machine: name, Text: "starting " + name})
	if err := d.Start(ctx, libvirt.StartOptions{}); err != nil {
		return api.Machine{}, refusal(err)
	}
	return v.Machine(ctx, name)
}

func tell(on client.EventFunc, e api.Event) {
	if on != nil {
		on(e)
	}
}

// stopPatience is how long a guest may take to shut down where the request says
// nothing else.
const stopPatience = time.Minute

// Stop presses the power button, and after the request's patience, or at once
// with force, switches the domain off.
func (v *Machines) Stop(ctx context.Context, name string, req api.StopRequest, on client.EventFunc) (api.Machine, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Machine{}, err
	}
	before, err := v.describe(ctx, d)
	if err != nil || before.Run == nil {
		return before, refusal(err)
	}
	if err := v.stop(ctx, d, req, on); err != nil {
		return before, refusal(err)
	}
	after, err := v.Machine(ctx, name)
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeNotFound {
		// A transient one is gone with that.
		before.Run, before.State = nil, api.Stopped
		return before, nil
	}
	return after, err
}

func (v *Machines) stop(ctx context.Context, d *libvirt.Domain, req api.StopRequest, on client.EventFunc) error {
	if !req.Force {
		patience := req.Timeout
		if patience <= 0 {
			patience = stopPatience
		}
		ended, err := v.powerDown(ctx, d, patience, on)
		if ended || err != nil {
			return err
		}
		tell(on, api.Event{Step: "stop", Machine: d.Name(),
			Warning: fmt.Sprintf("machine %s did not shut down within %s and is powered off", d.Name(), patience)})
	}
	err := d.Destroy(ctx, false)
	if errors.Is(err, libvirt.ErrInvalid) || errors.Is(err, libvirt.ErrNotFound) {
		return nil // it has ended by itself
	}
	return err
}

// powerDown presses the power button and waits for the guest.
func (v *Machines) powerDown(ctx context.Context, d *libvirt.Domain, patience time.Duration, on client.EventFunc) (ended bool, err error) {
	watch, err := v.watch(ctx, d)
	if err != nil {
		return false, err
	}
	defer watch.end()
	tell(on, api.Event{Step: "stop", Machine: d.Name(), Text: "power button pressed"})
	if err := d.Shutdown(ctx); err != nil {
		state, _, serr := d.State(ctx)
		if serr == nil && !state.Active() {
			return true, nil
		}
		return false, err
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = watch.WaitStopped(waiting)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return false, nil
	}
	return err == nil, err
}

// Autostart says whether a domain starts with the host.
func (v *Machines) Autostart(ctx context.Context, name string, on bool) error {
	d, err := v.find(ctx, name)
	if err != nil {
		return err
	}
	return refusal(d.SetAutostart(ctx, on))
}

// Here says why the machines' files are not this host's.
func (v *Machines) Here() error { return v.local("what the machines have") }

// local says why a file of the libvirt's host cannot be touched from here.
func (v *Machines) local(what string) error {
	if v.conn.Remote() {
		return api.Errorf(api.CodeInvalid, "%s lies on the host of %s: do that there", what, v.conn.URI())
	}
	return nil
}

// clean is a path for comparisons.
func clean(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(strings.TrimSpace(path))
}
