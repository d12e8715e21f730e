package domain

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// stock returns what the stock virt-install printed: see testdata/commands.txt.
func stock(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.xml")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d documents, %v", len(files), err)
	}
	docs := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		docs[strings.TrimSuffix(filepath.Base(f), ".xml")] = b
	}
	return docs
}

func read(t testing.TB, doc string) Reading {
	t.Helper()
	r, err := Unmarshal([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// cannotWork is what virt-install lets pass, and libvirt refuses too.
var cannotWork = map[string]string{
	"spice":   "TLS needs a certificate",
	"devices": "cannot be a second card",
	"tuned":   "a disk on ide",
}

// TestStock: all that virt-install prints is understood, and written again with
// the same meaning.
func TestStock(t *testing.T) {
	for name, doc := range stock(t) {
		r := read(t, string(doc))
		if name == "refused" {
			continue
		}
		for _, p := range r.Problems {
			t.Errorf("%s: %s", name, p)
		}
		var says string
		if err := r.Spec.WithDefaults().Validate(); err != nil {
			says = err.Error()
		}
		if want := cannotWork[name]; (want == "") != (says == "") || !strings.Contains(says, want) {
			t.Errorf("%s: validation says %q, want %q", name, says, want)
		}
		root, err := Marshal(r.Spec, Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again := read(t, root.String())
		for _, p := range again.Problems {
			t.Errorf("%s, written: %s", name, p)
		}
		if a, b := normal(r.Spec), normal(again.Spec); !reflect.DeepEqual(a, b) {
			t.Errorf("%s becomes\n%+v, was\n%+v", name, b, a)
		}
	}
}

// normal undoes what the two ways to say a thing differ in.
func normal(s vm.Spec) vm.Spec {
	if s.Balloon == nil {
		s.Balloon = &vm.Balloon{Model: "none"}
	}
	if s.Panic == nil {
		s.Panic = &vm.Panic{Model: "isa"}
	}
	if s.OnCrash == "" {
		s.OnCrash = vm.ActionPreserve
	}
	if s.Features.VMPort == "" {
		s.Features.VMPort = vm.Off
	}
	if s.Processor.Mode == vm.CPUCustom && s.Processor.Match == "" {
		s.Processor.Match = "exact"
	}
	if len(s.Serials) == 1 && s.Serials[0].Type == vm.CharNone {
		s.Serials = nil
	}
	if s.Videos == nil {
		s.Videos = []vm.Video{{Model: vm.VideoVGA}}
	}
	if t := s.TPM; t != nil && t.Version == "" && t.Type != "passthrough" {
		c := *t
		c.Version = "2.0"
		s.TPM = &c
	}
	s.HotplugPorts = 0 // of a count of devices, which libvirt's own devices are part of
	return s
}

// TestRefused: what plain QEMU cannot do is named, each with its path.
func TestRefused(t *testing.T) {
	r := read(t, string(stock(t)["refused"]))
	var got []string
	for _, p := range r.Problems {
		got = append(got, p.Field)
		if p.Text == "" || p.Remedy == "" {
			t.Errorf("%+v", p)
		}
	}
	want := []string{
		"numatune", "blkiotune", "cputune", "seclabel",
		"devices/disk/source/@startupPolicy",
		"devices/interface[1]/source/@network", "devices/interface[2]",
		"devices/hostdev", "devices/smartcard", "devices/shmem",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("problems\n%q, want\n%q", got, want)
	}
}

// TestNothingIgnored: an element or attribute that nobody knows is named,
// wherever it stands.
func TestNothingIgnored(t *testing.T) {
	const base = `<domain type="qemu"><name>a</name><memory>1024</memory><os><type machine="pc">hvm</type></os><devices>%</devices></domain>`
	for devices, want := range map[string]string{
		`<disk type="file" new="1"><target dev="vda" bus="virtio"/></disk>`:                     "devices/disk/@new",
		`<disk><source file="/a"><slow/></source><target dev="vda" bus="virtio"/></disk>`:       "devices/disk/source/slow",
		`<disk><target dev="vda" bus="virtio"/></disk><disk><target dev="b" bus="xen"/></disk>`: "devices/disk[2]/target/@bus",
		`<video/>`:                           "@type", // found by FuzzUnmarshal
		`<rng/>`:                             "devices/rng",
		`<warp/>`:                            "devices/warp",
		`<video><model type="gop"/></video>`: "devices/video/model/@type",
		`<interface type="user">text<model type="virtio"/></interface>`:                            "devices/interface",
		`<disk><driver type="qcow2" cache="maybe"/><target dev="vda" bus="virtio"/></disk>`:        "devices/disk/driver/@cache",
		`<controller type="usb" index="x" model="qemu-xhci"/>`:                                     "devices/controller/@index",
		`<disk type="volume"><source pool="p" volume="v"/><target dev="vda" bus="virtio"/></disk>`: "devices/disk/source",
	} {
		r := read(t, strings.Replace(base, "%", devices, 1))
		if len(r.Problems) != 1 || r.Problems[0].Field != want {
			t.Errorf("%s: %v, want one at %s", devices, r.Problems, want)
		}
	}
	// One that is not said is made up, as by libvirt.
	made := read(t, strings.Replace(base, "<memory>", "<genid/><memory>", 1)).Spec.GenerationID
	if len(made) != 36 {
		t.Errorf("generation id %q", made)
	}
	for _, doc := range []string{"", "x", "<network/>"} {
		if _, err := Unmarshal([]byte(doc)); err == nil {
			t.Errorf("%q: no error", doc)
		}
	}
}

// TestMarshalRefuses: what libvirt does not have is named.
func TestMarshalRefuses(t *testing.T) {
	s := vm.Spec{Name: "a", NICs: []vm.NIC{{Forwards: []vm.Forward{{GuestPort: 22}}}}, Disks: []vm.Disk{{Path: "/a", SecretFile: "/s"}}}.WithDefaults()
	_, err := Marshal(s, Options{})
	var invalid *vm.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) != 2 || invalid.Problems[0].Field != "disks[0].secretFile" || invalid.Problems[1].Field != "nics[0].forwards" {
		t.Errorf("%v", err)
	}
}

// TestLibvirtAccepts: a real libvirtd defines what Marshal writes, and all that
// it adds of its own is understood.
func TestLibvirtAccepts(t *testing.T) {
	d := libvirttest.Start(t)
	docs := stock(t)
	delete(docs, "refused")
	const genID = "c7b5e4a0-1111-4222-8333-444455556666"
	names := map[string]bool{}
	var script strings.Builder
	dir := t.TempDir()
	for name, doc := range docs {
		s := read(t, string(doc)).Spec
		s.Name, s.UUID, s.Accel, s.GenerationID = name, vm.NewUUID(), vm.AccelTCG, genID
		s.TPM = nil // which needs swtpm
		switch name {
		case "tuned": // virt-install lets pass what libvirt refuses
			s.Disks[0].IOThread = 0
		case "devices":
			s.Videos = s.Videos[:1]
		case "spice": // this daemon has no certificates
			s.Displays[0].TLSPort = 0
		}
		root, err := Marshal(s, Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		path := filepath.Join(dir, name+".xml")
		if err := os.WriteFile(path, []byte(root.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		script.WriteString("define --validate " + path + "\n")
		names[name] = true
	}
	virsh := func(script string) string {
		cmd := exec.Command("virsh", "-c", d.URI)
		cmd.Stdin = strings.NewReader(script)
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "error:") {
			t.Errorf("virsh: %v\n%s", err, out)
		}
		return string(out)
	}
	virsh(script.String())
	for name := range names {
		doc := virsh("dumpxml --inactive " + name)
		begin, end := strings.Index(doc, "<domain"), strings.LastIndex(doc, "</domain>")
		if begin < 0 || end < begin {
			t.Fatalf("%s: %s", name, doc)
		}
		r := read(t, doc[begin:end+len("</domain>")])
		for _, p := range r.Problems {
			t.Errorf("%s as libvirt keeps it: %s", name, p)
		}
		want := read(t, string(docs[name])).Spec
		if r.Spec.GenerationID != genID {
			t.Errorf("%s: libvirt keeps generation id %q", name, r.Spec.GenerationID)
		}
		if len(r.Spec.Disks) != len(want.Disks) || len(r.Spec.NICs) != len(want.NICs) || r.Spec.Memory != want.Memory || r.Spec.Chipset() != want.Chipset() {
			t.Errorf("%s: libvirt keeps another machine: %+v", name, r.Spec)
		}
	}
}

// FuzzUnmarshal: no document panics, and none gives more findings than are
// listed; what is read without a problem can be written and read again.
func FuzzUnmarshal(f *testing.F) {
	for _, doc := range stock(f) {
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		r, err := Unmarshal(doc)
		if err != nil {
			return
		}
		if len(r.Problems) > maxFindings || len(r.Notes) > maxFindings {
			t.Errorf("%d problems, %d notes", len(r.Problems), len(r.Notes))
		}
		root, err := Marshal(r.Spec, Options{})
		if err != nil {
			return
		}
		if _, err := Read(root); err != nil {
			t.Error(err)
		}
	})
}
