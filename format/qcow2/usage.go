package qcow2

import (
	"context"
	"encoding/binary"
	"math/bits"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.UsageReporter = (*Image)(nil)

// Usage implements [format.UsageReporter]. A cluster that several structures
// refer to counts for the first: what the disk shares with snapshots counts
// for the disk. It takes some 50 bytes of memory for each 64 clusters in use.
func (img *Image) Usage(ctx context.Context) ([]format.UsageItem, error) {
	if img.closed.Load() {
		return nil, img.fail("usage", block.ErrClosed)
	}
	u := &usage{ctx: ctx, img: img, g: img.g, size: img.file.Size()}
	if err := u.collect(); err != nil {
		return nil, img.fail("usage", err)
	}
	items, err := u.items()
	if err != nil {
		return nil, img.fail("usage", err)
	}
	return items, nil
}

// usage is one walk over the tables.
type usage struct {
	ctx   context.Context
	img   *Image
	g     geometry
	size  int64 // of the file
	seen  clusterSet
	kinds []*usageKind
	// walked is the bytes at each offset where a table began.
	walked map[hostOffset]int64
}

// usageKind is the clusters of one kind of structure.
type usageKind struct {
	name, key string
	count     int64
	clusters  clusterSet
}

// kind returns the kind of that name, at first without clusters.
func (u *usage) kind(name, key string) *usageKind {
	for _, k := range u.kinds {
		if k.key == key {
			return k
		}
	}
	k := &usageKind{name: name, key: key}
	u.kinds = append(u.kinds, k)
	return k
}

// claim gives the clusters of [off, off+n) that nobody has to k. What lies
// behind the end of the file is not there. It reports whether any was new.
func (u *usage) claim(k *usageKind, off hostOffset, n int64) bool {
	if off < 0 || n <= 0 || int64(off) >= u.size {
		return false
	}
	fresh := false
	end := min(n, u.size-int64(off)) + int64(off)
	for c := u.g.cluster(int64(off)); c <= u.g.cluster(end-1); c++ {
		if !u.seen.has(c) {
			u.seen.add(c, 1)
			k.clusters.add(c, 1)
			fresh = true
		}
	}
	return fresh
}

// add is claim, which counts one structure.
func (u *usage) add(name, key string, off hostOffset, n int64) {
	k := u.kind(name, key)
	k.count++
	u.claim(k, off, n)
}

func (u *usage) collect() error {
	img, h := u.img, &u.img.hdr
	u.add("header", "header", 0, u.g.clusterSize())
	u.add("refcount table", "refcount-table", hostOffset(h.refTableOffset), int64(h.refTableClusters)<<u.g.clusterBits)
	b := make([]byte, int64(h.refTableClusters)<<u.g.clusterBits)
	if err := readPadded(img.file, b, int64(h.refTableOffset)); err != nil {
		return err
	}
	u.kind("refcount blocks", "refcount-blocks")
	for _, e := range decodeRefTable(b) {
		if e.block() != 0 {
			u.add("refcount blocks", "refcount-blocks", e.block(), u.g.clusterSize())
		}
	}
	u.add("L1 table", "l1-table", hostOffset(h.l1Offset), int64(len(img.l1))*8)
	if err := u.l1(img.l1, usageNames{"L2 tables", "l2-tables", "data", "data", "zero clusters with space", "preallocated-zeros", "compressed data", "compressed"}); err != nil {
		return err
	}
	if err := u.snapshots(); err != nil {
		return err
	}
	if err := u.bitmaps(); err != nil {
		return err
	}
	// Spec "Full disk encryption header pointer": offset and length.
	if p, ok := findExtension(img.exts, extEncryption); ok && len(p) >= 16 {
		be := binary.BigEndian
		u.add("encryption header", "encryption-header", hostOffset(be.Uint64(p)), int64(be.Uint64(p[8:])))
	}
	return nil
}

// usageNames are names and keys of what an L1 table leads to.
type usageNames struct {
	l2, l2Key, data, dataKey, zero, zeroKey, compressed, compressedKey string
}

// l1 claims what an L1 table leads to.
func (u *usage) l1(l1 []l1Entry, names usageNames) error {
	tables, data := u.kind(names.l2, names.l2Key), u.kind(names.data, names.dataKey)
	zero, compressed := u.kind(names.zero, names.zeroKey), u.kind(names.compressed, names.compressedKey)
	b := make([]byte, u.g.clusterSize())
	t := u.g.newL2Table(int(u.g.l2Entries()))
	for _, e := range l1 {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		// A table that was walked leads to nothing new.
		if e.l2Table() == 0 || !u.claim(tables, e.l2Table(), u.g.clusterSize()) {
			continue
		}
		tables.count++
		if err := readPadded(u.img.file, b, int64(e.l2Table())); err != nil {
			return err
		}
		t.decode(b)
		for _, e := range t.entries {
			switch kind := e.kind(u.g); {
			case kind == clusterCompressed:
				off, n := e.compressedRange(u.g)
				compressed.count++
				u.claim(compressed, off, n)
			case u.g.external: // it lies in another file
			case kind == clusterData && u.claim(data, e.host(), u.g.clusterSize()):
				data.count++
			case kind == clusterZeroAlloc && u.claim(zero, e.host(), u.g.clusterSize()):
				zero.count++
			}
		}
	}
	return nil
}

func (u *usage) snapshots() error {
	img := u.img
	if img.hdr.snapshotCount == 0 {
		return nil
	}
	u.add("snapshot table", "snapshot-table", hostOffset(img.hdr.snapshotsOffset), img.snapshotBytes)
	tables := u.kind("L1 tables of snapshots", "snapshot-l1-tables")
	for _, s := range img.snapshots {
		tables.count++
		err := u.table(tables, s.l1Offset, int64(s.l1Size)*8, func(at, n int64) error {
			b := make([]byte, n)
			if err := readPadded(img.file, b, int64(s.l1Offset)+at); err != nil {
				return err
			}
			const data, key = "data that only snapshots have", "snapshot-data"
			return u.l1(decodeL1(b), usageNames{"L2 tables of snapshots", "snapshot-l2-tables", data, key, data, key, data, key})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// table claims n bytes at off for k and calls walk for the runs [at, at+n) of
// it, in bytes from off, of clusters that were new: a hostile image may name
// one table, or one shifted by a cluster, for tens of thousands of snapshots
// and bitmaps, and what was walked leads to nothing new.
func (u *usage) table(k *usageKind, off hostOffset, n int64, walk func(at, n int64) error) error {
	if n <= u.walked[off] {
		return nil // the quick answer for the same table again
	}
	if u.walked == nil {
		u.walked = make(map[hostOffset]int64)
	}
	u.walked[off] = n
	size := u.g.clusterSize()
	end := min(n, u.size-int64(off))
	for at := int64(0); at < end; at += size {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		if part := min(size, end-at); u.claim(k, off+hostOffset(at), part) {
			if err := walk(at, part&^7); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *usage) bitmaps() error {
	ext, ok := findExtension(u.img.exts, extBitmaps)
	if !ok || u.img.hdr.autoclear&autoclearBitmaps == 0 {
		return nil
	}
	h, err := decodeBitmaps(ext)
	if err != nil {
		return err
	}
	u.add("bitmap directory", "bitmap-directory", h.directoryOffset, int64(h.directorySize))
	for _, b := range u.img.bitmaps.list {
		k := u.kind("bitmaps", "bitmaps")
		k.count++
		r := u.img.bitmapTableOf(b)
		err := u.table(k, b.table.off, b.table.bytes(), func(at, n int64) error {
			for i := at / 8; i < (at+n)/8; i++ {
				e, err := r.entry(i)
				if err != nil {
					return err
				}
				u.claim(k, e.host(), u.g.clusterSize())
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// items are the kinds that there are, and what nothing refers to.
func (u *usage) items() ([]format.UsageItem, error) {
	free := &usageKind{name: "free or leaked", key: "unused"}
	u.claim(free, 0, u.size)
	for range free.clusters.runs() {
		free.count++
	}
	var items []format.UsageItem
	for _, k := range append(u.kinds, free) {
		if len(k.clusters.words) == 0 && k.count == 0 {
			continue
		}
		item := format.UsageItem{Name: k.name, Key: k.key, Count: k.count, Bytes: k.clusters.bytesIn(u.g, 0, u.size)}
		items = append(items, item)
	}
	// One pass over what the file system stores.
	for e, err := range u.img.file.Extents(0, u.size) {
		if err != nil {
			return nil, err
		}
		if e.IsZero() {
			continue
		}
		i := 0
		for _, k := range append(u.kinds, free) {
			if len(k.clusters.words) == 0 && k.count == 0 {
				continue
			}
			items[i].DiskBytes += k.clusters.bytesIn(u.g, e.Start, e.End())
			i++
		}
	}
	return items, u.ctx.Err()
}

// bytesIn returns how many bytes of [off, end) lie in the set's clusters.
func (s *clusterSet) bytesIn(g geometry, off, end int64) int64 {
	if off >= end || len(s.words) == 0 {
		return 0
	}
	n := int64(0)
	last := g.cluster(end - 1)
	for c := g.cluster(off); c <= last; {
		mask, next := wordMask(c, last+1)
		if w := s.words[c>>6] & mask; w != 0 {
			n += int64(bits.OnesCount64(w)) << g.clusterBits
		}
		c = next
	}
	if s.has(g.cluster(off)) {
		n -= g.inCluster(off)
	}
	if s.has(last) {
		n -= (last+1)<<g.clusterBits - end
	}
	return n
}
