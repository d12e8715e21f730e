package qemu

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// mediumMark is between a drive's id and the number of a medium that was put in
// while the machine runs.
const mediumMark = "-medium"

// trayTimeout is how long a guest may take to open a tray that it has locked, once
// it was asked.
const trayTimeout = 5 * time.Second

// ChangeMedium implements [vm.MediaChanger].
func (m *machine) ChangeMedium(ctx context.Context, name string, medium vm.Medium, force bool) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	if err := m.changeMedium(ctx, name, &medium, force); err != nil {
		return fmt.Errorf("change the medium of drive %q: %w", name, err)
	}
	return nil
}

// EjectMedium implements [vm.MediaChanger].
func (m *machine) EjectMedium(ctx context.Context, name string, force bool) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	if err := m.changeMedium(ctx, name, nil, force); err != nil {
		return fmt.Errorf("eject the medium of drive %q: %w", name, err)
	}
	return nil
}

// changeMedium opens the new medium before it takes the old one out, so that one
// that cannot be opened changes nothing. nil is none.
func (m *machine) changeMedium(ctx context.Context, name string, medium *vm.Medium, force bool) error {
	index, d, id, err := m.findDisk(name)
	if err != nil {
		return err
	}
	if d.Device != vm.DeviceCDROM && d.Device != vm.DeviceFloppy {
		return fmt.Errorf("%w: it is a %s, and only CD-ROM and floppy drives have media", vm.ErrNoHotplug, d.Device)
	}
	d.Path, d.Format, d.SecretFile = "", "", ""
	u := &undo{m: m}
	var node string
	if medium != nil {
		d.Path, d.Format, d.ReadOnly = medium.Path, medium.Format, medium.ReadOnly || d.Device == vm.DeviceCDROM
		if node, err = m.openMedium(ctx, index, d, id); err != nil {
			return err
		}
		u.add("blockdev-del", map[string]string{"node-name": node})
	}
	// Seen through whatever becomes of the caller: what is in the drive and what the
	// record says are one.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	if err := m.takeOut(ctx, id, force); err != nil {
		return u.run(err)
	}
	drive := map[string]string{"id": deviceID(id)}
	if medium != nil {
		err = m.execute(ctx, "blockdev-insert-medium", map[string]string{"id": deviceID(id), "node-name": node}, nil)
		if err != nil { // the drive is empty now, and the record says so
			d.Path, d.Format = "", ""
			err = u.run(err)
		} else {
			err = m.execute(ctx, "blockdev-close-tray", drive, nil)
		}
	}
	return errors.Join(err, m.changeDisk(id, func(old *vm.Disk) {
		old.Path, old.Format, old.ReadOnly, old.SecretFile = d.Path, d.Format, d.ReadOnly, ""
	}))
}

// openMedium opens an image for a drive and returns its node.
func (m *machine) openMedium(ctx context.Context, index int, d vm.Disk, id string) (string, error) {
	s := m.spec().Clone()
	s.Disks[index] = d
	if err := errors.Join(s.ValidateDiskAt(index), vm.Spec{Disks: []vm.Disk{d}}.CheckFiles()); err != nil {
		return "", err
	}
	nodes, err := m.nodesOf(ctx, id)
	if err != nil {
		return "", err
	}
	number := 0
	for _, n := range nodes {
		if i, err := strconv.Atoi(strings.TrimPrefix(n, id+mediumMark)); err == nil {
			number = max(number, i)
		}
	}
	node := id + mediumMark + strconv.Itoa(number+1)
	c := config{spec: s, isBlockDevice: isBlockDevice}
	return node, m.execute(ctx, "blockdev-add", c.blockdev(d, node), nil)
}

// takeOut leaves a drive without a medium, and its image closed.
func (m *machine) takeOut(ctx context.Context, id string, force bool) error {
	b, err := m.queryBlock(ctx, id)
	if err != nil {
		return err
	}
	drive := map[string]any{"id": deviceID(id)}
	if err := m.execute(ctx, "blockdev-open-tray", map[string]any{"id": deviceID(id), "force": force}, nil); err != nil {
		return err
	}
	if b.Locked && !force && b.Inserted != nil {
		if err := m.waitTray(ctx, id); err != nil {
			return err
		}
	}
	if b.Inserted == nil {
		return nil
	}
	if err := m.execute(ctx, "blockdev-remove-medium", drive, nil); err != nil {
		return err
	}
	return m.execute(ctx, "blockdev-del", map[string]string{"node-name": b.Inserted.NodeName}, nil)
}

// waitTray gives a guest that has locked its medium the time to let go of it.
func (m *machine) waitTray(ctx context.Context, id string) error {
	end := time.After(trayTimeout)
	for {
		b, err := m.queryBlock(ctx, id)
		if err != nil || b.TrayOpen {
			return err
		}
		select {
		case <-end:
			return errors.New("the guest has locked it: eject it in the guest, or force it")
		case <-ctx.Done():
			return ctx.Err()
		case <-m.proc.done:
			return vm.ErrNotRunning
		case <-time.After(20 * time.Millisecond):
		}
	}
}
