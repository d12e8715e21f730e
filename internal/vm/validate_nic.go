package vm

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// nicModels are the network cards that a machine may have.
var nicModels = []string{"virtio-net-pci", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3",
	"virtio-net-pci-transitional", "virtio-net-pci-non-transitional", "e1000-82544gc", "e1000-82545em", "i82550", "i82551", "i82557a",
	"i82557b", "i82557c", "i82558a", "i82558b", "i82559a", "i82559b", "i82559c", "i82559er", "i82562", "i82801", "tulip"}

func (s Spec) validateNICs(f *findings) {
	macs := map[string]string{}
	hosts := map[string]string{}
	for i, n := range s.NICs {
		field := fmt.Sprintf("nics[%d]", i)
		if !slices.Contains(nicModels, n.Model) {
			f.add(field+".model", fmt.Sprintf("unknown network card %q", n.Model), "use one of "+strings.Join(nicModels, ", "))
		}
		n.validateMAC(f, field, macs)
		n.validateLink(f, field)
		for j, fw := range n.Forwards {
			fw.validate(f, fmt.Sprintf("%s.forwards[%d]", field, j), hosts)
		}
	}
}

// ValidateNIC says what is wrong with a card that is added to the machine, as an
// [*InvalidError], nil if nothing is.
func (s Spec) ValidateNIC(n NIC) error {
	s.NICs = append(slices.Clone(s.NICs), n)
	return s.validateAdded(fmt.Sprintf("nics[%d]", len(s.NICs)-1))
}

// ValidateDisk is the same for a drive.
func (s Spec) ValidateDisk(d Disk) error {
	s.Disks = append(slices.Clone(s.Disks), d)
	return s.ValidateDiskAt(len(s.Disks) - 1)
}

// ValidateDiskAt says what is wrong with one drive, as the one that changed.
func (s Spec) ValidateDiskAt(index int) error {
	return s.validateAdded(fmt.Sprintf("disks[%d]", index))
}

// validateAdded keeps those problems that a device brought with it: its own,
// and those of all of its kind together.
func (s Spec) validateAdded(field string) error {
	var f findings
	s.validateDisks(&f)
	s.validateNICs(&f)
	s.validateBootOrder(&f)
	f = slices.DeleteFunc(f, func(p Problem) bool { return !strings.HasPrefix(p.Field, field) && p.Field != "disks" })
	if len(f) == 0 {
		return nil
	}
	return &InvalidError{Name: s.Name, Problems: f}
}

// virtio reports whether the card is a virtio one.
func (n NIC) virtio() bool { return strings.HasPrefix(n.Model, "virtio-net-pci") }

// validInterface is the name of a network device: what the kernel takes
// (IFNAMSIZ), less what QEMU or a shell would take for something else.
var validInterface = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)

func (n NIC) validateLink(f *findings, field string) {
	oneOf(f, field+".type", n.Type, "", NICUser, NICBridge, NICTap, NICNone)
	oneOf(f, field+".link", n.Link, "", LinkUp, LinkDown)
	toggle(f, field+".vhost", n.VHost)
	for name, device := range inOrder(map[string]string{"bridge": n.Bridge, "device": n.Device}) {
		if !matches(validInterface, device) {
			f.add(field+"."+name, fmt.Sprintf("%q is not the name of a network device", device), "use up to 15 letters, digits, '.', '_' or '-'")
		}
	}
	if n.Type == NICBridge && n.Bridge == "" {
		f.add(field+".bridge", "a card on a bridge has to say which", "name one that `ip link show type bridge` lists")
	}
	if n.Type == NICTap && n.Device == "" {
		f.add(field+".device", "which tap device is not said", "name it")
	}
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > 65535) {
		f.add(field+".mtu", fmt.Sprintf("%d bytes", n.MTU), "use 68 to 65535")
	} else if n.MTU != 0 && !n.virtio() {
		f.add(field+".mtu", "a "+n.Model+" cannot tell the guest", "use virtio, or set it in the guest")
	}
	onTap := n.Type == NICBridge || n.Type == NICTap
	if n.Queues < 0 || n.Queues > 256 || n.Queues > 1 && !(onTap && n.virtio()) {
		f.add(field+".queues", fmt.Sprintf("%d queues", n.Queues), "use up to 256, with a virtio card on a bridge or a tap device")
	}
	if n.ROM != "" && !filepath.IsAbs(n.ROM) {
		absolute(f, field+".rom", n.ROM)
	}
	n.validateUser(f, field)
}

// validateUser checks what concerns the user-mode network.
func (n NIC) validateUser(f *findings, field string) {
	if n.Type != "" && n.Type != NICUser {
		if len(n.Forwards) > 0 {
			f.add(field+".forwards", "only the user-mode network forwards ports", "use type user, or reach the guest at its own address")
		}
		if n.Network != "" || n.Hostname != "" || n.TFTP != "" || n.BootFile != "" || n.Restrict {
			f.add(field+".type", "network, hostname, tftp, bootFile and restrict are of the user-mode network", "leave them out, or use type user")
		}
		return
	}
	if n.Network != "" {
		if p, err := netip.ParsePrefix(n.Network); err != nil || !p.Addr().Is4() || p.Bits() > 28 {
			f.add(field+".network", fmt.Sprintf("%q is not an IPv4 network", n.Network), "write it as in 10.0.2.0/24, with 28 bits or less")
		}
	}
	if n.Hostname != "" && !validName().MatchString(n.Hostname) {
		f.add(field+".hostname", fmt.Sprintf("%q is not a host name", n.Hostname), "use letters, digits, '.' and '-'")
	}
	if n.TFTP != "" {
		absolute(f, field+".tftp", n.TFTP)
	} else if n.BootFile != "" {
		f.add(field+".bootFile", "there is no folder to load it from", "set tftp")
	}
	if strings.ContainsRune(n.BootFile, 0) {
		f.add(field+".bootFile", "holds a zero byte", "rename the file")
	}
}

func (n NIC) validateMAC(f *findings, field string, seen map[string]string) {
	hw, err := net.ParseMAC(n.MAC)
	if err != nil || len(hw) != 6 || hw[0]&1 != 0 || strings.Count(n.MAC, ":") != 5 {
		f.add(field+".mac", fmt.Sprintf("%q is not a card's address", n.MAC), "use six bytes as in 52:54:00:12:34:56, the first even, or leave it out")
		return
	}
	if other, ok := seen[hw.String()]; ok {
		f.add(field+".mac", fmt.Sprintf("%s is also that of %s", n.MAC, other), "leave it out to have one made")
	}
	seen[hw.String()] = field
}

// validate checks a forward; seen holds the host ports of the machine.
func (fw Forward) validate(f *findings, field string, seen map[string]string) {
	if fw.Proto != "tcp" && fw.Proto != "udp" {
		f.add(field+".proto", fmt.Sprintf("unknown protocol %q", fw.Proto), "use tcp or udp")
	}
	a, err := netip.ParseAddr(fw.HostAddr)
	if err != nil || !a.Is4() {
		f.add(field+".hostAddr", fmt.Sprintf("%q is not an IPv4 address", fw.HostAddr), "use 127.0.0.1, or 0.0.0.0 for every address of the host")
	}
	if fw.GuestPort < 1 || fw.GuestPort > 65535 {
		f.add(field+".guestPort", fmt.Sprintf("%d is not a port", fw.GuestPort), "use 1 to 65535")
	}
	switch {
	case fw.HostPort < 0 || fw.HostPort > 65535:
		f.add(field+".hostPort", fmt.Sprintf("%d is not a port", fw.HostPort), "use 1 to 65535, or 0 to have one chosen")
	case fw.HostPort == 0:
	default:
		fw.validateUnique(f, field, a, seen)
	}
}

// validateUnique finds a second forward of the same host port, also where one
// of the two takes every address.
func (fw Forward) validateUnique(f *findings, field string, addr netip.Addr, seen map[string]string) {
	port := fmt.Sprintf("%s/%d", fw.Proto, fw.HostPort)
	exact, all := port+"@"+addr.String(), port+"@0.0.0.0"
	other, taken := seen[exact]
	if !taken {
		other, taken = seen[all]
	}
	if !taken && addr.IsUnspecified() {
		other, taken = seen[port]
	}
	if taken {
		f.add(field+".hostPort", fmt.Sprintf("%s port %d is also that of %s", fw.Proto, fw.HostPort, other), "use another, or 0 to have one chosen")
	}
	seen[exact], seen[port] = field, field
}
