package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu/stream"
)

// thaw is what a start needs to go on from a frozen machine.
type thaw struct {
	ram, state string
	accel      vm.Accel
	layout     layout
	// readOnly: this QEMU maps a file privately that it opens for reading only.
	readOnly bool

	stateFD int // the end of a socket, as QEMU has it
}

var _ vm.Thawer = (*Driver)(nil)

// Thaw implements [vm.Thawer].
func (d *Driver) Thaw(ctx context.Context, spec vm.Spec, from vm.Frozen, dir string) (vm.Machine, error) {
	spec = spec.WithDefaults()
	m, err := d.thaw(ctx, spec, from, dir)
	if err != nil {
		return nil, fmt.Errorf("thaw machine %q: %w", spec.Name, err)
	}
	return m, nil
}

func (d *Driver) thaw(ctx context.Context, spec vm.Spec, from vm.Frozen, dir string) (*machine, error) {
	if err := sameMachine(spec, from.Spec.WithDefaults()); err != nil {
		return nil, err
	}
	if err := unfreezable(spec); err != nil { // as another version of ours may have frozen it
		return nil, err
	}
	t := &thaw{ram: from.RAM, state: from.State, accel: from.Key.Accel}
	if len(from.Layout) > 0 {
		if err := json.Unmarshal(from.Layout, &t.layout); err != nil {
			return nil, fmt.Errorf("the layout of the frozen machine's devices: %w", err)
		}
	}
	binary, err := d.binaryOf(spec)
	if err != nil {
		return nil, err
	}
	if err := d.sameHost(ctx, spec, binary, from.Key); err != nil {
		return nil, err
	}
	t.readOnly = atLeast(from.Key.QEMU, 8, 2)
	if err := t.checkFiles(from.Key.Memory); err != nil {
		return nil, err
	}
	l, unlock, err := d.begin(ctx, spec, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l.thaw = t
	if t.accel == vm.AccelKVM {
		host, err := hostKey(binary)
		if err != nil {
			return nil, err
		}
		l.onKVMFailure = d.kvmFailed(host, cpuKey(spec))
	}
	// No look whether KVM runs it: it did when it was frozen.
	return l.run(ctx, t.accel, "", 0)
}

// sameHost says in what this host, or its QEMU, is another one than the frozen
// machine's.
func (d *Driver) sameHost(ctx context.Context, spec vm.Spec, binary string, key vm.FrozenKey) error {
	other := func(why string) error {
		return fmt.Errorf("%w: %s: start it cold, or freeze it anew here", vm.ErrOtherHost, why)
	}
	switch key.Accel {
	case vm.AccelTCG:
	case vm.AccelKVM:
		// What was found before the last boot is no reason to refuse it.
		if accel, err := d.likelyAccel(binary, spec, d.kvm.recall); err != nil {
			return err
		} else if accel != vm.AccelKVM {
			return other("accelerator kvm, which does not run it here")
		}
	default:
		return other(fmt.Sprintf("accelerator %q", key.Accel))
	}
	here, err := d.keyWith(ctx, spec, binary, key.Accel)
	if err != nil {
		return err
	}
	if here != key {
		return other(differences(key, here))
	}
	return nil
}

// checkFiles looks at the files before QEMU does, whose words would be about
// something else.
func (t *thaw) checkFiles(memory int64) error {
	for _, p := range []string{t.ram, t.state} {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("frozen machine: %q is no absolute path", p)
		}
	}
	// Neither is waited for where somebody has put a pipe in its place.
	state, err := os.OpenFile(t.state, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("frozen machine's state: %w", err)
	}
	defer func() { _ = state.Close() }()
	flags := os.O_RDWR
	if t.readOnly {
		flags = os.O_RDONLY
	}
	ram, err := os.OpenFile(t.ram, flags|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrPermission) && !t.readOnly {
		return fmt.Errorf("frozen machine's RAM: %w: a QEMU before 8.2 opens it for writing, though it does not write: give it that right (chmod u+w, chattr -i)", err)
	}
	if err != nil {
		return fmt.Errorf("frozen machine's RAM: %w", err)
	}
	defer func() { _ = ram.Close() }()
	st, err := ram.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() != memory {
		return fmt.Errorf("frozen machine's RAM: %s is %w: it has %d bytes, and the machine %d of memory", t.ram, stream.ErrDamaged, st.Size(), memory)
	}
	return stream.Check(state, ram)
}

// hostHalf is a spec without what the guest does not see, or may see change.
func hostHalf(s vm.Spec) vm.Spec {
	s = s.Clone()
	s.Name, s.UUID, s.Title, s.Description, s.OS = "", "", "", "", ""
	s.Accel, s.Machine, s.CPU, s.Processor, s.CPUs, s.Memory = "", "", "", vm.Processor{}, 0, 0 // of the key
	if s.GenerationID != "" {
		s.GenerationID = "any"
	}
	s.Boot.NVRAM = ""
	s.MemoryConfig.NoMerge = false
	s.Graphics, s.Displays, s.QEMU.Binary = vm.Graphics{}, nil, ""
	for i, name := range s.DiskNames() {
		d := &s.Disks[i]
		d.Target, d.Path, d.Format = name, "", ""
		d.Throttle, d.SecretFile, d.IO, d.Discard, d.DetectZeroes, d.CopyOnRead = vm.Throttle{}, "", "", false, "", false
	}
	for _, list := range [][]vm.Char{s.Serials, s.Parallels, s.Consoles} {
		for i := range list {
			list[i] = guestHalf(list[i])
		}
	}
	for i, c := range s.Channels {
		s.Channels[i].Char = guestHalf(c.Char)
	}
	for i, n := range s.NICs {
		s.NICs[i] = vm.NIC{Model: n.Model, MAC: n.MAC, MTU: n.MTU, Queues: n.Queues, BootIndex: n.BootIndex, ROM: n.ROM}
	}
	return s
}

// guestHalf is what the guest sees of a character device.
func guestHalf(c vm.Char) vm.Char {
	g := vm.Char{Model: c.Model}
	if c.Type == vm.CharNone { // no device at all
		g.Type = c.Type
	}
	return g
}

// sameMachine refuses a spec that is not the frozen one's.
func sameMachine(spec, frozen vm.Spec) error {
	a, err := fields(hostHalf(spec))
	if err != nil {
		return err
	}
	b, err := fields(hostHalf(frozen))
	if err != nil {
		return err
	}
	var differ []string
	for k := range a {
		if string(a[k]) != string(b[k]) {
			differ = append(differ, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			differ = append(differ, k)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return fmt.Errorf("it is not the frozen machine: %s differ: change what is plugged in while it runs, or start it cold", strings.Join(differ, ", "))
}

func fields(s vm.Spec) (map[string]json.RawMessage, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	var m map[string]json.RawMessage
	return m, json.Unmarshal(b, &m)
}

// backend is the memory object that maps the frozen RAM.
func (t *thaw) backend(c config) string {
	m := c.spec.MemoryConfig
	p := []string{"id", c.ramBlock(), "size", fmt.Sprintf("%dM", c.spec.Memory>>20), "mem-path", t.ram, "share", "off", "prealloc", onIf(m.Prealloc)}
	if t.readOnly {
		p = append(p, "readonly", "on", "rom", "off")
	}
	if m.NoMerge {
		p = append(p, "merge", "off")
	}
	return device("memory-backend-file", p...)
}

// feed opens the state for QEMU, which reads it from a socket: that works in each of
// its versions, and no privilege of the file's is needed. It ends with QEMU's end of it.
func (t *thaw) feed(r *resources) error {
	state, err := os.Open(t.state)
	if err != nil {
		return err
	}
	near, far, err := socketpair()
	if err != nil {
		return errors.Join(err, state.Close())
	}
	t.stateFD = r.add(far)
	go func() {
		_, _ = io.Copy(near, state) // QEMU tells of what it misses
		_, _ = near.Close(), state.Close()
	}()
	return nil
}

// incomingArgs have QEMU load the frozen state before all else.
func (c config) incomingArgs() []string {
	if c.thaw == nil {
		return nil
	}
	return []string{"-incoming", fmt.Sprintf("fd:%d", c.thaw.stateFD)}
}

// awaitState returns when QEMU has loaded the frozen state.
func (m *machine) awaitState(ctx context.Context) error {
	for {
		status, err := m.queryStatus(ctx)
		if err != nil || status != statusIncoming {
			return err
		}
		if err := pause(ctx, tick/2); err != nil {
			return fmt.Errorf("QEMU does not load the frozen state: %w", err)
		}
	}
}
