package virtinstall

import (
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// setOSName labels the machine with its OS, by its short id or id.
func setOSName(g *guest, _ *domxml.Element, v value) error {
	return g.setOS(v.text)
}

// sysinfoBefore gives what has only entries the type smbios.
func sysinfoBefore(_ *guest, _ *domxml.Element, given *suboptions) error {
	if _, ok := given.get("type"); !ok {
		given.set("type", "smbios")
	}
	return nil
}

// setSysinfoType sets the type; "host" and "emulate" are modes of the firmware
// and no type of sysinfo.
func setSysinfoType(g *guest, el *domxml.Element, v value) error {
	switch v.text {
	case "host", "emulate":
		return g.dom.Set("os/smbios/@mode", v.text)
	case "smbios":
		if err := g.dom.Set("os/smbios/@mode", "sysinfo"); err != nil {
			return err
		}
	case "":
		return nil
	}
	return el.Set("@type", v.text)
}

// setSysinfoUUID sets the UUID, which must be the machine's own.
func setSysinfoUUID(g *guest, el *domxml.Element, v value) error {
	if v.text == "" {
		return el.Remove("system/entry[@name='uuid']")
	}
	if err := g.dom.Set("uuid", v.text); err != nil {
		return err
	}
	return el.Set("system/entry[@name='uuid']", v.text)
}

const qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

// setQEMUArgs adds words to QEMU's command line.
func setQEMUArgs(_ *guest, el *domxml.Element, v value) error {
	words, err := shellWords(v.text)
	if err != nil {
		return err
	}
	el.SetAttr("xmlns:qemu", qemuNamespace)
	for _, w := range words {
		el.Add(domxml.New("qemu:arg", "value", w))
	}
	return nil
}

// setQEMUEnv adds a variable to QEMU's environment.
func setQEMUEnv(_ *guest, el *domxml.Element, v value) error {
	name, text, ok := strings.Cut(v.text, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q is not NAME=VALUE", v.text)
	}
	el.SetAttr("xmlns:qemu", qemuNamespace)
	el.Add(domxml.New("qemu:env", "name", name, "value", text))
	return nil
}

// parseQEMUCommandline takes the whole value as words for QEMU, unless it says
// what else it is.
func parseQEMUCommandline(text string) (*suboptions, error) {
	s := &suboptions{}
	for _, key := range []string{"args", "env", "clearxml"} {
		if rest, ok := strings.CutPrefix(text, key+"="); ok {
			if key != "clearxml" {
				rest = unquote(rest)
			}
			s.set(key, rest)
			return s, nil
		}
	}
	s.set("args", text)
	return s, nil
}

// unquote removes the quotes around the whole of a text.
func unquote(text string) string {
	if n := len(text); n >= 2 && text[0] == text[n-1] && (text[0] == '"' || text[0] == '\'') {
		return text[1 : n-1]
	}
	return text
}

// seclabelAfter completes a label that has a type or a model, but not both.
func seclabelAfter(g *guest, el *domxml.Element, _ *suboptions) error {
	kind, model := el.Attr("type"), el.Attr("model")
	switch {
	case kind == "" && model != "":
		el.SetAttr("type", "dynamic")
	case kind != "" && model == "" && el.Child("label") == nil && g.caps.security != "":
		el.SetAttr("model", g.caps.security)
	}
	return nil
}

// launchSecurityAfter gives SEV the policy that virt-install gives it: no
// debugging, no sharing of keys.
func launchSecurityAfter(_ *guest, el *domxml.Element, _ *suboptions) error {
	if el.Attr("type") == "sev" && el.Get("policy") == "" {
		return el.Set("policy", "0x03")
	}
	return nil
}
