package libvirt

import (
	"context"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Network is a handle of a virtual network.
type Network struct {
	conn *Conn
	net  golibvirt.Network
}

// Name is the network's name.
func (n *Network) Name() string { return n.net.Name }

// UUID is in its usual form.
func (n *Network) UUID() string { return formatUUID(n.net.UUID) }

func (n *Network) op(what string) string { return fmt.Sprintf("%s network %q", what, n.net.Name) }

func (n *Network) do(ctx context.Context, what string, f func(*golibvirt.Libvirt) error) error {
	return n.conn.do(ctx, n.op(what), f)
}

// Networks lists all networks.
func (c *Conn) Networks(ctx context.Context) ([]*Network, error) {
	nets, err := call(ctx, c, "list networks", func(l *golibvirt.Libvirt) ([]golibvirt.Network, error) {
		nets, _, err := l.ConnectListAllNetworks(1, 0)
		return nets, err
	})
	if err != nil {
		return nil, err
	}
	all := make([]*Network, len(nets))
	for i, n := range nets {
		all[i] = &Network{c, n}
	}
	return all, nil
}

// LookupNetwork finds a network by its name.
func (c *Conn) LookupNetwork(ctx context.Context, name string) (*Network, error) {
	n, err := call(ctx, c, fmt.Sprintf("look up network %q", name), func(l *golibvirt.Libvirt) (golibvirt.Network, error) {
		return l.NetworkLookupByName(name)
	})
	if err != nil {
		return nil, err
	}
	return &Network{c, n}, nil
}

// DefineNetwork makes a network persistent, or replaces its definition.
func (c *Conn) DefineNetwork(ctx context.Context, xml string) (*Network, error) {
	n, err := call(ctx, c, "define network", func(l *golibvirt.Libvirt) (golibvirt.Network, error) { return l.NetworkDefineXML(xml) })
	if err != nil {
		return nil, nameTaken(err)
	}
	return &Network{c, n}, nil
}

// XML returns the network's document.
func (n *Network) XML(ctx context.Context) (string, error) {
	return call(ctx, n.conn, n.op("document of"), func(l *golibvirt.Libvirt) (string, error) { return l.NetworkGetXMLDesc(n.net, 0) })
}

// Active says whether the network is up.
func (n *Network) Active(ctx context.Context) (bool, error) {
	v, err := call(ctx, n.conn, n.op("state of"), func(l *golibvirt.Libvirt) (int32, error) { return l.NetworkIsActive(n.net) })
	return v != 0, err
}

// Start brings the network up; [ErrInvalid] where it is.
func (n *Network) Start(ctx context.Context) error {
	return n.do(ctx, "start", func(l *golibvirt.Libvirt) error { return l.NetworkCreate(n.net) })
}

// Destroy takes the network down.
func (n *Network) Destroy(ctx context.Context) error {
	return n.do(ctx, "stop", func(l *golibvirt.Libvirt) error { return l.NetworkDestroy(n.net) })
}

// Undefine forgets the network's definition.
func (n *Network) Undefine(ctx context.Context) error {
	return n.do(ctx, "undefine", func(l *golibvirt.Libvirt) error { return l.NetworkUndefine(n.net) })
}

// SetAutostart brings the network up with the host, or not.
func (n *Network) SetAutostart(ctx context.Context, on bool) error {
	return n.do(ctx, "set autostart of", func(l *golibvirt.Libvirt) error { return l.NetworkSetAutostart(n.net, bit(on)) })
}

// Lease is an address that a network's DHCP server has given away.
type Lease struct {
	MAC, IP  string
	Prefix   int    // bits
	Hostname string // as the guest calls itself, or ""
	Expires  time.Time
}

// Leases lists the network's DHCP leases, those of one card if mac is not "".
func (n *Network) Leases(ctx context.Context, mac string) ([]Lease, error) {
	leases, err := call(ctx, n.conn, n.op("leases of"), func(l *golibvirt.Libvirt) ([]golibvirt.NetworkDhcpLease, error) {
		leases, _, err := l.NetworkGetDhcpLeases(n.net, opt(mac), 1, 0)
		return leases, err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Lease, len(leases))
	for i, l := range leases {
		all[i] = Lease{MAC: word(l.Mac), IP: l.Ipaddr, Prefix: int(l.Prefix), Hostname: word(l.Hostname), Expires: time.Unix(l.Expirytime, 0)}
	}
	return all, nil
}

// word is an optional string of the protocol, "" where it is not there.
func word(s golibvirt.OptString) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
