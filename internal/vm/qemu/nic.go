package qemu

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// nicID is what QEMU calls the host's half of a card.
func nicID(index int) string { return fmt.Sprintf("net%d", index) }

// nicArgs are the network cards, each with a host's half of its own.
func (c config) nicArgs() []string {
	var args []string
	for i, n := range c.spec.NICs {
		id := c.nicID(i)
		var fds []int
		if i < len(c.taps) {
			fds = c.taps[i]
		}
		args = append(args, "-netdev", object(netdev(n, id, fds, c.vhost[i])), "-device", object(nicDevice(n, id, len(fds))))
	}
	return args
}

// nicDevice is what the guest sees of a card, as properties. Without a place in
// the boot order it has no boot ROM, which would only make the firmware slower.
func nicDevice(n vm.NIC, id string, queues int) []string {
	p := []string{"driver", n.Model, "netdev", id, "id", deviceID(id), "mac", n.MAC, "bootindex", number(n.BootIndex), "host_mtu", number(n.MTU)}
	if queues > 1 {
		p = append(p, "mq", "on", "vectors", strconv.Itoa(2*queues+2)) // two a queue, one for the control queue, one for changes
	}
	switch {
	case n.ROM != "":
		p = append(p, "romfile", n.ROM)
	case n.BootIndex == 0:
		p = append(p, "romfile", noValue)
	}
	return p
}

// netdev is the host's half of a card, as properties.
func netdev(n vm.NIC, id string, fds []int, vhost bool) []string {
	switch {
	case n.Type == vm.NICNone:
		return []string{"type", "hubport", "id", id, "hubid", strings.TrimPrefix(id, "net")}
	case len(fds) > 0:
		words := make([]string, len(fds))
		for i, fd := range fds {
			words[i] = strconv.Itoa(fd)
		}
		key := "fd"
		if len(fds) > 1 {
			key = "fds"
		}
		return []string{"type", "tap", "id", id, key, strings.Join(words, ":"), "vhost", onIf(vhost)}
	}
	p := []string{"type", "user", "id", id, "net", slirpNetwork(n.Network), "hostname", n.Hostname, "tftp", n.TFTP, "bootfile", n.BootFile, "restrict", onIf(n.Restrict)}
	for _, f := range n.Forwards {
		p = append(p, "hostfwd", forwardRule(f))
	}
	return p
}

// forwardRule is a forward as slirp takes it.
func forwardRule(f vm.Forward) string {
	return fmt.Sprintf("%s:%s:%d-:%d", f.Proto, f.HostAddr, f.HostPort, f.GuestPort)
}

// slirpNetwork is the network of a card in the form that slirp wants, with nothing
// in the bits of the host.
func slirpNetwork(s string) string {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return ""
	}
	return p.Masked().String()
}
