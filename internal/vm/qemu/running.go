package qemu

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// What a running machine of this driver can do beside.
var (
	_ vm.Described      = (*machine)(nil)
	_ vm.DiskPlugger    = (*machine)(nil)
	_ vm.NICPlugger     = (*machine)(nil)
	_ vm.DiskResizer    = (*machine)(nil)
	_ vm.MediaChanger   = (*machine)(nil)
	_ vm.DiskThrottler  = (*machine)(nil)
	_ vm.PasswordSetter = (*machine)(nil)

	_ vm.Pauser          = (*machine)(nil)
	_ vm.SpaceWaiter     = (*machine)(nil)
	_ vm.DiskFlattener   = (*machine)(nil)
	_ vm.DiskSnapshotter = (*machine)(nil)
	_ vm.ImageTeller     = (*machine)(nil)
	_ vm.Freezer         = (*machine)(nil)
	_ vm.Channeled       = (*machine)(nil)
)

// diskID is what QEMU calls a drive of the spec, nicID a card.
func (r record) diskID(index int) string {
	if index < len(r.DiskIDs) {
		return r.DiskIDs[index]
	}
	return driveID(index)
}

func (r record) nicID(index int) string {
	if index < len(r.NICIDs) {
		return r.NICIDs[index]
	}
	return nicID(index)
}

func unixTime(text string) (string, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(t.Unix(), 10), nil
}

// spec returns the one that runs.
func (m *machine) spec() vm.Spec {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Spec
}

// RunningSpec implements [vm.Described].
func (m *machine) RunningSpec() vm.Spec { return m.spec().Clone() }

// ChannelSocket implements [vm.Channeled].
func (m *machine) ChannelSocket(target string) string {
	for i, c := range m.spec().Channels {
		if c.Target != target || c.Type != vm.CharUnix || !c.Listen {
			continue
		}
		if c.Path != "" {
			return c.Path
		}
		return m.socketPath(ChannelSocket(i))
	}
	return ""
}

// findDisk returns a drive by its name, and what QEMU calls it.
func (m *machine) findDisk(name string) (index int, d vm.Disk, id string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	index, err = m.record.Spec.FindDisk(name)
	if err != nil {
		return 0, vm.Disk{}, "", err
	}
	return index, m.record.Spec.Disks[index], m.record.diskID(index), nil
}

// change makes a change of the record and writes it: what runs is on record
// before the caller is told, so that another process adopts it as it is.
func (m *machine) change(f func(*record)) error {
	// Under the folder's lock, as the record of a machine that has ended must
	// not come back.
	return m.changeUnder(f, func() (func(), error) {
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		return home.LockFolder(ctx, m.dir)
	})
}

// changeLocked is change for who holds the folder's lock.
func (m *machine) changeLocked(f func(*record)) error {
	return m.changeUnder(f, func() (func(), error) { return func() {}, nil })
}

func (m *machine) changeUnder(f func(*record), lock func() (unlock func(), err error)) error {
	m.changeMu.Lock()
	defer m.changeMu.Unlock()
	m.mu.Lock()
	r := m.record
	m.mu.Unlock()
	r.Spec = r.Spec.Clone()
	r.fillIDs()
	f(&r)
	m.mu.Lock()
	// Only these change, so that the others are read without the lock.
	m.record.Spec, m.record.DiskIDs, m.record.NICIDs, m.record.Freeze = r.Spec, r.DiskIDs, r.NICIDs, r.Freeze
	m.mu.Unlock()
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	if m.proc.ended() {
		return nil
	}
	return r.write(m.dir)
}

// fillIDs writes down what was the order of the start.
func (r *record) fillIDs() {
	ids := make([]string, len(r.Spec.Disks))
	for i := range ids {
		ids[i] = r.diskID(i)
	}
	nics := make([]string, len(r.Spec.NICs))
	for i := range nics {
		nics[i] = r.nicID(i)
	}
	r.DiskIDs, r.NICIDs = ids, nics
}

// changeDisk changes a drive of the spec, by QEMU's name of it.
func (m *machine) changeDisk(id string, f func(*vm.Disk)) error {
	return m.change(func(r *record) {
		for i, other := range r.DiskIDs {
			if other == id {
				f(&r.Spec.Disks[i])
			}
		}
	})
}

// ResizeDisk implements [vm.DiskResizer].
func (m *machine) ResizeDisk(ctx context.Context, name string, size int64) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	_, d, id, err := m.findDisk(name)
	if err != nil {
		return err
	}
	bad := func(why string) error { return fmt.Errorf("resize drive %q to %d bytes: %s", name, size, why) }
	switch {
	case d.Device != vm.DeviceDisk:
		return bad("only a disk can grow")
	case d.ReadOnly:
		return bad("it is read-only")
	case size <= 0 || size%512 != 0:
		return bad("a disk has a multiple of 512 bytes")
	}
	now, err := m.virtualSize(ctx, id)
	if err != nil {
		return fmt.Errorf("resize drive %q: %w", name, err)
	}
	if size < now {
		return bad(fmt.Sprintf("it has %d bytes, and what is behind the new end would be lost: shrink it in the guest and, while it is stopped, with `lamina img resize --shrink`", now))
	}
	if size == now {
		return nil
	}
	node, err := m.topNode(ctx, id)
	if err == nil {
		err = m.execute(ctx, "block_resize", map[string]any{"node-name": node, "size": size}, nil)
	}
	if err != nil {
		return fmt.Errorf("resize drive %q: %w", name, err)
	}
	return nil
}

// blockDevice is what query-block says of a drive.
type blockDevice struct {
	QDev     string `json:"qdev"`
	Locked   bool   `json:"locked"`
	TrayOpen bool   `json:"tray_open"`
	Inserted *struct {
		NodeName string `json:"node-name"`
		File     string `json:"file"`
		Image    struct {
			VirtualSize int64 `json:"virtual-size"`
		} `json:"image"`
	} `json:"inserted"`
}

// queryBlock returns what QEMU says of a drive now.
func (m *machine) queryBlock(ctx context.Context, id string) (blockDevice, error) {
	var all []blockDevice
	if err := m.execute(ctx, "query-block", nil, &all); err != nil {
		return blockDevice{}, err
	}
	for _, b := range all {
		if b.Inserted != nil && b.Inserted.NodeName == id || matchesDevice(b.QDev, deviceID(id)) {
			return b, nil
		}
	}
	return blockDevice{}, fmt.Errorf("%w: QEMU has no drive %s", vm.ErrNoDevice, id)
}

// virtualSize asks QEMU for the size of a drive's node in bytes.
func (m *machine) virtualSize(ctx context.Context, id string) (int64, error) {
	b, err := m.queryBlock(ctx, id)
	if err != nil {
		return 0, err
	}
	if b.Inserted == nil {
		return 0, fmt.Errorf("%w: the drive is empty", vm.ErrNoDevice)
	}
	return b.Inserted.Image.VirtualSize, nil
}

// ThrottleDisk implements [vm.DiskThrottler].
func (m *machine) ThrottleDisk(ctx context.Context, name string, t vm.Throttle) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	if err := t.Validate(); err != nil {
		return err
	}
	_, _, id, err := m.findDisk(name)
	if err != nil {
		return err
	}
	if err := m.throttle(ctx, id, t); err != nil {
		return fmt.Errorf("throttle drive %q: %w", name, err)
	}
	return m.change(func(r *record) {
		for i := range r.Spec.Disks {
			// The bounds of a group are those of all its members.
			same := t.Group != "" && r.Spec.Disks[i].Throttle.Group == t.Group
			if r.DiskIDs[i] == id || same {
				r.Spec.Disks[i].Throttle = t
			}
		}
	})
}

// throttle sets a drive's bounds; all of them 0 is none.
func (m *machine) throttle(ctx context.Context, id string, t vm.Throttle) error {
	b, err := m.queryBlock(ctx, id)
	if err != nil {
		return err
	}
	args := map[string]any{
		"id":  b.QDev, // which for virtio and usb is a part of the device
		"bps": t.TotalBytes, "bps_rd": t.ReadBytes, "bps_wr": t.WriteBytes,
		"iops": t.TotalIOPS, "iops_rd": t.ReadIOPS, "iops_wr": t.WriteIOPS,
	}
	optional := map[string]int64{
		"bps_max": t.TotalBytesMax, "bps_rd_max": t.ReadBytesMax, "bps_wr_max": t.WriteBytesMax,
		"iops_max": t.TotalIOPSMax, "iops_rd_max": t.ReadIOPSMax, "iops_wr_max": t.WriteIOPSMax,
		"bps_max_length": t.TotalBytesMaxLength, "bps_rd_max_length": t.ReadBytesMaxLength, "bps_wr_max_length": t.WriteBytesMaxLength,
		"iops_max_length": t.TotalIOPSMaxLength, "iops_rd_max_length": t.ReadIOPSMaxLength, "iops_wr_max_length": t.WriteIOPSMaxLength,
		"iops_size": t.SizeIOPS,
	}
	for k, v := range optional {
		if v != 0 {
			args[k] = v
		}
	}
	if t.Group != "" {
		args["group"] = t.Group
	}
	return m.execute(ctx, "block_set_io_throttle", args, nil)
}

// SetDisplayPassword implements [vm.PasswordSetter].
func (m *machine) SetDisplayPassword(ctx context.Context, d vm.DisplayType, password string) error {
	for _, x := range m.spec().Displays {
		if x.Type == d && x.Password != "" {
			return m.setPassword(ctx, d, password, "")
		}
	}
	return fmt.Errorf("display %s: %w: it was started without a password: set one in its spec and start it again", d, vm.ErrNoDevice)
}
