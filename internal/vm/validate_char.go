package vm

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

func (s Spec) validateChars(f *findings) {
	for i, c := range s.Serials {
		field := fmt.Sprintf("serials[%d]", i)
		c.validate(f, field, s)
		oneOf(f, field+".model", c.Model, "", "isa-serial", "pci-serial", "usb-serial", "isa-debugcon")
		if c.Type == CharNone && len(s.Serials) > 1 {
			f.add(field+".type", "no port, and others beside", "leave one out")
		}
	}
	isa := 0
	for _, c := range s.Serials {
		if c.Model == "" || c.Model == "isa-serial" {
			isa++
		}
	}
	if isa > 4 {
		f.add("serials", fmt.Sprintf("%d ISA serial ports, and a PC has 4", isa), "use pci-serial or usb-serial for the others")
	}
	for i, c := range s.Parallels {
		c.validate(f, fmt.Sprintf("parallels[%d]", i), s)
	}
	if len(s.Parallels) > 3 {
		f.add("parallels", fmt.Sprintf("%d parallel ports, and a PC has 3", len(s.Parallels)), "leave some out")
	}
	for i, c := range s.Consoles {
		c.validate(f, fmt.Sprintf("consoles[%d]", i), s)
	}
	s.validateChannels(f)
	for i, r := range s.Redirects {
		r.validate(f, fmt.Sprintf("redirects[%d]", i), s)
	}
}

var validPort = pattern(`^[A-Za-z0-9._-]{1,31}$`)

func (s Spec) validateChannels(f *findings) {
	seen := map[string]bool{}
	for i, c := range s.Channels {
		field := fmt.Sprintf("channels[%d]", i)
		c.Char.validate(f, field, s)
		if !validPort().MatchString(c.Target) {
			f.add(field+".target", fmt.Sprintf("%q is not a port's name", c.Target), "use up to 31 letters, digits, '.', '_' and '-', as in "+ChannelAgent)
		}
		if seen[c.Target] {
			f.add(field+".target", c.Target+" is there twice", "leave one out")
		}
		seen[c.Target] = true
	}
	if len(s.Channels)+len(s.Consoles) > 30 {
		f.add("channels", fmt.Sprintf("%d channels and consoles", len(s.Channels)+len(s.Consoles)), "use up to 30")
	}
}

// HasSPICE reports whether the machine has a SPICE display.
func (s Spec) HasSPICE() bool {
	return slices.ContainsFunc(s.Displays, func(d Display) bool { return d.Type == DisplaySPICE })
}

func (c Char) validate(f *findings, field string, s Spec) {
	oneOf(f, field+".type", c.Type, "", CharPTY, CharUnix, CharTCP, CharUDP, CharFile, CharPipe, CharDev, CharNull, CharLog, CharVMC, CharPort, CharNone)
	switch c.Type {
	case CharFile, CharPipe, CharDev:
		absolute(f, field+".path", c.Path)
	case CharUnix:
		if c.Path != "" {
			absolute(f, field+".path", c.Path)
		} else if !c.Listen {
			f.add(field+".path", "the socket to connect to is not said", "name it, or set listen")
		}
		if len(c.Path) > 107 {
			f.add(field+".path", fmt.Sprintf("%d bytes, and the path of a socket has at most 107", len(c.Path)), "use a shorter one")
		}
	case CharTCP, CharUDP:
		c.validateAddress(f, field)
	case CharVMC, CharPort:
		if !s.HasSPICE() {
			f.add(field+".type", string(c.Type)+" needs a SPICE display", "add one, or use another type")
		}
		if c.Type == CharPort && !validPort().MatchString(c.Name) {
			f.add(field+".name", fmt.Sprintf("%q is not a port's name", c.Name), "use letters, digits, '.', '_' and '-'")
		}
	case CharLog:
		if c.LogFile == "" {
			f.add(field+".logFile", "a log without a file", "name it")
		}
	}
	if c.LogFile != "" {
		absolute(f, field+".logFile", c.LogFile)
	}
}

// validateAddress: a server that others reach is asked for by name.
func (c Char) validateAddress(f *findings, field string) {
	host := func(name, h string, serves bool) {
		a, err := netip.ParseAddr(h)
		switch {
		case h == "" || h == "localhost":
		case strings.ContainsAny(h, ",\x00 "):
			f.add(field+"."+name, fmt.Sprintf("%q is not an address", h), "use 127.0.0.1, or another")
		case serves && (err != nil || !a.IsLoopback()) && !c.Insecure:
			f.add(field+"."+name, fmt.Sprintf("anybody who reaches %s could use the port: it has no password", h), "use 127.0.0.1, or say that insecure is what you want")
		}
	}
	port := func(name string, p, least int) {
		if p < least || p > 65535 {
			f.add(field+"."+name, fmt.Sprintf("%d is not a port", p), "use 1 to 65535")
		}
	}
	if c.Type == CharTCP {
		host("host", c.Host, c.Listen)
		port("port", c.Port, 1)
		return
	}
	host("host", c.Host, false)
	host("bindHost", c.BindHost, true)
	port("port", c.Port, 1)
	port("bindPort", c.BindPort, 0)
}
