package qemu

import (
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm"
)

// TestCommandLine is the whole of one command line.
func TestCommandLine(t *testing.T) {
	c := config{
		spec: vm.Spec{
			Name: "web", UUID: "00000000-0000-4000-8000-000000000001", CPUs: 2, Memory: 1 << 30, Machine: vm.MachineQ35,
			Disks: []vm.Disk{{
				Path: "/m/disk.qcow2", Format: "qcow2", Device: vm.DeviceDisk, Bus: vm.BusVirtio,
				Cache: vm.CacheNone, Serial: "S1", BootIndex: 1, Discard: true,
			}},
			NICs:     []vm.NIC{{Model: "virtio-net-pci", MAC: "52:54:00:00:00:01", Forwards: []vm.Forward{{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 8080, GuestPort: 80}}}},
			Graphics: vm.Graphics{VNC: vm.VNCUnix},
			RNG:      true,
			NoReboot: true,
		},
		accel: vm.AccelTCG, sandbox: true, isBlockDevice: func(string) bool { return false },
	}
	want := []string{
		"-name web",
		"-uuid 00000000-0000-4000-8000-000000000001",
		"-nodefaults", "-no-user-config",
		"-machine q35,vmport=off,dump-guest-core=off",
		"-accel tcg,thread=multi,tb-size=128",
		"-cpu max", "-smp 2", "-m 1024M",
		"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-pidfile qemu.pid", "-S",
		"-chardev socket,id=qmp,path=qmp.sock,server=on,wait=off",
		"-mon chardev=qmp,mode=control",
		"-chardev socket,id=serial0,path=serial.sock,server=on,wait=off,logfile=serial.log,logappend=off",
		"-device isa-serial,chardev=serial0",
		"-display none", "-device VGA,id=vga0", "-vnc unix:vnc.sock",
		`-blockdev {"driver":"qcow2","node-name":"disk0","read-only":false,"cache":{"direct":true,"no-flush":false},"discard":"unmap","detect-zeroes":"unmap",` +
			`"file":{"driver":"file","filename":"/m/disk.qcow2","read-only":false,"auto-read-only":true,"cache":{"direct":true,"no-flush":false},"discard":"unmap"}}`,
		"-device virtio-blk-pci,drive=disk0,id=disk0-device,write-cache=on,serial=S1,bootindex=1",
		"-netdev user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80",
		"-device virtio-net-pci,netdev=net0,id=net0-device,mac=52:54:00:00:00:01,romfile=",
		"-object rng-random,id=rng0,filename=/dev/urandom",
		"-device virtio-rng-pci,id=rng0-device,rng=rng0",
		"-boot strict=on", "-device pvpanic", "-action panic=none", "-no-reboot",
	}
	requireLines(t, c.args(), want)
}

// requireLines compares arguments with what they are, an option and its value
// a line.
func requireLines(t *testing.T, args, want []string) {
	t.Helper()
	var got []string
	for _, a := range args {
		if last := len(got) - 1; !strings.HasPrefix(a, "-") && last >= 0 {
			got[last] += " " + a
		} else {
			got = append(got, a)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestAccelAndCPU(t *testing.T) {
	for _, c := range []struct {
		accel          vm.Accel
		model          string
		wantCPU, wantA string
	}{
		{vm.AccelKVM, "", "host", "kvm"},
		{vm.AccelTCG, "", "max", "tcg,thread=multi,tb-size=128"},
		{vm.AccelTCG, "host", "max", "tcg,thread=multi,tb-size=128"},
		{vm.AccelKVM, "Nehalem", "Nehalem", "kvm"},
		{vm.AccelTCG, "qemu64,+ssse3", "qemu64,+ssse3", "tcg,thread=multi,tb-size=128"},
	} {
		if got := cpuArg(c.model, c.accel); got != c.wantCPU {
			t.Errorf("CPU %q under %s: %s, want %s", c.model, c.accel, got, c.wantCPU)
		}
		if got := accelArg(c.accel); got != c.wantA {
			t.Errorf("accelerator %s: %s, want %s", c.accel, got, c.wantA)
		}
	}
}

func TestDisplayArgs(t *testing.T) {
	base := []string{"-display none", "-device VGA,id=vga0"}
	args := func(vnc string) []string { return config{spec: vm.Spec{Graphics: vm.Graphics{VNC: vnc}}}.displayArgs() }
	requireLines(t, args(vm.VNCNone), base)
	requireLines(t, args(vm.VNCUnix), append(base[:2:2], "-vnc unix:vnc.sock"))
	requireLines(t, args("127.0.0.1:3"), append(base[:2:2], "-vnc 127.0.0.1:3"))
}

func TestNICArgs(t *testing.T) {
	c := config{spec: vm.Spec{NICs: []vm.NIC{
		{Model: "e1000", MAC: "52:54:00:00:00:01"},
		{Model: "virtio-net-pci", MAC: "52:54:00:00:00:02", Forwards: []vm.Forward{
			{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 2222, GuestPort: 22},
			{Proto: "udp", HostAddr: "0.0.0.0", HostPort: 53, GuestPort: 5353},
		}},
	}}}
	requireLines(t, c.nicArgs(), []string{
		"-netdev user,id=net0",
		"-device e1000,netdev=net0,id=net0-device,mac=52:54:00:00:00:01,romfile=",
		"-netdev user,id=net1,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp:0.0.0.0:53-:5353",
		"-device virtio-net-pci,netdev=net1,id=net1-device,mac=52:54:00:00:00:02,romfile=",
	})
}

// TestDrivePlaces: the controller and the place of each drive, on each bus and
// machine type.
func TestDrivePlaces(t *testing.T) {
	disk := func(bus vm.Bus) vm.Disk {
		return vm.Disk{Path: "/d", Format: "raw", Device: vm.DeviceDisk, Bus: bus, Cache: vm.CacheWriteback}
	}
	cd := func(bus vm.Bus) vm.Disk {
		d := disk(bus)
		d.Device, d.ReadOnly = vm.DeviceCDROM, true
		return d
	}
	for name, c := range map[string]struct {
		machine string
		disks   []vm.Disk
		want    []string
	}{
		"ide": {vm.MachinePC, []vm.Disk{disk(vm.BusIDE), cd(vm.BusIDE), disk(vm.BusIDE)}, []string{
			"-device ide-hd,bus=ide.0,unit=0,drive=disk0,id=disk0-device,write-cache=on",
			"-device ide-cd,bus=ide.0,unit=1,drive=disk1,id=disk1-device",
			"-device ide-hd,bus=ide.1,unit=0,drive=disk2,id=disk2-device,write-cache=on",
		}},
		"sata on pc": {vm.MachinePC, []vm.Disk{disk(vm.BusSATA), cd(vm.BusSATA)}, []string{
			"-device ich9-ahci,id=sata0",
			"-device ide-hd,bus=sata0.0,drive=disk0,id=disk0-device,write-cache=on",
			"-device ide-cd,bus=sata0.1,drive=disk1,id=disk1-device",
		}},
		"sata on q35": {vm.MachineQ35, []vm.Disk{disk(vm.BusSATA), cd(vm.BusSATA)}, []string{
			"-device ide-hd,bus=ide.0,drive=disk0,id=disk0-device,write-cache=on",
			"-device ide-cd,bus=ide.1,drive=disk1,id=disk1-device",
		}},
		"virtio": {vm.MachineQ35, []vm.Disk{disk(vm.BusVirtio), disk(vm.BusVirtio)}, []string{
			"-device virtio-blk-pci,drive=disk0,id=disk0-device,write-cache=on",
			"-device virtio-blk-pci,drive=disk1,id=disk1-device,write-cache=on",
		}},
		"virtio-scsi": {vm.MachinePC, []vm.Disk{disk(vm.BusVirtioSCSI), cd(vm.BusVirtioSCSI)}, []string{
			"-device virtio-scsi-pci,id=scsi0",
			"-device scsi-hd,bus=scsi0.0,channel=0,scsi-id=0,lun=0,drive=disk0,id=disk0-device,write-cache=on",
			"-device scsi-cd,bus=scsi0.0,channel=0,scsi-id=1,lun=0,drive=disk1,id=disk1-device",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			conf := config{spec: vm.Spec{Machine: c.machine, Disks: c.disks}, isBlockDevice: func(string) bool { return false }}
			args := conf.diskArgs()
			var devices []string
			for i := 0; i < len(args); i += 2 {
				if args[i] == "-device" {
					devices = append(devices, args[i:i+2]...)
				}
			}
			requireLines(t, devices, c.want)
		})
	}
}

// TestBlockdev: the host's half of a drive.
func TestBlockdev(t *testing.T) {
	conf := config{isBlockDevice: func(p string) bool { return p == "/dev/sdz" }}
	for name, c := range map[string]struct {
		disk vm.Disk
		want string
	}{
		"read-only": {
			vm.Disk{Path: `/a,"b`, Format: "raw", ReadOnly: true, Cache: vm.CacheWriteback, Discard: true},
			`{"driver":"raw","node-name":"disk7","read-only":true,"cache":{"direct":false,"no-flush":false},"discard":"ignore",` +
				`"file":{"driver":"file","filename":"/a,\"b","read-only":true,"cache":{"direct":false,"no-flush":false},"discard":"ignore"}}`,
		},
		"block device": {
			vm.Disk{Path: "/dev/sdz", Format: "raw", Cache: vm.CacheDirectsync},
			`{"driver":"raw","node-name":"disk7","read-only":false,"cache":{"direct":true,"no-flush":false},"discard":"ignore",` +
				`"file":{"driver":"host_device","filename":"/dev/sdz","read-only":false,"auto-read-only":true,"cache":{"direct":true,"no-flush":false},"discard":"ignore"}}`,
		},
		"unsafe": {
			vm.Disk{Path: "/d", Format: "qcow2", Cache: vm.CacheUnsafe},
			`{"driver":"qcow2","node-name":"disk7","read-only":false,"cache":{"direct":false,"no-flush":true},"discard":"ignore",` +
				`"file":{"driver":"file","filename":"/d","read-only":false,"auto-read-only":true,"cache":{"direct":false,"no-flush":true},"discard":"ignore"}}`,
		},
	} {
		if got := encode(conf.blockdev(c.disk, "disk7")); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

func TestWriteCache(t *testing.T) {
	for cache, want := range map[vm.Cache]string{
		vm.CacheNone: "on", vm.CacheWriteback: "on", vm.CacheUnsafe: "on",
		vm.CacheWritethrough: "off", vm.CacheDirectsync: "off",
	} {
		got := object(driveDevices(vm.Disk{Device: vm.DeviceDisk, Bus: vm.BusVirtio, Cache: cache}, "d", seat{})[0])
		if !strings.Contains(got, ",write-cache="+want) {
			t.Errorf("%s: %s, want write-cache=%s", cache, got, want)
		}
	}
}

func TestDeviceEscapes(t *testing.T) {
	if got, want := device("x", "a", "1,2", "b", "", "c", "3"), "x,a=1,,2,c=3"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
