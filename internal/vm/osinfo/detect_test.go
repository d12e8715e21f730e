package osinfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// pyBool is a bool as Python prints it.
func pyBool(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

func (m Match) row() string {
	reboots, eject := "False", "False"
	if m.Media.Installer {
		reboots, eject = fmt.Sprint(m.Media.InstallerReboots), pyBool(m.Media.EjectAfterInstall)
	}
	return fmt.Sprint([]string{m.OS.ID, m.Media.Arch, m.Media.Kernel, m.Media.Initrd, pyBool(m.Media.Live),
		pyBool(m.Media.Installer), pyBool(m.Media.InstallerScript), reboots, eject})
}

// alternative reports whether a row is of another description of the same
// system with the same expressions: libosinfo takes any of them, where we take
// the one with the disc's size, if there is one.
func alternative(m Match, d Disc, row string) bool {
	for _, other := range m.OS.Media() {
		if other.matches(d) && other.VolumeID == m.Media.VolumeID && (Match{OS: m.OS, Media: other}).row() == row {
			return true
		}
	}
	return false
}

// Discs made of the database's own descriptions are recognised as libosinfo
// does. (All 2,103 of osinfo-db 20221130 were compared once: it differs for
// the live CDs of openSUSE 11.3 to 12.2, which have one description.)
func TestDetectAsLibosinfo(t *testing.T) {
	t.Parallel()
	var discs []Disc
	n := 0
	hostDB().eachRecord(func(r *record) {
		for _, m := range r.media {
			if n++; n%53 == 0 && m.VolumeID != "" && !strings.Contains(m.VolumeID, "openSUSE Live") {
				discs = append(discs, sampleDisc(t, m))
			}
		}
	})
	discs = append(discs,
		Disc{VolumeID: "Debian 11.6.0 amd64 n", VolumeSize: 1 << 29}, Disc{VolumeID: "CentOS 7 x86_64", SystemID: "LINUX", VolumeSize: 1},
		Disc{VolumeID: "nobody's disc", VolumeSize: 5}, Disc{VolumeID: "Asianux Server 7 SP2 x86_64"}, Disc{VolumeID: "Asianux Server 7 SP5 x86_64"},
		Disc{VolumeID: "CCCOMA_X64FRE_EN-US_DV9", PublisherID: "MICROSOFT CORPORATION", VolumeSize: 5557432320})
	var asked []any
	for _, d := range discs {
		asked = append(asked, question(d))
	}
	if len(discs) < 40 {
		t.Fatalf("%d discs are too few", len(discs))
	}
	for i, theirs := range stock[[][]string](t, "discs", asked) {
		m, err := hostDB().DetectDisc(discs[i])
		switch {
		case theirs == nil:
			if !errors.Is(err, ErrUnknownMedia) {
				t.Errorf("%+v: %s, %v; libosinfo does not know it", discs[i], m.OS.ID, err)
			}
		case err != nil || m.row() != fmt.Sprint(theirs) && !alternative(m, discs[i], fmt.Sprint(theirs)):
			t.Errorf("%+v: %s, %v; libosinfo has %s", discs[i], m.row(), err, theirs)
		}
	}
}

func TestDetectTreeAsLibosinfo(t *testing.T) {
	t.Parallel()
	var infos []Treeinfo
	n := 0
	hostDB().eachRecord(func(r *record) {
		for _, tree := range r.trees {
			if e := tree.Treeinfo; tree.hasTreeinfo {
				if n++; n%17 == 0 {
					infos = append(infos, Treeinfo{Family: sample(t, e.Family), Variant: sample(t, e.Variant), Version: sample(t, e.Version), Arch: sample(t, e.Arch)})
				}
			}
		}
	})
	infos = append(infos, Treeinfo{Family: "Nobody", Version: "1", Arch: "x86_64"},
		Treeinfo{Family: "Fedora", Variant: "Server", Version: "37", Arch: "x86_64"}, Treeinfo{Family: "CentOS", Version: "7", Arch: "x86_64"})
	var asked []any
	for _, i := range infos {
		asked = append(asked, map[string]string{"treeinfo-family": i.Family, "treeinfo-variant": i.Variant, "treeinfo-version": i.Version, "treeinfo-arch": i.Arch})
	}
	for i, theirs := range stock[[][]string](t, "trees", asked) {
		m, err := hostDB().DetectTree(infos[i])
		switch {
		case theirs == nil:
			if !errors.Is(err, ErrUnknownMedia) {
				t.Errorf("%+v: %s, %v; libosinfo does not know it", infos[i], m.OS.ID, err)
			}
		case err != nil || m.OS.ID != theirs[0]:
			t.Errorf("%+v: %s, %v; libosinfo has %s", infos[i], m.OS.ID, err, theirs[0])
		}
	}
}

// eachRecord calls visit with every system, in the order of their keys.
func (db *DB) eachRecord(visit func(*record)) {
	db.byName()
	index := db.index()
	for _, key := range slices.Sorted(maps.Keys(index)) {
		if r, err := index[key].read(); err == nil {
			visit(r)
		}
	}
}

// isoImage is the start of an ISO 9660 image that says of itself what d does.
func isoImage(d Disc) []byte {
	img := make([]byte, pvdOffset+4*sector)
	pvd := img[pvdOffset:]
	copy(pvd, "\x01CD001\x01")
	for _, f := range []struct {
		at, size int
		text     string
	}{{8, 32, d.SystemID}, {40, 32, d.VolumeID}, {318, 128, d.PublisherID}, {574, 128, d.ApplicationID}} {
		copy(pvd[f.at:f.at+f.size], f.text+strings.Repeat(" ", f.size))
	}
	blocks := uint32(d.VolumeSize / sector)
	binary.LittleEndian.PutUint32(pvd[80:], blocks)
	binary.BigEndian.PutUint32(pvd[84:], blocks)
	binary.LittleEndian.PutUint16(pvd[128:], sector)
	binary.BigEndian.PutUint16(pvd[130:], sector)
	if d.ElTorito {
		copy(img[pvdOffset+sector:], "\x00CD001\x01"+boot9660)
	}
	return img
}

// Image files, as osinfo-detect reads them. (Of one without El Torito record and
// without root folder it never comes back, so there is none here.)
func TestDetectFilesAsOsinfoDetect(t *testing.T) {
	t.Parallel()
	for _, d := range []Disc{
		{VolumeID: "Debian 11.6.0 amd64 n", SystemID: "LINUX", VolumeSize: 400 << 20, ElTorito: true},
		{VolumeID: "no such disc", VolumeSize: 1 << 20, ElTorito: true},
	} {
		path := filepath.Join(t.TempDir(), "disc.iso")
		img := isoImage(d)
		if err := os.WriteFile(path, img, 0o600); err != nil {
			t.Fatal(err)
		}
		read, err := ReadDisc(bytes.NewReader(img), int64(len(img)))
		if err != nil {
			t.Fatal(err)
		}
		r := qemutest.Run(t, "osinfo-detect", path)
		m, err := hostDB().DetectDisc(read)
		if err != nil && !errors.Is(err, ErrUnknownMedia) {
			t.Fatal(err)
		}
		if got, want := read.Bootable(), strings.Contains(r.Stdout, "is bootable"); got != want {
			t.Errorf("%+v: bootable %t, osinfo-detect says\n%s%s", d, got, r.Stdout, r.Stderr)
		}
		if got, want := err == nil && read.Bootable(), strings.Contains(r.Stdout, "Debian 11"); got != want || want && m.OS.Name != "Debian 11" {
			t.Errorf("%+v: %q, %v; osinfo-detect says\n%s%s", d, m.OS.Name, err, r.Stdout, r.Stderr)
		}
		if read.VolumeSize != d.VolumeSize || read.VolumeID != d.VolumeID || read.SystemID != d.SystemID || read.ElTorito != d.ElTorito {
			t.Errorf("read %+v, want %+v", read, d)
		}
	}
}

// The files of a real image, with and without Rock Ridge.
func TestDiscFile(t *testing.T) {
	t.Parallel()
	for _, options := range [][]string{{"-r"}, {"-iso-level", "3"}} {
		dir := t.TempDir()
		tree := filepath.Join(dir, "tree")
		kernel := bytes.Repeat([]byte("kernel"), 5000)
		for name, data := range map[string][]byte{"casper/vmlinuz": kernel, "casper/initrd": []byte("i"), "ppc/bootinfo.txt": []byte("boot"), "empty": nil} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(tree, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 100 { // a folder of several sectors
			if err := os.WriteFile(filepath.Join(tree, "casper", fmt.Sprintf("a%03d.bin", i)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		iso := filepath.Join(dir, "disc.iso")
		if r := qemutest.Run(t, "genisoimage", append(options, "-quiet", "-V", "TEST DISC", "-o", iso, tree)...); r.Status != 0 {
			t.Fatal(r.Stderr)
		}
		img, err := os.ReadFile(iso)
		if err != nil {
			t.Fatal(err)
		}
		size := int64(len(img))
		d, err := ReadDisc(bytes.NewReader(img), size)
		if err != nil || d.VolumeID != "TEST DISC" || d.ElTorito || !d.PPCBoot || !d.Bootable() || d.VolumeSize > size {
			t.Fatalf("%v: %+v, %v", options, d, err)
		}
		f, err := d.File(bytes.NewReader(img), size, "/casper/vmlinuz")
		if err != nil {
			t.Fatalf("%v: %v", options, err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%v: %d bytes of the kernel, %v", options, len(got), err)
		}
		for _, missing := range []string{"casper/vmlinux", "casper", "", "/", "casper/vmlinuz/x", "nowhere/x", "casper/../empty"} {
			if _, err := d.File(bytes.NewReader(img), size, missing); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v: %q: %v", options, missing, err)
			}
		}
		// Cut behind the descriptors: an error, no panic, no short file.
		for cut := int64(pvdOffset + sector); cut < size; cut += 3001 {
			part := bytes.NewReader(img[:cut])
			d, err := ReadDisc(part, cut)
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			if f, err := d.File(part, cut, "casper/vmlinuz"); err == nil {
				if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, kernel) {
					t.Errorf("cut at %d: %d bytes, %v", cut, len(got), err)
				}
			}
		}
	}
}

func TestNotISO(t *testing.T) {
	t.Parallel()
	good := isoImage(Disc{VolumeID: "X", VolumeSize: sector})
	noID := isoImage(Disc{VolumeSize: sector})
	for name, img := range map[string][]byte{"empty": nil, "short": good[:pvdOffset+sector-1], "zeros": make([]byte, len(good)), "no volume id": noID} {
		if _, _, err := hostDB().Detect(bytes.NewReader(img), int64(len(img))); !errors.Is(err, ErrNotISO) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d, err := ReadDisc(bytes.NewReader(good), int64(len(good))); err != nil || d.Bootable() {
		t.Errorf("%+v, %v", d, err)
	}
	broken := errors.New("broken disc")
	if _, err := ReadDisc(failing{broken}, 1<<20); !errors.Is(err, broken) || errors.Is(err, ErrNotISO) {
		t.Errorf("an error of the disc: %v", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestParseTreeinfo(t *testing.T) {
	t.Parallel()
	const text = "# a tree\n[general]\nname = Fedora-37\nfamily = Nobody\nfamily = Fedora\nversion=37\narch = x86_64\nvariant = Server\n\n" +
		"[images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\nboot.iso = images/boot.iso\n[images-xen]\nkernel = no\n"
	got, err := ParseTreeinfo([]byte(text))
	want := Treeinfo{Family: "Fedora", Variant: "Server", Version: "37", Arch: "x86_64",
		Kernel: "images/pxeboot/vmlinuz", Initrd: "images/pxeboot/initrd.img", BootISO: "images/boot.iso"}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if m, err := hostDB().DetectTree(got); err != nil || m.OS.ShortID != "fedora37" {
		t.Errorf("%s, %v", m.OS.ShortID, err)
	}
	for _, bad := range []string{"", "[release]\nname = x\n", "key = outside\n", "[general]\nnonsense\n", strings.Repeat("#", maxTreeinfo+1)} {
		if got, err := ParseTreeinfo([]byte(bad)); err == nil {
			t.Errorf("%.20q: %+v", bad, got)
		}
	}
}

// Every expression of the database compiles, and what is looked for before
// that is in whatever fits.
func TestExpressions(t *testing.T) {
	t.Parallel()
	n := 0
	hostDB().eachRecord(func(r *record) {
		var all []string
		for _, m := range r.media {
			all = append(all, m.VolumeID, m.SystemID, m.PublisherID, m.ApplicationID)
		}
		for _, tree := range r.trees {
			all = append(all, tree.Treeinfo.Family, tree.Treeinfo.Variant, tree.Treeinfo.Version, tree.Treeinfo.Arch)
		}
		for _, e := range all {
			if e == "" {
				continue
			}
			n++
			if _, _, err := compileExpr(e); err != nil {
				t.Errorf("%s: %v", r.id, err)
			}
			if s := sample(t, e); s != "" && !matchExpr(e, s) {
				t.Errorf("%s: %q does not fit %q (start %q)", r.id, s, e, literalStart(e))
			}
		}
	})
	if n < 3000 {
		t.Errorf("only %d expressions", n)
	}
	for _, c := range []struct {
		expr, s string
		fits    bool
	}{
		{"ab?c", "ac", true}, {"ab*c", "ac", true}, {"a|b", "b", true}, {"ab{0,2}c", "ac", true}, {"^a.c$", "abc", true}, {"^a.c$", "xabc", false},
		{"(7 (?!SP[123]))x", "7 x", true}, {"7 (?!SP)S", "7 S", true}, {"7 (?!SP).+", "7 SP1", false}, {"7 (?!SP).+", "7 GA", true},
		{"(", "(", false}, {"(?!a", "b", false}, {"", "", true}, {"x", "", false}, {strings.Repeat("a", maxExpr+1), strings.Repeat("a", maxExpr+1), false},
	} {
		if got := matchExpr(c.expr, c.s); got != c.fits {
			t.Errorf("%.40q and %.40q: %t", c.expr, c.s, got)
		}
	}
}

// TestPrefilter: looking at the text first finds what parsing everything does,
// for a disc of each kind that there is, and reads a name that nobody has
// without parsing anything.
func TestPrefilter(t *testing.T) {
	db := hostDB()
	n := 0
	db.eachRecord(func(r *record) {
		for _, m := range r.media {
			if n++; n%20 != 0 {
				continue // each takes its time
			}
			d := sampleDisc(t, m)
			var want []string
			db.eachRecord(func(r *record) {
				if slices.ContainsFunc(r.media, func(m Media) bool { return m.matches(d) }) {
					want = append(want, r.id)
				}
			})
			var got []string
			asked := []wanted{{"volume-id", d.VolumeID}, {"system-id", d.SystemID}, {"publisher-id", d.PublisherID}, {"application-id", d.ApplicationID}}
			db.candidates("iso", asked, func(r *record) {
				if slices.ContainsFunc(r.media, func(m Media) bool { return m.matches(d) }) {
					got = append(got, r.id)
				}
			})
			if !slices.Equal(got, want) {
				t.Errorf("%+v: %v, all are %v", d, got, want)
			}
		}
	})
	ids, plain := db.shortIDs()
	slices.Sort(ids)
	if all := slices.Sorted(maps.Keys(db.byName())); !plain || !slices.Equal(slices.Compact(ids), all) {
		t.Errorf("plain %v, %d short ids of %d", plain, len(ids), len(all))
	}
	for doc, want := range map[string]bool{
		`<iso><volume-id>a.c</volume-id></iso>`:                                  true,
		`<iso><volume-id>x</volume-id></iso>`:                                    false,
		`<iso><volume-id>x</volume-id></iso><iso><system-id>L</system-id></iso>`: true,
		`<iso><!-- <volume-id>x</volume-id> --></iso>`:                           true,
		`<iso><volume-id>&#97;</volume-id></iso>`:                                true,
		`<iso><volume-id><![CDATA[abc]]></volume-id></iso>`:                      true,
		`<iso><volume-id xml:lang="de">x</volume-id></iso>`:                      true,
		`<iso><volume-id>abc</volume-id><system-id>WINDOWS</system-id></iso>`:    false,
		`<iso><volume-id>x</volume-id><volume-id>abc</volume-id></iso>`:          true,
		`<iso><volume-id>x`:               true,
		`<isolation/>`:                    true, // the end is missing
		`<os><short-id>a</short-id></os>`: false,
	} {
		if got := mayFit(doc, "iso", []wanted{{"volume-id", "abc"}, {"system-id", "LINUX"}}); got != want {
			t.Errorf("%s: %v", doc, got)
		}
	}
}

func BenchmarkDetectCold(b *testing.B) {
	d := Disc{VolumeID: "Debian 11.6.0 amd64 n", SystemID: "LINUX", VolumeSize: 1 << 20}
	for b.Loop() {
		if m, err := Open(Dirs()...).DetectDisc(d); err != nil || m.OS.ShortID != "debian11" {
			b.Fatal(m.OS.ShortID, err)
		}
	}
}

func BenchmarkUnknownCold(b *testing.B) {
	for b.Loop() {
		if _, err := Open(Dirs()...).Lookup("debian99"); !errors.Is(err, ErrUnknownOS) {
			b.Fatal(err)
		}
	}
}

func BenchmarkTreeCold(b *testing.B) {
	for b.Loop() {
		if m, err := Open(Dirs()...).DetectTree(Treeinfo{Family: "Fedora", Variant: "Server", Version: "36", Arch: "x86_64"}); err != nil {
			b.Fatal(m.OS.ShortID, err)
		}
	}
}
