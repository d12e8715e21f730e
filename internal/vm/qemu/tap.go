package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm"
)

// tapName is what the kernel makes a name of for a tap device that has none.
const tapName = "lamina%d"

// needsTap reports whether a card is at a tap device.
func needsTap(n vm.NIC) bool { return n.Type == vm.NICBridge || n.Type == vm.NICTap }

// openTap opens a card's tap device, one descriptor a queue. One that is made
// here is gone with the last descriptor, so nobody has to remove it.
func openTap(n vm.NIC) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			files = nil
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				err = fmt.Errorf("%w: only root (CAP_NET_ADMIN) may do that: run laminad as root, or use the user-mode network", err)
			}
		}
	}()
	if n.Type == vm.NICBridge {
		if _, err := os.Stat(filepath.Join("/sys/class/net", n.Bridge, "bridge")); err != nil {
			return nil, fmt.Errorf("there is no bridge %s on this host: make it (`ip link add %s type bridge`), name another, or use the user-mode network", n.Bridge, n.Bridge)
		}
	} else if _, err := os.Stat(filepath.Join("/sys/class/net", n.Device, "tun_flags")); err != nil {
		return nil, fmt.Errorf("there is no tap device %s on this host: make it (`ip tuntap add %s mode tap`), or use a bridge", n.Device, n.Device)
	}
	name := n.Device
	if name == "" {
		name = tapName
	}
	queues := max(n.Queues, 1)
	for range queues {
		f, got, err := openTapQueue(name, queues > 1, n.Type == vm.NICBridge)
		if err != nil {
			return files, err
		}
		files, name = append(files, f), got
	}
	if n.Type == vm.NICBridge {
		err = joinBridge(name, n.Bridge, n.MTU, n.MAC)
	}
	return files, err
}

// openTapQueue opens one queue of a device and returns the device's name. A
// device that is to be new must not be somebody else's.
func openTapQueue(name string, multi, fresh bool) (*os.File, string, error) {
	if fresh && !multi && !strings.Contains(name, "%") {
		if _, err := net.InterfaceByName(name); err == nil {
			return nil, "", fmt.Errorf("network device %s is there already: leave the name out, or use type tap", name)
		}
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	f := os.NewFile(uintptr(fd), "/dev/net/tun")
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if multi {
			flags |= unix.IFF_MULTI_QUEUE
		}
		ifr.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("tap device %s: %w", name, err), f.Close())
	}
	return f, ifr.Name(), nil
}

// joinBridge puts a device on a bridge and brings it up.
func joinBridge(name, bridge string, mtu int, mac string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	request := func(device string, what uint, set func(*unix.Ifreq)) error {
		ifr, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		if set != nil {
			set(ifr)
		}
		return unix.IoctlIfreq(s, what, ifr)
	}
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	host, err := net.InterfaceByName(bridge)
	if err != nil {
		return err
	}
	if mtu == 0 { // else the bridge takes the smaller one, for all of its ports
		mtu = host.MTU
	}
	if err := setAddress(s, name, mac); err != nil {
		return fmt.Errorf("address of %s: %w", name, err)
	}
	if mtu > 0 {
		if err := request(name, unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(uint32(mtu)) }); err != nil {
			return fmt.Errorf("MTU of %s: %w", name, err)
		}
	}
	if err := request(bridge, unix.SIOCBRADDIF, func(r *unix.Ifreq) { r.SetUint32(uint32(link.Index)) }); err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", name, bridge, err)
	}
	if err := request(name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) }); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// setAddress gives a tap device the card's address with a high first byte: a
// bridge takes the lowest of its ports' for its own, which must not change when
// a machine starts or ends.
func setAddress(s int, name, mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	var r struct { // struct ifreq
		name   [unix.IFNAMSIZ]byte
		family uint16
		data   [22]byte
	}
	copy(r.name[:unix.IFNAMSIZ-1], name)
	r.family = unix.ARPHRD_ETHER
	copy(r.data[:], hw)
	r.data[0] = 0xfe
	if hw[0] == 0xfe {
		r.data[0] = 0xfa // the guest's own is another
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

// usesVHost reports whether the host's kernel moves a card's packets.
func usesVHost(n vm.NIC, accel vm.Accel) bool {
	if !needsTap(n) || !strings.HasPrefix(n.Model, "virtio") || n.VHost == vm.Off {
		return false
	}
	if n.VHost == vm.On {
		return true // QEMU says what is wrong with that
	}
	return accel == vm.AccelKVM && unix.Access("/dev/vhost-net", unix.R_OK|unix.W_OK) == nil
}
