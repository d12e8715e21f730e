package virtinstall

import (
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// Each edit, of --xml or of the sub-options of an option, on one document. What
// comes out was seen of the stock tool, but for the cases that say otherwise.
func TestXMLEdits(t *testing.T) {
	const doc = `<domain type="kvm"><name>x</name><cpu mode="host-model"/><clock><timer name="rtc"/><timer name="pit"/></clock></domain>`
	for edits, want := range map[string]string{
		"./@foo=bar":                            `<domain type="kvm" foo="bar"><name>x</name>`,
		"/domain/cpu/@mode=custom":              `<cpu mode="custom"/>`,
		"//timer[last()]/@name=hpet":            `<timer name="rtc"/><timer name="hpet"/>`,
		`./clock/timer[@name="pit"]/@x=y`:       `<timer name="rtc"/><timer name="pit" x="y"/>`,
		"./clock/timer[@name=hpet]/@x=y":        `<timer name="pit"/><timer name="hpet" x="y"/></clock>`,
		"./a/b[3]/@c=d":                         `<a><b c="d"/></a>`,
		"./name=":                               `<domain type="kvm"><cpu mode="host-model"/>`,
		"./nosuch=":                             `</clock></domain>`,
		"./x=a,b=c":                             `<x>a,b=c</x>`,
		"xpath.delete=./clock/timer":            `<clock><timer name="pit"/></clock>`,
		"xpath.delete=./cpu/@mode":              `<name>x</name><clock>`, // the element goes with it
		"xpath.delete=./nosuch":                 `</clock></domain>`,
		"xpath.create=./a/b":                    `<a><b/></a></domain>`,
		"xpath.create=./name":                   `</clock></domain>`,
		"xpath.set=./a/@b,xpath.value=c":        `<a b="c"/>`,
		"xpath0.value=c,xpath0.set=./a/@b":      `<a b="c"/>`,
		"a=b":                                   `<a>b</a>`, // the stock tool puts the text into <domain>, in place of all
		"foo":                                   "error: foo: Setting xpath must be in the form of XPATH=VALUE",
		"bad[[=x":                               "error: bad[[=x: Setting xpath",
		"count(./x)=1":                          "error: count(./x) is not an XPath of elements or attributes",
		"//nosuch=1":                            "error: //nosuch finds nothing",
		"xpath.foo=1":                           "error: Unknown --xml options: ['xpath.foo']",
		"xpath.value=1":                         "error: --xml xpath.value= needs",
		"./text()=1":                            "error: ./text()",
		"./" + strings.Repeat("a/", 1000) + "=": "error: XPath of",
	} {
		root, err := domxml.Parse([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		g := &guest{dom: root, args: &arguments{values: map[string][]string{"xml": {edits}}}}
		err = g.parseXMLEdits()
		if err == nil {
			err = g.edit(root)
		}
		got := strings.NewReplacer("\n", "", "  ", "").Replace(root.String())
		if err != nil {
			got = "error: " + err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("--xml %.60s gives\n  %s\nwant\n  %s", edits, got, want)
		}
	}
}

// The edits of an option are about its own element, found again in a copy.
func TestElementEdits(t *testing.T) {
	g := &guest{dom: domxml.New("domain"), said: map[string]string{}, args: &arguments{}}
	if _, err := sample.apply(g, "/a,xpath1.set=./x/@y=z,xpath2.delete=./driver"); err != nil {
		t.Fatal(err)
	}
	copied := g.dom.Clone()
	copied.Child("devices").Children = append([]*domxml.Element{domxml.New("disk", "device", "cdrom")}, copied.Child("devices").Children...)
	if err := g.edit(copied); err != nil {
		t.Fatal(err)
	}
	got := strings.NewReplacer("\n", "", "  ", "").Replace(copied.String())
	if want := `<domain><devices><disk device="cdrom"/><disk><source file="/a"/><x y="z"/></disk></devices></domain>`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzXMLEdit(f *testing.F) {
	for _, s := range []string{"./a/@b=c", "//a[1]=", "xpath.delete=./a[position()<3]/b", "a|b=c", "string(.)=1", "./a[contains(@b,'c')]/..=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		root, err := domxml.Parse([]byte(`<domain type="kvm"><a b="c">t</a><a><b/></a></domain>`))
		if err != nil {
			t.Fatal(err)
		}
		g := &guest{dom: root, args: &arguments{values: map[string][]string{"xml": {text}}}}
		if g.parseXMLEdits() == nil && g.edit(root) == nil && root.Name != "domain" {
			t.Error("the root is gone")
		}
	})
}
