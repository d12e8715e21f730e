package virtinstall

import (
	"errors"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domain"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// check is of runner.
func (h *plainHost) check(g *guest, docs ...*domxml.Element) error {
	told := map[string]bool{} // both phases have most in common
	for _, doc := range docs {
		doc = doc.Clone()
		if !g.args.has("insecure-graphics") {
			for _, el := range doc.Child("devices").All("graphics") {
				if _, exposed := exposedAt(el); exposed {
					el.SetAttr("passwd", newPassword(8)) // secureGraphics gives it one
				}
			}
		}
		if _, err := h.spec(g, doc); err != nil {
			return err
		}
		r, err := domain.Read(doc)
		if err != nil {
			return err
		}
		for _, n := range r.Notes {
			text := n.String()
			if told[text] {
				continue
			}
			told[text] = true
			if said(n.Field) {
				g.warn("%s", text)
			} else {
				g.debug("%s", text)
			}
		}
	}
	return nil
}

// said reports whether an element is in a new machine's document only where
// the command line asks for it.
func said(path string) bool {
	name := path[strings.LastIndexByte(path, '/')+1:]
	name, _, _ = strings.Cut(name, "[")
	return name == "currentMemory" || name == "address" || name == "backingStore"
}

// spec reads a document as the daemon's kind of machine. What plain QEMU
// cannot do is refused by name.
func (h *plainHost) spec(g *guest, doc *domxml.Element) (vm.Spec, error) {
	doc = doc.Clone()
	for _, nic := range doc.Child("devices").All("interface") {
		if nic.Attr("type") == "network" && nic.Get("source/@network") == "default" {
			nic.SetAttr("type", "user") // there is no libvirt to have networks
			nic.Drop(nic.Child("source"))
		}
	}
	r, err := domain.Read(doc)
	if err != nil {
		return vm.Spec{}, err
	}
	if len(r.Problems) > 0 {
		var errs []error
		for _, p := range r.Problems {
			errs = append(errs, errors.New(p.String()))
		}
		return vm.Spec{}, errors.Join(errs...)
	}
	s := r.Spec.WithDefaults()
	if g.args.has("insecure-graphics") {
		for i := range s.Displays {
			s.Displays[i].Insecure = true
		}
	}
	s.OS = g.os.ShortID
	if s.Chipset() == vm.MachineQ35 && s.HotplugPorts == 0 {
		// What is attached later needs a port that is there from the start. A
		// machine whose bus is full goes without.
		if s.HotplugPorts = hotplugPorts; s.Validate() != nil {
			s.HotplugPorts = 0
		}
	}
	return s, s.Validate()
}

// hotplugPorts is how many drives a machine takes while it runs, as many as one
// of `lamina run`.
const hotplugPorts = 2
