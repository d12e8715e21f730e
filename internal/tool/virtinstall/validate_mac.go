package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// checkMACs refuses an address that another machine of the libvirtd has, which
// would leave both without a network. Addresses that were made here are not
// looked up: two random ones do not meet.
func (g *guest) checkMACs(ctx context.Context) error {
	conn := g.host.libvirtConn()
	given := func(text string) bool { return strings.Contains(text, "mac") }
	if conn == nil || !slices.ContainsFunc(g.args.all("network"), given) {
		return nil
	}
	users, err := macUsers(ctx, conn)
	if err != nil {
		return err
	}
	for _, nic := range g.devices("interface") {
		mac := nic.Get("mac/@address")
		if mac == "" || !users[strings.ToLower(mac)] {
			continue
		}
		if err := g.object("mac_in_use", fmt.Sprintf("The MAC address '%s' is in use by another virtual machine.", mac)); err != nil {
			return err
		}
	}
	return nil
}

// macUsers returns the addresses that the machines of a libvirtd have.
func macUsers(ctx context.Context, conn *libvirt.Conn) (map[string]bool, error) {
	all, err := conn.Domains(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, d := range all {
		doc, err := parsed(d.XML(ctx, libvirt.XMLOptions{}))
		if errors.Is(err, libvirt.ErrNotFound) {
			continue // it has gone since
		}
		if err != nil {
			return nil, err
		}
		for _, nic := range doc.Child("devices").All("interface") {
			used[strings.ToLower(nic.Get("mac/@address"))] = true
		}
	}
	return used, nil
}
