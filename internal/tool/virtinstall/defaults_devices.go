package virtinstall

import (
	"context"
	"slices"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// defaultDevices adds the devices that a machine has unless it is told
// otherwise: "--sound none" says that there is to be none.
func (g *guest) defaultDevices(ctx context.Context, caps domainCaps) error {
	if err := g.defaultGraphics(); err != nil {
		return err
	}
	want := osinfo.Defaults(g.os, g.request(caps))
	for _, add := range []func(osinfo.Machine){
		g.addUSB, g.addConsole, g.addAgentChannel, g.addSpiceChannel, g.addInputs, g.addTPM, g.addSound, g.addVideo,
		g.addRedirection, g.addBalloon, g.addRNG,
	} {
		if g.hvm() {
			add(want)
		}
	}
	for _, d := range slices.Clone(g.dom.Need("devices").Children) {
		if d.Name == "emulator" {
			continue
		}
		if err := g.deviceDefaults(ctx, d); err != nil {
			return err
		}
	}
	g.addSCSIController()
	if g.hvm() {
		g.addPCI(want)
	}
	return nil
}

// told reports whether the command line says anything of a kind of device.
// That there are to be none is said of some kinds only; of the others "none"
// says nothing.
func (g *guest) told(flag string) bool {
	return slices.ContainsFunc(g.args.all(flag), func(text string) bool {
		return text != "" && !(text == "none" && (flag == "video" || flag == "input"))
	})
}

func (g *guest) addDevice(e *domxml.Element) { g.dom.Need("devices").Add(e) }

// defaultGraphics gives a machine a screen, unless it was told what it has.
func (g *guest) defaultGraphics() error {
	for _, screen := range g.devices("graphics") {
		fill(screen, "@type", g.screenType())
	}
	if g.told("graphics") || !g.hvm() || g.arch() == "s390x" {
		return nil
	}
	g.addDevice(domxml.New("graphics", "type", g.screenType()))
	return nil
}

func (g *guest) addUSB(want osinfo.Machine) {
	if g.has("controller", func(e *domxml.Element) bool { return e.Attr("type") == "usb" }) {
		return
	}
	switch want.USB {
	case "qemu-xhci":
		g.addDevice(domxml.New("controller", "type", "usb", "model", "qemu-xhci", "ports", strconv.Itoa(want.USBPorts)))
	case "ich9":
		g.addUSB2()
	}
}

// addPCI adds the root ports that devices are plugged into later.
func (g *guest) addPCI(want osinfo.Machine) {
	if n, ok := g.said[saidRootPorts]; ok && want.RootPorts > 0 {
		if n, err := strconv.Atoi(n); err == nil && n > 0 {
			g.addRootPorts(n)
		}
		return
	}
	if want.RootPorts == 0 || g.has("controller", func(e *domxml.Element) bool { return e.Attr("type") == "pci" }) {
		return
	}
	g.addRootPorts(want.RootPorts)
}

// addRootPorts adds a PCIe root with n ports.
func (g *guest) addRootPorts(n int) {
	g.addDevice(domxml.New("controller", "type", "pci", "model", "pcie-root"))
	for range n {
		g.addDevice(domxml.New("controller", "type", "pci", "model", "pcie-root-port"))
	}
}

func (g *guest) addConsole(osinfo.Machine) {
	if !g.told("console") && !g.told("serial") {
		g.addDevice(domxml.New("console", "type", "pty"))
	}
}

func (g *guest) addAgentChannel(want osinfo.Machine) {
	if !want.Agent || g.told("channel") {
		return
	}
	e := domxml.New("channel", "type", "unix")
	e.Add(domxml.New("source", "mode", "bind"))
	e.Add(domxml.New("target", "type", "virtio", "name", "org.qemu.guest_agent.0"))
	g.addDevice(e)
}

func (g *guest) addSpiceChannel(want osinfo.Machine) {
	given := func(e *domxml.Element) bool { return e.Attr("type") == "spicevmc" }
	if !want.SpiceChannel || slices.Contains(g.args.all("channel"), "none") || g.has("channel", given) {
		return
	}
	e := domxml.New("channel", "type", "spicevmc")
	e.Add(domxml.New("target", "type", "virtio", "name", "com.redhat.spice.0"))
	g.addDevice(e)
}

func (g *guest) addInputs(want osinfo.Machine) {
	if g.told("input") || g.noUSB() {
		return
	}
	for _, i := range want.Inputs {
		g.addDevice(domxml.New("input", "type", i.Type, "bus", i.Bus))
	}
}

// noUSB reports whether the machine was told to have no USB.
func (g *guest) noUSB() bool {
	return g.has("controller", func(e *domxml.Element) bool { return e.Attr("type") == "usb" && e.Attr("model") == "none" })
}

func (g *guest) addTPM(want osinfo.Machine) {
	if want.TPM == "" || g.told("tpm") || g.dom.Child("launchSecurity") != nil {
		return
	}
	e := domxml.New("tpm", "model", want.TPM)
	e.Add(domxml.New("backend", "type", "emulator"))
	g.addDevice(e)
}

func (g *guest) addSound(want osinfo.Machine) {
	if want.Sound != "" && !g.told("sound") {
		g.addDevice(domxml.New("sound", "model", want.Sound))
	}
}

func (g *guest) addVideo(want osinfo.Machine) {
	if want.Video == "" || g.told("video") {
		return
	}
	e := domxml.New("video")
	e.Add(domxml.New("model", "type", want.Video))
	g.addDevice(e)
}

func (g *guest) addRedirection(want osinfo.Machine) {
	if g.told("redirdev") || g.noUSB() {
		return
	}
	for range want.USBRedirects {
		g.addDevice(domxml.New("redirdev", "bus", "usb", "type", "spicevmc"))
	}
}

func (g *guest) addBalloon(want osinfo.Machine) {
	if want.Balloon && !g.told("memballoon") {
		g.addDevice(domxml.New("memballoon", "model", "virtio"))
	}
}

func (g *guest) addRNG(want osinfo.Machine) {
	if !want.RNG || g.told("rng") {
		return
	}
	e := domxml.New("rng", "model", "virtio")
	e.Add(domxml.New("backend", "model", "random")).Text = "/dev/urandom"
	g.addDevice(e)
}
