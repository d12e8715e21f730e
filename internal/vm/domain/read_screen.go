package domain

import (
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
)

// screens reads the graphics cards and the ways to see them.
func (r *reader) screens(n *node) {
	s := &r.spec
	graphics := n.all("graphics")
	for _, g := range graphics {
		r.display(g)
	}
	if len(graphics) == 0 {
		s.Graphics.VNC = vm.VNCNone
	}
	videos := n.all("video")
	for _, v := range videos {
		r.video(v)
	}
	if len(videos) == 0 && len(graphics) == 0 {
		s.Videos = []vm.Video{{Model: vm.VideoNone}} // nil is a VGA
	}
}

func (r *reader) display(c *node) {
	c.device()
	kind := c.attr("type")
	d := vm.Display{Type: vm.DisplayType(kind)}
	if d.Type != vm.DisplayVNC && d.Type != vm.DisplaySPICE {
		c.refuse(fmt.Sprintf("the screen is not shown by %s", quote(kind)), "use vnc or spice, or "+useLibvirt)
		return
	}
	r.listen(c, &d)
	d.Password, d.PasswordValidTo = c.attr("passwd"), c.attr("passwdValidTo")
	c.plain("connected", "keep")
	d.Keymap = c.attr("keymap")
	d.SharePolicy = c.enum("sharePolicy", "allow-exclusive", "force-shared", "ignore")
	c.plain("powerControl", "no")
	if gl := c.one("gl"); gl != nil {
		d.GL, d.RenderNode = gl.toggle("enable"), gl.attr("rendernode")
	}
	c.one("audio").ignore("@id")
	if d.Type == vm.DisplaySPICE {
		r.spice(c, &d)
	}
	r.spec.Displays = append(r.spec.Displays, d)
}

// listen reads where a viewer connects. Where the document leaves it to libvirt
// (any free port of the loopback address), it is a socket in the machine's
// folder, which only its owner can open.
func (r *reader) listen(c *node, d *vm.Display) {
	port, auto := c.number("port"), c.toggle("autoport")
	tls, web := c.number("tlsPort"), c.number("websocket")
	d.Listen, d.Socket = c.attr("listen"), c.attr("socket")
	for i, l := range c.all("listen") {
		if i > 0 {
			l.refuse("one address is listened at", "keep one")
			continue
		}
		switch l.enum("type", "address", "network", "socket", "none") {
		case "address":
			if a := l.attr("address"); a != "" {
				d.Listen = a
			}
		case "network":
			l.refuse("the address of a network of libvirt is its daemon's to know", "give the address, or "+useLibvirt)
		case "socket":
			if p := l.attr("socket"); p != "" {
				d.Socket = p
			}
			return
		case "none":
			d.NoListen = true
			return
		}
		l.ignore("@fromConfig")
	}
	d.Port, d.TLSPort, d.Websocket = port, tls, web
	chosen := port == -1 || port == 0 || auto == vm.On
	if chosen {
		d.Port = 0
	}
	if tls == -1 {
		d.TLSPort = 0
	}
	if chosen && d.Socket == "" && d.Listen == "" && d.TLSPort <= 0 && d.Websocket == 0 {
		r.note(c.path, "the screen is shown on a unix socket in the machine's folder", "give a port or an address to have TCP")
	} else if chosen && d.Socket == "" {
		d.Port = -1
	}
}

func (r *reader) spice(c *node, d *vm.Display) {
	d.ImageCompression = c.one("image").enum("compression", "auto_glz", "auto_lz", "quic", "glz", "lz", "off")
	d.JPEGCompression = c.one("jpeg").enum("compression", "auto", "never", "always")
	d.ZlibCompression = c.one("zlib").enum("compression", "auto", "never", "always")
	d.PlaybackCompression = c.one("playback").toggle("compression")
	d.Streaming = c.one("streaming").enum("mode", "filter", "all", "off")
	d.Clipboard = c.one("clipboard").toggle("copypaste")
	d.FileTransfer = c.one("filetransfer").toggle("enable")
	switch c.one("mouse").enum("mode", "server", "client") {
	case "server":
		d.AgentMouse = vm.Off
	case "client":
		d.AgentMouse = vm.On
	}
	channel := func(name, mode string) {
		if d.Channels == nil {
			d.Channels = map[string]string{}
		}
		d.Channels[name] = mode
	}
	if mode := c.enum("defaultMode", "any", "secure", "insecure"); mode == "secure" || mode == "insecure" {
		channel("default", mode)
	}
	for _, ch := range c.all("channel") {
		if mode := ch.enum("mode", "any", "secure", "insecure"); mode == "secure" || mode == "insecure" {
			channel(ch.attr("name"), mode)
		} else {
			ch.attr("name")
		}
	}
}

func (r *reader) video(c *node) {
	c.device()
	m := c.one("model")
	v := vm.Video{Heads: m.number("heads")}
	if v.Heads == 1 {
		v.Heads = 0 // which it is anyway
	}
	model := m.attr("type")
	switch vm.VideoModel(model) {
	case vm.VideoVGA, vm.VideoCirrus, vm.VideoQXL, vm.VideoVirtio, vm.VideoBochs, vm.VideoVMVGA, vm.VideoRAMFB, vm.VideoNone:
		v.Model = vm.VideoModel(model)
	default:
		r.problem(m.at("type"), fmt.Sprintf("there is no graphics card %s", quote(model)), "use virtio, qxl, vga, bochs, cirrus, vmvga, ramfb or none")
	}
	v.VRAM, v.RAM, v.VGAMem = m.size("vram")<<10, m.size("ram")<<10, m.size("vgamem")<<10
	m.ignore("@primary") // the first one is
	m.plain("vram64")
	m.plain("blob", "off")
	if a := m.one("acceleration"); a != nil {
		v.Accel3D = a.toggle("accel3d")
		a.plain("accel2d", "no")
		a.plain("rendernode")
	}
	if x := m.one("resolution"); x != nil {
		v.Width, v.Height = x.number("x"), x.number("y")
	}
	if d := c.one("driver"); d != nil {
		d.plain("name", "qemu")
		d.plain("vgaconf")
		d.plain("iommu", "off")
		d.plain("ats", "off")
	}
	r.spec.Videos = append(r.spec.Videos, v)
}
