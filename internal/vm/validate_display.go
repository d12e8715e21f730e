package vm

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

func (s Spec) validateScreen(f *findings) {
	if len(s.Displays) == 0 {
		s.validateGraphics(f)
	}
	seen := map[DisplayType]bool{}
	for i, d := range s.Displays {
		field := fmt.Sprintf("displays[%d]", i)
		oneOf(f, field+".type", d.Type, DisplayVNC, DisplaySPICE, DisplayNone)
		if seen[d.Type] && d.Type != DisplayNone {
			f.add(field+".type", fmt.Sprintf("a second display by %s", d.Type), "one of each: a VNC and a SPICE display may be together")
		}
		seen[d.Type] = true
		if d.Type != DisplayNone {
			d.validate(f, field)
		}
	}
	s.validateVideos(f)
}

// Exposed reports whether others than this host's users can reach the display.
func (d Display) Exposed() bool {
	if d.NoListen || d.Socket != "" || d.Listen == "" || d.Listen == "localhost" {
		return false
	}
	a, err := netip.ParseAddr(d.Listen)
	return err != nil || !a.IsLoopback()
}

func (d Display) validate(f *findings, field string) {
	if d.Socket != "" {
		absolute(f, field+".socket", d.Socket)
		if d.Listen != "" || d.Port != 0 || d.TLSPort != 0 {
			f.add(field+".socket", "a socket and an address or port", "leave one out")
		} else if len(d.Socket) > 107 {
			f.add(field+".socket", fmt.Sprintf("%d bytes, and the path of a socket has at most 107", len(d.Socket)), "use a shorter one, or leave it out")
		}
	}
	if d.Listen != "" && d.Listen != "localhost" {
		if a, err := netip.ParseAddr(d.Listen); err != nil || a.Zone() != "" {
			f.add(field+".listen", fmt.Sprintf("%q is not an address of the host", d.Listen), "use 127.0.0.1, or another address")
		}
	}
	for name, p := range inOrder(map[string]int{"port": d.Port, "tlsPort": d.TLSPort, "websocket": d.Websocket}) {
		if p < -1 || p > 65535 {
			f.add(field+"."+name, fmt.Sprintf("%d is not a port", p), "use -1 to have one chosen")
		}
	}
	if d.Type == DisplayVNC && d.Port > 0 && d.Port < 5900 {
		f.add(field+".port", fmt.Sprintf("VNC's ports begin at 5900, and this is %d", d.Port), "use 5900 or more, or -1 to have one chosen")
	}
	// SPICE has a plain port beside the one with TLS, unless it has only that.
	tls := d.TLS != "" && (d.Type != DisplaySPICE || d.TLSPort != 0 && d.Port == 0)
	if d.Exposed() && d.Password == "" && !tls && !d.Insecure {
		f.add(field+".listen", fmt.Sprintf("anybody who reaches %s could use the machine's screen and keyboard", d.Listen), "set a password or TLS, listen on 127.0.0.1 and use an SSH tunnel, or say that insecure is what you want")
	}
	d.validateAccess(f, field)
	if d.Type == DisplayVNC {
		d.validateVNC(f, field)
	} else {
		d.validateSPICE(f, field)
	}
}

// VNCPasswordLength is how much of a password VNC's authentication looks at.
const VNCPasswordLength = 8

func (d Display) validateAccess(f *findings, field string) {
	if strings.ContainsRune(d.Password, 0) {
		f.add(field+".password", "holds a zero byte", "use another")
	}
	if d.PasswordValidTo != "" {
		if _, err := time.Parse(time.RFC3339, d.PasswordValidTo); err != nil {
			f.add(field+".passwordValidTo", fmt.Sprintf("%q is not a time", d.PasswordValidTo), "write it as in 2026-12-31T23:59:00Z")
		} else if d.Password == "" {
			f.add(field+".passwordValidTo", "there is no password that could end", "set one")
		}
	}
	if d.TLS != "" {
		absolute(f, field+".tls", d.TLS)
	}
	word(f, field+".keymap", d.Keymap)
	toggle(f, field+".gl", d.GL)
	if d.RenderNode != "" {
		absolute(f, field+".renderNode", d.RenderNode)
	}
}

func (d Display) validateVNC(f *findings, field string) {
	oneOf(f, field+".sharePolicy", d.SharePolicy, "", "allow-exclusive", "force-shared", "ignore")
	if d.GL == On {
		f.add(field+".gl", "VNC has no OpenGL", "use spice, or leave it out")
	}
	if d.ImageCompression != "" || d.JPEGCompression != "" || d.ZlibCompression != "" || d.PlaybackCompression != "" || d.Streaming != "" ||
		d.Clipboard != "" || d.FileTransfer != "" || d.AgentMouse != "" || len(d.Channels) > 0 || d.TLSPort != 0 {
		f.add(field, "VNC has no compression, streaming, clipboard, agent, channels or TLS port to choose", "leave them out, or use spice")
	}
	if d.Websocket != 0 && d.local() {
		f.add(field+".websocket", "browsers need a TCP port beside", "set listen to 127.0.0.1")
	}
}

// local reports whether the display is at a socket only.
func (d Display) local() bool {
	return d.NoListen || d.Socket != "" || d.Listen == "" && d.Port == 0 && d.TLSPort == 0
}

func (d Display) validateSPICE(f *findings, field string) {
	oneOf(f, field+".imageCompression", d.ImageCompression, "", "auto_glz", "auto_lz", "quic", "glz", "lz", "off")
	oneOf(f, field+".jpegCompression", d.JPEGCompression, "", "auto", "never", "always")
	oneOf(f, field+".zlibCompression", d.ZlibCompression, "", "auto", "never", "always")
	oneOf(f, field+".streaming", d.Streaming, "", "filter", "all", "off")
	for name, t := range inOrder(map[string]Toggle{"playbackCompression": d.PlaybackCompression, "clipboard": d.Clipboard, "fileTransfer": d.FileTransfer, "agentMouse": d.AgentMouse}) {
		toggle(f, field+"."+name, t)
	}
	if d.SharePolicy != "" || d.Websocket != 0 {
		f.add(field, "share policy and websocket are VNC's", "leave them out, or use vnc")
	}
	if d.TLSPort != 0 && d.TLS == "" {
		f.add(field+".tlsPort", "TLS needs a certificate", "set tls to the folder that holds it")
	}
	channels := []string{"default", "main", "display", "inputs", "cursor", "playback", "record", "smartcard", "usbredir"}
	for name, how := range inOrder(d.Channels) {
		if !slices.Contains(channels, name) {
			f.add(field+".channels", fmt.Sprintf("no channel is called %q", name), "use one of "+strings.Join(channels, ", "))
		}
		oneOf(f, field+".channels."+name, how, "secure", "insecure", "any")
		if how == "secure" && d.TLS == "" {
			f.add(field+".channels."+name, "a secure channel needs a certificate", "set tls to the folder that holds it")
		}
	}
}

func (s Spec) validateVideos(f *findings) {
	gl := slices.ContainsFunc(s.Displays, func(d Display) bool { return d.GL == On })
	for i, v := range s.Videos {
		field := fmt.Sprintf("videos[%d]", i)
		oneOf(f, field+".model", v.Model, VideoVGA, VideoCirrus, VideoQXL, VideoVirtio, VideoBochs, VideoVMVGA, VideoRAMFB, VideoNone)
		toggle(f, field+".accel3d", v.Accel3D)
		for name, n := range inOrder(map[string]int64{"vram": v.VRAM, "ram": v.RAM, "vgamem": v.VGAMem}) {
			if n < 0 || n > 1<<31 {
				f.add(field+"."+name, fmt.Sprintf("%d bytes", n), "use 0 for the default, up to 2G")
			}
		}
		if v.Heads < 0 || v.Heads > 16 || v.Heads > 1 && v.Model != VideoQXL && v.Model != VideoVirtio {
			f.add(field+".heads", fmt.Sprintf("%d heads of a %s", v.Heads, v.Model), "use 1, or virtio or qxl with up to 16")
		}
		if v.Width < 0 || v.Height < 0 || v.Width > 16384 || v.Height > 16384 {
			f.add(field+".width", fmt.Sprintf("%d x %d pixels", v.Width, v.Height), "use up to 16384 x 16384")
		}
		if v.Accel3D == On && (v.Model != VideoVirtio || !gl) {
			f.add(field+".accel3d", "3D needs a virtio card and a display with OpenGL", "use virtio and spice with gl, or leave it out")
		}
		if v.Model == VideoNone && len(s.Videos) > 1 {
			f.add(field+".model", "no card, and others beside", "leave one out")
		}
		if i > 0 && v.Model != VideoQXL && v.Model != VideoVirtio && v.Model != VideoBochs {
			f.add(field+".model", fmt.Sprintf("a %s cannot be a second card", v.Model), "use virtio, qxl or bochs")
		}
	}
}

func (s Spec) validateGraphics(f *findings) {
	v := s.Graphics.VNC
	if v == VNCUnix || v == VNCNone {
		return
	}
	if _, _, err := ParseVNC(v); err != nil {
		f.add("graphics.vnc", err.Error(), "use unix, none, or a loopback address and display as in 127.0.0.1:1; reach it from afar through an SSH tunnel")
	}
}

// ParseVNC splits HOST:DISPLAY; HOST is a loopback address or "localhost",
// DISPLAY is 0 to 59635, which means TCP port 5900+DISPLAY.
func ParseVNC(v string) (host string, display int, err error) {
	host, d, err := net.SplitHostPort(v)
	if err != nil {
		return "", 0, fmt.Errorf("%q is not HOST:DISPLAY", v)
	}
	n, ok := parsePort(d)
	if !ok || n > 65535-5900 {
		return "", 0, fmt.Errorf("%q is not a display number", d)
	}
	if host == "localhost" {
		return "127.0.0.1", n, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil || !a.IsLoopback() || a.Zone() != "" { // a zone may hold anything, also QEMU's options
		return "", 0, fmt.Errorf("%q is not a loopback address, and VNC has no password or encryption here", host)
	}
	return host, n, nil
}
