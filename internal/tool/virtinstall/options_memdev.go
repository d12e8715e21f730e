package virtinstall

import (
	"slices"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func memdevOption() option {
	return option{flag: "memdev", element: "devices/memory", many: true, first: []string{"model"}, none: true, subs: memdevSubs}
}

func memdevSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "model", path: "@model"},
		{name: "access", path: "@access"},
		{name: "discard", path: "@discard", kind: yesNo},
		{name: "uuid", path: "uuid"},
		{name: "target.size", aliases: []string{"target_size"}, set: mebibytes("target/size")},
		{name: "target.node", aliases: []string{"target_node"}, path: "target/node", kind: number},
		{name: "target.label_size", aliases: []string{"target_label_size"}, set: mebibytes("target/label/size")},
		{name: "target.block", path: "target/block", kind: number},
		{name: "target.current", path: "target/current", kind: number},
		{name: "target.requested", path: "target/requested", kind: number},
		{name: "target.readonly", path: "target/readonly", kind: bare},
		{name: "source.pagesize", aliases: []string{"source_pagesize"}, path: "source/pagesize", kind: number},
		{name: "source.path", aliases: []string{"source_path"}, path: "source/path"},
		{name: "source.nodemask", aliases: []string{"source_nodemask"}, path: "source/nodemask", comma: true},
		{name: "source.pmem", path: "source/pmem", kind: bare},
		{name: "source.alignsize", set: mebibytes("source/alignsize")},
	})
}

func shmemOption() option {
	return option{flag: "shmem", element: "devices/shmem", many: true, first: []string{"name"}, none: true, subs: shmemSubs}
}

func shmemSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "name", path: "@name"},
		{name: "role", path: "@role"},
		{name: "model.type", path: "model/@type"},
		{name: "size", path: "size", kind: number},
		{name: "size.unit", path: "size/@unit"},
		{name: "server.path", path: "server/@path"},
		{name: "msi.vectors", path: "msi/@vectors", kind: number},
		{name: "msi.ioeventfd", path: "msi/@ioeventfd"},
	})
}

func memballoonOption() option {
	return option{flag: "memballoon", element: "devices/memballoon", many: true, first: []string{"model"}, subs: memballoonSubs}
}

func memballoonSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
	}, virtioSubs(), []sub{
		{name: "model", path: "@model", ignoreDefault: true},
		{name: "autodeflate", path: "@autodeflate", kind: onOff},
		{name: "stats.period", path: "stats/@period", kind: number},
		{name: "freePageReporting", path: "@freePageReporting", kind: onOff},
	})
}

// mebibytes sets a size that is given in MiB and written in KiB.
func mebibytes(path string) func(*guest, *domxml.Element, value) error {
	return func(_ *guest, el *domxml.Element, v value) error {
		if v.text == "" {
			return el.Remove(path)
		}
		n, err := wholeNumber(v.text)
		if err != nil {
			return err
		}
		put(el, path, strconv.FormatInt(n*1024, 10))
		return nil
	}
}
