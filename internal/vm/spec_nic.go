package vm

// NICType is what a network card is connected to.
type NICType string

const (
	NICUser   NICType = "user"   // QEMU's user-mode network; the default
	NICBridge NICType = "bridge" // a bridge of the host, through a tap device
	// NICTap is a tap device that is there already (NIC.Device); nothing is
	// done to it.
	NICTap  NICType = "tap"
	NICNone NICType = "none" // a card without a cable
)

// NIC is a network card.
type NIC struct {
	Type     NICType   `json:"type,omitempty"` // "": NICUser
	Model    string    `json:"model"`          // "virtio-net-pci" (or "virtio"), "e1000", ...
	MAC      string    `json:"mac"`
	Forwards []Forward `json:"forwards,omitempty"` // NICUser only

	Bridge string `json:"bridge,omitempty"` // NICBridge: the bridge's name
	// Device is the tap device's name on the host; "" is made up for
	// NICBridge.
	Device string `json:"device,omitempty"`
	// Link "down" pulls the cable.
	Link      LinkState `json:"link,omitempty"`
	MTU       int       `json:"mtu,omitempty"`       // virtio only; 0 is 1500
	Queues    int       `json:"queues,omitempty"`    // virtio on a bridge only; 0 is 1
	BootIndex int       `json:"bootIndex,omitempty"` // 0: not in the boot order
	// ROM is the boot ROM's file, "" the card's own where it is in the boot
	// order and none elsewhere.
	ROM string `json:"rom,omitempty"`
	// VHost moves the packets in the host's kernel: "" is on where
	// /dev/vhost-net can be opened. NICBridge and NICTap with a virtio card.
	VHost Toggle `json:"vhost,omitempty"`

	// NICUser only.
	Network  string `json:"network,omitempty"`  // "10.0.2.0/24" if empty
	Hostname string `json:"hostname,omitempty"` // what DHCP tells the guest
	TFTP     string `json:"tftp,omitempty"`     // folder that the built-in TFTP server shows
	BootFile string `json:"bootFile,omitempty"` // what network boot loads of it
	Restrict bool   `json:"restrict,omitempty"` // the guest reaches nothing but the forwards
}

// LinkState is a card's cable.
type LinkState string

const (
	LinkUp   LinkState = "up"
	LinkDown LinkState = "down"
)

// Forward makes a port of the guest reachable on the host.
type Forward struct {
	Proto     string `json:"proto"`    // "tcp" or "udp"
	HostAddr  string `json:"hostAddr"` // "127.0.0.1" if empty
	HostPort  int    `json:"hostPort"` // 0: chosen at the start
	GuestPort int    `json:"guestPort"`
}
