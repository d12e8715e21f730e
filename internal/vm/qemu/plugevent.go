package qemu

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/qmp"
)

// Events of devices that come and go.
const (
	eventDeleted = "DEVICE_DELETED"
	eventRefused = "DEVICE_UNPLUG_GUEST_ERROR"
)

// plugEvent returns the kind and the device of such an event, "" for others.
func plugEvent(e qmp.Event) (kind, device string) {
	if e.Name != eventDeleted && e.Name != eventRefused {
		return "", ""
	}
	var data struct {
		Device string `json:"device"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return "", ""
	}
	return e.Name, data.Device
}

// noteDeleted forgets a device that the guest let go of, also when nobody waits
// for that any more.
func (m *machine) noteDeleted(e qmp.Event) {
	kind, device := plugEvent(e)
	id, ok := strings.CutSuffix(device, "-device")
	if kind == eventDeleted && ok {
		_ = m.forget(context.Background(), id) // what stays open is closed with the process
	}
}

// reconcile forgets devices that went while nobody listened.
func (m *machine) reconcile(ctx context.Context) {
	m.mu.Lock()
	r := m.record
	m.mu.Unlock()
	// Without these nothing has changed since the start, and a machine of an
	// earlier Lamina may have cards without an id.
	if len(r.DiskIDs)+len(r.NICIDs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, forgetting)
	defer cancel()
	ids, err := m.peripherals(ctx)
	if err != nil {
		return // it is ending
	}
	for _, id := range slices.Concat(r.DiskIDs, r.NICIDs) {
		if !ids[deviceID(id)] {
			_ = m.forget(ctx, id) // as above
		}
	}
}

// matchesDevice compares what query-block says of a device, its id or its path,
// with an id.
func matchesDevice(qdev, id string) bool {
	return qdev == id || strings.HasPrefix(qdev, "/machine/peripheral/"+id+"/")
}
