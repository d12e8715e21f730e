package virtinstall

import (
	"slices"

	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

func soundOption() option {
	return option{flag: "sound", element: "devices/sound", many: true, first: []string{"model"}, none: true, subs: soundSubs}
}

func soundSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "model", path: "@model", ignoreDefault: true},
		{name: "audio.id", path: "audio/@id"},
		{name: "codec[0-9]*.type", path: "codec[#]/@type"},
	})
}

func audioOption() option {
	return option{flag: "audio", element: "devices/audio", many: true, none: true, subs: audioSubs}
}

func audioSubs() []sub {
	return slices.Concat([]sub{
		{name: "type", path: "@type"},
		{name: "id", path: "@id"},
	})
}

// soundModel is the sound card of the machine's chipset.
func (g *guest) soundModel() string {
	r := g.request(*g.dcaps)
	r.Graphics = "spice" // only with it is there sound by default
	return osinfo.Defaults(g.os, r).Sound
}
