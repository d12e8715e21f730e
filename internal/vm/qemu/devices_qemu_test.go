package qemu

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// blank returns a new raw image of 1 MiB.
func blank(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDevices starts machines that have, together, every device of the spec
// which this host can have: the real QEMU takes each option, and the guest runs.
func TestDevices(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *vm.Spec){
		"disks q35":     manyDisks(vm.MachineQ35),
		"disks pc":      manyDisks(vm.MachinePC),
		"disk options":  diskOptions,
		"controllers":   controllers,
		"ports":         ports,
		"spice":         spiceMachine,
		"devices":       peripherals(vm.MachineQ35),
		"devices of pc": peripherals(vm.MachinePC),
		"board":         board,
		"memory":        memory,
		"cards":         cards,
		"virtiofs":      sharedFolder,
		"videos": func(_ *testing.T, s *vm.Spec) {
			s.Videos = []vm.Video{{Model: vm.VideoVirtio, Heads: 2, Width: 1024, Height: 768}, {Model: vm.VideoQXL, RAM: 64 << 20, VRAM: 32 << 20, VGAMem: 16 << 20}, {Model: vm.VideoBochs, VRAM: 16 << 20}}
		},
		"qxl":    func(_ *testing.T, s *vm.Spec) { s.Videos = []vm.Video{{Model: vm.VideoQXL, Heads: 1}} },
		"cirrus": func(_ *testing.T, s *vm.Spec) { s.Videos = []vm.Video{{Model: vm.VideoCirrus, VRAM: 8 << 20}} },
		"vmvga":  func(_ *testing.T, s *vm.Spec) { s.Videos = []vm.Video{{Model: vm.VideoVMVGA}} },
		"ramfb":  func(_ *testing.T, s *vm.Spec) { s.Videos = []vm.Video{{Model: vm.VideoRAMFB}} },
		"headless": func(_ *testing.T, s *vm.Spec) {
			s.Videos, s.Displays = []vm.Video{{Model: vm.VideoNone}}, []vm.Display{{Type: vm.DisplayNone}}
			s.Serials, s.Panic = nil, &vm.Panic{Model: "none"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := vmtest.Spec(t)
			change(t, &spec)
			dir := t.TempDir()
			m := vmtest.Start(t, New(Options{}), spec, dir)
			vmtest.WaitSerial(t, m, vmtest.Ready)
			if err := m.Kill(t.Context()); err != nil {
				t.Error(err)
			}
			vmtest.RequireNoLeftovers(t, dir)
		})
	}
}

// manyDisks are drives on all buses of a machine type.
func manyDisks(machine string) func(*testing.T, *vm.Spec) {
	return func(t *testing.T, s *vm.Spec) {
		s.Machine = machine
		s.Disks[0].BootIndex = 1
		for _, bus := range []vm.Bus{vm.BusVirtio, vm.BusSATA, vm.BusVirtioSCSI, vm.BusUSB, vm.BusNVMe} {
			s.Disks = append(s.Disks, vm.Disk{Path: blank(t), Format: "raw", Bus: bus})
		}
		for _, bus := range []vm.Bus{vm.BusSATA, vm.BusVirtioSCSI, vm.BusUSB} {
			s.Disks = append(s.Disks, vm.Disk{Device: vm.DeviceCDROM, Bus: bus}, vm.Disk{Device: vm.DeviceCDROM, Bus: bus, Path: blank(t), Format: "raw"})
		}
		s.Disks = append(s.Disks, vm.Disk{Device: vm.DeviceFloppy}, vm.Disk{Device: vm.DeviceFloppy, Path: blank(t), Format: "raw", BootIndex: 3})
		if machine == vm.MachinePC {
			s.Disks = append(s.Disks, vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusIDE}, vm.Disk{Device: vm.DeviceCDROM, Bus: vm.BusIDE})
		}
	}
}

// diskOptions are what can be said of a disk.
func diskOptions(t *testing.T, s *vm.Spec) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("open sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image := func(format string, options ...string) string {
		path := filepath.Join(dir, format+".img")
		qemutest.Img(t, append(append([]string{"create", "-q", "-f", format}, options...), path, "4M")...)
		return path
	}
	luks := []string{"--object", "secret,id=s,file=" + secret, "-o", "key-secret=s,iter-time=10"}
	s.IOThreads = 2
	s.Disks = append(s.Disks,
		vm.Disk{Path: blank(t), Format: "raw", Cache: vm.CacheNone, IO: vm.IONative, IOThread: 1, Queues: 2, LogicalBlock: 512, PhysicalBlock: 4096, WriteError: vm.ErrorStop, ReadError: vm.ErrorReport},
		vm.Disk{Path: blank(t), Format: "raw", IO: vm.IOThreads, Discard: true, DetectZeroes: "on", Shareable: true, BootIndex: 2, WriteError: vm.ErrorENOSPC},
		vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusVirtioSCSI, WWN: "5000c50015ea71aa", Vendor: "LAMINA", Product: "A disk", RotationRate: 1, Removable: vm.On, Serial: "S2"},
		vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusSATA, WWN: "0x5000c50015ea71ab", RotationRate: 7200},
		vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusUSB, Removable: vm.On, ReadOnly: true},
		vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusNVMe, Queues: 4, LogicalBlock: 4096},
		vm.Disk{Path: overlayOf(t), Format: "qcow2", CopyOnRead: true, Throttle: vm.Throttle{ReadBytes: 1 << 20, ReadBytesMax: 2 << 20, ReadBytesMaxLength: 3, WriteIOPS: 100, SizeIOPS: 4096, Group: "slow"}},
		vm.Disk{Path: image("luks", luks...), Format: "luks", SecretFile: secret},
		vm.Disk{Path: image("vmdk"), Format: "vmdk"}, vm.Disk{Path: image("vdi"), Format: "vdi"}, vm.Disk{Path: image("vhdx"), Format: "vhdx"},
		vm.Disk{Path: image("vpc"), Format: "vpc"}, vm.Disk{Path: image("qed"), Format: "qed"}, vm.Disk{Path: image("parallels"), Format: "parallels"},
	)
	s.Controllers = []vm.Controller{{Type: "scsi", Model: "virtio-scsi", IOThread: 2, Queues: 2, CmdPerLUN: 64, MaxSectors: 512}}
	s.Disks[0].BootIndex = 1
}

// controllers are all models of those that the spec can name.
func controllers(t *testing.T, s *vm.Spec) {
	for i, model := range []string{"virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi", "am53c974", "dc390"} {
		s.Controllers = append(s.Controllers, vm.Controller{Type: "scsi", Index: i, Model: model})
		s.Disks = append(s.Disks, vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusSCSI, Address: &vm.DriveAddress{Controller: i, Target: 2}})
	}
	for i, model := range []string{"qemu-xhci", "nec-xhci", "ich9", "ehci", "piix3-uhci", "piix4-uhci", "pci-ohci"} {
		s.Controllers = append(s.Controllers, vm.Controller{Type: "usb", Index: i, Model: model})
	}
	s.Controllers = append(s.Controllers, vm.Controller{Type: "sata", Index: 1}, vm.Controller{Type: "virtio-serial", Ports: 16}, vm.Controller{Type: "ccid"})
	s.Disks = append(s.Disks, vm.Disk{Path: blank(t), Format: "raw", Bus: vm.BusSATA, Address: &vm.DriveAddress{Controller: 1, Unit: 5}})
	s.HotplugPorts = 4
	s.Disks[0].BootIndex = 1
}

// ports are serial and parallel ports, consoles and channels of every type.
func ports(t *testing.T, s *vm.Spec) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	s.Serials = []vm.Char{
		{}, {Type: vm.CharPTY}, {Type: vm.CharUnix, Path: path("a.sock"), Listen: true}, {Type: vm.CharFile, Path: path("file"), Append: true},
		{Type: vm.CharTCP, Listen: true, Port: freePort(t), Telnet: true, Model: "pci-serial"}, {Type: vm.CharUDP, Port: freePort(t), Model: "usb-serial"},
	}
	s.Parallels = []vm.Char{{Type: vm.CharNull}, {Type: vm.CharLog, LogFile: path("log"), LogAppend: true}}
	s.Consoles = []vm.Char{{Type: vm.CharPTY}}
	s.Channels = []vm.Channel{
		{Char: vm.Char{Type: vm.CharUnix, Listen: true}, Target: vm.ChannelAgent},
		{Char: vm.Char{Type: vm.CharUnix, Listen: true, Path: path("b, c.sock")}, Target: "org.example.0"},
	}
}

func spiceMachine(t *testing.T, s *vm.Spec) {
	s.Displays = []vm.Display{
		{Type: vm.DisplaySPICE, Listen: "127.0.0.1", Port: -1, Password: "secret words", ImageCompression: "off", JPEGCompression: "never", ZlibCompression: "auto",
			PlaybackCompression: vm.Off, Streaming: "filter", Clipboard: vm.Off, FileTransfer: vm.Off, AgentMouse: vm.On},
		{Type: vm.DisplayVNC, Listen: "127.0.0.1", Port: -1, Websocket: -1, SharePolicy: "force-shared", Keymap: "de"},
	}
	s.Videos = []vm.Video{{Model: vm.VideoQXL}}
	s.Channels = []vm.Channel{{Char: vm.Char{Type: vm.CharVMC}, Target: vm.ChannelSpice}, {Char: vm.Char{Type: vm.CharPort, Name: "org.example.1"}, Target: "org.example.1"}}
	s.Redirects = []vm.USBRedirect{{}, {}}
	s.Sounds = []vm.Sound{{Model: "ich9"}}
	s.Inputs = []vm.Input{{Type: "tablet"}}
}

// peripherals are the small ones.
func peripherals(machine string) func(*testing.T, *vm.Spec) {
	return func(t *testing.T, s *vm.Spec) {
		s.Machine = machine
		s.Inputs = []vm.Input{{Type: "tablet"}, {Type: "mouse", Bus: "usb"}, {Type: "keyboard", Bus: "usb"}, {Type: "tablet", Bus: "virtio"}, {Type: "keyboard", Bus: "virtio"}, {Type: "mouse", Bus: "virtio"}, {Type: "mouse", Bus: "ps2"}}
		s.Sounds = []vm.Sound{{Model: "ich6", Codecs: []string{"micro", "output"}}, {Model: "ac97"}, {Model: "es1370"}, {Model: "sb16"}, {Model: "usb"}}
		s.RNG, s.RNGs = true, []vm.RNG{{Path: "/dev/random", RateBytes: 1024, RatePeriod: 1000}, {Builtin: true}}
		s.Balloon = &vm.Balloon{Autodeflate: vm.On, FreePageReporting: vm.On, StatsPeriod: 5}
		s.Watchdogs = []vm.Watchdog{{Model: "i6300esb", Action: "none"}, {Model: "ib700", Action: "none"}}
		s.TPM = &vm.TPM{}
		if machine == vm.MachineQ35 {
			s.Watchdogs = append(s.Watchdogs, vm.Watchdog{Model: "itco", Action: "none"})
			s.IOMMU = &vm.IOMMU{Model: "intel", IntRemap: vm.On, CachingMode: vm.On, IOTLB: vm.On, EIM: vm.Off}
			s.Features.IOAPIC = "qemu"
		} else {
			s.TPM = &vm.TPM{Model: "tpm-tis", Version: "1.2"}
		}
		s.Filesystems = []vm.Filesystem{{Source: t.TempDir(), Target: "share"}, {Source: t.TempDir(), Target: "share2", Access: "squash", ReadOnly: true}}
	}
}

// board is what concerns the machine as a whole.
func board(t *testing.T, s *vm.Spec) {
	s.Machine = "pc-q35-7.2"
	s.CPUs = 2
	s.Processor = vm.Processor{Mode: vm.CPUHostPassthrough, MaxCPUs: 8, Topology: vm.Topology{Sockets: 2, Cores: 2, Threads: 2}, PhysBits: "40", Cache: "emulate",
		Features: []vm.CPUFeature{{Name: "avx", Policy: vm.FeatureDisable}, {Name: "ssse3", Policy: vm.FeatureRequire}, {Name: "aes", Policy: vm.FeatureForce}, {Name: "smap", Policy: vm.FeatureForbid}}}
	timeout := 100
	s.Boot = vm.Boot{Menu: vm.On, MenuTimeout: 1, RebootTimeout: &timeout}
	s.Features = vm.Features{ACPI: vm.On, APIC: vm.On, SMM: vm.On, VMPort: vm.On, VMCoreInfo: vm.On, SuspendToMem: vm.Off, SuspendToDisk: vm.Off,
		HyperV: vm.HyperV{Relaxed: vm.On, VAPIC: vm.On, Spinlocks: vm.On}, KVMHidden: vm.On}
	s.Clock = vm.Clock{Offset: "variable", Adjustment: -3600, Timers: []vm.Timer{{Name: "rtc", TickPolicy: "catchup", Track: "guest"}, {Name: "pit", TickPolicy: "delay"}, {Name: "hpet", Present: vm.Off}}}
	s.SysInfo = vm.SysInfo{
		BIOS: map[string]string{"vendor": "V", "version": "1", "date": "01/02/2026", "release": "1.2"}, System: map[string]string{"manufacturer": "M, N", "serial": "ds=nocloud", "sku": "s", "family": "f"},
		BaseBoard: []map[string]string{{"product": "P", "location": "L"}}, Chassis: map[string]string{"asset": "A"}, OEM: []string{"one", "two, three"},
		FWCfg: []vm.FWCfg{{Name: "opt/org.example/a", Value: "b, c"}},
	}
	s.OnCrash, s.OnPoweroff, s.OnReboot = vm.ActionDestroy, vm.ActionPreserve, vm.ActionPreserve
	s.QEMU = vm.QEMUOptions{Args: []string{"-device", "edu"}, Env: map[string]string{"LAMINA_TEST": "1"}}
}

func memory(_ *testing.T, s *vm.Spec) {
	s.Memory, s.CPUs = 64<<20, 2
	s.MemoryConfig = vm.MemoryConfig{Max: 256 << 20, Slots: 2, Source: "memfd", Shared: true, NoMerge: true, Prealloc: true}
	s.Processor.NUMA = []vm.NUMACell{{ID: 0, CPUs: "0", Memory: 32 << 20}, {ID: 1, CPUs: "1", Memory: 32 << 20}}
	s.Clock = vm.Clock{Offset: "timezone", Timezone: "Europe/Berlin"}
}

func cards(t *testing.T, s *vm.Spec) {
	for _, model := range []string{"virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3", "i82551"} {
		s.NICs = append(s.NICs, vm.NIC{Model: model})
	}
	s.NICs[0].MTU, s.NICs[0].Link = 9000, vm.LinkDown
	s.NICs[1].Type = vm.NICNone
	s.NICs[2].Network, s.NICs[2].Hostname, s.NICs[2].TFTP, s.NICs[2].BootFile, s.NICs[2].Restrict = "10.9.8.0/24", "guest", t.TempDir(), "pxelinux.0", true
	s.NICs[3].BootIndex = 2
	s.Disks[0].BootIndex = 1
}

func sharedFolder(t *testing.T, s *vm.Spec) {
	s.Filesystems = []vm.Filesystem{{Driver: "virtiofs", Source: t.TempDir(), Target: "share"}}
}

// TestUEFI: the firmware comes from the host's descriptors, with the machine's own
// variables, which are kept.
func TestUEFI(t *testing.T) {
	for name, boot := range map[string]vm.Boot{
		"plain":  {Firmware: vm.FirmwareEFI},
		"secure": {Firmware: vm.FirmwareEFI, SecureBoot: vm.On},
	} {
		t.Run(name, func(t *testing.T) {
			spec, dir := vmtest.Spec(t), t.TempDir()
			spec.Boot = boot
			m := vmtest.Start(t, New(Options{}), spec, dir).(*machine)
			if err := m.Kill(t.Context()); err != nil {
				t.Error(err)
			}
			vars := filepath.Join(dir, home.NVRAMFile)
			st, err := os.Stat(vars)
			if err != nil || st.Size() == 0 {
				t.Fatalf("variables: %v, %v", st, err)
			}
			again := vmtest.Start(t, New(Options{}), spec, dir)
			if err := again.Kill(t.Context()); err != nil {
				t.Error(err)
			}
			if after, err := os.Stat(vars); err != nil || !os.SameFile(st, after) {
				t.Errorf("the second start made other variables: %v", err)
			}
		})
	}
}

// freePort returns a TCP port that nobody listens at.
func freePort(t *testing.T) int {
	t.Helper()
	port, err := bindable(vm.Forward{Proto: "tcp", HostAddr: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	return port
}
