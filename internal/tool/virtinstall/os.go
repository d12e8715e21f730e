package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// osChoice is --osinfo, read.
type osChoice struct {
	name    string // a short id or an id
	detect  bool   // look at the installation media
	require bool   // an OS must be known in the end
	given   bool
}

// readOSChoice reads --osinfo; without it the media are looked at and an OS
// is required, unless the environment says otherwise.
func readOSChoice(a *arguments) (osChoice, error) {
	c := osChoice{detect: true, require: os.Getenv("VIRTINSTALL_OSINFO_DISABLE_REQUIRE") == ""}
	text, ok := a.last("os-variant")
	if !ok {
		return c, nil
	}
	c.given = true
	switch text {
	case "auto":
		return c, nil
	case "none":
		return osChoice{name: osinfo.Generic, given: true}, nil
	}
	given, err := osOption().parse(text)
	if err != nil {
		return c, fmt.Errorf("Error: --os-variant %s: %w", text, err)
	}
	c.detect, c.require = false, false
	for _, o := range given.list {
		switch o.key {
		case "name", "short-id", "id":
			c.name = o.text
		case "detect":
			c.detect, err = yes("detect", o.text)
		case "require":
			c.require, err = yes("require", o.text)
		default:
			return c, &unknownError{"os-variant", unknownOnly(given.list)}
		}
		if err != nil {
			return c, fmt.Errorf("Error: --os-variant %s: %w", text, err)
		}
	}
	return c, nil
}

func unknownOnly(list []suboption) []suboption {
	var out []suboption
	for _, o := range list {
		switch o.key {
		case "name", "short-id", "id", "detect", "require":
		default:
			out = append(out, o)
		}
	}
	return out
}

// osOption is --osinfo as an option with sub-options.
func osOption() option {
	return option{flag: "os-variant", first: []string{"name"}, subs: func() []sub {
		return []sub{{name: "name"}, {name: "short-id"}, {name: "id"}, {name: "detect", kind: yesNo}, {name: "require", kind: yesNo}}
	}}
}

// errNoOS is what is said where no OS is known, in the original's words.
var errNoOS = errors.New(`
--os-variant/--osinfo OS name is required, but no value was
set or detected.

This is now a fatal error. Specifying an OS name is required
for modern, performant, and secure virtual machine defaults.

You can see a full list of possible OS name values with:

   virt-install --osinfo list

If your Linux distro is not listed, try one of generic values
such as: linux2022, linux2020, linux2018, linux2016

If you just need to get the old behavior back, you can use:

  --osinfo detect=on,require=off

Or export VIRTINSTALL_OSINFO_DISABLE_REQUIRE=1
`)

// chooseOS decides what the guest is: what --osinfo says, or what the
// installation media are.
func (g *guest) chooseOS(ctx context.Context, in *installation) error {
	if err := g.resolvePlatform(); err != nil {
		return err
	}
	c, err := readOSChoice(g.args)
	if err != nil {
		return err
	}
	if c.name != "" && !c.detect {
		return g.setOS(c.name)
	}
	if c.name == "" && (g.os.ID != "" || g.os.ShortID != "") { // --metadata os_name=
		return nil
	}
	if c.detect {
		name, err := in.detect(ctx, g)
		if err != nil {
			return err
		}
		if name != "" {
			g.say("Using detected --osinfo %s", name) // the original has no more than this in its log
			return g.setOS(name)
		}
	}
	if c.name != "" { // what to take where the media say nothing
		return g.setOS(c.name)
	}
	if c.require && g.hvm() {
		return errNoOS
	}
	return g.setOS(osinfo.Generic)
}

// setOS makes the guest an OS by its short id or id.
func (g *guest) setOS(name string) error {
	o, err := osDB().Lookup(name)
	if errors.Is(err, osinfo.ErrUnknownOS) {
		if strings.Contains(name, "://") {
			return fmt.Errorf("Unknown libosinfo ID '%s'", name)
		}
		hint := ""
		if _, near, ok := strings.Cut(err.Error(), "; did you mean "); ok {
			hint = " Did you mean " + near
		}
		return fmt.Errorf("Unknown OS name '%s'. See `--osinfo list` for valid values.%s", name, hint)
	}
	if err != nil {
		return err
	}
	g.os = o
	g.labelOS()
	return nil
}

const osinfoNamespace = "http://libosinfo.org/xmlns/libvirt/domain/1.0"

// labelOS writes into the metadata what the guest is, where a later
// virt-manager looks for it.
func (g *guest) labelOS() {
	if old := g.dom.Find("metadata/libosinfo:libosinfo"); old != nil {
		m := g.dom.Child("metadata")
		if m.Drop(old); m.Empty() {
			g.dom.Drop(m)
		}
	}
	if g.os.ID == "" {
		return
	}
	label := g.dom.Need("metadata").Add(domxml.New("libosinfo:libosinfo", "xmlns:libosinfo", osinfoNamespace))
	label.Add(domxml.New("libosinfo:os", "id", g.os.ID))
}

// osDB is the host's database, opened once.
var osDB = sync.OnceValue(func() *osinfo.DB { return osinfo.Open(osinfo.Dirs()...) })

// generic reports whether nothing is known of the guest.
func (g *guest) generic() bool { return g.os.ID == "" }
