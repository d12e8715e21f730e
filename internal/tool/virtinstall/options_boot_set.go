package virtinstall

import (
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// bootBefore reads the boot order, which is the devices' names without a
// value, in the order given: "hd,cdrom".
func bootBefore(_ *guest, el *domxml.Element, given *suboptions) error {
	var kept []suboption
	var devices []string
	for _, o := range given.list {
		switch o.key {
		case "hd", "cdrom", "fd", "network":
			devices = append(devices, o.key)
			continue
		case "uefi":
			o.given = true
		}
		kept = append(kept, o)
	}
	given.list = kept
	if len(devices) == 0 {
		return nil
	}
	for _, b := range el.All("boot") {
		el.Drop(b)
	}
	for _, d := range devices {
		el.Add(domxml.New("boot", "dev", d))
	}
	return nil
}

// refuseRefresh: the machine type of a machine that is being made is the
// newest one already.
func refuseRefresh(g *guest, _ *domxml.Element, _ value) error {
	return fmt.Errorf("Don't know how to refresh machine type '%s'", g.machine())
}

// setDomain sets something of the domain that is not below <os>.
func setDomain(path string) func(*guest, *domxml.Element, value) error {
	return func(g *guest, _ *domxml.Element, v value) error {
		if v.text == "" {
			return g.dom.Remove(path)
		}
		return g.dom.Set(path, v.text)
	}
}

// setUEFI asks for UEFI, whatever the value is.
func setUEFI(g *guest, _ *domxml.Element, _ value) error {
	g.wantsUEFI = true
	return nil
}

// setInitArgs sets the arguments of a container's init, split as a shell does.
func setInitArgs(_ *guest, el *domxml.Element, v value) error {
	words, err := shellWords(v.text)
	if err != nil {
		return err
	}
	for _, a := range el.All("initarg") {
		el.Drop(a)
	}
	for _, w := range words {
		el.AddText("initarg", w)
	}
	return nil
}
