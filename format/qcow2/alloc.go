package qcow2

import (
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// errTableFull says that the refcount table has to grow first, which needs a
// lock that comes before the one that the allocator holds.
var errTableFull = errors.New("refcount table is full")

// update runs change with mu held, again after the refcount table has grown
// where change needs that. change must be able to run twice.
func (img *Image) update(change func() error) error {
	for {
		img.mu.Lock()
		err := change()
		need := img.refs.need
		img.mu.Unlock()
		if err != errTableFull {
			return err
		}
		if err := img.growRefTable(need); err != nil {
			return err
		}
	}
}

// allocRun takes up to n free clusters that lie together, with the refcount 1,
// and returns the first, how many, and whether they were never in use before,
// so that the file reads as zeros there. The caller holds mu.
func (img *Image) allocRun(n int64) (first, count int64, fresh bool, err error) {
	first, count, err = img.findFree(img.refs.hint, n)
	if err != nil {
		return 0, 0, false, err
	}
	if err := img.take(first, count); err != nil {
		return 0, 0, false, err
	}
	img.refs.hint = first + count
	fresh = first<<img.g.clusterBits >= img.fileEnd
	if !fresh && (first+count)<<img.g.clusterBits > img.fileEnd && count > 1 {
		// Keep runs of one kind: the caller comes again for the rest.
		keep := img.g.cluster(img.fileEnd) - first
		if err := img.addRefs(first+keep, count-keep, -1); err != nil {
			return 0, 0, false, err
		}
		count = keep
		img.refs.hint = first + count
	}
	img.fileEnd = max(img.fileEnd, (first+count)<<img.g.clusterBits)
	return first, count, fresh, nil
}

// take sets the refcounts of free clusters to 1, after a look whether the
// image's own tables lie there.
func (img *Image) take(first, n int64) error {
	if bad := img.meta.first(first, n); bad >= 0 {
		return img.refuseWrites(corruptf("the cluster at offset %#x has the refcount 0 but holds metadata; writing there would destroy the image: run a check with repair", bad<<img.g.clusterBits))
	}
	return img.addRefs(first, n, 1)
}

// findFree returns the first run of free clusters at or behind from, at most n
// long, in the range of one refcount block, which is made if need be.
func (img *Image) findFree(from, n int64) (first, count int64, err error) {
	g := img.g
	for i := from; ; {
		index := i >> g.refBlockBits()
		start := index << g.refBlockBits()
		b, err := img.refBlockAt(index)
		if err != nil {
			return 0, 0, err
		}
		if b == nil {
			if err := img.newRefBlock(index, i); err != nil {
				return 0, 0, err
			}
			i++
			continue
		}
		end := start + g.refBlockEntries()
		if b.free == 0 {
			i = end
			continue
		}
		i = max(i, start+b.low)
		scanned := i
		for i < end && (getRefcount(b.data, g.refcountOrder, i-start) != 0 || img.refs.moving.holds(i)) {
			i++
		}
		if scanned == start+b.low {
			b.low = i - start
		}
		if i == end {
			continue
		}
		for first = i; i < end && i-first < n && getRefcount(b.data, g.refcountOrder, i-start) == 0 && !img.refs.moving.holds(i); {
			i++
		}
		if g.maxOffset()>>g.clusterBits < i {
			return 0, 0, fmt.Errorf("the image file would grow beyond %d bytes: %w", g.maxOffset(), block.ErrUnsupported)
		}
		return first, i - first, nil
	}
}

// maxOffset is the largest host offset that the entries can hold.
func (g geometry) maxOffset() int64 { return entryOffsetMask }

// newRefBlock makes the refcount block of an index, in cluster at, which is
// free and either in the range of the block itself or counted elsewhere.
func (img *Image) newRefBlock(index, at int64) error {
	if index >= int64(len(img.refs.table)) {
		img.refs.need = index + 1
		return errTableFull
	}
	if bad := img.meta.first(at, 1); bad >= 0 {
		return img.take(at, 1)
	}
	g := img.g
	b := &refBlock{host: hostOffset(at << g.clusterBits), data: make([]byte, g.clusterSize()), free: g.refBlockEntries(), gen: 1}
	b.dirty.add(0, g.clusterSize())
	img.putRefBlock(index, b)
	img.refs.table[index] = refTableEntry(b.host)
	img.refs.tableDirty.add(index, index+1)
	img.refs.moving.placed(index)
	img.meta.add(at, 1)
	img.fileEnd = max(img.fileEnd, (at+1)<<g.clusterBits)
	return img.addRefs(at, 1, 1)
}

// allocTogether takes n free clusters that lie together behind everything in
// use, with the refcount 1, for a table of more than one cluster. The refcount
// blocks that this range still needs lie behind it. The caller holds mu.
func (img *Image) allocTogether(n int64) (first int64, err error) {
	first, blocks, err := img.planTail(n)
	if err != nil {
		return 0, err
	}
	last := (first + n + int64(len(blocks)) - 1) >> img.g.refBlockBits()
	if last >= int64(len(img.refs.table)) {
		img.refs.need = last + 1
		return 0, errTableFull
	}
	if err := img.newTailBlocks(first+n, blocks); err != nil {
		return 0, err
	}
	if err := img.take(first, n); err != nil {
		return 0, err
	}
	img.fileEnd = max(img.fileEnd, (first+n+int64(len(blocks)))<<img.g.clusterBits)
	return first, nil
}

// planTail finds the clusters behind everything in use, and the indexes of the
// refcount blocks that [first, first+n) and these blocks themselves, behind
// it, lack.
func (img *Image) planTail(n int64) (first int64, blocks []int64, err error) {
	g := img.g
	first = g.cluster(img.fileEnd)
	for i := first >> g.refBlockBits(); i < int64(len(img.refs.table)); i++ {
		b, err := img.refBlockAt(i)
		if err != nil {
			return 0, nil, err
		}
		for k := g.refBlockEntries() - 1; b != nil && k >= 0; k-- {
			if getRefcount(b.data, g.refcountOrder, k) != 0 {
				first = max(first, i<<g.refBlockBits()+k+1)
				break
			}
		}
	}
	for i := first >> g.refBlockBits(); i <= (first+n+int64(len(blocks))-1)>>g.refBlockBits(); i++ {
		b, err := img.refBlockAt(i)
		if err != nil {
			return 0, nil, err
		}
		if b == nil {
			blocks = append(blocks, i)
		}
	}
	return first, blocks, nil
}

// newTailBlocks makes refcount blocks in the clusters from at on. A block may
// lie in the range of one that comes after it.
func (img *Image) newTailBlocks(at int64, indexes []int64) error {
	g := img.g
	for k, index := range indexes {
		host := at + int64(k)
		b := &refBlock{host: hostOffset(host << g.clusterBits), data: make([]byte, g.clusterSize()), free: g.refBlockEntries(), gen: 1}
		b.dirty.add(0, g.clusterSize())
		img.putRefBlock(index, b)
		img.refs.table[index] = refTableEntry(b.host)
		img.refs.tableDirty.add(index, index+1)
		img.refs.moving.placed(index)
	}
	if err := img.take(at, int64(len(indexes))); err != nil {
		return err
	}
	img.meta.add(at, int64(len(indexes)))
	return nil
}

// growRefTable moves the refcount table to a larger place, so that it has at
// least need entries: first the table and every block that it lists, then a
// barrier, then the header, then a barrier; the old table is free then. Reads
// wait meanwhile; the table grows by half each time, so it happens rarely.
func (img *Image) growRefTable(need int64) error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	defer img.mu.Unlock()
	old := int64(len(img.refs.table))
	if need <= old {
		return nil // somebody else did it
	}
	g := img.g
	perCluster := g.clusterSize() / 8
	clusters := ceilDiv(max(need, old+old/2), perCluster)
	var first int64
	var blocks []int64
	for {
		var err error
		if first, blocks, err = img.planTail(clusters); err != nil {
			return err
		}
		last := (first + clusters + int64(len(blocks)) - 1) >> g.refBlockBits()
		if last < clusters*perCluster {
			break
		}
		clusters = ceilDiv(last+1, perCluster)
	}
	if clusters<<g.clusterBits > maxRefTableBytes {
		return fmt.Errorf("the refcount table would need %d bytes: the image file is too large for its cluster size: %w", clusters<<g.clusterBits, block.ErrUnsupported)
	}
	oldOffset, oldClusters := int64(img.hdr.refTableOffset), int64(img.hdr.refTableClusters)
	img.refs.table = append(img.refs.table, make([]refTableEntry, clusters*perCluster-old)...)
	if err := img.newTailBlocks(first+clusters, blocks); err != nil {
		return img.refuseWrites(err)
	}
	if err := img.take(first, clusters); err != nil {
		return img.refuseWrites(err)
	}
	img.fileEnd = max(img.fileEnd, (first+clusters+int64(len(blocks)))<<g.clusterBits)
	img.meta.add(first, clusters)
	img.hdr.refTableOffset = uint64(first << g.clusterBits)
	img.hdr.refTableClusters = uint32(clusters)
	if err := img.writeMovedRefTable(); err != nil {
		// The header in memory no longer is the one on disk.
		return img.refuseWrites(err)
	}
	img.meta.remove(g.cluster(oldOffset), oldClusters)
	return img.addRefs(g.cluster(oldOffset), oldClusters, -1)
}

func (img *Image) writeMovedRefTable() error {
	s := img.snapshotRefBlocks()
	if err := img.writeRefBlocks(s); err != nil {
		return err
	}
	img.settleRefBlocks(s, nil)
	if err := img.writeMeta(encodeRefTable(img.refs.table), int64(img.hdr.refTableOffset)); err != nil {
		return err
	}
	if err := img.barrier(); err != nil {
		return err
	}
	img.refs.tableDirty = span{}
	if err := img.writeMeta(img.hdr.fields(), 0); err != nil {
		return err
	}
	return img.barrier()
}

// A freedRun is a run of host clusters that lost one reference each.
type freedRun struct {
	first, n int64
	keep     bool // its space stays with the file
}

// release notes that [first, first+n) lost a reference that the file still
// has; the clusters are given back after the next barrier.
func (img *Image) release(first, n int64) {
	keep := img.rt.keepSpace[img.freeing]
	if k := len(img.freed); k > 0 && img.freed[k-1].first+img.freed[k-1].n == first && img.freed[k-1].keep == keep {
		img.freed[k-1].n += n
		return
	}
	img.freed = append(img.freed, freedRun{first, n, keep})
}

// releaseEntry releases what an L2 entry referred to, unless the image's own
// tables lie there: freeing, and discarding, them would destroy the image. The
// clusters of an external data file are not counted, so there is nothing to do.
func (img *Image) releaseEntry(e l2Entry) error {
	var first, n int64
	if img.g.external {
		return nil
	}
	switch e.kind(img.g) {
	case clusterData, clusterZeroAlloc:
		first, n = img.g.cluster(int64(e.host())), 1
	case clusterCompressed:
		off, length := e.compressedRange(img.g)
		first = img.g.cluster(int64(off))
		n = img.g.cluster(int64(off)+length-1) - first + 1
	default:
		return nil
	}
	if bad := img.meta.first(first, n); bad >= 0 {
		return img.refuseWrites(corruptf("an L2 entry says that the cluster at offset %#x is guest data, but it holds metadata; freeing it would destroy the image: run a check with repair", bad<<img.g.clusterBits))
	}
	img.release(first, n)
	if e.kind(img.g) == clusterCompressed {
		img.inflated.drop(e)
	}
	return nil
}

// abandon gives back clusters for guest data that nothing in the file refers to
// yet; those of an external data file are not counted. An error only leaks them.
func (img *Image) abandon(first, n int64) {
	if img.g.external {
		return
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	_ = img.addRefs(first, n, -1)
}
