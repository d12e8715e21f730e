package virtinstall

import (
	"github.com/lamina-vm/lamina/internal/vm/domain"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
	"github.com/lamina-vm/lamina/internal/vm/tailor"
)

// warnDrivers says which of the machine's devices the guest's system has no
// driver for, as osinfo-db knows it, before the guest hangs in its boot. It is
// no error: the image may have got the drivers, and the database does not know of
// every one that a distribution took into an old kernel.
func (g *guest) warnDrivers(doc *domxml.Element) {
	for _, p := range missingDrivers(doc, g.os) {
		g.warn("%s", p)
	}
}

// missingDrivers is what [tailor.Check] finds in a document, without the
// memory, which has warnings of its own.
func missingDrivers(doc *domxml.Element, o osinfo.OS) []string {
	r, err := domain.Read(doc)
	if err != nil {
		return nil // whoever runs the machine says so
	}
	var out []string
	for _, p := range tailor.Check(r.Spec.WithDefaults(), o) {
		if p.Field != "memory" {
			out = append(out, p.String())
		}
	}
	return out
}
