package vm

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestRules breaks one rule of the wider spec at a time: exactly that one is
// named, with a remedy.
func TestRules(t *testing.T) {
	disk := func(change func(*Disk)) func(*Spec) { return func(s *Spec) { change(&s.Disks[0]) } }
	nic := func(change func(*NIC)) func(*Spec) { return func(s *Spec) { change(&s.NICs[0]) } }
	display := func(d Display) func(*Spec) { return func(s *Spec) { s.Displays = []Display{d} } }
	serial := func(c ...Char) func(*Spec) { return func(s *Spec) { s.Serials = c } }
	for name, c := range map[string]struct {
		change      func(*Spec)
		field, text string
	}{
		"read-only format":  {disk(func(d *Disk) { d.Format = "dmg" }), "disks[0].format", "cannot be written"},
		"nvme CD-ROM":       {disk(func(d *Disk) { d.Device, d.ReadOnly, d.Bus, d.Serial = DeviceCDROM, true, BusNVMe, "x" }), "disks[0].bus", "no CD-ROM"},
		"nvme, no serial":   {disk(func(d *Disk) { d.Bus = BusNVMe }), "disks[0].serial", "has to have one"},
		"floppy on usb":     {disk(func(d *Disk) { d.Device, d.Bus = DeviceFloppy, BusUSB }), "disks[0].bus", "floppy"},
		"disk on fdc":       {disk(func(d *Disk) { d.Bus = BusFDC }), "disks[0].bus", "cannot be on fdc"},
		"lun on virtio":     {disk(func(d *Disk) { d.Device, d.Format = DeviceLUN, "raw" }), "disks[0].bus", "lun"},
		"empty disk":        {disk(func(d *Disk) { d.Path = "" }), "disks[0].path", "not an absolute path"},
		"native, cached":    {disk(func(d *Disk) { d.IO = IONative }), "disks[0].io", "O_DIRECT"},
		"unknown io":        {disk(func(d *Disk) { d.IO = "uring" }), "disks[0].io", `"uring"`},
		"zeroes":            {disk(func(d *Disk) { d.Discard, d.DetectZeroes = false, "unmap" }), "disks[0].detectZeroes", "discard"},
		"no thread":         {disk(func(d *Disk) { d.IOThread = 1 }), "disks[0].ioThread", "no thread 1"},
		"thread of sata":    {func(s *Spec) { s.IOThreads, s.Disks[0].IOThread, s.Disks[0].Bus = 1, 1, BusSATA }, "disks[0].ioThread", "main loop"},
		"thread of scsi":    {func(s *Spec) { s.IOThreads, s.Disks[0].IOThread, s.Disks[0].Bus = 1, 1, BusVirtioSCSI }, "disks[0].ioThread", "controller"},
		"block size":        {disk(func(d *Disk) { d.LogicalBlock = 1000 }), "disks[0].logicalBlock", "1000"},
		"sata block":        {disk(func(d *Disk) { d.LogicalBlock, d.Bus = 4096, BusSATA }), "disks[0].logicalBlock", "512"},
		"shared qcow2":      {disk(func(d *Disk) { d.Shareable = true }), "disks[0].shareable", "two writers"},
		"wwn":               {disk(func(d *Disk) { d.WWN, d.Bus = "12", BusVirtioSCSI }), "disks[0].wwn", "12"},
		"wwn of virtio":     {disk(func(d *Disk) { d.WWN = "5000c50015ea71aa" }), "disks[0].wwn", "has none"},
		"long vendor":       {disk(func(d *Disk) { d.Vendor, d.Bus = "123456789", BusVirtioSCSI }), "disks[0].vendor", "123456789"},
		"luks":              {disk(func(d *Disk) { d.Format = "luks" }), "disks[0].secretFile", "passphrase"},
		"throttle":          {disk(func(d *Disk) { d.Throttle = Throttle{TotalIOPS: 1, ReadIOPS: 1} }), "disks[0].throttle", "total excludes"},
		"burst":             {disk(func(d *Disk) { d.Throttle = Throttle{ReadIOPSMax: 1} }), "disks[0].throttle.readIopsMax", "without a bound"},
		"negative throttle": {disk(func(d *Disk) { d.Throttle = Throttle{TotalBytes: -1} }), "disks[0].throttle.totalBytes", "-1"},
		"group": {func(s *Spec) {
			s.Disks[0].Throttle.Group, s.Disks[1].Throttle = "g", Throttle{Group: "g", TotalIOPS: 1}
		}, "disks[1].throttle", "group g"},
		"same target":     {func(s *Spec) { s.Disks[0].Target, s.Disks[1].Target = "vda", "vda" }, "disks[1].target", "also that of"},
		"boot, card":      {nic(func(n *NIC) { n.BootIndex = 1 }), "nics[0].bootIndex", "also that of disks[0]"},
		"no bridge":       {nic(func(n *NIC) { n.Type, n.Forwards = NICBridge, nil }), "nics[0].bridge", "which"},
		"bridge name":     {nic(func(n *NIC) { n.Type, n.Forwards, n.Bridge = NICBridge, nil, "br0,script=x" }), "nics[0].bridge", "not the name"},
		"forward, bridge": {nic(func(n *NIC) { n.Type, n.Bridge = NICBridge, "br0" }), "nics[0].forwards", "user-mode"},
		"queues of user":  {nic(func(n *NIC) { n.Queues = 4 }), "nics[0].queues", "4 queues"},
		"mtu of e1000":    {nic(func(n *NIC) { n.MTU, n.Model = 9000, "e1000" }), "nics[0].mtu", "cannot tell"},
		"network":         {nic(func(n *NIC) { n.Network = "10.0.0.0/33" }), "nics[0].network", "not an IPv4 network"},
		"boot file":       {nic(func(n *NIC) { n.BootFile = "a" }), "nics[0].bootFile", "no folder"},
		"open display":    {display(Display{Type: DisplayVNC, Listen: "0.0.0.0", Port: -1}), "displays[0].listen", "anybody"},
		"open, IPv6":      {display(Display{Type: DisplaySPICE, Listen: "::"}), "displays[0].listen", "anybody"},
		"two VNC":         {func(s *Spec) { s.Displays = []Display{{Type: DisplayVNC}, {Type: DisplayVNC}} }, "displays[1].type", "second"},
		"low port":        {display(Display{Type: DisplayVNC, Port: 80}), "displays[0].port", "5900"},
		"address":         {display(Display{Type: DisplayVNC, Listen: "::1%a,password=off"}), "displays[0].listen", "not an address"},
		"socket and port": {display(Display{Type: DisplayVNC, Socket: "/s", Port: 5900}), "displays[0].socket", "an address or port"},
		"VNC with GL":     {display(Display{Type: DisplayVNC, GL: On}), "displays[0].gl", "no OpenGL"},
		"secure channel":  {display(Display{Type: DisplaySPICE, Channels: map[string]string{"main": "secure"}}), "displays[0].channels.main", "certificate"},
		"keymap":          {display(Display{Type: DisplayVNC, Keymap: "de,x"}), "displays[0].keymap", "not a name"},
		"3D":              {func(s *Spec) { s.Videos = []Video{{Model: VideoVirtio, Accel3D: On}} }, "videos[0].accel3d", "OpenGL"},
		"second VGA":      {func(s *Spec) { s.Videos = []Video{{Model: VideoVGA}, {Model: VideoVGA}} }, "videos[1].model", "second card"},
		"SPICE half TLS":  {display(Display{Type: DisplaySPICE, Listen: "0.0.0.0", TLS: "/c"}), "displays[0].listen", "anybody"},
		"SPICE and TLS":   {display(Display{Type: DisplaySPICE, Listen: "0.0.0.0", TLS: "/c", Port: -1, TLSPort: -1}), "displays[0].listen", "anybody"},
		"virtiofs comma":  {func(s *Spec) { s.Filesystems = []Filesystem{{Driver: "virtiofs", Source: "/a,b", Target: "t"}} }, "filesystems[0].source", "comma"},
		"open serial":     {serial(Char{Type: CharTCP, Listen: true, Host: "0.0.0.0", Port: 1}), "serials[0].host", "no password"},
		"serial file":     {serial(Char{Type: CharFile, Path: "log"}), "serials[0].path", "absolute"},
		"spicevmc":        {func(s *Spec) { s.Channels = []Channel{{Char: Char{Type: CharVMC}, Target: ChannelSpice}} }, "channels[0].type", "SPICE"},
		"five ports":      {serial(Char{Type: CharNull}, Char{Type: CharNull}, Char{Type: CharNull}, Char{Type: CharNull}, Char{Type: CharNull}), "serials", "has 4"},
		"topology":        {func(s *Spec) { s.Processor.Topology = Topology{Sockets: 3} }, "processor.topology", "3 CPUs"},
		"max CPUs":        {func(s *Spec) { s.Processor.MaxCPUs = 1 }, "processor.maxCpus", "1 virtual CPUs"},
		"feature":         {func(s *Spec) { s.Processor.Features = []CPUFeature{{Name: "a=b"}} }, "processor.features[0].name", "not a name"},
		"custom":          {func(s *Spec) { s.Processor.Mode = CPUCustom }, "processor.model", "no model"},
		"slots":           {func(s *Spec) { s.MemoryConfig.Max = 2 << 30 }, "memoryConfig.slots", "0 slots"},
		"machine options": {func(s *Spec) { s.Machine = "pc-q35-7.2,usb=on" }, "machine", "unknown machine type"},
		"secure BIOS":     {func(s *Spec) { s.Boot.SecureBoot = On }, "boot.secureBoot", "no Secure Boot"},
		"initrd":          {func(s *Spec) { s.Boot.Initrd = "/i" }, "boot.kernel", "no"},
		"rtc":             {func(s *Spec) { s.Clock.Timers = []Timer{{Name: "rtc", TickPolicy: "merge"}} }, "clock.timers[0].tickPolicy", "cannot merge"},
		"sysinfo":         {func(s *Spec) { s.SysInfo.BIOS = map[string]string{"colour": "red"} }, "sysinfo.bios", "colour"},
		"itco on pc":      {func(s *Spec) { s.Machine, s.Watchdogs = MachinePC, []Watchdog{{Model: "itco"}} }, "watchdogs[0].model", "q35"},
		"tpm":             {func(s *Spec) { s.TPM = &TPM{Version: "1.2"} }, "tpm.version", "2.0"},
		"vsock":           {func(s *Spec) { s.VSock = &VSock{CID: 2} }, "vsock.cid", "not a guest's"},
		"iommu":           {func(s *Spec) { s.IOMMU = &IOMMU{Model: "intel", IntRemap: On} }, "iommu.intremap", "IOAPIC"},
		"pci":             {func(s *Spec) { s.HostDevices = []HostDevice{{Type: "pci", PCI: "1:0"}} }, "hostDevices[0].pci", "not a PCI address"},
		"scsi model":      {func(s *Spec) { s.Controllers = []Controller{{Type: "scsi", Model: "buslogic"}} }, "controllers[0].model", "buslogic"},
		"ide controller":  {func(s *Spec) { s.Controllers = []Controller{{Type: "ide"}} }, "controllers[0].type", "q35 has no ide"},
		"three floppies": {func(s *Spec) {
			for range 3 {
				s.Disks = append(s.Disks, Disk{Device: DeviceFloppy}.withDefaults(s.Machine, 0))
			}
		}, "disks", "3 floppy drives"},
		"eight SCSI": {func(s *Spec) {
			for i := range 8 {
				s.Disks = append(s.Disks, Disk{Path: fmt.Sprint("/e", i), Format: "raw", Bus: BusSCSI}.withDefaults(s.Machine, i))
			}
		}, "disks", "8 drives on scsi"},
		"own option": {func(s *Spec) { s.QEMU.Args = []string{"--daemonize"} }, "qemu.args[0]", "found again"},
		"poweroff":   {func(s *Spec) { s.OnPoweroff = ActionRestart }, "onPoweroff", "cannot start"},
	} {
		t.Run(name, func(t *testing.T) {
			s := good(t)
			c.change(&s)
			var invalid *InvalidError
			if err := s.Validate(); !errors.As(err, &invalid) {
				t.Fatalf("no problem: %v", err)
			}
			p := invalid.Problems[0]
			if len(invalid.Problems) != 1 || p.Field != c.field || !strings.Contains(p.Text, c.text) || p.Remedy == "" {
				t.Errorf("%v; want only %s with %q", invalid, c.field, c.text)
			}
		})
	}
}

// TestRulesAccept: near misses of the rules above.
func TestRulesAccept(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"password": func(s *Spec) { s.Displays = []Display{{Type: DisplayVNC, Listen: "0.0.0.0", Password: "x"}} },
		"TLS":      func(s *Spec) { s.Displays = []Display{{Type: DisplaySPICE, Listen: "::", TLS: "/certs", TLSPort: -1}} },
		"insecure": func(s *Spec) { s.Displays = []Display{{Type: DisplayVNC, Listen: "192.0.2.1", Insecure: true}} },
		"loopback": func(s *Spec) {
			s.Displays = []Display{{Type: DisplayVNC, Listen: "::1"}, {Type: DisplaySPICE, Port: 5900}}
		},
		"shared raw": func(s *Spec) { s.Disks[0].Format, s.Disks[0].Shareable = "raw", true },
		"native":     func(s *Spec) { s.Disks[0].IO, s.Disks[0].Cache = IONative, CacheNone },
		"sata on pc": func(s *Spec) { s.Machine, s.Disks[0].Bus = MachinePC, BusSATA },
		"floppy":     func(s *Spec) { s.Disks = append(s.Disks, Disk{Device: DeviceFloppy}.withDefaults(s.Machine, 0)) },
		"version":    func(s *Spec) { s.Machine = "pc-q35-7.2" },
		"no port":    func(s *Spec) { s.Serials = []Char{{Type: CharNone}} },
		"insecure serial": func(s *Spec) {
			s.Serials = []Char{{Type: CharTCP, Listen: true, Host: "0.0.0.0", Port: 1, Insecure: true}}
		},
	} {
		s := good(t)
		change(&s)
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBootOrder: kinds become places of the first device of each.
func TestBootOrder(t *testing.T) {
	s := Spec{
		Boot:  Boot{Order: []BootDevice{BootNetwork, BootCDROM, BootDisk, BootFloppy}},
		Disks: []Disk{{Path: "/a"}, {Path: "/b"}, {Device: DeviceCDROM}},
		NICs:  []NIC{{}},
	}.WithDefaults()
	if s.NICs[0].BootIndex != 1 || s.Disks[2].BootIndex != 2 || s.Disks[0].BootIndex != 3 || s.Disks[1].BootIndex != 0 {
		t.Errorf("%+v", s)
	}
}
