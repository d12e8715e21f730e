package virtinstall

import (
	"errors"
	"fmt"
	"strings"
)

// conflict is two options of which only one may be given.
func conflict(a, b string) error {
	return fmt.Errorf("Cannot use %s and %s at the same time", a, b)
}

// convertOld turns options of old command lines into those of today. The
// messages are the original's.
func convertOld(g *guest) error {
	a := g.args
	if step, ok := a.last("print-step"); ok {
		a.values["print-xml"] = []string{step}
		g.quiet = true
	}
	if c, ok := a.last("c"); ok {
		if a.has("cdrom") {
			return conflict("-c", "--cdrom")
		}
		if strings.Contains(c, "://") {
			return errors.New("-c specified with what looks like a libvirt URI. Did you mean to use --connect? If not, use --cdrom instead")
		}
		a.values["cdrom"] = []string{c}
	}
	if a.has("force") {
		a.values["check"] = append(a.values["check"], "all=off")
	}
	if a.has("prompt") {
		g.warn("--prompt mode is no longer supported.")
	}
	if ram := a.get("ram"); ram != "" && ram != "0" && !a.has("memory") {
		a.values["memory"] = []string{ram}
	}
	for _, convert := range []func(*arguments) error{convertNetworks, convertGraphics, convertDisks} {
		if err := convert(a); err != nil {
			return err
		}
	}
	convertFeatures(a)
	if set := a.get("cpuset"); set != "" {
		a.values["vcpus"] = append(a.values["vcpus"], ",cpuset="+set)
	}
	if init := a.get("init"); init != "" {
		if !a.has("boot") {
			a.values["boot"] = []string{""}
		}
		boot := a.values["boot"]
		boot[len(boot)-1] += ",init=" + init
	}
	if wait := strings.TrimSpace(a.get("wait")); wait == "0" {
		g.warn("Treating --wait 0 as --noautoconsole")
		a.values["autoconsole"] = []string{"none"}
		delete(a.values, "wait")
	}
	if a.has("test-stub-command") {
		convertStub(a)
	}
	if a.has("os-type") {
		g.warn("--os-type is deprecated and does nothing. Please stop using it.")
	}
	return nil
}

// convertNetworks reads --nonetworks, --mac and --bridge. A guest has a
// network unless it is told otherwise.
func convertNetworks(a *arguments) error {
	networks := a.all("network")
	if a.has("nonetworks") {
		networks = []string{"none"}
	}
	if a.has("bridge") {
		if len(networks) > 0 {
			return conflict("--bridge", "--network")
		}
		for _, b := range a.all("bridge") {
			networks = append(networks, "bridge:"+b)
		}
	}
	macs := a.all("mac")
	for len(networks) < max(len(macs), 1) {
		networks = append(networks, "default")
	}
	var out []string
	for i, n := range networks {
		if i < len(macs) && macs[i] != "" {
			n += ",mac=" + macs[i]
		}
		for _, kind := range []string{"network", "bridge"} {
			if strings.HasPrefix(n, kind+":") {
				n = strings.ReplaceAll(n, kind+":", kind+"=")
			}
		}
		out = append(out, n)
	}
	a.values["network"] = out
	return nil
}

// convertGraphics reads --vnc, --sdl, --nographics and their company.
func convertGraphics(a *arguments) error {
	given := func(keys ...string) (n int) {
		for _, k := range keys {
			if v := a.get(k); v != "" && v != "0" {
				n++
			}
		}
		return n
	}
	if a.has("graphics") && given("vnc", "sdl", "keymap", "vncport", "vnclisten") > 0 {
		return errors.New("Cannot mix --graphics and old style graphical options")
	}
	if a.has("graphics") && !a.has("nographics") {
		return nil
	}
	switch n := given("vnc", "nographics", "sdl", "graphics"); {
	case n > 1:
		return errors.New("Can't specify more than one of VNC, SDL, --graphics or --nographics")
	case n == 0:
		return nil
	}
	text := "none"
	if a.has("vnc") {
		text = "vnc"
	} else if a.has("sdl") {
		text = "sdl"
	}
	for _, o := range [][2]string{{"vnclisten", "listen"}, {"vncport", "port"}, {"keymap", "keymap"}} {
		if given(o[0]) > 0 {
			text += "," + o[1] + "=" + a.get(o[0])
		}
	}
	a.values["graphics"] = []string{text}
	return nil
}

// convertDisks reads --file, --file-size, --nonsparse and --nodisks.
func convertDisks(a *arguments) error {
	old := a.has("file") || a.has("file-size")
	if a.has("nodisks") && (old || a.has("disk")) {
		return errors.New("Cannot specify storage and use --nodisks")
	}
	if (old || a.has("nonsparse")) && a.has("disk") {
		return errors.New("Cannot mix --file, --nonsparse, or --file-size with --disk options. Use --disk PATH[,size=SIZE][,sparse=yes|no]")
	}
	if a.has("disk") {
		return nil
	}
	if a.has("nodisks") {
		a.values["disk"] = []string{"none"}
		return nil
	}
	files, sizes := a.all("file"), a.all("file-size")
	for i := range max(len(files), len(sizes)) {
		var parts []string
		if i < len(files) && files[i] != "" {
			parts = append(parts, "path="+files[i])
		}
		if i < len(sizes) {
			parts = append(parts, "size="+strings.TrimSpace(sizes[i]))
		}
		if a.has("nonsparse") {
			parts = append(parts, "sparse=no")
		}
		a.values["disk"] = append(a.values["disk"], strings.Join(parts, ","))
	}
	return nil
}

// convertFeatures reads --noacpi and --noapic, which --features overrides.
func convertFeatures(a *arguments) {
	if a.has("features") {
		return
	}
	var parts []string
	for _, f := range []string{"acpi", "apic"} {
		if a.has("no" + f) {
			parts = append(parts, f+"=off")
		}
	}
	if len(parts) > 0 {
		a.values["features"] = []string{strings.Join(parts, ",")}
	}
}

// convertStub fills in what makes any command line complete, for trying out
// single options.
func convertStub(a *arguments) {
	a.values["import"] = []string{"yes"}
	for key, text := range map[string]string{"connect": "test:///default", "name": "test-stub-command", "memory": "256",
		"disk": "none", "graphics": "none", "os-variant": "fedora27"} {
		if !a.has(key) {
			a.values[key] = []string{text}
		}
	}
}
