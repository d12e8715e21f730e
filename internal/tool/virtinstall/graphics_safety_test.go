package virtinstall

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// A screen that others can reach gets a password, which is said once, and the
// same one in both phases; no other screen does.
func TestSecureGraphics(t *testing.T) {
	for screen, exposed := range map[string]bool{
		`<graphics type="vnc" listen="0.0.0.0"/>`:                                     true,
		`<graphics type="spice" listen="::"/>`:                                        true,
		`<graphics type="vnc" listen="server.example"/>`:                              true,
		`<graphics type="vnc"><listen type="address" address="10.0.0.1"/></graphics>`: true,
		`<graphics type="vnc"><listen type="network" network="lan"/></graphics>`:      true,
		`<graphics type="vnc" listen="127.0.0.1"/>`:                                   false,
		`<graphics type="vnc" listen="::1"/>`:                                         false,
		`<graphics type="vnc" listen="localhost"/>`:                                   false,
		`<graphics type="vnc"/>`:                                                      false,
		`<graphics type="vnc"><listen type="socket"/></graphics>`:                     false,
		`<graphics type="vnc" listen="0.0.0.0" passwd="mine"/>`:                       false,
		`<graphics type="spice" listen="0.0.0.0" defaultMode="secure"/>`:              false,
		`<graphics type="sdl"/>`:                                                      false,
	} {
		doc, err := domxml.Parse([]byte("<domain><devices>" + screen + "</devices></domain>"))
		if err != nil {
			t.Fatal(err)
		}
		first, final := doc.Clone(), doc.Clone()
		var out bytes.Buffer
		g := newGuest(&arguments{values: map[string][]string{"quiet": {"yes"}}}, nil, Streams{Out: &out, Err: io.Discard})
		if err := g.secureGraphics(final, first); err != nil {
			t.Fatal(err)
		}
		password := final.Get("devices/graphics/@passwd")
		if !exposed {
			if !final.Equal(doc) || out.Len() > 0 {
				t.Errorf("%s becomes %s, saying %q", screen, final, out.String())
			}
			continue
		}
		if len(password) < 8 || strings.Count(out.String(), password) != 1 || !first.Equal(final) {
			t.Errorf("%s becomes %s in the first phase and %s in the last, saying %q", screen, first, final, out.String())
		}
		g.args.values["insecure-graphics"] = []string{"yes"}
		if again := doc.Clone(); g.secureGraphics(again) != nil || !again.Equal(doc) {
			t.Errorf("%s: --insecure-graphics makes %s", screen, again)
		}
	}
}
