package qemu

import (
	"fmt"
	"strconv"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// chardev is the host's end of a character device. socket is the name of a unix
// socket in the machine's folder, for one that has no path; purpose is what SPICE
// is told of it.
func chardev(id string, c vm.Char, socket, purpose string) string {
	log := []string{"logfile", c.LogFile}
	if c.LogFile != "" {
		log = append(log, "logappend", onOff(c.LogAppend))
	}
	var p []string
	kind := string(c.Type)
	switch c.Type {
	case vm.CharUnix:
		kind = "socket"
		path := c.Path
		if path == "" {
			path = socket
		}
		p = []string{"path", path}
		if c.Listen {
			p = append(p, "server", "on", "wait", "off")
		}
	case vm.CharTCP:
		kind = "socket"
		p = []string{"host", orLoopback(c.Host), "port", strconv.Itoa(c.Port)}
		if c.Listen {
			p = append(p, "server", "on", "wait", "off")
		}
		p = append(p, "telnet", onIf(c.Telnet))
	case vm.CharUDP:
		p = []string{"host", orLoopback(c.Host), "port", strconv.Itoa(c.Port), "localaddr", orLoopback(c.BindHost), "localport", strconv.Itoa(c.BindPort)}
	case vm.CharFile:
		p = []string{"path", c.Path, "append", onIf(c.Append)}
	case vm.CharPipe:
		p = []string{"path", c.Path}
	case vm.CharDev:
		kind = purpose
		if kind == "" {
			kind = "serial"
		}
		p = []string{"path", c.Path}
	case vm.CharNull, vm.CharLog:
		kind = "null"
	case vm.CharVMC:
		p = []string{"name", purpose}
	case vm.CharPort:
		p = []string{"name", c.Name}
	default:
		kind = "pty"
	}
	return device(kind, append(append([]string{"id", id}, p...), log...)...)
}

func orLoopback(host string) string {
	if host == "" {
		return "127.0.0.1"
	}
	return host
}

// serialArgs are the serial ports. The first one, ttyS0, is a socket for one
// client, and a log of every byte whether or not one is there, unless the spec has
// another use for it.
func (c config) serialArgs() []string {
	own := "socket,id=serial0,path=" + home.SerialSock + ",server=on,wait=off,logfile=" + home.SerialLogFile + ",logappend=off"
	if len(c.spec.Serials) == 0 {
		return []string{"-chardev", own, "-device", "isa-serial,chardev=serial0"}
	}
	var args []string
	for i, s := range c.spec.Serials {
		if s.Type == vm.CharNone {
			continue
		}
		id := fmt.Sprintf("serial%d", i)
		end := chardev(id, withLog(i, s), id+".sock", "")
		if i == 0 && ownSerial(s) {
			end = own
		}
		driver, index := s.Model, ""
		if driver == "" || driver == "isa-serial" {
			driver = "isa-serial"
			if i > 0 {
				index = strconv.Itoa(i)
			}
		}
		var bus string
		if driver == "usb-serial" {
			bus = usbBus
		}
		args = append(args, "-chardev", end, "-device", device(driver, "chardev", id, "bus", bus, "index", index))
	}
	return args
}

// ownSerial reports whether a first serial port is the machine's console and log.
func ownSerial(s vm.Char) bool { return (s.Type == "" || s.Type == vm.CharPTY) && s.LogFile == "" }

// withLog: every byte of the first port is in the machine's log, whatever is at
// its other end.
func withLog(index int, s vm.Char) vm.Char {
	if index == 0 && s.LogFile == "" {
		s.LogFile = home.SerialLogFile
	}
	return s
}

// charArgs are the other ports: parallel ones, virtio consoles and channels.
func (c config) charArgs() []string {
	var args []string
	for i, p := range c.spec.Parallels {
		id := fmt.Sprintf("parallel%d", i)
		args = append(args, "-chardev", chardev(id, p, id+".sock", "parallel"), "-device", device("isa-parallel", "chardev", id, "index", strconv.Itoa(i)))
	}
	if !c.spec.NeedsVirtioSerial() {
		return args
	}
	var ports string
	for _, k := range c.spec.Controllers {
		if k.Type == "virtio-serial" && k.Ports > 0 {
			ports = strconv.Itoa(k.Ports)
		}
	}
	args = append(args, "-device", device("virtio-serial-pci", "id", "vserial0", "max_ports", ports))
	nr := 0
	next := func() string { nr++; return strconv.Itoa(nr) }
	for i, s := range c.spec.Consoles {
		id := fmt.Sprintf("console%d", i)
		args = append(args, "-chardev", chardev(id, s, id+".sock", ""),
			"-device", device("virtconsole", "bus", "vserial0.0", "nr", next(), "chardev", id))
	}
	for i, ch := range c.spec.Channels {
		id := fmt.Sprintf("channel%d", i)
		args = append(args, "-chardev", chardev(id, ch.Char, ChannelSocket(i), "vdagent"),
			"-device", device("virtserialport", "bus", "vserial0.0", "nr", next(), "chardev", id, "name", ch.Target, "id", id+"-device"))
	}
	return args
}

// ChannelSocket is the name, in the machine's folder, of the unix socket of
// the channel with that index, where the spec has no path for it.
func ChannelSocket(index int) string { return fmt.Sprintf("channel%d.sock", index) }
