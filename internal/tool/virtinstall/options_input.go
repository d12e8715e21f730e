package virtinstall

import (
	"slices"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func inputOption() option {
	return option{flag: "input", element: "devices/input", many: true, first: []string{"type"}, none: true, subs: inputSubs}
}

func inputSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "type", path: "@type", ignoreDefault: true},
		{name: "bus", path: "@bus", ignoreDefault: true},
		{name: "model", path: "@model"},
		{name: "source.evdev", path: "source/@evdev"},
		{name: "source.dev", path: "source/@dev"},
		{name: "source.repeat", path: "source/@repeat", kind: onOff},
		{name: "source.grab", path: "source/@grab"},
		{name: "source.grabToggle", path: "source/@grabToggle"},
	})
}

func smartcardOption() option {
	return option{flag: "smartcard", element: "devices/smartcard", many: true, first: []string{"mode"}, none: true, subs: smartcardSubs}
}

func smartcardSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "mode", path: "@mode", ignoreDefault: true},
		{name: "type", path: "@type", ignoreDefault: true},
	}, charSubs(""), []sub{
		{name: "database", path: "database", comma: true},
		{name: "certificate[0-9]*", path: "certificate[#]", comma: true},
	})
}

func redirdevOption() option {
	return option{flag: "redirdev", element: "devices/redirdev", many: true, first: []string{"bus"}, none: true, subs: redirdevSubs}
}

func redirdevSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "boot.order", aliases: []string{"boot_order"}, set: setBootOrder},
		{name: "bus", path: "@bus", ignoreDefault: true},
		{name: "type", path: "@type", ignoreDefault: true},
		{name: "server", set: setRedirServer},
	}, charSubs(""))
}

// setRedirServer sets the address at which the USB device is found.
func setRedirServer(g *guest, el *domxml.Element, v value) error {
	return setEnd("source")(g, el, v)
}

func (g *guest) inputDefaults(el *domxml.Element) {
	fill(el, "@type", "mouse")
	switch {
	case el.Attr("type") == "evdev": // is not on a bus
	case el.Attr("type") == "tablet", !g.x86():
		fill(el, "@bus", "usb")
	default:
		fill(el, "@bus", "ps2")
	}
}

func smartcardDefaults(el *domxml.Element) {
	fill(el, "@mode", "passthrough")
	if el.Attr("mode") == "passthrough" {
		fill(el, "@type", "spicevmc")
	} else {
		fill(el, "@type", "tcp")
	}
}
