package domain

import (
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// MarshalDisk writes one disk of a complete spec, as it is attached to a
// running domain.
func MarshalDisk(s vm.Spec, i int, o Options) (*domxml.Element, error) {
	return one(s, o, func(w *writer, parent *domxml.Element) { w.disk(parent, i, s.Disks[i], s.DiskNames()[i]) })
}

// MarshalNIC is the same for a network card.
func MarshalNIC(s vm.Spec, i int) (*domxml.Element, error) {
	return one(s, Options{}, func(w *writer, parent *domxml.Element) { w.nic(parent, i, s.NICs[i]) })
}

func one(s vm.Spec, o Options, write func(*writer, *domxml.Element)) (*domxml.Element, error) {
	w := newWriter(s, o)
	parent := with("devices")
	write(w, parent)
	if len(w.problems) > 0 {
		return nil, &vm.InvalidError{Name: s.Name, Problems: w.problems}
	}
	return parent.Children[0], nil
}

// ThrottleValues are a disk's bounds by libvirt's names, those of 0 included.
func ThrottleValues(t vm.Throttle) map[string]int64 {
	values := map[string]int64{}
	for name, v := range throttles(&t) {
		values[name] = *v
	}
	return values
}
