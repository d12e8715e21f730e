package domain

import (
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// screens writes the displays and the graphics cards.
func (w *writer) screens(parent *domxml.Element) {
	s := w.spec
	displays := s.Displays
	if displays == nil {
		displays = shortDisplay(s.Graphics)
	}
	for i, d := range displays {
		if d.Type != vm.DisplayNone {
			w.display(parent, i, d)
		}
	}
	videos := s.Videos
	if videos == nil {
		videos = []vm.Video{{Model: vm.VideoVGA}}
	}
	for _, v := range videos {
		e := parent.Add(with("video"))
		m := e.Add(with("model", "type", string(v.Model), "ram", kib(v.RAM), "vram", kib(v.VRAM), "vgamem", kib(v.VGAMem), "heads", numIf(v.Heads)))
		addIf(m, with("acceleration", "accel3d", yes(v.Accel3D)))
		if v.Width > 0 && v.Height > 0 {
			m.Add(with("resolution", "x", strconv.Itoa(v.Width), "y", strconv.Itoa(v.Height)))
		}
	}
}

// shortDisplay is the short way to say it as a list.
func shortDisplay(g vm.Graphics) []vm.Display {
	switch g.VNC {
	case vm.VNCNone:
		return nil
	case vm.VNCUnix, "":
		return []vm.Display{{Type: vm.DisplayVNC}}
	}
	host, display, err := vm.ParseVNC(g.VNC)
	if err != nil {
		return nil // Validate has refused it
	}
	return []vm.Display{{Type: vm.DisplayVNC, Listen: host, Port: 5900 + display}}
}

func (w *writer) display(parent *domxml.Element, i int, d vm.Display) {
	e := parent.Add(with("graphics", "type", string(d.Type)))
	switch {
	case d.NoListen:
		e.Add(with("listen", "type", "none"))
	case d.Socket != "" || d.Listen == "" && d.Port == 0 && d.TLSPort == 0 && d.Websocket == 0:
		e.Add(with("listen", "type", "socket", "socket", d.Socket))
	default:
		w.listen(e, d)
	}
	if d.Type == vm.DisplayVNC && len(d.Password) > vm.VNCPasswordLength {
		d.Password = d.Password[:vm.VNCPasswordLength] // the rest is looked at by nobody
	}
	for _, x := range [][2]string{{"passwd", d.Password}, {"passwdValidTo", d.PasswordValidTo}, {"keymap", d.Keymap}, {"sharePolicy", d.SharePolicy}} {
		if x[1] != "" {
			e.SetAttr(x[0], x[1])
		}
	}
	if d.TLS != "" {
		w.problem(field("displays", i, "tls"), "the certificates of libvirt's displays are the daemon's own", "set vnc_tls_x509_cert_dir or spice_tls_x509_cert_dir in qemu.conf")
	}
	if d.Type == vm.DisplaySPICE {
		w.spice(e, d)
	}
	if d.GL != "" {
		e.Add(with("gl", "enable", yes(d.GL), "rendernode", d.RenderNode))
	}
}

func (w *writer) listen(e *domxml.Element, d vm.Display) {
	port := d.Port
	if port <= 0 {
		port = -1
		e.SetAttr("autoport", "yes")
	} else {
		e.SetAttr("autoport", "no")
	}
	e.SetAttr("port", strconv.Itoa(port))
	if d.TLSPort != 0 {
		e.SetAttr("tlsPort", strconv.Itoa(d.TLSPort))
	}
	if d.Websocket != 0 {
		e.SetAttr("websocket", strconv.Itoa(d.Websocket))
	}
	address := orElse(d.Listen, "127.0.0.1")
	ip := net.ParseIP(address)
	if ip != nil && !ip.IsLoopback() && d.Password == "" && d.TLS == "" && !d.Insecure {
		w.problem("displays", "everyone who reaches "+address+" would see and use the machine", "give a password, or --insecure-graphics")
	}
	e.Add(with("listen", "type", "address", "address", address))
}

func (w *writer) spice(e *domxml.Element, d vm.Display) {
	for _, name := range slices.Sorted(maps.Keys(d.Channels)) {
		if name == "default" {
			e.SetAttr("defaultMode", d.Channels[name])
		} else {
			e.Add(with("channel", "name", name, "mode", d.Channels[name]))
		}
	}
	addIf(e, with("image", "compression", d.ImageCompression))
	addIf(e, with("jpeg", "compression", d.JPEGCompression))
	addIf(e, with("zlib", "compression", d.ZlibCompression))
	addIf(e, with("playback", "compression", string(d.PlaybackCompression)))
	addIf(e, with("streaming", "mode", d.Streaming))
	addIf(e, with("clipboard", "copypaste", yes(d.Clipboard)))
	mouse := map[vm.Toggle]string{vm.On: "client", vm.Off: "server"}[d.AgentMouse]
	addIf(e, with("mouse", "mode", mouse))
	addIf(e, with("filetransfer", "enable", yes(d.FileTransfer)))
}
