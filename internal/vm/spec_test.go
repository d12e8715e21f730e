package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// good is a spec that breaks no rule.
func good(t *testing.T) Spec {
	t.Helper()
	dir := t.TempDir()
	return Spec{
		Name:   "web-1",
		Memory: 512 << 20,
		CPUs:   2,
		Disks: []Disk{
			{Path: filepath.Join(dir, "disk.qcow2"), Format: "qcow2", Discard: true},
			SeedDisk(filepath.Join(dir, "seed.iso"), ""),
		},
		NICs: []NIC{{Forwards: []Forward{{HostPort: 8080, GuestPort: 80}}}},
		RNG:  true,
	}.WithDefaults()
}

func TestWithDefaults(t *testing.T) {
	s := good(t)
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if s.Machine != MachineQ35 || s.Accel != AccelAuto || s.Graphics.VNC != VNCUnix {
		t.Errorf("machine %s, accelerator %s, VNC %s", s.Machine, s.Accel, s.Graphics.VNC)
	}
	if d := s.Disks[0]; d.Bus != BusVirtio || d.Cache != CacheWriteback || d.Device != DeviceDisk || d.BootIndex != 1 {
		t.Errorf("first disk %+v", d)
	}
	if d := s.Disks[1]; d.Bus != BusVirtio || d.Device != DeviceDisk || !d.ReadOnly || d.BootIndex != 0 {
		t.Errorf("seed %+v", d)
	}
	want := Forward{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 8080, GuestPort: 80}
	if n := s.NICs[0]; n.Model != "virtio-net-pci" || n.MAC == "" || n.Forwards[0] != want {
		t.Errorf("card %+v", n)
	}
	if again := s.WithDefaults(); !reflect.DeepEqual(s, again) {
		t.Errorf("second time\n%+v\nfirst time\n%+v", again, s)
	}
	// The spec that was filled in is not changed.
	before := Spec{Name: "a", Disks: []Disk{{Path: "/d"}}, NICs: []NIC{{Forwards: []Forward{{GuestPort: 1}}}}}
	before.WithDefaults()
	if before.Disks[0].Bus != "" || before.NICs[0].MAC != "" || before.NICs[0].Forwards[0].Proto != "" {
		t.Errorf("changed: %+v", before)
	}
}

func TestDefaultMachine(t *testing.T) {
	for name, c := range map[string]struct {
		disks   []Disk
		machine string
		wantM   string
		wantBus Bus // of the first drive
	}{
		"ide":         {[]Disk{{Bus: BusIDE}}, "", MachinePC, BusIDE},
		"sata":        {[]Disk{{Bus: BusSATA}}, "", MachineQ35, BusSATA},
		"CD-ROM":      {[]Disk{{Device: DeviceCDROM}}, "", MachineQ35, BusSATA},
		"CD-ROM, pc":  {[]Disk{{Device: DeviceCDROM}}, MachinePC, MachinePC, BusIDE},
		"disk on pc":  {[]Disk{{}}, MachinePC, MachinePC, BusVirtio},
		"seed on ide": {[]Disk{SeedDisk("/s", BusIDE)}, "", MachinePC, BusIDE},
	} {
		s := Spec{Machine: c.machine, Disks: c.disks}.WithDefaults()
		if s.Machine != c.wantM || s.Disks[0].Bus != c.wantBus {
			t.Errorf("%s: %s with %s, want %s with %s", name, s.Machine, s.Disks[0].Bus, c.wantM, c.wantBus)
		}
	}
}

// TestSeedDisk: on every bus of every machine type the seed beside a disk is
// valid.
func TestSeedDisk(t *testing.T) {
	for _, bus := range []Bus{"", BusIDE, BusSATA, BusVirtio, BusVirtioSCSI, BusSCSI, BusUSB, BusNVMe} {
		s := good(t)
		s.Disks = []Disk{{Path: "/d", Format: "raw", Bus: bus}, SeedDisk("/s", bus)}
		s.Machine = ""
		if err := s.WithDefaults().Validate(); err != nil {
			t.Errorf("%s: %v", bus, err)
		}
	}
}

func TestJSON(t *testing.T) {
	s := good(t)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var again Spec
	if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(s, again) {
		t.Errorf("%v\n%+v\n%+v", err, again, s)
	}
}

// TestValidate breaks one rule at a time: exactly that one is named, with a
// remedy.
func TestValidate(t *testing.T) {
	disk := func(change func(*Disk)) func(*Spec) { return func(s *Spec) { change(&s.Disks[0]) } }
	forward := func(f ...Forward) func(*Spec) {
		return func(s *Spec) {
			for i := range f {
				f[i] = f[i].withDefaults()
			}
			s.NICs[0].Forwards = f
		}
	}
	many := func(n int, bus Bus) func(*Spec) {
		return func(s *Spec) {
			s.Disks = nil
			for i := range n {
				s.Disks = append(s.Disks, Disk{Path: fmt.Sprint("/d", i), Format: "raw", Bus: bus}.withDefaults(s.Machine, i))
			}
		}
	}
	for name, c := range map[string]struct {
		change      func(*Spec)
		field, text string
	}{
		"no name":        {func(s *Spec) { s.Name = "" }, "name", "not a machine name"},
		"name":           {func(s *Spec) { s.Name = "../x" }, "name", "not a machine name"},
		"long name":      {func(s *Spec) { s.Name = strings.Repeat("x", 64) }, "name", "not a machine name"},
		"uuid":           {func(s *Spec) { s.UUID = "X" }, "uuid", "not a UUID"},
		"no CPU":         {func(s *Spec) { s.CPUs = -1 }, "cpus", "-1 virtual CPUs"},
		"CPUs":           {func(s *Spec) { s.CPUs = 256 }, "cpus", "256 virtual CPUs"},
		"memory":         {func(s *Spec) { s.Memory = 1000 }, "memory", "1000 bytes"},
		"odd memory":     {func(s *Spec) { s.Memory++ }, "memory", "whole number of MiB"},
		"too much":       {func(s *Spec) { s.Memory = MaxMemory + MinMemory }, "memory", "bytes"},
		"machine":        {func(s *Spec) { s.Machine = "virt" }, "machine", `"virt"`},
		"accelerator":    {func(s *Spec) { s.Accel = "xen" }, "accel", `"xen"`},
		"CPU model":      {func(s *Spec) { s.CPU = "max -x" }, "cpu", "not a CPU model"},
		"host on TCG":    {func(s *Spec) { s.CPU, s.Accel = "host", AccelTCG }, "cpu", "needs KVM"},
		"relative path":  {disk(func(d *Disk) { d.Path = "disk.qcow2" }), "disks[0].path", "not an absolute path"},
		"zero in path":   {disk(func(d *Disk) { d.Path = "/a\x00b" }), "disks[0].path", "zero byte"},
		"no format":      {disk(func(d *Disk) { d.Format = "" }), "disks[0].format", "not a format"},
		"format":         {disk(func(d *Disk) { d.Format = "zip" }), "disks[0].format", `"zip"`},
		"bus":            {disk(func(d *Disk) { d.Bus = "xen" }), "disks[0].bus", `"xen"`},
		"device":         {disk(func(d *Disk) { d.Device = "tape" }), "disks[0].device", `"tape"`},
		"virtio CD-ROM":  {disk(func(d *Disk) { d.Device, d.ReadOnly = DeviceCDROM, true }), "disks[0].bus", "no CD-ROM"},
		"writable CD":    {disk(func(d *Disk) { d.Device, d.Bus = DeviceCDROM, BusSATA }), "disks[0].readOnly", "always read-only"},
		"read-only sata": {disk(func(d *Disk) { d.ReadOnly, d.Bus = true, BusSATA }), "disks[0].readOnly", "cannot be read-only"},
		"cache":          {disk(func(d *Disk) { d.Cache = "maybe" }), "disks[0].cache", `"maybe"`},
		"serial":         {disk(func(d *Disk) { d.Serial = "a,b" }), "disks[0].serial", `"a,b"`},
		"long serial":    {disk(func(d *Disk) { d.Serial = strings.Repeat("x", 21) }), "disks[0].serial", "x"},
		"boot index":     {disk(func(d *Disk) { d.BootIndex = -1 }), "disks[0].bootIndex", "-1"},
		"same boot":      {func(s *Spec) { s.Disks[1].BootIndex = 1 }, "disks[1].bootIndex", "also that of disks[0]"},
		"same image":     {func(s *Spec) { s.Disks[1] = s.Disks[0]; s.Disks[1].BootIndex = 0 }, "disks[1].path", "also disks[0]"},
		"ide on q35":     {disk(func(d *Disk) { d.Bus = BusIDE }), "disks", "q35 has no ide"},
		"five on ide":    {func(s *Spec) { s.Machine = MachinePC; many(5, BusIDE)(s) }, "disks", "5 drives on ide, which takes 4"},
		"seven on sata":  {many(7, BusSATA), "disks", "7 drives on sata, which takes 6"},
		"slots":          {many(29, BusVirtio), "disks", "31 PCI slots and has 29"},
		"scsi":           {many(257, BusVirtioSCSI), "disks", "257 drives on virtio-scsi"},
		"card":           {func(s *Spec) { s.NICs[0].Model = "wifi" }, "nics[0].model", `"wifi"`},
		"mac":            {func(s *Spec) { s.NICs[0].MAC = "52:54" }, "nics[0].mac", "not a card's address"},
		"multicast":      {func(s *Spec) { s.NICs[0].MAC = "53:54:00:00:00:00" }, "nics[0].mac", "not a card's address"},
		"dashed mac":     {func(s *Spec) { s.NICs[0].MAC = "52-54-00-00-00-00" }, "nics[0].mac", "not a card's address"},
		"same mac":       {func(s *Spec) { s.NICs = append(s.NICs, NIC{Model: "e1000", MAC: s.NICs[0].MAC}) }, "nics[1].mac", "also that of nics[0]"},
		"protocol":       {forward(Forward{Proto: "sctp", GuestPort: 1}), "nics[0].forwards[0].proto", `"sctp"`},
		"guest port":     {forward(Forward{GuestPort: 0}), "nics[0].forwards[0].guestPort", "0 is not a port"},
		"host port":      {forward(Forward{HostPort: 65536, GuestPort: 1}), "nics[0].forwards[0].hostPort", "65536"},
		"host address":   {forward(Forward{HostAddr: "::1", GuestPort: 1}), "nics[0].forwards[0].hostAddr", "::1"},
		"same port":      {forward(Forward{HostPort: 80, GuestPort: 1}, Forward{HostPort: 80, GuestPort: 2}), "nics[0].forwards[1].hostPort", "also that of nics[0].forwards[0]"},
		"port, then all": {forward(Forward{HostPort: 80, GuestPort: 1}, Forward{HostAddr: "0.0.0.0", HostPort: 80, GuestPort: 2}), "nics[0].forwards[1].hostPort", "also that of"},
		"all, then port": {forward(Forward{HostAddr: "0.0.0.0", HostPort: 80, GuestPort: 1}, Forward{HostPort: 80, GuestPort: 2}), "nics[0].forwards[1].hostPort", "also that of"},
		"open VNC":       {func(s *Spec) { s.Graphics.VNC = "0.0.0.0:1" }, "graphics.vnc", "not a loopback address"},
		"VNC options":    {func(s *Spec) { s.Graphics.VNC = "[::1%a,password=off]:1" }, "graphics.vnc", "not a loopback address"},
		"VNC":            {func(s *Spec) { s.Graphics.VNC = "yes" }, "graphics.vnc", "not HOST:DISPLAY"},
		"VNC display":    {func(s *Spec) { s.Graphics.VNC = "127.0.0.1:60000" }, "graphics.vnc", "not a display number"},
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

// TestValidateAccepts: near misses of the rules above.
func TestValidateAccepts(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"udp and tcp":    func(s *Spec) { s.NICs[0].Forwards = append(s.NICs[0].Forwards, Forward{"udp", "127.0.0.1", 8080, 80}) },
		"two addresses":  func(s *Spec) { s.NICs[0].Forwards = append(s.NICs[0].Forwards, Forward{"tcp", "127.0.0.2", 8080, 80}) },
		"chosen ports":   func(s *Spec) { s.NICs[0].Forwards = []Forward{{"tcp", "127.0.0.1", 0, 1}, {"tcp", "127.0.0.1", 0, 2}} },
		"local VNC":      func(s *Spec) { s.Graphics.VNC = "localhost:0" },
		"VNC on ::1":     func(s *Spec) { s.Graphics.VNC = "[::1]:5" },
		"CPU with flags": func(s *Spec) { s.CPU = "Skylake-Server-v4,+vmx,-avx512f,level=0xd" },
		"no disk":        func(s *Spec) { s.Disks = nil },
		"one ISO twice":  func(s *Spec) { s.Disks = append(s.Disks, s.Disks[1]) },
	} {
		s := good(t)
		change(&s)
		if err := s.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllProblems(t *testing.T) {
	s := good(t)
	s.Name, s.CPUs, s.Disks[0].Format = "", 0, "zip"
	err := s.Validate()
	var invalid *InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) != 3 {
		t.Fatalf("%v", err)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) != 4 {
		t.Errorf("%q", lines)
	}
}

// TestDirect: O_DIRECT is tried on the image, or in the folder that it will be
// made in.
func TestDirect(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, filepath.Join(dir, "not", "yet")} {
		if err := TryDirect(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	// A file system that is known to refuse it.
	const refuses = "/proc/version"
	if fd, err := unix.Open(refuses, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd)
		t.Fatalf("%s takes O_DIRECT: the test needs another file", refuses)
	}
	for _, cache := range []Cache{CacheNone, CacheDirectsync} {
		s := good(t)
		s.Disks[0].Path, s.Disks[0].Cache = refuses, cache
		var invalid *InvalidError
		if err := s.Validate(); !errors.As(err, &invalid) || invalid.Problems[0].Field != "disks[0].cache" || !strings.Contains(err.Error(), "O_DIRECT") {
			t.Errorf("%s: %v", cache, err)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	s := good(t)
	err := s.CheckFiles()
	if !errors.Is(err, os.ErrNotExist) || strings.Count(err.Error(), "no such file") != 2 {
		t.Errorf("missing: %v", err)
	}
	for _, d := range s.Disks {
		if err := os.WriteFile(d.Path, nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() != 0 {
		if err := s.CheckFiles(); !errors.Is(err, os.ErrPermission) {
			t.Errorf("a disk that cannot be written: %v", err)
		}
	}
	if err := os.Chmod(s.Disks[0].Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckFiles(); err != nil {
		t.Error(err)
	}
	s.Disks[0].Path = t.TempDir()
	if err := s.CheckFiles(); err == nil || !strings.Contains(err.Error(), "neither a file nor a block device") {
		t.Errorf("a folder: %v", err)
	}
}

func TestMakers(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		u, m := NewUUID(), NewMAC()
		if !validUUID().MatchString(u) || u[14] != '4' || !strings.ContainsRune("89ab", rune(u[19])) {
			t.Errorf("UUID %s", u)
		}
		if !strings.HasPrefix(m, "52:54:00:") || len(m) != 17 {
			t.Errorf("MAC %s", m)
		}
		if seen[u] {
			t.Errorf("UUID %s twice", u)
		}
		seen[u] = true
	}
}

// TestNVMeSerials: two with the same one are one to the guest.
func TestNVMeSerials(t *testing.T) {
	one, two := Spec{}.DiskWithDefaults(Disk{Bus: BusNVMe}), Spec{}.DiskWithDefaults(Disk{Bus: BusNVMe})
	if one.Serial == "" || one.Serial == two.Serial || (Spec{}).DiskWithDefaults(one).Serial != one.Serial {
		t.Errorf("%q, %q", one.Serial, two.Serial)
	}
}
