package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/guest/generalise"
	"github.com/lamina-vm/lamina/internal/guest/inspect"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// generaliseTime is how long the boot of a copy may take, with KVM and without.
const (
	generaliseTime    = 10 * time.Minute
	generaliseTimeTCG = 40 * time.Minute
	// serialTail is how much of the end of a serial log is looked at.
	serialTail = 4 << 20
)

// template makes a template of a machine, which stays as it is.
func (m *machine) template(ctx context.Context, req api.TemplateFromRequest, s *events) (t api.Template, err error) {
	r, end, err := m.beginDisk(ctx)
	if err != nil {
		return t, err
	}
	defer end()
	if err := m.needStopped(r, fmt.Sprintf(", or make a machine of it as it runs: `lamina clone %s NAME`, and the template of that", m.name)); err != nil {
		return t, err
	}
	what := "a template of " + m.name
	own, whole, err := m.d.store.DiskSizes(ctx, m.known())
	if err != nil {
		return t, fmt.Errorf("%s: %w", what, err)
	}
	if req.Flatten || m.known().Digest == "" {
		own = whole
	}
	if err := m.d.guard.haveRoomFor(what, own); err != nil {
		return t, err
	}
	from := m.fromMachine(req)
	if req.Generalise {
		// What the guest of the copy writes nobody knows before.
		ctx, stop := m.d.guard.watching(ctx, what, m.dir)
		defer stop()
		dir, disk, err := m.d.store.Scratch(ctx, m.id)
		if err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, m.d.store.RemoveScratch(context.WithoutCancel(ctx), m.id)) }()
		if err := m.generalise(ctx, dir, disk, req.Timeout, s); err != nil {
			return t, shortOf(ctx, fmt.Errorf("generalise %s: %w", m.name, err))
		}
		from.Disk = disk
	}
	if info, err := m.d.opts.Inspect(ctx, firstOf(from.Disk, m.d.store.Disk(m.known())), "qcow2"); err == nil {
		from.Info = &info
	}
	t, err = m.d.store.TemplateFromMachine(ctx, from, func(done, total int64) {
		s.progress(api.Event{Step: "import", Machine: m.name, Current: done, Total: total})
	})
	if err != nil {
		return t, err
	}
	m.d.log.Info("template made of a machine", "machine", m.name, "template", t.Name, "digest", t.Digest, "generalised", req.Generalise)
	return t, nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// generalise boots the copy of the machine's disk in dir, has its guest take out what
// two machines must not share, and looks from outside whether that is so.
func (m *machine) generalise(ctx context.Context, dir, disk string, timeout time.Duration, s *events) error {
	token := newToken()
	info, err := m.d.opts.Inspect(ctx, disk, "qcow2")
	if err != nil {
		return err
	}
	// Where what is in the image could not be read, cloud-init is what nearly
	// every image of the cloud has.
	byAgent := !info.CloudInit && info.OS != ""
	spec, err := m.copySpec(dir, disk, token, byAgent)
	if err != nil {
		return err
	}
	s.send(api.Event{Step: "generalise", Machine: m.name, Text: "booting a copy to take out its identity"})
	select {
	case m.d.starts <- struct{}{}:
	case <-ctx.Done():
		return cause(ctx)
	}
	guest, err := m.d.opts.Driver.Start(ctx, spec, dir)
	<-m.d.starts
	if err != nil {
		return err
	}
	defer func() { _ = guest.Release() }() // it is gone by then
	if timeout == 0 {
		timeout = generaliseTime
		if guest.Info().Accel == vm.AccelTCG {
			timeout = generaliseTimeTCG
		}
	}
	output, err := m.runGeneralise(ctx, guest, spec, dir, token, timeout, byAgent)
	if err != nil {
		return errors.Join(err, killed(guest))
	}
	report, err := generalise.Parse(output, token)
	if err != nil {
		return fmt.Errorf("%w: what its guest said last: %s", err, lastLines(output))
	}
	for _, f := range report.Failed {
		s.send(api.Event{Machine: m.name, Warning: "could not be taken out: " + f.String()})
	}
	for _, k := range report.Kept {
		s.send(api.Event{Step: "generalise", Machine: m.name, Text: "kept " + k.String()})
	}
	return generalised(ctx, disk)
}

// runGeneralise has the guest do it and returns when it is off, with what it said.
func (m *machine) runGeneralise(ctx context.Context, guest vm.Machine, spec vm.Spec, dir, token string, timeout time.Duration, byAgent bool) ([]byte, error) {
	late := fmt.Errorf("the copy of the machine was not done within %s: `lamina template create --timeout` gives it longer", timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, late)
	defer cancel()
	var output []byte
	if byAgent {
		var err error
		if output, err = agentGeneralise(ctx, dir, spec, token); err != nil {
			return nil, err
		}
	}
	exit, err := guest.Wait(ctx)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: what its guest said last: %s", cause(ctx), lastLines(tailOf(guest.SerialLog())))
	case err != nil:
		return nil, err
	case exit.State == vm.StateCrashed:
		return nil, fmt.Errorf("the copy of the machine failed: %s", exit.Reason)
	}
	if byAgent {
		return output, nil
	}
	return tailOf(guest.SerialLog()), nil
}

// agentGeneralise runs the script by an agent, in a guest without cloud-init. The
// guest goes off by itself then, as an orderly shutdown would store a random seed.
func agentGeneralise(ctx context.Context, dir string, spec vm.Spec, token string) ([]byte, error) {
	lamina, qga := agentSockets(dir, spec)
	c, err := agent.Dial(ctx, lamina, qga)
	if err != nil {
		return nil, fmt.Errorf("the image has no cloud-init, and %w: install one of them in it", err)
	}
	defer func() { _ = c.Close() }() // the guest goes off
	script, err := generalise.Script(generalise.Options{Token: token, PowerOff: true, Detach: true})
	if err != nil {
		return nil, err
	}
	res, err := c.Run(ctx, script, nil)
	if err != nil {
		return nil, err
	}
	return res.Output, nil
}

// copySpec is the machine as it is booted once: without what others see of it.
func (m *machine) copySpec(dir, disk, token string, byAgent bool) (vm.Spec, error) {
	rec := m.known()
	spec := rec.Spec.Clone()
	spec.Name, spec.UUID = spec.Name+"-copy", newUUID()
	own := spec.Disks[0]
	own.Path = disk
	spec.Disks = []vm.Disk{own}
	spec.NICs = []vm.NIC{{}}
	spec.Displays, spec.Videos, spec.Graphics = nil, nil, vm.Graphics{VNC: vm.VNCNone}
	spec.Channels = nil
	withIdentity(&spec)
	if !byAgent {
		data, err := generalise.UserData(token)
		if err != nil {
			return spec, err
		}
		image, err := m.d.opts.Seed(seed.Config{InstanceID: "generalise-" + token, UserData: data})
		if err != nil {
			return spec, err
		}
		path := filepath.Join(dir, home.SeedFile)
		if err := os.WriteFile(path, image, 0o600); err != nil {
			return spec, err
		}
		spec.Disks = append(spec.Disks, vm.SeedDisk(path, own.Bus))
	}
	spec = spec.WithDefaults()
	return spec, spec.Validate()
}

// generalised looks into the image whether anything is left.
func generalised(ctx context.Context, disk string) error {
	res, err := inspect.LookFile(ctx, disk, "qcow2")
	if err != nil {
		return err
	}
	if !res.Traces.Read {
		return nil // the guest's own word has to do
	}
	if left := res.Traces.Shared(); len(left) > 0 {
		return fmt.Errorf("the guest says that it is done, and its disk still has %s", strings.Join(left, ", "))
	}
	return nil
}

// killed ends a machine that nobody waits for any more.
func killed(guest vm.Machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := guest.Kill(ctx); err != nil && !errors.Is(err, vm.ErrNotRunning) {
		return err
	}
	return nil
}

func newToken() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// tailOf reads the end of a serial log; what cannot be read is empty.
func tailOf(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > serialTail {
		if _, err := f.Seek(-serialTail, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, serialTail))
	if err != nil {
		return nil
	}
	return b
}

// lastLines are the last words of a guest, for a message.
func lastLines(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	out := strings.Join(lines[max(0, len(lines)-3):], " | ")
	if len(out) > 400 {
		out = out[len(out)-400:]
	}
	return fmt.Sprintf("%q", out)
}
