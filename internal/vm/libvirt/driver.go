package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domain"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// Driver runs machines as transient domains of a libvirt daemon on this host:
// libvirt knows them while they run, and virsh and virt-manager show and
// manage them. It is safe for concurrent use.
//
// The machine's folder must be one that QEMU, as libvirt runs it, can enter.
type Driver struct {
	uri string
	// watch is how long the first seconds under KVM are watched.
	watch time.Duration
}

// NewDriver returns a driver for the daemon of a URI, "" for [DefaultURI].
func NewDriver(uri string) *Driver { return &Driver{uri: uri, watch: 2 * time.Second} }

var (
	_ vm.Driver = (*Driver)(nil)
	_ vm.Killer = (*Driver)(nil)
)

// changeTimeout bounds what is seen through although the caller's context has
// ended, so that nothing half-made is left: a start, or the way back from it.
const changeTimeout = 60 * time.Second

// Start implements [vm.Driver]. It fills in the spec's defaults.
func (d *Driver) Start(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	spec = spec.WithDefaults()
	m, err := d.start(ctx, spec, dir)
	if err != nil {
		return nil, fmt.Errorf("start machine %q: %w", spec.Name, err)
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, spec vm.Spec, dir string) (*machine, error) {
	if err := errors.Join(spec.Validate(), spec.CheckFiles()); err != nil {
		return nil, err
	}
	conn, err := Connect(ctx, d.uri)
	if err != nil {
		return nil, err
	}
	m, err := d.startOn(ctx, conn, spec, dir)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

func (d *Driver) startOn(ctx context.Context, conn *Conn, spec vm.Spec, dir string) (*machine, error) {
	if conn.Remote() {
		return nil, fmt.Errorf("%s is on another host: machines of a folder of this host run on this host's libvirt: use qemu:///system", conn.URI())
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
	switch dom, r, err := findRunning(ctx, conn, dir); {
	case err != nil:
		return nil, err
	case dom != nil:
		return nil, fmt.Errorf("it already runs, as domain %q (process %d)", dom.Name(), r.Info.PID)
	}
	if err := rotateLog(dir); err != nil {
		return nil, err
	}
	release, err := choosePorts(&spec)
	if err != nil {
		return nil, err
	}
	defer release()
	return d.startAccelerated(ctx, conn, spec, dir, release)
}

// startAccelerated tries KVM where that may work, and TCG after it.
func (d *Driver) startAccelerated(ctx context.Context, conn *Conn, spec vm.Spec, dir string, release func()) (*machine, error) {
	if spec.Accel == vm.AccelTCG {
		return launch{conn: conn, spec: spec, dir: dir, accel: vm.AccelTCG, release: release}.run(ctx)
	}
	_, err := conn.DomainCapabilities(ctx, DomainCapabilitiesQuery{Emulator: spec.QEMU.Binary, Type: "kvm"})
	if err != nil {
		err = fmt.Errorf("%w: %w", vm.ErrNoKVM, err)
	} else {
		var m *machine
		m, err = launch{conn: conn, spec: spec, dir: dir, accel: vm.AccelKVM, watch: d.watch, release: release}.run(ctx)
		if err == nil || ctx.Err() != nil {
			return m, err
		}
	}
	if spec.Accel == vm.AccelKVM {
		return nil, err
	}
	note := "KVM does not run this machine, and without it all is much slower: " + err.Error()
	return launch{conn: conn, spec: spec, dir: dir, accel: vm.AccelTCG, note: note, release: release}.run(ctx)
}

// launch is one attempt to start.
type launch struct {
	conn    *Conn
	spec    vm.Spec // complete and valid, its host ports chosen
	dir     string
	accel   vm.Accel
	note    string
	watch   time.Duration
	release func() // lets go of the chosen ports, which QEMU takes then
}

// run starts the domain. It is seen through, or undone, whatever becomes of ctx.
func (l launch) run(ctx context.Context) (*machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := record{URI: l.conn.URI(), Name: l.spec.Name, UUID: l.spec.UUID, Info: vm.RunInfo{
		StartedAt: time.Now(), Accel: l.accel, AccelNote: l.note, Forwards: forwards(l.spec.NICs),
	}}
	r.Link, r.Spec = shortLink(l.dir), l.spec
	xml, err := l.document(&r)
	if err != nil {
		return nil, err
	}
	if err := r.write(l.dir); err != nil {
		return nil, err
	}
	through, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	m, err := l.bringUp(ctx, through, r, xml)
	if err != nil {
		return nil, errors.Join(err, undo(through, l.conn, l.dir, r))
	}
	return m, nil
}

// document is what libvirt is asked to run: the spec, with the ends of the
// serial port and of the screen in the machine's folder.
func (l launch) document(r *record) (string, error) {
	spec := l.spec
	spec.Accel = l.accel
	if l.accel == vm.AccelTCG && (spec.CPU == "" || spec.CPU == "host") && spec.Processor.Mode == "" && spec.Processor.Model == "" {
		spec.CPU = "max"
	}
	spec.NICs = append([]vm.NIC(nil), spec.NICs...)
	for i := range spec.NICs {
		spec.NICs[i].Forwards = nil // made when it runs
	}
	root, err := domain.Marshal(spec, domain.Options{})
	if err != nil {
		return "", err
	}
	devices := root.Need("devices")
	if s := devices.Child("serial"); s != nil && s.Attr("type") == "pty" {
		s.SetAttr("type", "unix")
		s.Children = append([]*domxml.Element{
			domxml.New("source", "mode", "bind", "path", filepath.Join(r.place(l.dir), home.SerialSock)),
			domxml.New("log", "file", filepath.Join(l.dir, home.SerialLogFile), "append", "off"),
		}, s.Children...)
	}
	for _, g := range devices.All("graphics") {
		listen := g.Child("listen")
		switch {
		case listen.Attr("type") == "socket" && listen.Attr("socket") == "" && g.Attr("type") == "vnc":
			listen.SetAttr("socket", filepath.Join(r.place(l.dir), home.VNCSocket))
			r.Info.VNC = filepath.Join(r.place(l.dir), home.VNCSocket)
		case listen.Attr("type") == "socket" && g.Attr("type") == "vnc":
			r.Info.VNC = listen.Attr("socket")
		case g.Attr("type") == "vnc" && g.Attr("port") != "" && g.Attr("port") != "-1":
			r.Info.VNC = net.JoinHostPort(listen.Attr("address"), g.Attr("port"))
		}
	}
	return root.String(), nil
}

// bringUp creates the domain, notes its process and lets the guest execute.
func (l launch) bringUp(ctx, through context.Context, r record, xml string) (*machine, error) {
	l.release()
	dom, err := l.conn.Create(through, xml, StartOptions{Paused: true})
	if err != nil {
		return nil, err
	}
	if r.Info.PID, err = findProcess(r.UUID); err != nil {
		return nil, err
	}
	v, err := l.conn.HypervisorVersion(through)
	if err != nil {
		return nil, err
	}
	if err := addForwards(through, dom, l.spec.NICs); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.Info.VNC == "" {
		r.Info.VNC = chosenVNC(through, dom)
	}
	r.Info.QEMU = v.String()
	if err := r.write(l.dir); err != nil {
		return nil, err
	}
	m, err := attach(through, l.conn, dom, r, l.dir)
	if err != nil {
		return nil, err
	}
	err = dom.Resume(through)
	if err == nil {
		err = m.watchStart(ctx, l.watch)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		m.detach()
		return nil, err
	}
	go m.supervise()
	return m, nil
}

// chosenVNC is the address of a VNC server whose port was chosen at the start,
// "" where there is none.
func chosenVNC(ctx context.Context, dom *Domain) string {
	root, err := liveXML(ctx, dom, false)
	if err != nil {
		return ""
	}
	for _, g := range root.Child("devices").All("graphics") {
		if port := g.Attr("port"); g.Attr("type") == "vnc" && port != "" && port != "-1" {
			return net.JoinHostPort(g.Child("listen").Attr("address"), port)
		}
	}
	return ""
}

// undo ends what a failed start may have left.
func undo(ctx context.Context, conn *Conn, dir string, r record) error {
	dom, err := conn.LookupDomainByUUID(ctx, r.UUID)
	if err == nil {
		err = dom.Destroy(ctx, false)
	}
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrInvalid) {
		return err // the record stays: it says what to end
	}
	return removeRuntime(dir, r)
}

// choosePorts fills in the host ports that are left to us, and finds out that
// the others are free. The ports are held until release.
func choosePorts(s *vm.Spec) (release func(), err error) {
	var held []interface{ Close() error }
	release = func() {
		for _, h := range held {
			_ = h.Close() // it was only held
		}
		held = nil
	}
	s.NICs = append([]vm.NIC(nil), s.NICs...)
	for i := range s.NICs {
		s.NICs[i].Forwards = append([]vm.Forward(nil), s.NICs[i].Forwards...)
		for j := range s.NICs[i].Forwards {
			f := &s.NICs[i].Forwards[j]
			address := net.JoinHostPort(f.HostAddr, strconv.Itoa(f.HostPort))
			if f.Proto == "udp" {
				c, err := net.ListenPacket("udp", address)
				if err != nil {
					release()
					return nil, fmt.Errorf("port forward %s: %w", f, err)
				}
				held = append(held, c)
				f.HostPort = c.LocalAddr().(*net.UDPAddr).Port
				continue
			}
			l, err := net.Listen("tcp", address)
			if err != nil {
				release()
				return nil, fmt.Errorf("port forward %s: %w", f, err)
			}
			held = append(held, l)
			f.HostPort = l.Addr().(*net.TCPAddr).Port
		}
	}
	return release, nil
}

// addForwards makes the forwards, which libvirt's documents cannot say.
func addForwards(ctx context.Context, dom *Domain, nics []vm.NIC) error {
	for i, n := range nics {
		for _, f := range n.Forwards {
			command := fmt.Sprintf("hostfwd_add hostnet%d %s:%s:%d-:%d", i, f.Proto, f.HostAddr, f.HostPort, f.GuestPort)
			out, err := dom.MonitorCommand(ctx, command, true)
			if err != nil {
				return err
			}
			if out != "" {
				return fmt.Errorf("port forward %s: %s", f, lastLine([]byte(out)))
			}
		}
	}
	return nil
}

func forwards(nics []vm.NIC) []vm.Forward {
	all := []vm.Forward{}
	for _, n := range nics {
		all = append(all, n.Forwards...)
	}
	return all
}

// prepareDir returns dir without symbolic links, made for its owner alone.
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

// rotateLog keeps the serial log of the start before.
func rotateLog(dir string) error {
	serial := filepath.Join(dir, home.SerialLogFile)
	err := os.Rename(serial, filepath.Join(dir, home.SerialLogOld))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(serial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
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
	var m *machine
	err := d.inside(ctx, dir, func(conn *Conn, dir string, dom *Domain, r record) (keep bool, err error) {
		m, err = attach(ctx, conn, dom, r, dir)
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	go m.supervise()
	return m, nil
}

// KillIn implements [vm.Killer].
func (d *Driver) KillIn(ctx context.Context, dir string) error {
	err := d.inside(ctx, dir, func(conn *Conn, dir string, dom *Domain, r record) (bool, error) {
		return false, undo(ctx, conn, dir, r)
	})
	if err != nil {
		return fmt.Errorf("machine in %s: %w", dir, err)
	}
	return nil
}

// inside calls f with the domain that runs in dir, under the folder's lock;
// the connection is closed unless f keeps it. ErrNotRunning where none runs.
func (d *Driver) inside(ctx context.Context, dir string, f func(*Conn, string, *Domain, record) (keep bool, err error)) error {
	if _, err := os.Stat(filepath.Join(dir, home.RunFile)); errors.Is(err, fs.ErrNotExist) {
		return vm.ErrNotRunning
	}
	dir, err := prepareDir(dir)
	if err != nil {
		return err
	}
	unlock, err := home.LockFolder(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	conn, err := Connect(ctx, d.uri)
	if err != nil {
		return err
	}
	dom, r, err := findRunning(ctx, conn, dir)
	if err == nil && dom == nil {
		err = vm.ErrNotRunning
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	keep, err := f(conn, dir, dom, r)
	if !keep {
		err = errors.Join(err, conn.Close())
	}
	return err
}
