package qcow2

import (
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

// refCacheBytes bounds the refcount blocks kept in memory, as far as they are
// written back: 8 MiB count 256 GiB of image with 64 KiB and 16 bits.
const refCacheBytes = 8 << 20

// refcounts holds the refcount table and the blocks in use. It is guarded by
// Image.mu.
type refcounts struct {
	table      []refTableEntry
	tableDirty span
	blocks     map[int64]*refBlock // by index in the table
	hint       int64               // every cluster below is in use
	limit      int                 // blocks to keep
	need       int64               // entries that an allocation lacked
	moving     *movingBlocks       // nil unless a rewrite is going on
}

// refBlock is a refcount block in memory.
type refBlock struct {
	host         hostOffset
	data         []byte
	free, low    int64 // how many refcounts are 0; none of them below low
	dirty        span  // bytes that differ from the file
	gen, written uint64
}

func (b *refBlock) isDirty() bool { return b.gen != b.written }

// touch marks the refcount i as changed.
func (b *refBlock) touch(order uint, i int64) {
	at := refcountByte(order, i)
	n := int64(1)
	if order > 3 {
		n = 1 << order >> 3
	}
	b.dirty.add(at, at+n)
	b.gen++
}

func newRefcounts(table []refTableEntry, g geometry) refcounts {
	return refcounts{
		table:  table,
		blocks: map[int64]*refBlock{},
		limit:  int(max(refCacheBytes/g.clusterSize(), 4)),
	}
}

// refBlockAt returns the block with index i, from the file if need be; nil if
// there is none. The caller holds mu exclusively.
func (img *Image) refBlockAt(i int64) (*refBlock, error) {
	if b := img.refs.blocks[i]; b != nil {
		return b, nil
	}
	if i >= int64(len(img.refs.table)) {
		return nil, nil
	}
	e := img.refs.table[i]
	if e.block() == 0 {
		return nil, nil
	}
	if err := e.check(img.g); err != nil {
		return nil, img.damaged(where(err, " (reftable index: %s)", hexOf(i)))
	}
	if int64(e.block()) >= img.openEnd && !img.meta.has(img.g.cluster(int64(e))) {
		return nil, corruptf("refcount block %d at offset %#x lies behind the end of the file (%d bytes)", i, int64(e.block()), img.file.Size())
	}
	b := &refBlock{host: e.block(), data: make([]byte, img.g.clusterSize())}
	if err := readPadded(img.file, b.data, int64(b.host)); err != nil {
		return nil, err
	}
	b.free = countFree(b.data, img.g.refcountOrder)
	img.putRefBlock(i, b)
	return b, nil
}

// putRefBlock caches a block and forgets clean ones above the limit.
func (img *Image) putRefBlock(i int64, b *refBlock) {
	if len(img.refs.blocks) >= img.refs.limit {
		for k, old := range img.refs.blocks {
			if len(img.refs.blocks) < img.refs.limit {
				break
			}
			if !old.isDirty() {
				delete(img.refs.blocks, k)
			}
		}
	}
	img.refs.blocks[i] = b
}

// refcount returns the refcount of a cluster. The caller holds mu exclusively.
func (img *Image) refcount(cluster int64) (uint64, error) {
	b, err := img.refBlockAt(cluster >> img.g.refBlockBits())
	if b == nil || err != nil {
		return 0, err
	}
	return getRefcount(b.data, img.g.refcountOrder, cluster&(img.g.refBlockEntries()-1)), nil
}

// addRefs adds delta, 1 or -1, to the refcounts of [first, first+n), whose
// blocks exist. Nothing is changed if one of them would leave its range. The
// caller holds mu exclusively.
func (img *Image) addRefs(first, n int64, delta int) error {
	g := img.g
	for _, dry := range []bool{true, false} {
		for i := first; i < first+n; i++ {
			b, err := img.refBlockAt(i >> g.refBlockBits())
			if err != nil {
				return err
			}
			if b == nil {
				return corruptf("cluster %d at offset %#x is in use but has no refcount block", i, i<<g.clusterBits)
			}
			in := i & (g.refBlockEntries() - 1)
			v := getRefcount(b.data, g.refcountOrder, in)
			switch {
			case delta < 0 && v == 0:
				return corruptf("refcount of the cluster at offset %#x would fall below 0", i<<g.clusterBits)
			case delta > 0 && v == g.maxRefcount():
				return errRefcountFull
			}
			if dry {
				continue
			}
			img.refs.willChange(i >> g.refBlockBits())
			setRefcount(b.data, g.refcountOrder, in, v+uint64(int64(delta)))
			b.touch(g.refcountOrder, in)
			switch {
			case delta < 0 && v == 1:
				b.free, b.low = b.free+1, min(b.low, in)
				img.refs.hint = min(img.refs.hint, i)
				img.refs.moving.free(i)
				if img.pack.cluster(g) == i {
					img.pack = packCursor{} // somebody else may take it now
				}
			case delta > 0 && v == 0:
				b.free--
			}
		}
	}
	return nil
}

// errRefcountFull: the width of the refcounts does not allow another reference.
var errRefcountFull error = &errnoError{
	"refcount is at its largest value: the refcount width of the image is too small: use amend to make it larger",
	block.ErrUnsupported, syscall.EINVAL,
}
