package virtinstall

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

func diskOption() option {
	return option{flag: "disk", element: "devices/disk", many: true, first: []string{"path"}, none: true, subs: diskSubs, before: beforeDisk, after: afterDisk}
}

func diskSubs() []sub {
	return slices.Concat(addressSubs(), []sub{
		{name: "alias.name", path: "alias/@name"},
		{name: "boot.order", aliases: []string{"boot_order"}, set: setBootOrder},
		{name: "boot.loadparm", path: "boot/@loadparm"},
	}, virtioSubs(), []sub{
		{name: "backing_store", set: planned},
		{name: "backing_format", set: planned},
		{name: "pool", set: planned},
		{name: "vol", set: planned},
		{name: "size", set: planned},
		{name: "format", set: planned},
		{name: "sparse", set: planned},
		{name: "type", set: planned},
		{name: "bus", path: "target/@bus"},
		{name: "cache", path: "driver/@cache"},
		{name: "source.dir", path: "source/@dir"},
		{name: "source.file", path: "source/@file"},
		{name: "source.dev", path: "source/@dev"},
		{name: "source.pool", aliases: []string{"source_pool"}, path: "source/@pool"},
		{name: "source.volume", aliases: []string{"source_volume"}, path: "source/@volume"},
		{name: "source.name", aliases: []string{"source_name"}, path: "source/@name"},
		{name: "source.protocol", aliases: []string{"source_protocol"}, path: "source/@protocol"},
		{name: "source.startupPolicy", aliases: []string{"startup_policy"}, path: "source/@startupPolicy"},
		{name: "source.type", path: "source/@type"},
		{name: "source.namespace", path: "source/@namespace", kind: number},
		{name: "source.managed", path: "source/@managed", kind: yesNo},
		{name: "source.address.domain", path: "source/address/@domain", kind: number},
		{name: "source.address.bus", path: "source/address/@bus", kind: number},
		{name: "source.address.slot", path: "source/address/@slot", kind: number},
		{name: "source.address.function", path: "source/address/@function", kind: number},
		{name: "source.host[0-9]*.name", aliases: []string{"source_host_name"}, path: "source/host[#]/@name"},
		{name: "source.host[0-9]*.port", aliases: []string{"source_host_port"}, path: "source/host[#]/@port", kind: number},
		{name: "source.host[0-9]*.socket", aliases: []string{"source_host_socket"}, path: "source/host[#]/@socket"},
		{name: "source.host[0-9]*.transport", aliases: []string{"source_host_transport"}, path: "source/host[#]/@transport"},
		{name: "source.seclabel[0-9]*.model", aliases: []string{"seclabel[0-9]*.model"}, path: "source/seclabel[#]/@model"},
		{name: "source.seclabel[0-9]*.relabel", aliases: []string{"seclabel[0-9]*.relabel"}, path: "source/seclabel[#]/@relabel", kind: yesNo},
		{name: "source.seclabel[0-9]*.label", aliases: []string{"seclabel[0-9]*.label"}, path: "source/seclabel[#]/label", comma: true},
		{name: "path", set: planned},
		{name: "device", path: "@device"},
		{name: "snapshot", aliases: []string{"snapshot_policy"}, path: "@snapshot"},
		{name: "sgio", path: "@sgio"},
		{name: "rawio", path: "@rawio"},
		{name: "serial", path: "serial"},
		{name: "wwn", path: "wwn"},
		{name: "readonly", path: "readonly", kind: bare},
		{name: "shareable", path: "shareable", kind: bare},
		{name: "transient", path: "transient", kind: bare},
		{name: "transient.shareBacking", path: "transient/@shareBacking", kind: yesNo},
		{name: "target.bus", path: "target/@bus"},
		{name: "target.removable", aliases: []string{"removable"}, path: "target/@removable", kind: onOff},
		{name: "target.dev", aliases: []string{"target"}, path: "target/@dev"},
		{name: "target.rotation_rate", aliases: []string{"rotation_rate"}, path: "target/@rotation_rate", kind: number},
		{name: "driver.cache", path: "driver/@cache"},
		{name: "driver.discard", aliases: []string{"discard"}, path: "driver/@discard"},
		{name: "driver.detect_zeroes", aliases: []string{"detect_zeroes"}, path: "driver/@detect_zeroes"},
		{name: "driver.name", aliases: []string{"driver_name"}, path: "driver/@name"},
		{name: "driver.type", aliases: []string{"driver_type"}, path: "driver/@type"},
		{name: "driver.copy_on_read", path: "driver/@copy_on_read", kind: onOff},
		{name: "driver.io", aliases: []string{"io"}, path: "driver/@io"},
		{name: "driver.iothread", path: "driver/@iothread", kind: number},
		{name: "driver.queues", path: "driver/@queues", kind: number},
		{name: "driver.error_policy", aliases: []string{"error_policy"}, path: "driver/@error_policy"},
		{name: "iotune.read_bytes_sec", aliases: []string{"read_bytes_sec"}, path: "iotune/read_bytes_sec", kind: number},
		{name: "iotune.write_bytes_sec", aliases: []string{"write_bytes_sec"}, path: "iotune/write_bytes_sec", kind: number},
		{name: "iotune.total_bytes_sec", aliases: []string{"total_bytes_sec"}, path: "iotune/total_bytes_sec", kind: number},
		{name: "iotune.read_iops_sec", aliases: []string{"read_iops_sec"}, path: "iotune/read_iops_sec", kind: number},
		{name: "iotune.write_iops_sec", aliases: []string{"write_iops_sec"}, path: "iotune/write_iops_sec", kind: number},
		{name: "iotune.total_iops_sec", aliases: []string{"total_iops_sec"}, path: "iotune/total_iops_sec", kind: number},
		{name: "blockio.logical_block_size", aliases: []string{"logical_block_size"}, path: "blockio/@logical_block_size"},
		{name: "blockio.physical_block_size", aliases: []string{"physical_block_size"}, path: "blockio/@physical_block_size"},
		{name: "geometry.cyls", path: "geometry/@cyls", kind: number},
		{name: "geometry.heads", path: "geometry/@heads", kind: number},
		{name: "geometry.secs", path: "geometry/@secs", kind: number},
		{name: "geometry.trans", path: "geometry/@trans"},
		{name: "source.reservations.managed", aliases: []string{"reservations.managed"}, path: "source/reservations/@managed"},
		{name: "source.reservations.source.type", aliases: []string{"reservations.source.type"}, path: "source/reservations/source/@type"},
		{name: "source.reservations.source.path", aliases: []string{"reservations.source.path"}, path: "source/reservations/source/@path"},
		{name: "source.reservations.source.mode", aliases: []string{"reservations.source.mode"}, path: "source/reservations/source/@mode"},
	})
}

// beforeDisk reads perms=, a name of old.
func beforeDisk(_ *guest, el *domxml.Element, given *suboptions) error {
	if kind, ok := given.get("type"); ok && kind != "" {
		el.SetAttr("type", kind)
	}
	switch perms, _ := given.take("perms"); perms {
	case "ro":
		given.set("readonly", "on")
	case "sh":
		given.set("shareable", "on")
	case "", "rw":
	default:
		return fmt.Errorf("Unknown '%s' value '%s'", "perms", perms)
	}
	return nil
}

func afterDisk(g *guest, el *domxml.Element, given *suboptions) error {
	return g.planDisk(el, given)
}

// diskDefaults says how the guest sees a disk: on a bus that its OS has a
// driver for, under the next free name.
func (g *guest) diskDefaults(el *domxml.Element) error {
	fill(el, "@device", "disk")
	device := el.Attr("device")
	if device == "cdrom" && el.Child("readonly") == nil {
		put(el, "readonly", "")
	}
	want := g.osMachine()
	switch device {
	case "floppy":
		fill(el, "target/@bus", "fdc")
	case "disk":
		fill(el, "target/@bus", want.DiskBus)
	default:
		fill(el, "target/@bus", want.CDROMBus)
	}
	if device == "disk" && el.Get("target/@bus") == "virtio" && !virtioPossible(g.os) {
		return fmt.Errorf("--disk bus=virtio: %s has no driver for virtio-blk, and there is none to be added: use bus=%s", g.os.Name, want.CDROMBus)
	}
	if el.Get("target/@dev") != "" {
		return nil
	}
	name, err := g.freeTarget(device, el.Get("target/@bus"))
	if err != nil {
		return err
	}
	put(el, "target/@dev", name)
	return nil
}

// virtioPossible reports whether an OS can have a driver for virtio disks: its
// own, or one that can be added, as for Windows since 2000. What is older than
// virtio, and DOS with what runs on it, cannot.
func virtioPossible(o osinfo.OS) bool {
	if o.Supports(osinfo.VirtioBlock) {
		return true
	}
	switch o.Family {
	case "msdos", "win16", "win9x":
		return false
	case "winnt":
		return true
	}
	return o.Released.IsZero() || o.Released.After(time.Date(2007, time.June, 1, 0, 0, 0, 0, time.UTC))
}

// freeTarget is the name of a further disk: the one after the last of its
// kind, or the first free one where the bus has no more.
func (g *guest) freeTarget(device, bus string) (string, error) {
	prefix, most := "sd", 1024
	switch {
	case bus == "fdc" || device == "floppy":
		prefix, most = "fd", 2
	case bus == "ide":
		prefix, most = "hd", 4
	case bus == "virtio":
		prefix = "vd"
	case bus == "xen":
		prefix = "xvd"
	}
	used, last := map[int]bool{}, 0
	for _, el := range g.devices("disk") {
		if rest, ok := strings.CutPrefix(el.Get("target/@dev"), prefix); ok {
			if n := targetNumber(rest); n > 0 {
				used[n], last = true, max(last, n)
			}
		}
	}
	if last < most {
		return prefix + targetLetters(last+1), nil
	}
	for n := 1; n <= most; n++ {
		if !used[n] {
			return prefix + targetLetters(n), nil
		}
	}
	return "", fmt.Errorf("Only %d disks for bus '%s' are supported", most, bus)
}

// targetLetters counts a, b, ..., z, aa, ab, ... from 1.
func targetLetters(n int) string {
	var letters string
	for ; n > 0; n = (n - 1) / 26 {
		letters = string(rune('a'+(n-1)%26)) + letters
	}
	return letters
}

// targetNumber is what targetLetters counts, 0 for what it does not write.
func targetNumber(letters string) int {
	n := 0
	for _, c := range letters {
		if c < 'a' || c > 'z' || n > 1<<20 {
			return 0
		}
		n = n*26 + int(c-'a') + 1
	}
	return n
}
