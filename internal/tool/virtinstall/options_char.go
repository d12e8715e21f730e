package virtinstall

import (
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func serialOption() option {
	return option{flag: "serial", element: "devices/serial", many: true, first: []string{"type"}, subs: charDeviceSubs, before: beforeChar}
}

func parallelOption() option {
	return option{flag: "parallel", element: "devices/parallel", many: true, first: []string{"type"}, subs: charDeviceSubs, before: beforeChar}
}

func channelOption() option {
	return option{flag: "channel", element: "devices/channel", many: true, first: []string{"type"}, none: true, subs: charDeviceSubs, before: beforeChar}
}

func consoleOption() option {
	return option{flag: "console", element: "devices/console", many: true, first: []string{"type"}, none: true, subs: charDeviceSubs, before: beforeChar}
}

func charDeviceSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "type", aliases: []string{"char_type"}, path: "@type"},
		{name: "path", set: planned},
		{name: "mode", set: planned},
		{name: "bind_host", set: setEnd("source[@mode='bind']")},
		{name: "host", set: setCharHost},
	}, charSubs(""), []sub{
		{name: "target.address", aliases: []string{"target_address"}, set: setGuestForward},
		{name: "target.type", aliases: []string{"target_type"}, path: "target/@type"},
		{name: "target.name", aliases: []string{"name"}, path: "target/@name"},
		{name: "target.port", path: "target/@port", kind: number},
		{name: "target.model.name", path: "target/model/@name"},
	})
}

// charSubs are the sub-options of the host's end of a character device, which
// smartcards, USB redirection and random number generators have too. prefix
// is "" or "backend.", and so is the element that holds the host's end.
func charSubs(prefix string) []sub {
	at := strings.ReplaceAll(prefix, ".", "/")
	subs := []sub{
		{name: "source.path", path: "source/@path"},
		{name: "source.host", set: setEnd(at + "source")},
		{name: "source.service", path: "source/@service", kind: number},
		{name: "source.bind_host", set: setEnd(at + "source[@mode='bind']")},
		{name: "source.bind_service", path: "source[@mode='bind']/@service", kind: number},
		{name: "source.connect_host", set: setEnd(at + "source[@mode='connect']")},
		{name: "source.connect_service", path: "source[@mode='connect']/@service", kind: number},
		{name: "source.mode", path: "source/@mode"},
		{name: "source.master", path: "source/@master"},
		{name: "source.slave", path: "source/@slave"},
		{name: "source.seclabel[0-9]*.model", path: "source/seclabel[#]/@model"},
		{name: "source.seclabel[0-9]*.relabel", path: "source/seclabel[#]/@relabel", kind: yesNo},
		{name: "source.seclabel[0-9]*.label", path: "source/seclabel[#]/label", comma: true},
		{name: "protocol.type", path: "protocol/@type"},
		{name: "log.file", path: "log/@file"},
		{name: "log.append", path: "log/@append", kind: onOff},
		{name: "source.clipboard.copypaste", path: "source/clipboard/@copypaste", kind: yesNo},
		{name: "source.mouse.mode", path: "source/mouse/@mode"},
		{name: "source.channel", path: "source/@channel"},
		{name: "source.tls", path: "source/@tls", kind: yesNo},
	}
	for i := range subs {
		s := &subs[i]
		switch short := strings.TrimPrefix(s.name, "source."); {
		case prefix == "" && s.name == "protocol.type":
			s.aliases = []string{"protocol"}
		case prefix != "" && slices.Contains([]string{"host", "service", "connect_host", "connect_service", "mode"}, short):
			s.aliases = []string{"backend_" + short}
		}
		s.name = prefix + s.name
		if s.path != "" {
			s.path = at + s.path
		}
	}
	return subs
}

// beforeChar reads the names of old and says which side waits for the other
// where nobody did: a socket is listened on.
func beforeChar(_ *guest, el *domxml.Element, given *suboptions) error {
	for _, key := range []string{"path", "mode"} {
		given.rename(key, "source."+key)
	}
	kind, ok := given.get("type")
	if !ok {
		kind, _ = given.get("char_type")
	}
	if mode, ok := given.get("source.mode"); ok {
		// "host" then is the address of that side.
		given.rename("host", "source.host")
		if mode != "" {
			put(el, "source/@mode", mode)
		}
	} else if kind == "tcp" || kind == "unix" {
		put(el, "source/@mode", "bind")
	}
	return nil
}

// setCharHost is an address that was given without saying which side listens:
// the one to connect to.
func setCharHost(g *guest, el *domxml.Element, v value) error {
	return setEnd("source[@mode='connect']")(g, el, v)
}

// setEnd sets the host and, where it is given with it, the port of one end of
// a connection.
func setEnd(path string) func(*guest, *domxml.Element, value) error {
	return func(_ *guest, el *domxml.Element, v value) error {
		if v.text == "" {
			return el.Remove(path + "/@host")
		}
		host, port, err := hostPort(v.text)
		if err != nil {
			return err
		}
		put(el, path+"/@host", host)
		if port != "" {
			put(el, path+"/@service", port)
		}
		return nil
	}
}

// setGuestForward sets the address in the guest's network that a channel
// answers at.
func setGuestForward(_ *guest, el *domxml.Element, v value) error {
	if v.text == "" {
		return el.Remove("target/@address")
	}
	host, port, err := hostPort(v.text)
	if err != nil {
		return err
	}
	put(el, "target/@address", host)
	if port != "" {
		put(el, "target/@port", port)
	}
	return nil
}

func channelDefaults(el *domxml.Element) {
	fill(el, "@type", "pty")
	fill(el, "target/@type", "virtio")
	if el.Attr("type") == "spicevmc" {
		fill(el, "target/@name", "com.redhat.spice.0")
	}
}
