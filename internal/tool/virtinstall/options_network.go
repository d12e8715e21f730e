package virtinstall

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func networkOption() option {
	return option{flag: "network", element: "devices/interface", many: true, first: []string{"type"}, none: true, subs: networkSubs, before: beforeNetwork}
}

func networkSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "boot.order", aliases: []string{"boot_order"}, set: setBootOrder},
		{name: "boot.loadparm", path: "boot/@loadparm"},
	}, virtioSubs(), []sub{
		{name: "network", set: planned},
		{name: "bridge", set: planned},
		{name: "type", set: setNetworkType},
		{name: "trustGuestRxFilters", path: "@trustGuestRxFilters", kind: yesNo},
		{name: "source", set: setNetworkSource},
		{name: "source.mode", aliases: []string{"source_mode"}, path: "source/@mode"},
		{name: "source.type", aliases: []string{"source_type"}, path: "source/@type"},
		{name: "source.path", aliases: []string{"source_path"}, path: "source/@path"},
		{name: "source.portgroup", aliases: []string{"portgroup"}, path: "source/@portgroup"},
		{name: "target.dev", aliases: []string{"target"}, path: "target/@dev"},
		{name: "model.type", path: "model/@type"},
		{name: "mac.address", set: setMAC},
		{name: "model", path: "model/@type"}, // these two are listed too, and
		{name: "mac", set: setMAC},           // renamed before anything else
		{name: "filterref.filter", aliases: []string{"filterref"}, path: "filterref/@filter"},
		{name: "link.state", aliases: []string{"link_state"}, set: setLinkState},
		{name: "driver.name", aliases: []string{"driver_name"}, path: "driver/@name"},
		{name: "driver.queues", aliases: []string{"driver_queues"}, path: "driver/@queues", kind: number},
		{name: "rom.file", aliases: []string{"rom_file"}, path: "rom/@file"},
		{name: "rom.bar", aliases: []string{"rom_bar"}, path: "rom/@bar", kind: onOff},
		{name: "mtu.size", path: "mtu/@size", kind: number},
		{name: "virtualport.type", aliases: []string{"virtualport_type"}, path: "virtualport/@type"},
		{name: "virtualport.parameters.managerid", aliases: []string{"virtualport_managerid"}, path: "virtualport/parameters/@managerid", kind: number},
		{name: "virtualport.parameters.typeid", aliases: []string{"virtualport_typeid"}, path: "virtualport/parameters/@typeid", kind: number},
		{name: "virtualport.parameters.typeidversion", aliases: []string{"virtualport_typeidversion"}, path: "virtualport/parameters/@typeidversion", kind: number},
		{name: "virtualport.parameters.instanceid", aliases: []string{"virtualport_instanceid"}, path: "virtualport/parameters/@instanceid"},
		{name: "virtualport.parameters.profileid", aliases: []string{"virtualport_profileid"}, path: "virtualport/parameters/@profileid"},
		{name: "virtualport.parameters.interfaceid", aliases: []string{"virtualport_interfaceid"}, path: "virtualport/parameters/@interfaceid"},
	})
}

// beforeNetwork reads "network=NAME" and "bridge=NAME" as the type with its
// source.
func beforeNetwork(_ *guest, _ *domxml.Element, given *suboptions) error {
	given.rename("model", "model.type")
	given.rename("mac", "mac.address")
	if _, ok := given.get("type"); ok {
		return nil
	}
	for _, kind := range []string{"network", "bridge"} {
		if name, ok := given.take(kind); ok {
			given.set("type", kind)
			given.set("source", name)
			return nil
		}
	}
	return nil
}

// setNetworkType sets what a card is connected to. "default" is the network
// of that name, or the user's own where there is no right to it.
func setNetworkType(g *guest, el *domxml.Element, v value) error {
	if v.text != "default" {
		el.SetAttr("type", v.text)
		return nil
	}
	if g.host.uri() == "" || unprivileged(g.host.uri()) {
		el.SetAttr("type", "user")
		return nil
	}
	el.SetAttr("type", "network")
	put(el, "source/@network", "default")
	return nil
}

// setNetworkSource sets the source where the type says it goes.
func setNetworkSource(_ *guest, el *domxml.Element, v value) error {
	path := ""
	switch el.Attr("type") {
	case "network":
		path = "source/@network"
	case "bridge":
		path = "source/@bridge"
	case "direct":
		path = "source/@dev"
	default:
		return nil
	}
	if v.text == "" {
		return el.Remove(path)
	}
	put(el, path, v.text)
	return nil
}

// setMAC sets the address; RANDOM is one that is made up.
func setMAC(_ *guest, el *domxml.Element, v value) error {
	if v.text == "RANDOM" || v.text == "" {
		return el.Remove("mac/@address")
	}
	put(el, "mac/@address", v.text)
	return nil
}

// setLinkState takes yes and no for up and down.
func setLinkState(_ *guest, el *domxml.Element, v value) error {
	if on, err := yes(v.key, v.text); err == nil {
		v.text = map[bool]string{true: "up", false: "down"}[on]
	}
	if v.text == "" {
		return el.Remove("link/@state")
	}
	put(el, "link/@state", v.text)
	return nil
}

func (g *guest) networkDefaults(_ context.Context, el *domxml.Element) error {
	fill(el, "@type", "bridge")
	if el.Get("mac/@address") == "" {
		mac, err := g.freeMAC()
		if err != nil {
			return err
		}
		put(el, "mac/@address", mac)
	}
	fill(el, "model/@type", g.osMachine().NIC)
	return nil
}

// freeMAC makes up an address of QEMU's range that no other card of the guest
// has.
func (g *guest) freeMAC() (string, error) {
	for {
		var b [3]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("a MAC address: %w", err)
		}
		mac := fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
		if !slices.ContainsFunc(g.devices("interface"), func(el *domxml.Element) bool { return el.Get("mac/@address") == mac }) {
			return mac, nil
		}
	}
}
