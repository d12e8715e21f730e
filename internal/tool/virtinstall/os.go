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
		return c, fmt.Errorf("Error: --os-variant %s: %w", text, err) //nolint:staticcheck // the original's words
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
			return c, fmt.Errorf("Error: --os-variant %s: %w", text, err) //nolint:staticcheck // the original's words
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

// errNoOS is what is said where no OS is known: the guest would get devices
// that every OS has had since the nineties.
var errNoOS = errors.New(`
--os-variant/--osinfo OS name is required, but no value was
set or detected.

The guest OS decides the devices of the machine; without it the machine
is slow and old-fashioned.

The names are listed by:

   virt-install --osinfo list

A Linux that is not in the list is served well by one of
linux2022, linux2020, linux2018, linux2016

To go on without a name, use:

  --osinfo detect=on,require=off

or export VIRTINSTALL_OSINFO_DISABLE_REQUIRE=1
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
	if c.name != "" {
		return g.setOS(c.name)
	}
	if g.os.ID != "" || g.os.ShortID != "" { // --metadata os_name=
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
			return fmt.Errorf("Unknown libosinfo ID '%s'", name) //nolint:staticcheck // the original's words
		}
		hint := ""
		if _, near, ok := strings.Cut(err.Error(), "; did you mean "); ok {
			hint = " Did you mean " + near
		}
		return fmt.Errorf("Unknown OS name '%s'. See `--osinfo list` for valid values.%s", name, hint) //nolint:staticcheck // the original's words
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
		g.dom.Child("metadata").Drop(old)
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
