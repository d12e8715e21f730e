package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm"
)

// resources are what a start makes for QEMU beside its folder.
type resources struct {
	files   []*os.File // QEMU's descriptors 3, 4, ...
	helpers []*process // that serve it and end with it
}

// add hands a file over and returns its descriptor in QEMU.
func (r *resources) add(f *os.File) int {
	r.files = append(r.files, f)
	return 2 + len(r.files)
}

// close lets go of our copies of the files: QEMU has its own.
func (r *resources) close() {
	for _, f := range r.files {
		_ = f.Close()
	}
	r.files = nil
}

// end ends the helpers of a start that failed.
func (r *resources) end(ctx context.Context) error {
	r.close()
	var errs []error
	for _, p := range r.helpers {
		errs = append(errs, p.kill(ctx))
	}
	return errors.Join(errs...)
}

func (r *resources) identities() []identity {
	var ids []identity
	for _, p := range r.helpers {
		ids = append(ids, p.identity)
	}
	return ids
}

// prepare makes everything that the command line refers to. What it returns is
// to be ended by the caller where QEMU does not start, also on an error.
func (l launch) prepare(ctx context.Context, c *config) (*resources, error) {
	r := &resources{}
	c.now, c.vhost = time.Now(), map[int]bool{}
	if err := checkVendor(c.spec.Processor.Vendor, cpuinfo(c.spec.Processor.Vendor)); err != nil {
		return r, err
	}
	if err := errors.Join(checkHostDevices(c.spec), checkSockets(c.spec), c.checkEvents()); err != nil {
		return r, err
	}
	var err error
	if c.firmware, err = prepareFirmware(c.spec, l.dir); err != nil {
		return r, err
	}
	c.taps = make([][]int, len(c.spec.NICs))
	for i, n := range c.spec.NICs {
		if !needsTap(n) {
			continue
		}
		files, err := openTap(n)
		if err != nil {
			return r, fmt.Errorf("network card %s: %w", n.MAC, err)
		}
		for _, f := range files {
			c.taps[i] = append(c.taps[i], r.add(f))
		}
		c.vhost[i] = usesVHost(n, c.accel)
	}
	if v := c.spec.VSock; v != nil {
		f, cid, err := openVSock(*v)
		if err != nil {
			return r, err
		}
		c.spec.VSock = &vm.VSock{CID: cid, Auto: v.Auto}
		c.vsockFD = r.add(f)
	}
	if l.thaw != nil {
		if err := l.thaw.feed(r); err != nil {
			return r, err
		}
	}
	return r, l.startHelpers(ctx, c, r)
}

func cpuinfo(want string) string {
	if want == "" {
		return ""
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return string(b)
}

// checkEvents refuses what only libvirt can do.
func (c config) checkEvents() error {
	if c.spec.OnReboot == vm.ActionPreserve && c.spec.OnPoweroff != vm.ActionPreserve {
		return errors.New("onReboot preserve: QEMU keeps a machine after a reboot only where it keeps it after a power-off too: set onPoweroff preserve, or use destroy")
	}
	return nil
}

const (
	vsockDevice = "/dev/vhost-vsock"
	// vhostSetGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h.
	vhostSetGuestCID = 0x4008af60
	// firstCID: 0 to 2 are the hypervisor's, the local and the host's.
	firstCID = 3
	maxCID   = firstCID + 1000
)

// openVSock opens the host's half of a vsock and gives it its address, the
// first free one where it may choose.
func openVSock(v vm.VSock) (f *os.File, cid uint32, err error) {
	f, err = os.OpenFile(vsockDevice, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("vsock: %w: load the module vhost_vsock (`modprobe vhost_vsock`), or leave the vsock out", err)
	}
	cid = v.CID
	if v.Auto && cid < firstCID {
		cid = firstCID
	}
	for {
		var arg [8]byte
		binary.NativeEndian.PutUint64(arg[:], uint64(cid))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), vhostSetGuestCID, uintptr(unsafe.Pointer(&arg[0])))
		if errno == 0 {
			return f, cid, nil
		}
		if errno != unix.EADDRINUSE || !v.Auto || cid >= maxCID {
			return nil, 0, errors.Join(fmt.Errorf("vsock address %d: %w: use another, or auto", cid, errno), f.Close())
		}
		cid++
	}
}

// checkHostDevices names a host's device that cannot be handed over, before
// QEMU does in fewer words.
func checkHostDevices(s vm.Spec) error {
	for _, h := range s.HostDevices {
		if h.Type != "pci" {
			continue
		}
		dir := filepath.Join("/sys/bus/pci/devices", h.PCI)
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("host device %s: there is no such PCI device: see lspci -D", h.PCI)
		}
		if _, err := os.Stat(filepath.Join(dir, "iommu_group")); err != nil {
			return fmt.Errorf("host device %s: it is in no IOMMU group: switch the IOMMU on in the firmware and boot the host with intel_iommu=on", h.PCI)
		}
		driver, err := os.Readlink(filepath.Join(dir, "driver"))
		if name := filepath.Base(driver); err != nil || name != "vfio-pci" {
			if err != nil {
				name = "no driver"
			}
			return fmt.Errorf("host device %s: the host uses it itself (%s): hand it over with `driverctl set-override %s vfio-pci` first", h.PCI, name, h.PCI)
		}
	}
	return nil
}

// sockets are the paths of unix sockets outside the machine's folder at which
// QEMU listens.
func sockets(s vm.Spec) []string {
	var paths []string
	add := func(p string) {
		if p != "" {
			paths = append(paths, p)
		}
	}
	for _, d := range s.Displays {
		add(d.Socket)
	}
	char := func(c vm.Char) {
		if c.Type == vm.CharUnix && c.Listen {
			add(c.Path)
		}
	}
	for _, list := range [][]vm.Char{s.Serials, s.Parallels, s.Consoles} {
		for _, c := range list {
			char(c)
		}
	}
	for _, c := range s.Channels {
		char(c.Char)
	}
	for _, c := range s.Redirects {
		char(c.Char)
	}
	return paths
}

// checkSockets: QEMU removes whatever is at the path of a socket that it makes,
// so nobody else's may be there. One that nobody listens at is a leftover.
func checkSockets(s vm.Spec) error {
	for _, path := range sockets(s) {
		st, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		if st.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("socket %s: there is something else at that path: name another", path)
		}
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return fmt.Errorf("socket %s: another program listens there: name another, or end it", path)
		}
	}
	return nil
}

// removeSockets removes those sockets of a machine that has ended.
func removeSockets(s vm.Spec) {
	for _, path := range sockets(s) {
		st, err := os.Lstat(path)
		if err != nil || st.Mode().Type() != fs.ModeSocket {
			continue
		}
		if c, err := net.Dial("unix", path); err == nil { // somebody else's by now
			_ = c.Close()
			continue
		}
		_ = os.Remove(path)
	}
}
