package qemu

import (
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// nicArgs are the network cards, each on a user-mode network of its own.
func (c config) nicArgs() []string {
	var args []string
	for i, n := range c.spec.NICs {
		id := fmt.Sprintf("net%d", i)
		// No boot ROM: it would only make the firmware slower, as cards
		// are not in the boot order.
		args = append(args,
			"-netdev", netdev(n, id),
			"-device", device(n.Model, "netdev", id, "mac", n.MAC)+",romfile=")
	}
	return args
}

// netdev is the host's half of a card.
func netdev(n vm.NIC, id string) string {
	var b strings.Builder
	b.WriteString("user,id=" + id)
	for _, f := range n.Forwards {
		fmt.Fprintf(&b, ",hostfwd=%s:%s:%d-:%d", f.Proto, f.HostAddr, f.HostPort, f.GuestPort)
	}
	return b.String()
}
