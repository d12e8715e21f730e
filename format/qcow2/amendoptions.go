package qcow2

import (
	"cmp"
	"slices"

	"github.com/lamina-vm/lamina/format"
)

var _ format.AmendLister = Driver{}

// AmendOptions implements [format.AmendLister]: the creation options that can
// be changed, and those for key slots.
func (d Driver) AmendOptions() []format.Option {
	list := []format.Option{
		{Name: "encrypt.iter-time", Type: format.TypeNumber, Help: "Time to spend in PBKDF in milliseconds", Amendable: true},
		{Name: "encrypt.keyslot", Type: format.TypeNumber, Help: "Select a single keyslot to modify explicitly", Amendable: true},
		{Name: "encrypt.new-secret", Type: format.TypeString, Help: "New secret to set in the matching keyslots. Empty string to erase", Amendable: true},
		{Name: "encrypt.old-secret", Type: format.TypeString, Help: "Select all keyslots that match this password", Amendable: true},
		{Name: "encrypt.state", Type: format.TypeString, Help: "Select new state of affected keyslots (active/inactive)", Amendable: true},
	}
	for _, o := range d.Options() {
		known := slices.ContainsFunc(list, func(have format.Option) bool { return have.Name == o.Name })
		if o.Amendable && !known {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b format.Option) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
