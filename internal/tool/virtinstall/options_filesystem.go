package virtinstall

import (
	"slices"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func filesystemOption() option {
	return option{flag: "filesystem", element: "devices/filesystem", many: true, first: []string{"source", "target"}, none: true, subs: filesystemSubs}
}

func filesystemSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "type", path: "@type"},
		{name: "accessmode", aliases: []string{"mode"}, path: "@accessmode"},
		{name: "model", path: "@model"},
		{name: "multidevs", path: "@multidevs"},
		{name: "readonly", path: "readonly", kind: bare},
		{name: "space_hard_limit", path: "space_hard_limit"},
		{name: "space_soft_limit", path: "space_soft_limit"},
		{name: "fmode", path: "@fmode"},
		{name: "dmode", path: "@dmode"},
		{name: "source", set: setFilesystemSource},
		{name: "target", path: "target/@dir"},
		{name: "source.file", path: "source/@file"},
		{name: "source.dir", path: "source/@dir"},
		{name: "source.dev", path: "source/@dev"},
		{name: "source.name", path: "source/@name"},
		{name: "source.pool", path: "source/@pool"},
		{name: "source.volume", path: "source/@volume"},
		{name: "source.units", path: "source/@units"},
		{name: "source.usage", path: "source/@usage"},
		{name: "source.socket", path: "source/socket"},
		{name: "target.dir", path: "target/@dir"},
		{name: "binary.path", path: "binary/@path"},
		{name: "binary.xattr", path: "binary/@xattr", kind: onOff},
		{name: "binary.cache.mode", path: "binary/cache/@mode"},
		{name: "binary.lock.posix", path: "binary/lock/@posix", kind: onOff},
		{name: "binary.lock.flock", path: "binary/lock/@flock", kind: onOff},
		{name: "binary.sandbox.mode", path: "binary/sandbox/@mode"},
		{name: "driver.format", path: "driver/@format"},
		{name: "driver.name", path: "driver/@name"},
		{name: "driver.queue", path: "driver/@queue"},
		{name: "driver.type", path: "driver/@type"},
		{name: "driver.wrpolicy", path: "driver/@wrpolicy"},
	})
}

// setFilesystemSource sets what the guest sees, where the type says it goes.
func setFilesystemSource(_ *guest, el *domxml.Element, v value) error {
	path := "source/@dir"
	switch el.Attr("type") {
	case "template":
		path = "source/@name"
	case "file":
		path = "source/@file"
	case "block":
		path = "source/@dev"
	case "ram":
		path = "source/@usage"
	}
	if v.text == "" {
		return el.Remove(path)
	}
	put(el, path, v.text)
	return nil
}

func filesystemDefaults(el *domxml.Element) {
	fill(el, "@type", "mount")
	if el.Get("driver/@type") != "virtiofs" { // which has one access mode only
		fill(el, "@accessmode", "mapped")
	}
}
