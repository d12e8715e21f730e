package qemu

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// displayArgs are how the screen is seen, and the graphics cards.
func (c config) displayArgs() []string {
	args := append([]string{"-display", "none"}, c.videoArgs()...)
	if len(c.spec.Displays) == 0 {
		switch v := c.spec.Graphics.VNC; v {
		case vm.VNCNone:
		case vm.VNCUnix:
			args = append(args, "-vnc", "unix:"+home.VNCSocket)
		default:
			args = append(args, "-vnc", v)
		}
		return args
	}
	for _, d := range c.spec.Displays {
		switch d.Type {
		case vm.DisplayVNC:
			args = append(args, vncArgs(d)...)
		case vm.DisplaySPICE:
			args = append(args, spiceArgs(d)...)
		}
		if d.Keymap != "" {
			args = append(args, "-k", d.Keymap)
		}
	}
	return args
}

// vncArgs: the password is never here, where everybody on the host can read it,
// only that there is one.
func vncArgs(d vm.Display) []string {
	var args, p []string
	if d.TLS != "" {
		args = append(args, "-object", device("tls-creds-x509", "id", "vnc-tls", "dir", d.TLS, "endpoint", "server", "verify-peer", onOff(d.Password == ""))) // without a password, the viewer's certificate is what lets it in
		p = append(p, "tls-creds", "vnc-tls")
	}
	p = append(p, "password", onIf(d.Password != ""), "share", d.SharePolicy)
	if d.Websocket != 0 {
		p = append(p, "websocket", strconv.Itoa(d.Websocket))
	}
	return append(args, "-vnc", device(vncWhere(d), p...))
}

func vncWhere(d vm.Display) string {
	switch {
	case d.NoListen:
		return "none"
	case d.Socket != "":
		return "unix:" + escape(d.Socket)
	case d.Listen == "" && d.Port == 0:
		return "unix:" + home.VNCSocket
	}
	host := d.Listen
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(d.Port-5900))
}

func spiceArgs(d vm.Display) []string {
	var p []string
	switch {
	case d.NoListen:
		p = []string{"port", "0"}
	case d.Socket != "":
		p = []string{"unix", "on", "addr", d.Socket}
	case d.Listen == "" && d.Port == 0 && d.TLSPort == 0:
		p = []string{"unix", "on", "addr", home.SPICESock}
	default:
		host := d.Listen
		if host == "" || host == "localhost" {
			host = "127.0.0.1"
		}
		p = []string{"addr", host, "port", number(d.Port), "tls-port", number(d.TLSPort)}
	}
	if d.TLS != "" {
		p = append(p, "x509-dir", d.TLS)
	}
	if d.Password == "" {
		p = append(p, "disable-ticketing", "on")
	}
	p = append(p, "image-compression", d.ImageCompression, "jpeg-wan-compression", d.JPEGCompression, "zlib-glz-wan-compression", d.ZlibCompression,
		"playback-compression", string(d.PlaybackCompression), "streaming-video", d.Streaming, "agent-mouse", string(d.AgentMouse),
		"gl", string(d.GL), "rendernode", d.RenderNode)
	if d.Clipboard == vm.Off {
		p = append(p, "disable-copy-paste", "on")
	}
	if d.FileTransfer == vm.Off {
		p = append(p, "disable-agent-file-xfer", "on")
	}
	for _, name := range slices.Sorted(maps.Keys(d.Channels)) {
		switch d.Channels[name] {
		case "secure":
			p = append(p, "tls-channel", name)
		case "insecure":
			p = append(p, "plaintext-channel", name)
		}
	}
	return []string{"-spice", list(p...)}
}

// number is a property that is left out where it is 0.
func number[T ~int | ~int64](n T) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(n), 10)
}

// displayAddress is where a viewer finds a display: the path of a socket, or
// host:port; "" where there is none.
func displayAddress(s vm.Spec, kind vm.DisplayType, dir string) string {
	i := slices.IndexFunc(s.Displays, func(d vm.Display) bool { return d.Type == kind })
	if i < 0 {
		if kind == vm.DisplayVNC && len(s.Displays) == 0 {
			return vncAddress(s.Graphics.VNC, dir)
		}
		return ""
	}
	d := s.Displays[i]
	switch {
	case d.NoListen:
		return ""
	case d.Socket != "":
		return d.Socket
	case d.Listen == "" && d.Port == 0 && d.TLSPort == 0:
		return filepath.Join(dir, map[vm.DisplayType]string{vm.DisplayVNC: home.VNCSocket, vm.DisplaySPICE: home.SPICESock}[kind])
	}
	port := d.Port
	if port == 0 {
		port = d.TLSPort
	}
	return net.JoinHostPort(orLoopback(d.Listen), strconv.Itoa(port))
}

// videoArgs are the graphics cards. Without any said the machine has a VGA, as
// its text screen is read also where nobody can look at it.
func (c config) videoArgs() []string {
	if len(c.spec.Videos) == 0 {
		return []string{"-device", "VGA,id=vga0"}
	}
	var args []string
	for i, v := range c.spec.Videos {
		if v.Model != vm.VideoNone {
			args = append(args, "-device", video(v, i))
		}
	}
	return args
}

func video(v vm.Video, index int) string {
	id := []string{"id", fmt.Sprintf("vga%d", index)}
	mib := func(bytes int64) string { return number(bytes >> 20) }
	size := []string{"xres", number(v.Width), "yres", number(v.Height)}
	switch v.Model {
	case vm.VideoCirrus:
		return device("cirrus-vga", append(id, "vgamem_mb", mib(v.VRAM))...)
	case vm.VideoVMVGA:
		return device("vmware-svga", append(id, "vgamem_mb", mib(v.VRAM))...)
	case vm.VideoRAMFB:
		return device("ramfb", id...)
	case vm.VideoBochs:
		return device("bochs-display", slices.Concat(id, []string{"vgamem", number(v.VRAM)}, size)...)
	case vm.VideoQXL:
		driver := "qxl-vga"
		if index > 0 {
			driver = "qxl"
		}
		return device(driver, slices.Concat(id, []string{"max_outputs", number(v.Heads), "ram_size", number(v.RAM), "vram_size", number(v.VRAM), "vgamem_mb", mib(v.VGAMem)}, size)...)
	case vm.VideoVirtio:
		driver := "virtio-vga"
		switch {
		case index > 0 && v.Accel3D == vm.On:
			driver = "virtio-gpu-gl-pci"
		case index > 0:
			driver = "virtio-gpu-pci"
		case v.Accel3D == vm.On:
			driver = "virtio-vga-gl"
		}
		return device(driver, slices.Concat(id, []string{"max_outputs", number(v.Heads)}, size)...)
	}
	return device("VGA", slices.Concat(id, []string{"vgamem_mb", mib(v.VRAM)}, size)...)
}
