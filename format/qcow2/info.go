package qcow2

import (
	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// ImageInfo implements [format.Informer]. The fields and their order are those
// of stock `qemu-img info`.
func (img *Image) ImageInfo() (format.Info, error) {
	if img.closed.Load() {
		return format.Info{}, img.fail("info", block.ErrClosed)
	}
	bitmaps, list := img.bitmapFields(), img.Bitmaps() // their lock comes first
	img.mu.RLock()
	defer img.mu.RUnlock()
	h := &img.hdr
	info := format.Info{
		Format:        "qcow2",
		ClusterSize:   img.g.clusterSize(),
		Dirty:         h.incompat&incompatDirty != 0,
		BackingFile:   img.backingFile,
		BackingFormat: img.backingFormat,
		Bitmaps:       list,
	}
	compression := "zlib"
	if h.compressionType == compressionZstd {
		compression = "zstd"
	}
	field := func(name, key string, v any) {
		info.Specific = append(info.Specific, format.InfoField{Name: name, Key: key, Value: v})
	}
	info.Encrypted = img.crypt != nil
	encrypt := func() {
		if img.crypt != nil {
			field("encrypt", "encrypt", img.crypt.info())
		}
	}
	if h.version < 3 {
		field("compat", "compat", "0.10")
		field("compression type", "compression-type", compression)
		field("refcount bits", "refcount-bits", int64(img.g.refcountBits()))
		encrypt()
	} else {
		field("compat", "compat", "1.1")
		field("compression type", "compression-type", compression)
		field("lazy refcounts", "lazy-refcounts", h.compat&compatLazyRefcounts != 0)
		if len(bitmaps) > 0 {
			field("bitmaps", "bitmaps", bitmaps)
		}
		field("refcount bits", "refcount-bits", int64(img.g.refcountBits()))
		if img.data.name != "" {
			field("data file", "data-file", img.data.name)
		}
		if img.g.external {
			field("data file raw", "data-file-raw", img.rawData())
		}
		encrypt()
		field("corrupt", "corrupt", h.incompat&incompatCorrupt != 0)
		field("extended l2", "extended-l2", img.g.extendedL2)
	}
	for _, s := range img.snapshots {
		info.Snapshots = append(info.Snapshots, s.info(img.Size()))
	}
	return info, nil
}

// bitmapFields describes the bitmaps as the file has them: those that are
// being written are in use.
func (img *Image) bitmapFields() []any {
	s := &img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []any
	for _, b := range s.list {
		flags := []any{}
		if b.broken || s.marked {
			flags = append(flags, "in-use")
		}
		if b.enabled {
			flags = append(flags, "auto")
		}
		list = append(list, []format.InfoField{
			{Name: "flags", Key: "flags", Value: flags},
			{Name: "name", Key: "name", Value: b.name},
			{Name: "granularity", Key: "granularity", Value: int64(1) << b.shift},
		})
	}
	return list
}
