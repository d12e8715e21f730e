package virtinstall

import (
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func tpmOption() option {
	return option{flag: "tpm", element: "devices/tpm", many: true, first: []string{"backend.type"}, none: true, subs: tpmSubs, before: beforeTPM}
}

func tpmSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "model", path: "@model"},
		{name: "backend.type", aliases: []string{"type"}, path: "backend/@type"},
		{name: "backend.version", aliases: []string{"version"}, path: "backend/@version"},
		{name: "backend.device.path", aliases: []string{"path"}, path: "backend/device/@path"},
		{name: "backend.encryption.secret", path: "backend/encryption/@secret"},
		{name: "backend.persistent_state", path: "backend/@persistent_state", kind: yesNo},
		{name: "active_pcr_banks.sha1", path: "active_pcr_banks/sha1", kind: bare},
		{name: "active_pcr_banks.sha256", path: "active_pcr_banks/sha256", kind: bare},
		{name: "active_pcr_banks.sha384", path: "active_pcr_banks/sha384", kind: bare},
		{name: "active_pcr_banks.sha512", path: "active_pcr_banks/sha512", kind: bare},
	})
}

func rngOption() option {
	return option{flag: "rng", element: "devices/rng", many: true, first: []string{"backend.model"}, none: true, subs: rngSubs, before: beforeRNG}
}

func rngSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "type", set: planned},
		{name: "device", set: planned},
		{name: "model", path: "@model"},
		{name: "backend", path: "backend[@model='random']"},
		{name: "backend.model", path: "backend/@model"},
		{name: "backend.type", aliases: []string{"backend_type"}, path: "backend/@type"},
	}, charSubs("backend."), []sub{
		{name: "rate.bytes", aliases: []string{"rate_bytes"}, path: "rate/@bytes"},
		{name: "rate.period", aliases: []string{"rate_period"}, path: "rate/@period"},
	})
}

func vsockOption() option {
	return option{flag: "vsock", element: "devices/vsock", many: true, first: []string{"model"}, subs: vsockSubs}
}

func vsockSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "model", path: "@model", ignoreDefault: true},
		{name: "cid.auto", aliases: []string{"auto_cid"}, path: "cid/@auto", kind: yesNo},
		{name: "cid.address", aliases: []string{"cid"}, path: "cid/@address", kind: number},
	})
}

// beforeTPM reads "--tpm /dev/tpm0" as the host's TPM, and leaves the choice
// to the defaults where it says default.
func beforeTPM(_ *guest, _ *domxml.Element, given *suboptions) error {
	given.rename("type", "backend.type")
	switch kind, _ := given.get("backend.type"); {
	case strings.HasPrefix(kind, "/"):
		given.set("backend.type", "passthrough")
		given.set("backend.device.path", kind)
	case kind == "default":
		given.set("backend.type", "emulator")
	}
	return nil
}

func (g *guest) tpmDefaults(el *domxml.Element) {
	fill(el, "backend/@type", "emulator")
	if el.Get("backend/@type") == "emulator" && el.Get("backend/@version") == "" && g.x86() {
		fill(el, "@model", "tpm-crb")
	}
}

// beforeRNG reads "--rng /dev/random", and the names of old.
func beforeRNG(_ *guest, _ *domxml.Element, given *suboptions) error {
	given.rename("type", "backend.model")
	given.rename("device", "backend")
	if model, _ := given.get("backend.model"); strings.HasPrefix(model, "/") {
		given.set("backend.model", "random")
		given.set("backend", model)
	}
	return nil
}

// vsockDefaults has libvirt choose the guest's address where none was given.
func vsockDefaults(el *domxml.Element) {
	fill(el, "@model", "virtio")
	if el.Get("cid/@address") == "" {
		fill(el, "cid/@auto", "yes")
	}
}
