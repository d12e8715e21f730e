package vm

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// The limits of a machine.
const (
	MinMemory = 1 << 20        // bytes
	MaxMemory = int64(1) << 42 // bytes; more needs a CPU with more address bits than most have
	MaxCPUs   = 255            // what xAPIC ids can name
	maxSerial = 20             // virtio-blk's serial field, the shortest of all buses
)

// Values of Graphics.VNC beside HOST:DISPLAY.
const (
	VNCUnix = "unix"
	VNCNone = "none"
)

// Problem is one thing in a spec that cannot work.
type Problem struct {
	Field  string `json:"field"`  // as in JSON: "disks[0].bus"
	Text   string `json:"text"`   // what is wrong
	Remedy string `json:"remedy"` // what to do
}

// String is the problem as a line of an error message.
func (p Problem) String() string { return fmt.Sprintf("%s: %s: %s", p.Field, p.Text, p.Remedy) }

// InvalidError is the error of [Spec.Validate]: all problems of a spec.
type InvalidError struct {
	Name     string // of the machine
	Problems []Problem
}

// Error lists every problem, one a line if there are more than one.
func (e *InvalidError) Error() string {
	if len(e.Problems) == 1 {
		return fmt.Sprintf("machine %q cannot work: %s", e.Name, e.Problems[0])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "machine %q cannot work:", e.Name)
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n  %s", p)
	}
	return b.String()
}

// findings collects problems.
type findings []Problem

func (f *findings) add(field, text, remedy string) {
	*f = append(*f, Problem{Field: field, Text: text, Remedy: remedy})
}

// Validate says everything that keeps the machine from working, as an
// [*InvalidError], nil if there is nothing. It expects a spec that
// [Spec.WithDefaults] has filled in. It opens files where only that can tell
// (O_DIRECT), but a missing disk is not its matter: see [Spec.CheckFiles].
func (s Spec) Validate() error {
	var f findings
	s.validateMachine(&f)
	s.validateDisks(&f)
	s.validateSlots(&f)
	s.validateNICs(&f)
	s.validateGraphics(&f)
	if len(f) == 0 {
		return nil
	}
	return &InvalidError{Name: s.Name, Problems: f}
}

// The patterns are compiled when they are first needed: the command links this
// package and should start at once.
var (
	validName   = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	validUUID   = pattern(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	validCPU    = pattern(`^[A-Za-z0-9][A-Za-z0-9._+-]*(,[+-]?[A-Za-z0-9][A-Za-z0-9._-]*(=[A-Za-z0-9._-]+)?)*$`)
	validSerial = pattern(`^[A-Za-z0-9_.+-]{0,20}$`)
)

func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

func (s Spec) validateMachine(f *findings) {
	if !validName().MatchString(s.Name) {
		f.add("name", fmt.Sprintf("%q is not a machine name", s.Name), "use 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit")
	}
	if !validUUID().MatchString(s.UUID) {
		f.add("uuid", fmt.Sprintf("%q is not a UUID in lower case", s.UUID), "leave it out to have one made")
	}
	if s.CPUs < 1 || s.CPUs > MaxCPUs {
		f.add("cpus", fmt.Sprintf("%d virtual CPUs", s.CPUs), fmt.Sprintf("use 1 to %d", MaxCPUs))
	}
	if s.Memory < MinMemory || s.Memory > MaxMemory {
		f.add("memory", fmt.Sprintf("%d bytes", s.Memory), "use 1M to 4T; a Linux guest wants 256M or more")
	} else if s.Memory%MinMemory != 0 {
		f.add("memory", fmt.Sprintf("%d bytes is not a whole number of MiB", s.Memory), fmt.Sprintf("use %dM", s.Memory/MinMemory+1))
	}
	if s.Machine != MachinePC && s.Machine != MachineQ35 {
		f.add("machine", fmt.Sprintf("unknown machine type %q", s.Machine), "use pc or q35")
	}
	if s.Accel != AccelAuto && s.Accel != AccelKVM && s.Accel != AccelTCG {
		f.add("accel", fmt.Sprintf("unknown accelerator %q", s.Accel), "use auto, kvm or tcg")
	}
	if s.CPU != "" && !validCPU().MatchString(s.CPU) {
		f.add("cpu", fmt.Sprintf("%q is not a CPU model", s.CPU), "use a name that `qemu-system-x86_64 -cpu help` lists")
	}
	if s.CPU == "host" && s.Accel == AccelTCG {
		f.add("cpu", "the model host needs KVM", "use max, or leave it out")
	}
}

// ports is how many drives a bus takes on a machine type, 0 where it has no
// such bus.
func ports(machine string, bus Bus) int {
	switch bus {
	case BusIDE:
		if machine == MachinePC {
			return 4 // two channels of two drives
		}
		return 0
	case BusSATA:
		return 6 // one ICH9 AHCI controller
	case BusVirtio:
		return maxSlots // each takes a PCI slot
	case BusVirtioSCSI:
		return 256 // targets of one controller
	}
	return -1
}

func (s Spec) validateDisks(f *findings) {
	used := map[Bus]int{}
	order := map[int]string{}
	paths := map[string]string{}
	for i, d := range s.Disks {
		field := fmt.Sprintf("disks[%d]", i)
		d.validate(f, field)
		used[d.Bus]++
		if d.BootIndex != 0 {
			if other, ok := order[d.BootIndex]; ok {
				f.add(field+".bootIndex", fmt.Sprintf("%d is also that of %s", d.BootIndex, other), "give each its own place in the boot order")
			}
			order[d.BootIndex] = field
		}
		if other, ok := paths[d.Path]; ok && !d.ReadOnly {
			f.add(field+".path", fmt.Sprintf("%s is also %s", d.Path, other), "two drives on one image corrupt it: make an overlay for each")
		}
		paths[d.Path] = field
	}
	for _, bus := range []Bus{BusIDE, BusSATA, BusVirtioSCSI} {
		n, limit := used[bus], ports(s.Machine, bus)
		switch {
		case n == 0 || n <= limit:
		case limit == 0:
			f.add("disks", fmt.Sprintf("machine type %s has no %s controller", s.Machine, bus), "use bus sata, or machine type pc")
		default:
			f.add("disks", fmt.Sprintf("%d drives on %s, which takes %d", n, bus, limit), "put the others on virtio-scsi, which takes 256")
		}
	}
}

// validate checks what concerns one drive alone.
func (d Disk) validate(f *findings, field string) {
	if !filepath.IsAbs(d.Path) {
		f.add(field+".path", fmt.Sprintf("%q is not an absolute path", d.Path), "QEMU runs in the machine's folder: give the whole path")
	} else if strings.ContainsRune(d.Path, 0) {
		f.add(field+".path", fmt.Sprintf("%q holds a zero byte", d.Path), "rename the file")
	}
	if d.Format != "raw" && d.Format != "qcow2" {
		f.add(field+".format", fmt.Sprintf("%q is not a format that machines use", d.Format), "say raw or qcow2 (the format is never guessed); convert others with lamina img convert")
	}
	if ports(MachinePC, d.Bus) < 0 {
		f.add(field+".bus", fmt.Sprintf("unknown bus %q", d.Bus), "use virtio, virtio-scsi, sata or ide")
	}
	switch {
	case d.Device != DeviceDisk && d.Device != DeviceCDROM:
		f.add(field+".device", fmt.Sprintf("unknown device %q", d.Device), "use disk or cdrom")
	case d.Device == DeviceCDROM && d.Bus == BusVirtio:
		f.add(field+".bus", "virtio has no CD-ROM drive", "use virtio-scsi, sata or ide, or a read-only disk")
	case d.Device == DeviceCDROM && !d.ReadOnly:
		f.add(field+".readOnly", "a CD-ROM is always read-only", "set readOnly")
	case d.Device == DeviceDisk && d.ReadOnly && (d.Bus == BusIDE || d.Bus == BusSATA):
		f.add(field+".readOnly", fmt.Sprintf("a disk on %s cannot be read-only", d.Bus), "use virtio or virtio-scsi, or make it a cdrom")
	}
	if !validSerial().MatchString(d.Serial) {
		f.add(field+".serial", fmt.Sprintf("%q", d.Serial), fmt.Sprintf("use up to %d letters, digits, '_', '.', '+' or '-'", maxSerial))
	}
	if d.BootIndex < 0 {
		f.add(field+".bootIndex", fmt.Sprintf("%d", d.BootIndex), "use 1 for the first, 0 for none")
	}
	d.validateCache(f, field)
}

func (d Disk) validateCache(f *findings, field string) {
	switch d.Cache {
	case CacheWriteback, CacheWritethrough, CacheUnsafe:
	case CacheNone, CacheDirectsync:
		if !filepath.IsAbs(d.Path) {
			return
		}
		if err := tryDirect(d.Path); err != nil {
			f.add(field+".cache", fmt.Sprintf("%s opens the image with O_DIRECT, which its file system refuses: %v", d.Cache, err), "use writeback, or keep the disk elsewhere (not on tmpfs)")
		}
	default:
		f.add(field+".cache", fmt.Sprintf("unknown cache mode %q", d.Cache), "use none, writeback, writethrough, directsync or unsafe")
	}
}

// maxSlots is how many PCI devices can be added to bus 0: 32 slots less the
// host bridge, the chipset's functions (slot 1 of pc, 31 of q35) and the VGA.
const maxSlots = 29

// validateSlots counts the PCI devices that the spec asks for.
func (s Spec) validateSlots(f *findings) {
	n := len(s.NICs)
	var sata, scsi int
	for _, d := range s.Disks {
		switch d.Bus {
		case BusVirtio:
			n++
		case BusSATA:
			if s.Machine == MachinePC {
				sata = 1
			}
		case BusVirtioSCSI:
			scsi = 1
		}
	}
	if s.RNG {
		n++
	}
	n += sata + scsi
	if n > maxSlots {
		f.add("disks", fmt.Sprintf("the machine needs %d PCI slots and has %d", n, maxSlots), "put disks on virtio-scsi, where 256 share one slot")
	}
}

// nicModels are the network cards that a machine may have.
var nicModels = []string{"virtio-net-pci", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3"}

func (s Spec) validateNICs(f *findings) {
	macs := map[string]string{}
	hosts := map[string]string{}
	for i, n := range s.NICs {
		field := fmt.Sprintf("nics[%d]", i)
		if !slices.Contains(nicModels, n.Model) {
			f.add(field+".model", fmt.Sprintf("unknown network card %q", n.Model), "use one of "+strings.Join(nicModels, ", "))
		}
		n.validateMAC(f, field, macs)
		for j, fw := range n.Forwards {
			fw.validate(f, fmt.Sprintf("%s.forwards[%d]", field, j), hosts)
		}
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

func (s Spec) validateGraphics(f *findings) {
	v := s.Graphics.VNC
	if v == VNCUnix || v == VNCNone {
		return
	}
	if _, _, err := ParseVNC(v); err != nil {
		f.add("graphics.vnc", err.Error(), "use unix, none, or a loopback address and display as in 127.0.0.1:1; reach it from afar through an SSH tunnel")
	}
}

// ParseVNC splits HOST:DISPLAY; HOST is a loopback address or "localhost",
// DISPLAY is 0 to 59635, which means TCP port 5900+DISPLAY.
func ParseVNC(v string) (host string, display int, err error) {
	host, d, err := net.SplitHostPort(v)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not HOST:DISPLAY", v)
	}
	n, ok := parsePort(d)
	if !ok || n > 65535-5900 {
		return "", 0, fmt.Errorf("%q is not a display number", d)
	}
	if host == "localhost" {
		return "127.0.0.1", n, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil || !a.IsLoopback() || a.Zone() != "" { // a zone may hold anything, also QEMU's options
		return "", 0, fmt.Errorf("%q is not a loopback address, and VNC has no password or encryption here", host)
	}
	return host, n, nil
}
