package qemu

import "github.com/lamina-vm/lamina/internal/vm"

// blockNode is a -blockdev value. Its JSON form needs no escaping of paths.
type blockNode struct {
	Driver       string      `json:"driver"`
	NodeName     string      `json:"node-name,omitempty"`
	Filename     string      `json:"filename,omitempty"`
	AIO          vm.IO       `json:"aio,omitempty"`
	ReadOnly     bool        `json:"read-only"`
	AutoReadOnly bool        `json:"auto-read-only,omitempty"`
	Cache        blockCache  `json:"cache"`
	Discard      string      `json:"discard"`
	DetectZeroes string      `json:"detect-zeroes,omitempty"`
	KeySecret    string      `json:"key-secret,omitempty"`
	Encrypt      *encryption `json:"encrypt,omitempty"`
	File         *blockNode  `json:"file,omitempty"`
}

// encryption is of the data in a qcow2 image.
type encryption struct {
	Format    string `json:"format"`
	KeySecret string `json:"key-secret"`
}

// blockCache is the host's half of a cache mode. The backing chain inherits it.
type blockCache struct {
	Direct  bool `json:"direct"`   // O_DIRECT
	NoFlush bool `json:"no-flush"` // flushes are ignored
}

// blockdev opens the image and, through the names in its header, its backing
// chain.
func (c config) blockdev(d vm.Disk, id string) blockNode {
	file := "file"
	if c.isBlockDevice(d.Path) {
		file = "host_device"
	}
	discard := "ignore"
	detect := d.DetectZeroes
	if d.Discard && !d.ReadOnly {
		discard = "unmap"
		if detect == "" {
			detect = "unmap" // zeros that the guest writes give space back too
		}
	}
	if d.ReadOnly {
		detect = "" // nothing is written
	}
	cache := cacheModes[d.Cache].host
	node := blockNode{
		Driver:       d.Format,
		NodeName:     id,
		ReadOnly:     d.ReadOnly,
		Cache:        cache,
		Discard:      discard,
		DetectZeroes: detect,
		File: &blockNode{
			Driver:   file,
			Filename: d.Path,
			AIO:      d.IO,
			ReadOnly: d.ReadOnly,
			// An image that becomes a layer below another is opened once more,
			// only to be read; without this QEMU opens it to write again at the
			// next change of the graph, and by then its name is another one.
			AutoReadOnly: !d.ReadOnly,
			Cache:        cache,
			Discard:      discard,
		},
	}
	switch {
	case d.SecretFile == "":
	case d.Format == "luks":
		node.KeySecret = id + "-secret"
	default:
		node.Encrypt = &encryption{"luks", id + "-secret"}
	}
	if d.CopyOnRead {
		inner := node
		inner.NodeName = id + "-image"
		node = blockNode{Driver: "copy-on-read", NodeName: id, Cache: cache, Discard: discard, File: &inner}
	}
	return node
}
