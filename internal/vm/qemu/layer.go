package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// layerMark is between a drive's id and the number of an image that was put over
// its first one while the machine runs.
const layerMark = "-layer"

// topNode is the image that a drive's guest writes to now.
func (m *machine) topNode(ctx context.Context, id string) (string, error) {
	b, err := m.queryBlock(ctx, id)
	if err != nil {
		return "", err
	}
	if b.Inserted == nil {
		return "", fmt.Errorf("%w: the drive is empty", vm.ErrNoDevice)
	}
	return b.Inserted.NodeName, nil
}

// layerNumber is the number of a drive's node: 0 of its first image, -1 of what is
// none of its.
func layerNumber(node, id string) int {
	rest, ok := strings.CutPrefix(node, id)
	if ok && rest == "" {
		return 0
	}
	number, ok := strings.CutPrefix(rest, layerMark)
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n < 1 {
		return -1
	}
	return n
}

// layerDrive says why a drive's layers cannot change, if so.
func layerDrive(name string, d vm.Disk) error {
	var why string
	switch {
	case d.Device != vm.DeviceDisk || d.ReadOnly || d.Path == "":
		why = "it is no writable disk"
	case d.Format != "qcow2":
		why = "its image is " + d.Format + ", which has no layers: convert it to qcow2 while the machine is stopped"
	case d.CopyOnRead:
		why = "it copies what it reads: stop the machine first"
	case d.SecretFile != "":
		why = "it is encrypted: stop the machine first"
	default:
		return nil
	}
	return fmt.Errorf("drive %q: %w: %s", name, vm.ErrNoLayer, why)
}

// layer is one step of a snapshot.
type layer struct {
	id, node, path string // the drive, its present image, and the overlay's file
	disk           vm.Disk
	overlay        string // its node
}

// nameLayer gives an overlay its node's name.
func (m *machine) nameLayer(ctx context.Context, l *layer) error {
	nodes, err := m.nodesOf(ctx, l.id)
	if err != nil {
		return err
	}
	number := 0
	for _, n := range nodes {
		number = max(number, layerNumber(n, l.id))
	}
	l.overlay = l.id + layerMark + strconv.Itoa(number+1)
	return nil
}

// openLayer opens an overlay without what is below it, which the snapshot puts
// there.
func (m *machine) openLayer(ctx context.Context, l *layer) error {
	if l.overlay == "" {
		if err := m.nameLayer(ctx, l); err != nil {
			return err
		}
	}
	d := l.disk
	d.Path = l.path
	node, err := withoutBacking(config{spec: m.spec(), isBlockDevice: isBlockDevice}.blockdev(d, l.overlay))
	if err != nil {
		return err
	}
	return m.execute(ctx, "blockdev-add", node, nil)
}

// withoutBacking is a node as blockdev-add takes it, but for the images below it.
func withoutBacking(n blockNode) (map[string]any, error) {
	b, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, err
	}
	out["backing"] = nil
	return out, nil
}

// SnapshotDisks implements [vm.DiskSnapshotter].
func (m *machine) SnapshotDisks(ctx context.Context, layers map[string]string) error {
	m.plug.Lock()
	defer m.plug.Unlock()
	list, err := m.findLayers(ctx, layers)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	// Seen through whatever becomes of the caller: where the guest writes and what
	// the record says are one.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	err = m.noteLayers(ctx, freezeNote{Snapshot: true}, list)
	if err == nil {
		err = m.snapshot(ctx, list)
	}
	// QEMU is asked in any case: its answer may be what failed.
	if e := m.persist(ctx, func() error { return m.notePaths(ctx, m.change) }); e != nil {
		return fmt.Errorf("snapshot: %w", errors.Join(err, e))
	}
	if m.uses(list) {
		err = nil
	}
	return errors.Join(err, m.change(func(r *record) { r.Freeze = nil }))
}

func (m *machine) snapshot(ctx context.Context, list []layer) error {
	if err := m.step("noted"); err != nil {
		return err
	}
	var actions []any
	for i := range list {
		l := &list[i]
		if err := m.openLayer(ctx, l); err != nil {
			return fmt.Errorf("snapshot: %s: %w", l.path, err)
		}
		actions = append(actions, map[string]any{"type": "blockdev-snapshot", "data": map[string]string{"node": l.node, "overlay": l.overlay}})
	}
	if err := m.step("opened"); err != nil {
		return err
	}
	// One transaction: QEMU holds the guest's requests, and switches all drives or
	// none.
	if err := m.execute(ctx, "transaction", map[string]any{"actions": actions}, nil); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return m.step("switched")
}

// uses says whether all drives of layers use these, by the record.
func (m *machine) uses(layers []layer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range layers {
		if i := slices.Index(m.record.DiskIDs, l.id); i < 0 || m.record.Spec.Disks[i].Path != l.path {
			return false
		}
	}
	return true
}

// DiskImage implements [vm.ImageTeller].
func (m *machine) DiskImage(ctx context.Context, name string) (string, error) {
	_, _, id, err := m.findDisk(name)
	if err != nil {
		return "", err
	}
	b, err := m.queryBlock(ctx, id)
	if err == nil && b.Inserted == nil {
		err = fmt.Errorf("%w: the drive is empty", vm.ErrNoDevice)
	}
	if err != nil {
		return "", fmt.Errorf("image of drive %q: %w", name, err)
	}
	return imagePath(b.Inserted.File)
}

// imagePath is the path in what QEMU calls an image: itself, or, where its header calls
// its backing file otherwise than QEMU does, the image's options.
func imagePath(name string) (string, error) {
	text, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return name, nil
	}
	var o struct {
		File struct {
			Filename string `json:"filename"`
		} `json:"file"`
	}
	if err := json.Unmarshal([]byte(text), &o); err != nil || o.File.Filename == "" {
		return "", fmt.Errorf("QEMU says that it uses %s, which has no path", name)
	}
	return o.File.Filename, nil
}

// findLayers are the drives that are to get overlays.
func (m *machine) findLayers(ctx context.Context, layers map[string]string) ([]layer, error) {
	var list []layer
	for name, path := range layers {
		_, d, id, err := m.findDisk(name)
		if err != nil {
			return nil, err
		}
		if err := layerDrive(name, d); err != nil {
			return nil, err
		}
		node, err := m.topNode(ctx, id)
		if err != nil {
			return nil, err
		}
		list = append(list, layer{id: id, node: node, path: path, disk: d})
	}
	return list, nil
}
