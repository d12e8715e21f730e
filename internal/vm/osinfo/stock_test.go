package osinfo

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// hostDB is the host's database, which the tests share as it is safe for
// concurrent use.
var hostDB = sync.OnceValue(func() *DB { return Open("/usr/share/osinfo") })

// stock runs testdata/stock.py and decodes its answer.
func stock[T any](t *testing.T, verb string, question any) T {
	t.Helper()
	for _, tool := range []string{"virt-install", "osinfo-query"} {
		qemutest.Path(t, tool)
	}
	in, err := json.Marshal(question)
	if err != nil {
		t.Fatal(err)
	}
	// The Python that virt-install itself names, which has its modules.
	cmd := exec.Command("/usr/bin/python3", "testdata/stock.py", verb)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "HOME="+home, "XDG_CACHE_HOME="+home, "XDG_CONFIG_HOME="+home, "PYTHONDONTWRITEBYTECODE=1",
		"OSINFO_SYSTEM_DIR=/usr/share/osinfo", "OSINFO_LOCAL_DIR="+home+"/none", "OSINFO_USER_DIR="+home+"/none")
	cmd.Stdin = bytes.NewReader(in)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Run(); err != nil {
		t.Fatalf("stock.py %s: %v\n%s", verb, err, errb.String())
	}
	var answer T
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		t.Fatalf("stock.py %s: %v\n%.2000s", verb, err, out.String())
	}
	return answer
}

type stockSystem struct {
	Short                         []string
	Name, Family, Distro, Version string
	Released, EOL                 string
	Devices                       [][3]string
	Firmware                      [][3]any
	Minimum, Recommended, Network [][4]any
	URLArg                        string
}

func (s stockSystem) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q %q %q %s %s\n", slices.Compact(s.Short), s.Name, s.Family, s.Distro, s.Version, s.Released, s.EOL)
	for _, d := range s.Devices {
		fmt.Fprintf(&b, "device %s\n", d)
	}
	for _, arch := range []string{"x86_64", "i686"} {
		support := map[string]string{}
		for _, f := range slices.Backward(s.Firmware) {
			if f[0] == arch {
				support[f[1].(string)] = fmt.Sprint(f[2])
			}
		}
		fmt.Fprintf(&b, "uefi only on %s: %t\n", arch, slices.Contains(s.Short, "win11") || support["efi"] == "true" && support["bios"] == "false")
	}
	for _, list := range [][][4]any{s.Minimum, s.Recommended, s.Network} {
		for _, r := range list {
			fmt.Fprintf(&b, "%v %.0f %.0f %.0f\n", r[0], r[1], r[2], r[3])
		}
		b.WriteString("--\n")
	}
	return b.String()
}

func describe(o OS) string {
	s := stockSystem{Short: o.ShortIDs, Name: o.Name, Family: o.Family, Distro: o.Distro, Version: o.Version}
	if !o.Released.IsZero() {
		s.Released = o.Released.Format("2006-01-02")
	}
	if !o.EOL.IsZero() {
		s.EOL = o.EOL.Format("2006-01-02")
	}
	for _, d := range o.Devices() {
		s.Devices = append(s.Devices, [3]string{d.ID, d.Name, d.Class})
	}
	for _, arch := range []string{"x86_64", "i686"} {
		s.Firmware = append(s.Firmware, [3]any{arch, "efi", o.firmwareSupport("efi", arch, false)}, [3]any{arch, "bios", o.firmwareSupport("bios", arch, true)})
	}
	list := func(of func(*resourceLists) []requirement) (all [][4]any) {
		for _, r := range o.requirements(of) {
			all = append(all, [4]any{r.arch, float64(r.cpus), float64(r.ram), float64(r.storage)})
		}
		return all
	}
	s.Minimum = list(func(l *resourceLists) []requirement { return l.minimum })
	s.Recommended = list(func(l *resourceLists) []requirement { return l.recommended })
	s.Network = list(func(l *resourceLists) []requirement { return l.networkInstall })
	return s.describe()
}

// Every system of the host's database says what it says through libosinfo:
// names, dates, devices with their inheritance, firmware, resources.
func TestEverySystemAsLibosinfo(t *testing.T) {
	t.Parallel()
	theirs := stock[map[string]stockSystem](t, "systems", nil)
	if len(theirs) < 700 {
		t.Fatalf("libosinfo knows %d systems: is osinfo-db whole?", len(theirs))
	}
	db := hostDB()
	for _, o := range db.List() {
		if o.ShortID == Generic {
			continue
		}
		s, ok := theirs[o.ID]
		if !ok {
			t.Errorf("%s is not in libosinfo", o.ID)
			continue
		}
		delete(theirs, o.ID)
		if got, want := describe(o), s.describe(); got != want {
			t.Errorf("%s: got\n%s\nlibosinfo has\n%s", o.ID, got, want)
		}
		if got := o.KernelURLArg(); s.URLArg != "" && got != s.URLArg {
			t.Errorf("%s: kernel argument %q, libosinfo has %q", o.ID, got, s.URLArg)
		}
		for _, id := range o.ShortIDs {
			if l, err := db.Lookup(id); err != nil || l.ID != o.ID {
				t.Errorf("lookup of %s: %q, %v; want %s", id, l.ID, err, o.ID)
			}
		}
		if l, err := db.Lookup(o.ID); err != nil || l.ID != o.ID {
			t.Errorf("lookup of %s: %q, %v", o.ID, l.ID, err)
		}
	}
	for id := range theirs {
		t.Errorf("%s is missing", id)
	}
	if problems := db.Problems(); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
}

func TestListAsVirtInstall(t *testing.T) {
	t.Parallel()
	r := qemutest.Run(t, "virt-install", "--osinfo", "list")
	var ours strings.Builder
	for _, o := range hostDB().List() {
		ids := slices.Clone(o.ShortIDs)
		slices.Sort(ids)
		ours.WriteString(strings.Join(ids, ", ") + "\n")
	}
	theirs, _, _ := strings.Cut(r.Stdout, "\n\n")
	if got := strings.TrimSpace(ours.String()); got != theirs {
		for i, line := range strings.Split(got, "\n") {
			if other := strings.Split(theirs, "\n"); i >= len(other) || other[i] != line {
				t.Fatalf("line %d: %q, virt-install has %q", i, line, other[min(i, len(other)-1)])
			}
		}
		t.Fatal("virt-install's list goes on where ours ends")
	}
}

// machineSystems are the systems whose machines are compared with
// virt-install's: of each family, and where something changes between releases.
var machineSystems = strings.Fields(`
	almalinux9 alpinelinux3.15 archlinux centos5.0 centos6.10 centos7.0 centos-stream9 cirros0.5.2 debian4 debian6 debian10 debian11
	fedora25 fedora37 freebsd9.0 freebsd13.1 freedos1.2 generic haikunightly linux2016 linux2022 macosx10.7 msdos6.22
	netbsd9.0 netware6 ol8.5 openbsd7.0 opensuse15.4 rhel5.0 rhel6.9 rhel7.9 rhel9.1 sle15sp4 solaris10
	ubuntu10.04 ubuntu14.04 ubuntu18.04 ubuntu22.04 win2k win2k3 win2k12r2 win2k19 win3.1 winxp win7 win10 win11`)

type machineCase struct {
	system string
	want   Request
	args   []string
}

func machineCases() []machineCase {
	var cases []machineCase
	add := func(system string, want Request, more ...string) {
		args := []string{"--osinfo", system, "--name", "x", "--disk", "size=10", "--disk", "device=cdrom", "--import", "--graphics", cmp.Or(want.Graphics, "none")}
		// Where nothing recommends a memory (see TestEverySystemAsLibosinfo), it
		// must be given.
		if o, err := hostDB().Lookup(system); err == nil && Defaults(o, want).Memory == 0 {
			more = append(more, "--memory", "4096")
		}
		cases = append(cases, machineCase{system, want, append(args, more...)})
	}
	for i, system := range machineSystems {
		add(system, Request{Graphics: []string{"spice", "spice", "vnc", "none"}[i%4]})
	}
	add("debian11", Request{Graphics: "vnc", UEFI: true}, "--boot", "uefi")
	add("win10", Request{Graphics: "vnc", UEFI: true}, "--boot", "uefi")
	add("debian11", Request{Graphics: "spice", Machine: "pc"}, "--machine", "pc")
	add(Generic, Request{Graphics: "spice", Machine: "q35"}, "--machine", "q35")
	add("win10", Request{Graphics: "vnc", Arch: "aarch64"}, "--arch", "aarch64")
	add("centos7.0", Request{Graphics: "spice", Arch: "aarch64"}, "--arch", "aarch64")
	// A disk on the scsi bus gets a controller.
	for _, system := range []string{"centos6.10", "centos7.0", "win10"} {
		add(system, Request{}, "--disk", "size=1,bus=scsi")
	}
	return cases
}

func TestMachinesAsVirtInstall(t *testing.T) {
	t.Parallel()
	cases := machineCases()
	if len(cases) < 40 {
		t.Fatal("too few cases")
	}
	var asked [][]string
	for _, c := range cases {
		if _, err := hostDB().Lookup(c.system); err != nil {
			t.Fatal(err)
		}
		asked = append(asked, c.args)
	}
	answers := stock[[]string](t, "machines", asked)
	for i, c := range cases {
		o, _ := hostDB().Lookup(c.system)
		var d domain
		if err := xml.Unmarshal([]byte(answers[i]), &d); err != nil {
			t.Fatalf("%s: %v\n%s", c.args, err, answers[i])
		}
		scsi := slices.Contains(c.args, "size=1,bus=scsi")
		if got, want := machineText(o, Defaults(o, c.want), scsi), d.text(); got != want {
			t.Errorf("%s: %s", c.args, differing(got, want))
		}
	}
}

// domain is what of libvirt's XML a Machine decides.
type domain struct {
	Memory int64 `xml:"memory"`
	VCPU   int64 `xml:"vcpu"`
	OS     struct {
		Firmware string `xml:"firmware,attr"`
		Type     struct {
			Machine string `xml:"machine,attr"`
		} `xml:"type"`
	} `xml:"os"`
	Features struct {
		ACPI   *struct{} `xml:"acpi"`
		APIC   *struct{} `xml:"apic"`
		HyperV *struct {
			Spinlocks struct {
				Retries int `xml:"retries,attr"`
			} `xml:"spinlocks"`
		} `xml:"hyperv"`
		VMPort *struct{} `xml:"vmport"`
	} `xml:"features"`
	Clock struct {
		Offset string `xml:"offset,attr"`
		Timers []struct {
			Name    string `xml:"name,attr"`
			Policy  string `xml:"tickpolicy,attr"`
			Present string `xml:"present,attr"`
		} `xml:"timer"`
	} `xml:"clock"`
	PM      *struct{} `xml:"pm"`
	Devices struct {
		Disks []struct {
			Device string `xml:"device,attr"`
			Target struct {
				Bus string `xml:"bus,attr"`
			} `xml:"target"`
		} `xml:"disk"`
		Controllers []struct {
			Type  string `xml:"type,attr"`
			Model string `xml:"model,attr"`
			Ports int    `xml:"ports,attr"`
		} `xml:"controller"`
		NIC struct {
			Model struct {
				Type string `xml:"type,attr"`
			} `xml:"model"`
		} `xml:"interface"`
		Channels []struct {
			Type string `xml:"type,attr"`
		} `xml:"channel"`
		Inputs []struct {
			Type string `xml:"type,attr"`
			Bus  string `xml:"bus,attr"`
		} `xml:"input"`
		TPM struct {
			Model string `xml:"model,attr"`
		} `xml:"tpm"`
		Sound struct {
			Model string `xml:"model,attr"`
		} `xml:"sound"`
		Video struct {
			Model struct {
				Type string `xml:"type,attr"`
			} `xml:"model"`
		} `xml:"video"`
		Redirects []struct{} `xml:"redirdev"`
		Balloon   *struct{}  `xml:"memballoon"`
		RNG       *struct{}  `xml:"rng"`
	} `xml:"devices"`
}

func (d domain) text() string {
	m := Machine{
		Type: d.OS.Type.Machine, UEFI: d.OS.Firmware == "efi", TPM: d.Devices.TPM.Model,
		NIC: d.Devices.NIC.Model.Type, Video: d.Devices.Video.Model.Type, Sound: d.Devices.Sound.Model,
		RNG: d.Devices.RNG != nil, Balloon: d.Devices.Balloon != nil, USBRedirects: len(d.Devices.Redirects),
		VMPortDisabled: d.Features.VMPort != nil, ClockOffset: d.Clock.Offset,
		HyperV: d.Features.HyperV != nil && d.Features.HyperV.Spinlocks.Retries == 8191,
		ACPI:   d.Features.ACPI != nil, APIC: d.Features.APIC != nil, SuspendOff: d.PM != nil,
		CPUs: d.VCPU, Memory: d.Memory << 10,
	}
	for _, disk := range d.Devices.Disks {
		switch {
		case disk.Device == "cdrom":
			m.CDROMBus = disk.Target.Bus
		case m.DiskBus == "": // the first
			m.DiskBus = disk.Target.Bus
		}
	}
	var ich9 []string
	for _, c := range d.Devices.Controllers {
		switch {
		case c.Model == "qemu-xhci":
			m.USB, m.USBPorts = c.Model, c.Ports
		case c.Type == "usb":
			ich9 = append(ich9, c.Model)
		case c.Model == "pcie-root-port":
			m.RootPorts++
		case c.Type == "scsi":
			m.SCSIModel = c.Model
		}
	}
	if slices.Equal(ich9, []string{"ich9-ehci1", "ich9-uhci1", "ich9-uhci2", "ich9-uhci3"}) {
		m.USB = "ich9"
	}
	for _, c := range d.Devices.Channels {
		m.Agent = m.Agent || c.Type == "unix"
		m.SpiceChannel = m.SpiceChannel || c.Type == "spicevmc"
	}
	for _, i := range d.Devices.Inputs {
		m.Inputs = append(m.Inputs, Input{i.Type, i.Bus})
	}
	for _, c := range d.Clock.Timers {
		m.Timers = append(m.Timers, Timer{c.Name, c.Policy, c.Present})
	}
	return m.comparable()
}

// comparable leaves out what virt-install's XML does not show.
func (m Machine) comparable() string {
	m.Storage, m.MinimumMemory = 0, 0
	return strings.Trim(fmt.Sprintf("%+v", m), "{}")
}

// differing returns the words that only one of two texts has.
func differing(got, want string) string {
	a, b := strings.Fields(got), strings.Fields(want)
	only := func(of, not []string) []string {
		return slices.DeleteFunc(slices.Clone(of), func(w string) bool { return slices.Contains(not, w) })
	}
	return fmt.Sprintf("got %s, want %s", only(a, b), only(b, a))
}

func machineText(o OS, m Machine, scsi bool) string {
	if !scsi && m.CDROMBus != "scsi" {
		m.SCSIModel = ""
	}
	if m.Memory == 0 {
		m.Memory = 4 << 30 // what the command line gave
	}
	return m.comparable()
}
