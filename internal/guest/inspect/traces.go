package inspect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
)

// Traces are what an image has of the machine that it was: what two machines
// made of it would share and must not, and what the next boot trips over.
type Traces struct {
	// Read says that the system's files could be read. Without it, the other
	// fields say nothing, and Why says why.
	Read bool
	Why  string
	// MachineID is the systemd (or D-Bus) machine-id; "" where the next boot makes
	// one.
	MachineID string
	// HostKeys are the paths of SSH host keys (the private ones).
	HostKeys []string
	// CloudInit: cloud-init takes the machine for one that it has set up.
	CloudInit bool
	// RandomSeeds, Leases and Rules are the paths of stored random seeds, DHCP
	// leases, and udev rules that bind a card's name to its address.
	RandomSeeds, Leases, Rules []string
}

// Shared are the traces that make two machines of one image take each other's
// place, in words; none where there are none.
func (t Traces) Shared() []string {
	var out []string
	if len(t.HostKeys) > 0 {
		out = append(out, "SSH host keys ("+list(t.HostKeys)+")")
	}
	if t.MachineID != "" {
		out = append(out, "the machine-id "+t.MachineID)
	}
	return out
}

// Left is all that generalising an image takes away, in words; none where it is
// general.
func (t Traces) Left() []string {
	out := t.Shared()
	if t.CloudInit {
		out = append(out, "cloud-init's state (/var/lib/cloud)")
	}
	for _, kind := range []struct {
		what  string
		paths []string
	}{{"random seeds", t.RandomSeeds}, {"DHCP leases", t.Leases}, {"udev rules for network cards", t.Rules}} {
		if len(kind.paths) > 0 {
			out = append(out, kind.what+" ("+list(kind.paths)+")")
		}
	}
	return out
}

// list names the first few of paths.
func list(paths []string) string {
	const most = 3
	if len(paths) > most {
		return strings.Join(paths[:most], ", ") + ", ..."
	}
	return strings.Join(paths, ", ")
}

// The places of the traces: folder and pattern.
var (
	hostKeyPlaces = [][2]string{{"etc/ssh", "ssh_host_*key"}, {"etc/dropbear", "dropbear_*_host_key"}, {"etc/config/dropbear", "*_host_key"}}
	seedPlaces    = [][2]string{{"var/lib/systemd", "random-seed"}, {"var/lib/urandom", "random-seed"}, {"var/lib/seedrng", "seed*"}, {"var/lib/misc", "random-seed"}, {"var/lib", "random-seed"}}
	leasePlaces   = [][2]string{{"var/lib/dhcp", "*.lease*"}, {"var/lib/dhclient", "*.lease*"}, {"var/lib/dhcpcd", "*.lease*"}, {"var/lib/NetworkManager", "*.lease*"},
		{"var/lib/systemd/network/leases", "*"}, {"var/lib/udhcpc", "*"}, {"run/systemd/netif/leases", "*"}}
	rulePlaces = [][2]string{{"etc/udev/rules.d", "70-persistent-*.rules"}, {"etc/udev/rules.d", "75-persistent-*.rules"}}
)

// readTraces looks for the traces in a system's files. It returns what it found
// also with an error.
func readTraces(t tree.Tree) (Traces, error) {
	out := Traces{Read: true}
	var failed error
	for _, kind := range []struct {
		to     *[]string
		places [][2]string
	}{{&out.HostKeys, hostKeyPlaces}, {&out.RandomSeeds, seedPlaces}, {&out.Leases, leasePlaces}, {&out.Rules, rulePlaces}} {
		for _, place := range kind.places {
			found, err := t.Match(place[0], place[1])
			failed = errors.Join(failed, err)
			for _, path := range found {
				if text(t, path, 1) != "" { // an emptied file tells nothing
					*kind.to = append(*kind.to, clean([]byte(path)))
				}
			}
		}
	}
	for _, path := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		if out.MachineID == "" {
			out.MachineID = machineID(text(t, path, 64))
		}
	}
	// The folder of the instance, or the link to it.
	_, err := t.Lstat("var/lib/cloud/instance")
	out.CloudInit = err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		failed = errors.Join(failed, err)
	}
	return out, failed
}

// text is the beginning of a file, "" where there is none.
func text(t tree.Tree, path string, max int) string {
	b, err := t.ReadFile(path, max)
	if err != nil {
		return ""
	}
	return string(b)
}

// machineID is the id in a machine-id file; "" for one that is to be filled.
func machineID(s string) string {
	id := clean([]byte(strings.TrimSpace(s)))
	if id == "uninitialized" || strings.Trim(id, "0") == "" {
		return ""
	}
	return id
}

// ErrNotGeneral is wrapped by what CheckGeneral returns for an image that has
// something of one machine left.
var ErrNotGeneral = errors.New("the image has something of one machine left")

// CheckGeneral looks into an image file, as [File], and returns nil where nothing
// of one machine's own is left in it: after it was generalised. The error wraps
// [ErrNotGeneral] and names what is left, or says why that cannot be seen.
func CheckGeneral(ctx context.Context, path, format string) error {
	res, err := LookFile(ctx, path, format)
	if err != nil {
		return err
	}
	if !res.Traces.Read {
		return fmt.Errorf("%s: whether it was generalised cannot be seen: %s", path, res.Traces.Why)
	}
	if left := res.Traces.Left(); len(left) > 0 {
		return fmt.Errorf("%s: %w: %s", path, ErrNotGeneral, strings.Join(left, ", "))
	}
	return nil
}
