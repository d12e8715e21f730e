package domxml

import (
	"strings"
	"testing"
)

const sample = `<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>a &amp; b</name>
  <devices>
    <disk type="file" device="disk">
      <source file="/a &quot;b&quot;.img"/>
      <target dev="vda" bus="virtio"/>
    </disk>
    <disk type="file" device="cdrom"/>
  </devices>
  <qemu:commandline>
    <qemu:arg value="-foo"/>
  </qemu:commandline>
</domain>
`

func parse(t *testing.T, doc string) *Element {
	t.Helper()
	e, err := Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRoundTrip(t *testing.T) {
	e := parse(t, sample)
	if got := e.String(); got != sample {
		t.Errorf("written differently:\n%s", got)
	}
	if !e.Clone().Equal(e) {
		t.Error("a clone is not equal")
	}
}

func TestPath(t *testing.T) {
	e := parse(t, sample)
	for path, want := range map[string]string{
		"@type":                                  "kvm",
		"./name":                                 "a & b",
		"devices/disk/source/@file":              `/a "b".img`,
		"devices/disk[2]/@device":                "cdrom",
		"devices/disk[@device='cdrom']/@type":    "file",
		"devices/disk[3]/@device":                "",
		"qemu:commandline/qemu:arg/@value":       "-foo",
		"devices/disk[@device='x/y']/@device":    "",
		"devices/disk[@device=\"disk\"]/@device": "disk",
	} {
		if got := e.Get(path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	set := func(path, value string) {
		t.Helper()
		if err := e.Set(path, value); err != nil {
			t.Error(err)
		}
	}
	set("./clock/timer[@name='rtc']/@tickpolicy", "catchup")
	set("./clock/timer[3]/@name", "hpet")
	set("./on_reboot", "destroy")
	if got := e.Child("clock").String(); got != "<clock>\n  <timer name=\"rtc\" tickpolicy=\"catchup\"/>\n  <timer/>\n  <timer name=\"hpet\"/>\n</clock>\n" {
		t.Errorf("clock is\n%s", got)
	}
	if err := e.Remove("clock/timer"); err != nil || e.Child("clock") != nil {
		t.Errorf("an element without content stays: %v", err)
	}
	if err := e.Remove("devices/disk/target/@bus"); err != nil || e.Get("devices/disk/target/@dev") != "vda" {
		t.Errorf("more than the attribute is gone: %v", err)
	}
	for _, bad := range []string{"a//b", "a[", "a[0]", "a[x]", "@a/b", "a[@b=c]", "a b", "a[999999]/@b"} {
		if err := e.Set(bad, "x"); err == nil {
			t.Errorf("the path %q is taken", bad)
		}
	}
}

func TestEqual(t *testing.T) {
	a := parse(t, `<a x="1" y="2"><b n="1"/><c/><b n="2"/></a>`)
	for doc, want := range map[string]bool{
		`<a y="2" x="1"><c/><b n="1"/><b n="2"/></a>`: true,
		`<a x="1" y="2"><b n="2"/><c/><b n="1"/></a>`: false,
		`<a x="1"><b n="1"/><c/><b n="2"/></a>`:       false,
		`<a x="1" y="2"><b n="1"/><c/><c/></a>`:       false,
	} {
		if got := a.Equal(parse(t, doc)); got != want {
			t.Errorf("%s: %v", doc, got)
		}
	}
}

func TestOrder(t *testing.T) {
	e := parse(t, `<a><z/><c/><b><y/><x/></b><c i="2"/></a>`)
	e.Order(map[string][]string{"a": {"b", "c"}, "b": {"x"}})
	if got := strings.ReplaceAll(strings.ReplaceAll(e.String(), "\n", ""), " ", ""); got != `<a><b><x/><y/></b><c/><ci="2"/><z/></a>` {
		t.Error(got)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, doc := range []string{
		"", "x", "<a>", "<a></b>", "<a/><b/>", "</a>", "<a/>x", "<a>&lol;</a>",
		`<!DOCTYPE a [<!ENTITY lol "lol">]><a/>`,
		strings.Repeat("<a>", 101), strings.Repeat(" ", MaxSize) + "<a/>",
	} {
		if e, err := Parse([]byte(doc)); err == nil {
			t.Errorf("%.40q gives %v", doc, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Fuzz(func(t *testing.T, doc []byte) {
		e, err := Parse(doc)
		if err != nil {
			return
		}
		again, err := Parse([]byte(e.String()))
		if err != nil {
			return // names such as "a:b:c", which the reader passes and a document cannot have
		}
		if again.String() != e.String() {
			t.Errorf("%q becomes\n%q, then\n%q", doc, e.String(), again.String())
		}
	})
}
