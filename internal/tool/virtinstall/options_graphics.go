package virtinstall

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func graphicsOption() option {
	return option{flag: "graphics", element: "devices/graphics", many: true, first: []string{"type"}, none: true, subs: graphicsSubs}
}

func graphicsSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "type", path: "@type", ignoreDefault: true},
		{name: "port", set: setGraphicsPort},
		{name: "tlsPort", aliases: []string{"tlsport"}, set: setGraphicsTLSPort},
		{name: "websocket", path: "@websocket", kind: number},
		{name: "listen", set: setGraphicsListen},
		{name: "keymap", set: setKeymap},
		{name: "password", aliases: []string{"passwd"}, path: "@passwd"},
		{name: "passwordValidTo", aliases: []string{"passwdValidTo"}, path: "@passwdValidTo"},
		{name: "connected", path: "@connected"},
		{name: "defaultMode", path: "@defaultMode"},
		{name: "listens[0-9]*.type", path: "listen[#]/@type"},
		{name: "listens[0-9]*.address", path: "listen[#]/@address"},
		{name: "listens[0-9]*.network", path: "listen[#]/@network"},
		{name: "listens[0-9]*.socket", path: "listen[#]/@socket"},
		{name: "image.compression", aliases: []string{"image_compression"}, path: "image/@compression"},
		{name: "streaming.mode", aliases: []string{"streaming_mode"}, path: "streaming/@mode"},
		{name: "clipboard.copypaste", aliases: []string{"clipboard_copypaste"}, path: "clipboard/@copypaste", kind: yesNo},
		{name: "mouse.mode", aliases: []string{"mouse_mode"}, path: "mouse/@mode"},
		{name: "filetransfer.enable", aliases: []string{"filetransfer_enable"}, path: "filetransfer/@enable", kind: yesNo},
		{name: "zlib.compression", path: "zlib/@compression"},
		{name: "gl.enable", aliases: []string{"gl"}, path: "gl/@enable", kind: yesNo},
		{name: "gl.rendernode", aliases: []string{"rendernode"}, path: "gl/@rendernode"},
	})
}

func videoOption() option {
	return option{flag: "video", element: "devices/video", many: true, first: []string{"model.type"}, none: true, subs: videoSubs}
}

func videoSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "model.type", aliases: []string{"model"}, path: "model/@type", ignoreDefault: true},
		{name: "model.acceleration.accel3d", aliases: []string{"accel3d"}, path: "model/acceleration/@accel3d", kind: yesNo},
		{name: "model.heads", aliases: []string{"heads"}, path: "model/@heads", kind: number},
		{name: "model.ram", aliases: []string{"ram"}, path: "model/@ram", kind: number},
		{name: "model.vram", aliases: []string{"vram"}, path: "model/@vram", kind: number},
		{name: "model.vram64", aliases: []string{"vram64"}, path: "model/@vram64", kind: number},
		{name: "model.vgamem", aliases: []string{"vgamem"}, path: "model/@vgamem", kind: number},
	})
}

func setGraphicsPort(_ *guest, el *domxml.Element, v value) error {
	return setScreenPort(el, "@port", v.text, "Port must be above 5900, or -1 for auto allocation")
}

func setGraphicsTLSPort(_ *guest, el *domxml.Element, v value) error {
	return setScreenPort(el, "@tlsPort", v.text, "TLS Port must be above 5900, or -1 for auto allocation")
}

func setScreenPort(el *domxml.Element, path, text, refusal string) error {
	if text == "" {
		return el.Remove(path)
	}
	n, err := wholeNumber(text)
	if err != nil {
		return err
	}
	if n < 5900 && n != -1 {
		return errors.New(refusal)
	}
	put(el, path, strconv.FormatInt(n, 10))
	return nil
}

// setGraphicsListen sets the address that is listened on: "none" and "socket"
// are no addresses, and have no port.
func setGraphicsListen(_ *guest, el *domxml.Element, v value) error {
	switch v.text {
	case "":
		return el.Remove("@listen")
	case "none", "socket":
		drop(el, "@port")
		drop(el, "@tlsPort")
		drop(el, "@autoport")
		put(el, "listen[1]/@type", v.text)
	default:
		put(el, "@listen", v.text)
	}
	return nil
}

// setKeymap sets the keyboard's layout: "local" is the host's, where that is
// known, "none" is the viewer's.
func setKeymap(_ *guest, el *domxml.Element, v value) error {
	switch strings.ToLower(v.text) {
	case "", "none":
		return el.Remove("@keymap")
	case "local":
		if layout := hostKeymap(); layout != "" {
			put(el, "@keymap", layout)
		}
		return nil
	}
	put(el, "@keymap", v.text)
	return nil
}

// hostKeymap is the layout of the host's keyboard as its console knows it.
func hostKeymap() string {
	for _, file := range [][2]string{{"/etc/vconsole.conf", "KEYMAP"}, {"/etc/sysconfig/keyboard", "KEYTABLE"}, {"/etc/default/keyboard", "XKBLAYOUT"}} {
		doc, err := os.ReadFile(file[0])
		if err != nil {
			continue // not one of these systems
		}
		for line := range strings.Lines(string(doc)) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), file[1]+"="); ok {
				return strings.Trim(text, `"' `)
			}
		}
	}
	return ""
}

// graphicsDefaults chooses ports and what else a screen needs.
func (g *guest) graphicsDefaults(el *domxml.Element) {
	fill(el, "@type", g.screenType())
	kind := el.Attr("type")
	if kind == "sdl" {
		if home, err := os.UserHomeDir(); err == nil {
			fill(el, "@xauth", filepath.Join(home, ".Xauthority"))
		}
		fill(el, "@display", os.Getenv("DISPLAY"))
	}
	if kind == "spice" && !remote(g.host.uri()) {
		fill(el, "image/@compression", "off") // it costs more than a local viewer gains
	}
	first := el.Get("listen/@type")
	if kind != "spice" && kind != "vnc" || first == "none" || first == "socket" {
		return
	}
	automatic := func(path string) bool { v := el.Get(path); return v == "" || v == "-1" }
	if kind == "spice" && automatic("@port") && el.Get("@tlsPort") == "" {
		fill(el, "@autoport", "yes")
	}
	fill(el, "@port", "-1")
	if kind == "spice" {
		fill(el, "@tlsPort", "-1")
	}
}

// screenType is the protocol of a screen of which nothing was said.
func (g *guest) screenType() string {
	if g.x86() && g.dcaps.has("devices/graphics", "type", "spice") {
		return "spice"
	}
	return "vnc"
}

func (g *guest) videoDefaults(el *domxml.Element) {
	fill(el, "model/@type", g.videoModel())
	if el.Get("model/@type") == "virtio" && slices.ContainsFunc(g.devices("graphics"), func(s *domxml.Element) bool { return s.Get("gl/@enable") == "yes" }) {
		fill(el, "model/acceleration/@accel3d", "yes")
	}
}

// videoModel is the graphics card that the guest's OS works best with, also
// where nothing shows its picture.
func (g *guest) videoModel() string {
	if model := g.osMachine().Video; model != "" {
		return model
	}
	return g.osMachineWith("vnc").Video
}
