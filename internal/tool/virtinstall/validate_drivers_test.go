package virtinstall

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

func TestMissingDrivers(t *testing.T) {
	const doc = `<domain type="qemu"><name>x</name><memory>1048576</memory><os><type arch="x86_64" machine="q35">hvm</type></os><devices>
  <disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="/a"/><target dev="BUSa" bus="BUS"/></disk>
  <interface type="user"><model type="e1000"/></interface></devices></domain>`
	for _, c := range []struct {
		os, bus string
		want    []string
	}{
		{"debian11", "virtio", nil},
		{"centos6.10", "virtio", nil},
		{"generic", "virtio", nil},
		{"win10", "sata", nil},
		{"win10", "virtio", []string{"disks[0].bus: win10 has no virtio-blk driver as it comes: use bus sata, or give it the virtio-win drivers on a second CD-ROM"}},
	} {
		o, err := osDB().Lookup(c.os)
		if err != nil {
			t.Fatal(err)
		}
		el, err := domxml.Parse([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		target := el.Find("devices/disk/target")
		target.SetAttr("bus", c.bus)
		target.SetAttr("dev", map[string]string{"virtio": "vda", "sata": "sda"}[c.bus])
		if got := missingDrivers(el, o); !slices.Equal(got, c.want) {
			t.Errorf("%s on %s: %q, want %q", c.os, c.bus, got, c.want)
		}
	}
}

func TestConnectVariable(t *testing.T) {
	t.Setenv(envConnect, "nope:///x")
	err := run(t.Context(), []string{"--name", "x", "--memory", "64", "--import", "--disk", "none", "--osinfo", "generic", "--print-xml"}, Streams{Out: io.Discard, Err: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "nope:///x") {
		t.Errorf("%s is not heeded: %v", envConnect, err)
	}
}
