package qcow2

import (
	"cmp"
	"slices"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

var _ format.AmendLister = Driver{}

// AmendOptions implements [format.AmendLister]: the creation options that can
// be changed, and those for key slots.
func (d Driver) AmendOptions() []format.Option {
	list := encryption.SlotOptions("encrypt.")
	for _, o := range d.Options() {
		known := slices.ContainsFunc(list, func(have format.Option) bool { return have.Name == o.Name })
		if o.Amendable && !known {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b format.Option) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
