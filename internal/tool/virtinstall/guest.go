package virtinstall

import (
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// guest is the machine in the making.
type guest struct {
	args *arguments
	host host
	dom  *domxml.Element // <domain>
	// os is what the guest is known to be; osinfo's generic until then.
	os osinfo.OS
	// disks are the storage plans of the elements devices/disk, in order.
	disks []*disk
}

// add appends an element to the document, under what its path says above it.
func (g *guest) add(path string, el *domxml.Element) {
	at := g.dom
	names := strings.Split(path, "/")
	for _, name := range names[:len(names)-1] {
		at = at.Need(name)
	}
	at.Add(el)
}

// devices returns the machine's devices of a kind: "disk", "interface".
func (g *guest) devices(name string) []*domxml.Element {
	return g.dom.Child("devices").All(name)
}
