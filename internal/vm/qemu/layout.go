package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// layout is where the devices of a machine are: those that came while it ran are
// not where they would be if it were started with them.
type layout struct {
	Disks []string `json:"disks"` // QEMU's ids of the spec's drives and cards
	NICs  []string `json:"nics"`
	// Places are device properties (key, value, ...), by the device's id.
	Places map[string][]string `json:"places"`
	// SCSI are the numbers of drives on their controller, by the drive's id.
	SCSI map[string]int `json:"scsi,omitempty"`
}

// pciDevice is what query-pci says of one.
type pciDevice struct {
	ID       string `json:"qdev_id"`
	Slot     int    `json:"slot"`
	Function int    `json:"function"`
	Bridge   *struct {
		Devices []pciDevice `json:"devices"`
	} `json:"pci_bridge"`
}

// rootBus is what QEMU calls the board's PCI bus.
func rootBus(s vm.Spec) string {
	if s.Chipset() == vm.MachineQ35 {
		return "pcie.0"
	}
	return "pci.0"
}

// layout asks QEMU where the devices are.
func (m *machine) layout(ctx context.Context) (json.RawMessage, error) {
	m.mu.Lock()
	r := m.record
	m.mu.Unlock()
	r.Spec = r.Spec.Clone()
	r.fillIDs()
	l := layout{Disks: r.DiskIDs, NICs: r.NICIDs, Places: map[string][]string{}, SCSI: map[string]int{}}
	var buses []struct {
		Devices []pciDevice `json:"devices"`
	}
	if err := m.execute(ctx, "query-pci", nil, &buses); err != nil {
		return nil, err
	}
	for _, b := range buses {
		l.addPCI(rootBus(r.Spec), b.Devices)
	}
	for i, d := range r.Spec.Disks {
		if family(d.Bus) != vm.BusSCSI {
			continue
		}
		var n int
		args := map[string]string{"path": "/machine/peripheral/" + deviceID(r.DiskIDs[i]), "property": "scsi-id"}
		if err := m.execute(ctx, "qom-get", args, &n); err != nil {
			return nil, err
		}
		l.SCSI[r.DiskIDs[i]] = n
	}
	if r.Spec.NeedsUSB() {
		if err := m.usbPorts(ctx, &l); err != nil {
			return nil, err
		}
	}
	return json.Marshal(l)
}

func (l *layout) addPCI(bus string, devices []pciDevice) {
	for _, d := range devices {
		if d.ID != "" {
			l.Places[d.ID] = []string{"bus", bus, "addr", fmt.Sprintf("%x.%x", d.Slot, d.Function)}
		}
		if d.Bridge != nil && d.ID != "" {
			l.addPCI(d.ID, d.Bridge.Devices)
		}
	}
}

// usbLine is a line of QEMU's list of USB devices that have an id.
var usbLine = regexp.MustCompile(`, Port ([0-9.]+),.*, ID: ([A-Za-z0-9._-]+)`)

// usbPorts notes the ports of USB devices. A QEMU before 6.2 does not tell; its
// devices are where the command line's order puts them, or the load fails.
func (m *machine) usbPorts(ctx context.Context, l *layout) error {
	var text struct {
		Text string `json:"human-readable-text"`
	}
	err := m.execute(ctx, "x-query-usb", nil, &text)
	if noCommand(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(text.Text) {
		if f := usbLine.FindStringSubmatch(line); f != nil {
			l.Places[f[2]] = []string{"port", f[1]}
		}
	}
	return nil
}

// place adds to each device of a command line where it was, unless it is said
// already.
func (l layout) place(args []string) {
	for i := 0; i+1 < len(args); i++ {
		if args[i] != "-device" {
			continue
		}
		properties := splitProperties(args[i+1])
		have := map[string]string{}
		for _, p := range properties {
			if key, value, ok := strings.Cut(p, "="); ok {
				have[key] = value
			}
		}
		where := l.Places[have["id"]]
		for j := 0; j+1 < len(where); j += 2 {
			if _, said := have[where[j]]; !said {
				args[i+1] += "," + where[j] + "=" + escape(where[j+1])
			}
		}
	}
}

// splitProperties splits at commas that are not doubled.
func splitProperties(s string) []string {
	const comma = "\x00"
	return strings.Split(strings.ReplaceAll(s, ",,", comma), ",")
}

// apply puts the drives of a spec where they were on their controllers.
func (l layout) apply(s vm.Spec) vm.Spec {
	s.Disks = slices.Clone(s.Disks)
	for i, id := range l.Disks {
		n, ok := l.SCSI[id]
		if !ok || i >= len(s.Disks) || s.Disks[i].Address != nil {
			continue
		}
		s.Disks[i].Address = &vm.DriveAddress{Unit: n}
	}
	return s
}
