package domain

import (
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
)

// chars reads serial ports, parallel ports, consoles and channels.
func (r *reader) chars(n *node) {
	s := &r.spec
	for _, c := range n.all("serial") {
		c.device()
		p := r.char(c)
		t := c.one("target")
		t.ignore("@port")
		p.Model = t.enum("type", "isa-serial", "pci-serial", "usb-serial", "isa-debug")
		if p.Model == "isa-debug" {
			p.Model = "isa-debugcon"
		}
		m := t.one("model")
		m.plain("name", "isa-serial", "pci-serial", "usb-serial", "isa-debugcon")
		s.Serials = append(s.Serials, p)
	}
	for _, c := range n.all("parallel") {
		c.device()
		s.Parallels = append(s.Parallels, r.char(c))
		c.one("target").ignore("@port")
	}
	for i, c := range n.all("console") {
		r.console(c, i)
	}
	if len(s.Serials) == 0 {
		// What is not in the document is not there, while nil is a port.
		s.Serials = []vm.Char{{Type: vm.CharNone}}
	}
	for _, c := range n.all("channel") {
		r.channel(c)
	}
}

// console: the first one repeats the first serial port, or is it where there
// is none.
func (r *reader) console(c *node, place int) {
	c.device()
	t := c.one("target")
	t.ignore("@port")
	kind := t.enum("type", "serial", "virtio")
	if kind == "virtio" {
		r.spec.Consoles = append(r.spec.Consoles, r.char(c))
		return
	}
	p := r.char(c)
	c.ignore("@tty") // of a running domain
	switch {
	case place > 0:
		c.refuse("a second console of type serial", "use target.type=virtio")
	case len(r.spec.Serials) == 0:
		r.spec.Serials = append(r.spec.Serials, p)
	}
}

func (r *reader) channel(c *node) {
	c.device()
	t := c.one("target")
	ch := vm.Channel{Char: r.char(c), Target: t.attr("name")}
	t.ignore("@state") // whether the guest has opened it
	if t.enum("type", "virtio") == "" {
		c.refuse("only virtio channels are made", "use target.type=virtio, or "+useLibvirt)
		return
	}
	if ch.Type == vm.CharUnix && ch.Path == "" {
		ch.Listen = true // a socket of our own
	}
	r.spec.Channels = append(r.spec.Channels, ch)
}

// char reads what the host has at the other end.
func (r *reader) char(c *node) vm.Char {
	kind := c.attr("type")
	out := vm.Char{Type: vm.CharType(kind)}
	c.ignore("@tty")
	for _, src := range c.all("source") {
		for _, x := range src.all("seclabel") {
			x.refuse("security labels are put by libvirt's daemon", useLibvirt)
		}
		r.charSource(src, kind, &out)
	}
	if p := c.one("protocol"); p != nil {
		switch p.enum("type", "raw", "telnet") {
		case "telnet":
			out.Telnet = true
		}
	}
	if l := c.one("log"); l != nil {
		out.LogFile, out.LogAppend = l.attr("file"), l.flag("append")
	}
	switch out.Type {
	case vm.CharPTY, vm.CharUnix, vm.CharTCP, vm.CharUDP, vm.CharFile, vm.CharPipe, vm.CharDev, vm.CharNull, vm.CharVMC, vm.CharPort:
	case "":
		out.Type = vm.CharPTY
	case "stdio", "vc", "qemu-vdagent", "dbus", "nmdm":
		c.refuse(fmt.Sprintf("a character device of type %s is not connected", quote(kind)), "use pty, unix, tcp or file, or "+useLibvirt)
	default:
		c.refuse(fmt.Sprintf("character device type %s is unknown", quote(kind)), "use pty, unix, tcp or file")
	}
	return out
}

func (r *reader) charSource(src *node, kind string, out *vm.Char) {
	switch kind {
	case "pty":
		src.ignore("@path") // of a running domain
	case "tcp":
		out.Host, out.Port = src.attr("host"), r.service(src)
		out.Listen = src.enum("mode", "bind", "connect") == "bind"
		src.plain("tls", "no")
	case "udp":
		if src.enum("mode", "bind", "connect") == "bind" {
			out.BindHost, out.BindPort = src.attr("host"), r.service(src)
		} else {
			out.Host, out.Port = src.attr("host"), r.service(src)
		}
	case "unix":
		out.Path = src.attr("path")
		out.Listen = src.enum("mode", "bind", "connect") == "bind"
	case "spiceport":
		out.Name = src.attr("channel")
	default:
		out.Path = src.attr("path")
		out.Append = src.flag("append")
	}
	if re := src.one("reconnect"); re != nil && re.flag("enabled") {
		re.refuse("a lost connection is not made again", "leave it out, or "+useLibvirt)
	}
}

// service is a TCP or UDP port, which libvirt also takes by name.
func (r *reader) service(src *node) int { return int(src.ranged("service", 0, 65535)) }
