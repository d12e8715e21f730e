package qemu

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm"
)

// PlugNIC implements [vm.NICPlugger].
func (m *machine) PlugNIC(ctx context.Context, n vm.NIC) (vm.NIC, error) {
	m.plug.Lock()
	defer m.plug.Unlock()
	s := m.spec()
	n = n.WithDefaults()
	what := "plug network card " + n.MAC
	if err := s.ValidateNIC(n); err != nil {
		return vm.NIC{}, fmt.Errorf("%s: %w", what, err)
	}
	port, err := m.freePort(ctx, what)
	if err != nil {
		return vm.NIC{}, err
	}
	// Seen through whatever becomes of the caller, as with a disk.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	m.mu.Lock()
	r := m.record
	r.fillIDs()
	m.mu.Unlock()
	id := nextID("net", r.NICIDs)
	filled, _, release, err := m.ports.fill([]vm.NIC{n})
	if err != nil {
		return vm.NIC{}, fmt.Errorf("%s: %w", what, err)
	}
	defer release()
	n = filled[0]
	u := &undo{m: m}
	queues, err := m.addNetdev(ctx, n, id, r.Info.Accel)
	if err != nil {
		return vm.NIC{}, fmt.Errorf("%s: %w", what, err)
	}
	u.add("netdev_del", map[string]string{"id": id})
	p := nicDevice(n, id, queues)
	p = append(p, "bus", port)
	if err := m.execute(ctx, "device_add", properties(p), nil); err != nil {
		return vm.NIC{}, u.run(fmt.Errorf("%s: %w", what, err))
	}
	if n.Link == vm.LinkDown {
		err = m.setLink(ctx, id, n.Link)
	}
	return n, errors.Join(err, m.change(func(r *record) {
		r.Spec.NICs, r.NICIDs = append(r.Spec.NICs, n), append(r.NICIDs, id)
	}))
}

// addNetdev adds the host's half of a card. A tap device goes through the
// monitor's socket.
func (m *machine) addNetdev(ctx context.Context, n vm.NIC, id string, accel vm.Accel) (queues int, err error) {
	if needsTap(n) {
		files, err := openTap(n)
		if err != nil {
			return 0, err
		}
		defer func() {
			for _, f := range files {
				_ = f.Close()
			}
		}()
		if len(files) > 1 {
			return 0, fmt.Errorf("%w: a card with several queues: use one, or add it while the machine is stopped", vm.ErrNoHotplug)
		}
		if err := m.monitor().SendFile(ctx, id, files[0]); err != nil {
			return 0, err
		}
		args := map[string]any{"type": "tap", "id": id, "fd": id, "vhost": usesVHost(n, accel)}
		return 1, m.execute(ctx, "netdev_add", args, nil)
	}
	args := properties(netdev(n, id, nil, false))
	delete(args, "hostfwd")
	var rules []map[string]string
	for _, f := range n.Forwards {
		rules = append(rules, map[string]string{"str": forwardRule(f)})
	}
	if len(rules) > 0 {
		args["hostfwd"] = rules
	}
	if n.Restrict {
		args["restrict"] = true
	}
	if hub, ok := args["hubid"].(string); ok {
		number, err := strconv.Atoi(hub)
		if err != nil {
			return 0, err
		}
		args["hubid"] = number
	}
	return 0, m.execute(ctx, "netdev_add", args, nil)
}

// findNIC returns a card by its name, and what QEMU calls it.
func (m *machine) findNIC(name string) (n vm.NIC, id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, err := m.record.Spec.FindNIC(name)
	if err != nil {
		return vm.NIC{}, "", err
	}
	return m.record.Spec.NICs[i], m.record.nicID(i), nil
}

// UnplugNIC implements [vm.NICPlugger].
func (m *machine) UnplugNIC(ctx context.Context, name string) (vm.NIC, error) {
	n, id, err := m.findNIC(name)
	if err != nil {
		return vm.NIC{}, err
	}
	if err := m.unplug(ctx, id); err != nil {
		return vm.NIC{}, fmt.Errorf("unplug network card %s: %w", n.MAC, err)
	}
	return n, nil
}

// SetLink implements [vm.NICPlugger].
func (m *machine) SetLink(ctx context.Context, name string, state vm.LinkState) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	n, id, err := m.findNIC(name)
	if err != nil {
		return err
	}
	if state != vm.LinkUp && state != vm.LinkDown {
		return fmt.Errorf("link %q of network card %s: use up or down", state, n.MAC)
	}
	if err := m.setLink(ctx, id, state); err != nil {
		return fmt.Errorf("link of network card %s: %w", n.MAC, err)
	}
	return m.change(func(r *record) {
		for i, other := range r.NICIDs {
			if other == id {
				r.Spec.NICs[i].Link = state
			}
		}
	})
}

func (m *machine) setLink(ctx context.Context, id string, state vm.LinkState) error {
	return m.execute(ctx, "set_link", map[string]any{"name": deviceID(id), "up": state != vm.LinkDown}, nil)
}
