package virtinstall

import (
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func watchdogOption() option {
	return option{flag: "watchdog", element: "devices/watchdog", many: true, first: []string{"model"}, none: true, subs: watchdogSubs}
}

func watchdogSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "model", path: "@model", ignoreDefault: true},
		{name: "action", path: "@action", ignoreDefault: true},
	})
}

func panicOption() option {
	return option{flag: "panic", element: "devices/panic", many: true, first: []string{"model"}, none: true, subs: panicSubs, before: beforePanic}
}

func panicSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "model", path: "@model", ignoreDefault: true},
	})
}

// beforePanic reads "--panic 0x505", a port number, and the short name of the
// port's sub-option.
func beforePanic(_ *guest, _ *domxml.Element, given *suboptions) error {
	given.rename("iobase", "address.iobase")
	if model, _ := given.get("model"); strings.HasPrefix(model, "0x") {
		_, _ = given.take("model")
		given.set("address.iobase", model)
	}
	return nil
}

func (g *guest) panicDefaults(el *domxml.Element) {
	switch {
	case g.x86():
		fill(el, "@model", "isa")
	case strings.HasPrefix(g.machine(), "pseries"):
		fill(el, "@model", "pseries")
	case g.arch() == "s390x":
		fill(el, "@model", "s390")
	}
	if el.Get("address/@iobase") != "" {
		fill(el, "address/@type", "isa")
	}
}
