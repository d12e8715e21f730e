package virtinstall

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// deviceOptions are the options of devices, in the order in which they take
// effect.
func deviceOptions() []option {
	return []option{
		diskOption(), networkOption(), graphicsOption(), controllerOption(), inputOption(), serialOption(),
		parallelOption(), channelOption(), consoleOption(), hostdevOption(), filesystemOption(), soundOption(),
		audioOption(), watchdogOption(), videoOption(), smartcardOption(), redirdevOption(), memballoonOption(),
		tpmOption(), rngOption(), panicOption(), shmemOption(), memdevOption(), vsockOption(), iommuOption(),
	}
}

// deviceDefaults gives a device of the document what it lacks.
func (g *guest) deviceDefaults(ctx context.Context, el *domxml.Element) error {
	switch el.Name {
	case "disk":
		return g.diskDefaults(el)
	case "interface":
		return g.networkDefaults(ctx, el)
	case "graphics":
		g.graphicsDefaults(el)
	case "video":
		g.videoDefaults(el)
	case "input":
		g.inputDefaults(el)
	case "channel":
		channelDefaults(el)
	case "serial", "parallel", "console":
		fill(el, "@type", "pty")
	case "filesystem":
		filesystemDefaults(el)
	case "hostdev":
		hostdevDefaults(el)
	case "sound":
		fill(el, "@model", g.soundModel())
	case "watchdog":
		fill(el, "@model", "i6300esb")
		fill(el, "@action", "reset")
	case "smartcard":
		smartcardDefaults(el)
	case "redirdev":
		fill(el, "@bus", "usb")
		fill(el, "@type", "spicevmc")
	case "memballoon":
		fill(el, "@model", "virtio")
	case "tpm":
		g.tpmDefaults(el)
	case "rng":
		fill(el, "@model", "virtio")
	case "panic":
		g.panicDefaults(el)
	case "vsock":
		vsockDefaults(el)
	}
	return nil
}

// fill gives a path of an element a value where it has none. "" leaves it
// without.
func fill(el *domxml.Element, path, value string) {
	if value != "" && el.Get(path) == "" {
		put(el, path, value)
	}
}

// put gives a path that is written in this package a value.
func put(el *domxml.Element, path, value string) {
	if err := el.Set(path, value); err != nil {
		panic(err) // the path is a constant of ours, which the tests go through
	}
}

// drop removes what a path that is written in this package names.
func drop(el *domxml.Element, path string) {
	if err := el.Remove(path); err != nil {
		panic(err) // as in put
	}
}

// planned is the sub-option that is read elsewhere: before the others take
// effect, or where the storage is planned.
func planned(*guest, *domxml.Element, value) error { return nil }

// rename makes a sub-option's old name its present one. What both were given
// is the old one's.
func (s *suboptions) rename(from, to string) {
	for i := range s.list {
		if s.list[i].key != from {
			continue
		}
		w := s.list[i]
		w.key = to
		_, _ = s.take(from)
		_, _ = s.take(to)
		s.list = append(s.list, w)
		return
	}
}

// osMachine is what the guest's OS wants of the machine as it stands.
func (g *guest) osMachine() osinfo.Machine {
	return osinfo.Defaults(g.os, g.request(*g.dcaps))
}

// osMachineWith is the same where the machine without a screen had one of the
// given type.
func (g *guest) osMachineWith(screen string) osinfo.Machine {
	r := g.request(*g.dcaps)
	if r.Graphics == "" || r.Graphics == "none" {
		r.Graphics = screen
	}
	return osinfo.Defaults(g.os, r)
}

// addressSubs are the sub-options of a device's place in the guest.
func addressSubs() []sub {
	return []sub{
		{name: "address.type", path: "address/@type"},
		{name: "address.domain", path: "address/@domain", kind: number},
		{name: "address.bus", path: "address/@bus", kind: number},
		{name: "address.slot", path: "address/@slot", kind: number},
		{name: "address.multifunction", path: "address/@multifunction", kind: onOff},
		{name: "address.function", path: "address/@function", kind: number},
		{name: "address.controller", path: "address/@controller", kind: number},
		{name: "address.unit", path: "address/@unit", kind: number},
		{name: "address.port", path: "address/@port", kind: number},
		{name: "address.target", path: "address/@target", kind: number},
		{name: "address.reg", path: "address/@reg"},
		{name: "address.cssid", path: "address/@cssid"},
		{name: "address.ssid", path: "address/@ssid"},
		{name: "address.devno", path: "address/@devno"},
		{name: "address.iobase", path: "address/@iobase"},
		{name: "address.irq", path: "address/@irq"},
		{name: "address.base", path: "address/@base"},
		{name: "address.zpci.uid", path: "address/zpci/@uid"},
		{name: "address.zpci.fid", path: "address/zpci/@fid"},
	}
}

// virtioSubs are the sub-options that all virtio devices have.
func virtioSubs() []sub {
	return []sub{
		{name: "driver.ats", path: "driver/@ats", kind: onOff},
		{name: "driver.iommu", path: "driver/@iommu", kind: onOff},
		{name: "driver.packed", path: "driver/@packed", kind: onOff},
		{name: "driver.page_per_vq", path: "driver/@page_per_vq", kind: onOff},
	}
}

// setBootOrder puts a device in its place of the boot order. What was there,
// and what stands behind it without a gap, moves by one.
func setBootOrder(g *guest, el *domxml.Element, v value) error {
	if strings.ContainsAny(v.text, "xX") {
		return notANumber(v.text)
	}
	n, err := wholeNumber(v.text)
	if err != nil {
		return err
	}
	g.makeRoom(el, n)
	put(el, "boot/@order", strconv.FormatInt(n, 10))
	return nil
}

// makeRoom moves what has the given place in the boot order, but el, to the
// next one.
func (g *guest) makeRoom(el *domxml.Element, n int64) {
	devices := g.dom.Child("devices")
	if devices == nil {
		return
	}
	for _, other := range devices.Children {
		if other != el && other.Get("boot/@order") == strconv.FormatInt(n, 10) {
			g.makeRoom(other, n+1)
			put(other, "boot/@order", strconv.FormatInt(n+1, 10))
			return
		}
	}
}

// notANumber is the original's refusal of a text that is no decimal number.
func notANumber(text string) error {
	return fmt.Errorf("invalid literal for int() with base 10: '%s'", text)
}

// hostPort splits HOST:PORT; the host is this computer where it is left out,
// the port is "" where there is none.
func hostPort(text string) (host, port string, err error) {
	host, port, _ = strings.Cut(text, ":")
	if host == "" {
		host = "127.0.0.1"
	}
	if port == "" {
		return host, "", nil
	}
	n, err := wholeNumber(port)
	if err != nil {
		return "", "", err
	}
	return host, strconv.FormatInt(n, 10), nil
}

// unprivileged reports whether a connection is to a user's own libvirtd, which
// may not use the host's bridges.
func unprivileged(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Path == "/session"
}

// remote reports whether a connection is to another computer.
func remote(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Host != ""
}
