package osinfo

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// write makes a document below dir.
func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func lib(content string) string { return "<libosinfo version='0.0.1'>" + content + "</libosinfo>" }

func TestLookup(t *testing.T) {
	t.Parallel()
	db := Open("/usr/share/osinfo")
	for name, id := range map[string]string{
		"debian11": "http://debian.org/debian/11", "ubuntujammy": "http://ubuntu.com/ubuntu/22.04", "linux2022": "http://libosinfo.org/linux/2022",
		"centos-stream9": "http://centos.org/centos-stream/9", "win2k19": "http://microsoft.com/win/2k19",
		"http://microsoft.com/win/10": "http://microsoft.com/win/10", Generic: "",
	} {
		if o, err := db.Lookup(name); err != nil || o.ID != id {
			t.Errorf("%s: %s, %v", name, o.ID, err)
		}
	}
	for name, hint := range map[string]string{
		"debain11": "debian11", "Debian11": "debian11", "debian-11": "debian11", "ubuntu": "ubuntu22", "windows10": "", "": "", "../x": "",
		"http://microsoft.com/win/99": "", "http://../../etc": "", "linux": "linux2022", "rhel7.91": "rhel7.9",
	} {
		o, err := db.Lookup(name)
		if !errors.Is(err, ErrUnknownOS) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %s, %v; want a hint at %q", name, o.ID, err, hint)
		}
	}
}

// The layers: a later master replaces, an extension adds, of any layer.
func TestLayers(t *testing.T) {
	t.Parallel()
	system, local, user := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, system, "os/x.org/a-1.xml", lib(`<os id="http://x.org/a/1"><short-id>a1</short-id><name>one</name>
		<devices><device id="http://pcisig.com/pci/1af4/1000"/></devices></os>`))
	write(t, system, "os/x.org/a-1.d/more.xml", lib(`<os id="http://x.org/a/1"><short-id>aone</short-id></os>`))
	write(t, system, "os/x.org/b-1.xml", lib(`<os id="http://x.org/b/1"><short-id>b1</short-id><name>&lt;b&#x41;&#66;&gt;<!-- c --></name><name xml:lang="de">Be</name>
		<derives-from id="http://x.org/a/1"/><devices><device id="http://pcisig.com/pci/1af4/1001"/></devices></os>`))
	write(t, system, "device/pcisig.com/pci-1af4-1000.d/x.xml", lib(`<device id="http://pcisig.com/pci/1af4/1000"><name>net</name><class>net</class></device>`))
	write(t, local, "os/x.org/a-1.d/port.xml", lib(`<os id="http://x.org/a/1"><name>one more</name><devices><device id="http://pcisig.com/pci/1af4/1003"/></devices></os>`))
	write(t, user, "os/x.org/b-1.xml", lib(`<os id="http://x.org/b/1"><short-id>b1</short-id><name><![CDATA[b & co]]></name>
		<derives-from id="http://x.org/a/1"/><derives-from id="http://x.org/gone/1"/><clones id="http://x.org/b/1"/>
		<devices><device id="http://pcisig.com/pci/1af4/1000" supported="false"/></devices></os>`))
	write(t, user, "os/x.org/note.txt", "no document")

	first := Open(system)
	b, err := first.Lookup("b1")
	if err != nil || b.Name != "<bAB>" || !b.Supports(VirtioNet) || !b.Supports(VirtioBlock) || b.Supports(VirtioSerial) {
		t.Errorf("%+v, %v", b, err)
	}
	if d := b.Devices(); len(d) != 2 || d[0] != (Device{pci + "1af4/1000", "net", "net"}) || d[1].Name != "" {
		t.Errorf("%v", d)
	}
	db := Open(system, filepath.Join(system, "nowhere"), local, user)
	a, err := db.Lookup("aone")
	if err != nil || a.ShortID != "a1" || a.Name != "one more" || !a.Supports(VirtioSerial) || db.BuiltIn() {
		t.Errorf("%+v, %v", a, err)
	}
	b, err = db.Lookup("b1")
	if err != nil || b.Name != "b & co" || b.Supports(VirtioNet) || b.Supports(VirtioBlock) || !b.Supports(VirtioSerial) {
		t.Errorf("%+v, %v", b, err)
	}
	if p := db.Problems(); len(p) > 0 {
		t.Error(p)
	}
}

// A damaged document hides its own system, and says so.
func TestDamagedDocuments(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "os/x.org/good-1.xml", lib(`<os id="http://x.org/good/1"><short-id>good1</short-id></os>`))
	for name, doc := range map[string]string{
		"open":    "<libosinfo><os id='http://x.org/open'>",
		"root":    "<other/>",
		"id":      lib("<os id='http://x.org/other'/>"),
		"none":    lib(""),
		"doctype": "<!DOCTYPE x [<!ENTITY a 'b'>]>" + lib("<os id='http://x.org/doctype'/>"),
		"entity":  lib("<os id='http://x.org/entity'><name>&a;</name></os>"),
		"deep":    strings.Repeat("<a>", 100),
		"latin":   "<libosinfo>\xff</libosinfo>",
	} {
		write(t, dir, "os/x.org/"+name+".xml", doc)
	}
	if err := os.Mkdir(filepath.Join(dir, "os/x.org/folder.xml"), 0o755); err != nil {
		t.Fatal(err)
	}
	db := Open(dir)
	if list := db.List(); len(list) != 2 || list[1].ShortID != "good1" {
		t.Errorf("%v", list)
	}
	if p := db.Problems(); len(p) != 9 {
		t.Errorf("%d problems: %v", len(p), errors.Join(p...))
	}
	for _, p := range db.Problems() {
		if !strings.Contains(p.Error(), dir) {
			t.Errorf("names no file: %v", p)
		}
	}
	if _, err := db.Lookup("http://x.org/open"); err == nil || errors.Is(err, ErrUnknownOS) || !strings.Contains(err.Error(), "open.xml") {
		t.Errorf("a damaged system: %v", err)
	}
	if _, err := db.Lookup("open"); !errors.Is(err, ErrUnknownOS) || !strings.Contains(err.Error(), "could not be read") {
		t.Errorf("a name that may be in a damaged document: %v", err)
	}
}

// Systems that are related in circles end.
func TestRelatedInCircles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var links strings.Builder
	names := strings.Split("a b c d e f g h i j k l m n o p", " ")
	for _, n := range names {
		links.WriteString("<derives-from id='http://x.org/" + n + "'/><upgrades id='http://x.org/" + n + "'/><clones id='http://x.org/" + n + "'/>")
	}
	for _, n := range names {
		write(t, dir, "os/x.org/"+n+".xml", lib("<os id='http://x.org/"+n+"'><short-id>"+n+"</short-id>"+links.String()+
			"<resources arch='all' inherit='true'/><devices><device id='dev-"+n+"'/></devices></os>"))
	}
	db := Open(dir)
	o, err := db.Lookup("a")
	if err != nil || len(o.Devices()) != len(names) || o.Supports(VirtioSerial) || o.Minimum("x86_64") != (Resources{}) {
		t.Errorf("%v, %v", o.Devices(), err)
	}
}

// One database serves many goroutines.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	db := Open("/usr/share/osinfo")
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			o, err := db.Lookup([]string{"debian11", "win10", "ubuntujammy", "fedora37"}[i%4])
			if err != nil || Defaults(o, Request{Graphics: "spice"}).RootPorts != 14 || len(o.Devices()) == 0 {
				t.Errorf("%s: %v", o.ShortID, err)
			}
			if i%2 == 0 {
				if _, err := db.DetectDisc(Disc{VolumeID: "Debian 11.6.0 amd64 n"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestSupported(t *testing.T) {
	t.Parallel()
	day := func(s string) time.Time { return date(s) }
	for _, c := range []struct {
		o    OS
		at   string
		want bool
	}{
		{OS{EOL: day("2020-01-01")}, "2020-01-01", true}, {OS{EOL: day("2020-01-01")}, "2020-01-02", false},
		{OS{Released: day("2000-01-01")}, "2009-12-29", true}, {OS{Released: day("2000-01-01")}, "2010-01-01", false},
		{OS{Released: day("2000-01-01"), Status: "rolling"}, "2030-01-01", true}, {OS{}, "2030-01-01", true},
	} {
		if got := c.o.Supported(day(c.at)); got != c.want {
			t.Errorf("%+v at %s: %t", c.o, c.at, got)
		}
	}
	var zero OS
	if zero.Supports(VirtioNet) || zero.Minimum("x86_64") != (Resources{}) || len(zero.Devices()) != 0 || zero.Media() != nil || zero.Trees() != nil {
		t.Error("the zero system knows something")
	}
}

func TestDirs(t *testing.T) {
	t.Setenv("OSINFO_SYSTEM_DIR", "/s")
	t.Setenv("OSINFO_LOCAL_DIR", "/l")
	t.Setenv("OSINFO_USER_DIR", "/u")
	if got := Dirs(); !slices.Equal(got, []string{"/s", "/l", "/u"}) {
		t.Error(got)
	}
	t.Setenv("OSINFO_SYSTEM_DIR", "")
	t.Setenv("OSINFO_LOCAL_DIR", "")
	t.Setenv("OSINFO_USER_DIR", "")
	t.Setenv("XDG_CONFIG_HOME", "/c")
	if got := Dirs(); !slices.Equal(got, []string{"/usr/share/osinfo", "/usr/local/share/osinfo", "/etc/osinfo", "/c/osinfo"}) {
		t.Error(got)
	}
}

// Our reader sees in the database's documents what encoding/xml sees.
func TestXMLAsEncodingXML(t *testing.T) {
	t.Parallel()
	documents, err := filepath.Glob("/usr/share/osinfo/os/*/*.xml")
	if err != nil || len(documents) < 700 {
		t.Fatalf("%d documents, %v", len(documents), err)
	}
	for i := 0; i < len(documents); i += 15 {
		doc, err := readDocument(documents[i])
		if err != nil {
			t.Fatal(err)
		}
		root, err := parseXML(doc)
		if err != nil {
			t.Fatalf("%s: %v", documents[i], err)
		}
		if got, want := flat(root), flatStandard(t, doc); got != want {
			t.Fatalf("%s: got\n%s\nencoding/xml has\n%s", documents[i], got, want)
		}
	}
}

// flat writes an element with the text of leaves.
func flat(e *element) string {
	var b strings.Builder
	var walk func(*element)
	walk = func(e *element) {
		b.WriteString("<" + e.name)
		for _, a := range e.attrs {
			b.WriteString(" " + a.name + "=" + a.value)
		}
		b.WriteString(">")
		if len(e.children) == 0 {
			b.WriteString(strings.TrimSpace(e.text))
		}
		for i := range e.children {
			walk(&e.children[i])
		}
	}
	walk(e)
	return b.String()
}

func flatStandard(t *testing.T, doc string) string {
	d := xml.NewDecoder(strings.NewReader(doc))
	var stack []*element
	for {
		token, err := d.Token()
		if err == io.EOF {
			t.Fatal("no root element")
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			e := &element{name: x.Name.Local}
			for _, a := range x.Attr {
				name := a.Name.Local
				if name == "lang" {
					name = "xml:lang"
				}
				e.attrs = append(e.attrs, attribute{name, a.Value})
			}
			stack = append(stack, e)
		case xml.CharData:
			if len(stack) > 0 {
				stack[len(stack)-1].text += string(x)
			}
		case xml.EndElement:
			e := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if len(stack) == 0 {
				return flat(e)
			}
			if e.attr("xml:lang") == "" {
				stack[len(stack)-1].children = append(stack[len(stack)-1].children, *e)
			}
		}
	}
}
