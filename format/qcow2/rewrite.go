package qcow2

import (
	"context"
	"fmt"
	"math"

	"github.com/lamina-vm/lamina/block"
)

// A rewrite changes many tables at once. Refcounts, COPIED flags and the list
// of snapshots have to agree, and no order of writing them one by one keeps
// them so at every instant of power loss. Therefore nothing that the file
// refers to is changed: the refcount blocks and L2 tables that differ are
// written anew, to clusters that were free before, then the refcount table and
// the L1 table, and at last, behind a barrier, the one sector of the header
// that points to all of them. Before that write the file is the old image,
// after it the new one, and neither has a leak.
//
// The old tables, and all that loses its last reference, become free by it;
// nothing that the rewrite allocates may lie there, because until the header
// is written they are the image.
//
// During a rewrite nobody else reads or changes the image: it holds all guest
// clusters, bitmaps.mu, wbMu and mu.
type rewrite struct {
	ctx       context.Context
	img       *Image
	h         header // as it will be
	l1        []l1Entry
	snapshots []snapshot
	buf       []byte // an L2 table
}

// movingBlocks keeps account of the refcounts during a rewrite. A nil one is
// none.
type movingBlocks struct {
	moved   clusterSet // indexes of the refcount blocks that leave their place
	pending []int64    // those that have no new place yet
	freed   clusterSet // clusters in use before the rewrite and not behind it
}

// willChange notes that a refcount block is about to change.
func (r *refcounts) willChange(index int64) {
	if m := r.moving; m != nil && !m.moved.has(index) {
		m.moved.add(index, 1)
		m.pending = append(m.pending, index)
	}
}

// placed notes that a refcount block was made, in a place of its own.
func (m *movingBlocks) placed(index int64) {
	if m != nil {
		m.moved.add(index, 1)
	}
}

// free notes that a cluster lost its last reference.
func (m *movingBlocks) free(cluster int64) {
	if m != nil {
		m.freed.add(cluster, 1)
	}
}

// holds reports whether a cluster without references must not be taken yet.
func (m *movingBlocks) holds(cluster int64) bool { return m != nil && m.freed.has(cluster) }

// rewrite runs change, which prepares new tables, and then makes them the
// image's. On error the image is as it was.
func (img *Image) rewrite(ctx context.Context, change func(*rewrite) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := img.checkChange(0, 0); err != nil {
		return err
	}
	if err := img.begin(); err != nil {
		return err
	}
	hold := img.guest.lock(0, math.MaxInt64, true)
	defer img.guest.unlock(hold)
	img.bitmaps.mu.Lock()
	defer img.bitmaps.mu.Unlock()
	if err := img.writeback(true); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	defer img.mu.Unlock()
	if err := img.refuse.Load(); err != nil {
		return *err
	}
	size := img.file.Size()
	img.refs.moving = &movingBlocks{}
	t := &rewrite{
		ctx: ctx, img: img, h: img.hdr, l1: img.l1, snapshots: img.snapshots,
		buf: make([]byte, img.g.clusterSize()),
	}
	err := change(t)
	if err == nil {
		err = t.prepare()
	}
	if err != nil {
		return t.undo(size, err)
	}
	return t.commit()
}

// undo forgets what was prepared: the file still is what it was, but for the
// content of clusters that are free.
func (t *rewrite) undo(size int64, cause error) error {
	img := t.img
	if r, ok := block.As[block.Resizer](img.file); ok && img.file.Size() > size {
		// Without it the file only is longer than it needs to be.
		_ = r.Resize(context.WithoutCancel(t.ctx), size, block.ResizeOptions{AllowShrink: true})
	}
	if err := img.reloadTables(); err != nil {
		return img.refuseWrites(fmt.Errorf("%w; and then reading the tables again: %w", cause, err))
	}
	return cause
}

// prepare writes everything that the new header will refer to.
func (t *rewrite) prepare() error {
	img, g := t.img, t.img.g
	if err := t.placeBlocks(); err != nil {
		return err
	}
	old, n := g.cluster(int64(img.hdr.refTableOffset)), int64(img.hdr.refTableClusters)
	if err := img.addRefs(old, n, -1); err != nil {
		return err
	}
	var at, clusters int64
	for {
		// Its own clusters may need another block, and that a longer table.
		clusters = ceilDiv(int64(len(img.refs.table))*8, g.clusterSize())
		var err error
		if at, err = t.alloc(clusters); err != nil {
			return err
		}
		if err := t.placeBlocks(); err != nil {
			return err
		}
		if int64(len(img.refs.table))*8 <= clusters<<g.clusterBits {
			break
		}
		if err := img.addRefs(at, clusters, -1); err != nil {
			return err
		}
	}
	if err := t.writeBlocks(); err != nil {
		return err
	}
	table := encodeRefTable(img.refs.table)
	table = append(table, make([]byte, clusters<<g.clusterBits-int64(len(table)))...)
	if err := img.writeMeta(table, at<<g.clusterBits); err != nil {
		return fmt.Errorf("write refcount table: %w", err)
	}
	t.h.refTableOffset, t.h.refTableClusters = uint64(at<<g.clusterBits), uint32(clusters)
	if err := t.guard(); err != nil {
		return err
	}
	return t.ctx.Err()
}

// guard refuses a result in which a table has lost its last reference: a
// damaged entry that points to it let go of it, and its space would be given
// away.
func (t *rewrite) guard() error {
	g, freed := t.img.g, &t.img.refs.moving.freed
	var err error
	keep := func(off hostOffset, n int64) {
		if n == 0 || off < 0 || err != nil {
			return
		}
		if bad := freed.first(g.cluster(int64(off)), ceilDiv(n, g.clusterSize())); bad >= 0 {
			err = corruptf("the cluster at offset %#x holds metadata, but something else refers to it too: run a check with repair", bad<<g.clusterBits)
		}
	}
	keep(0, 1)
	keep(hostOffset(t.h.refTableOffset), int64(t.h.refTableClusters)<<g.clusterBits)
	for _, e := range t.img.refs.table {
		if e.block() != 0 {
			keep(e.block(), 1)
		}
	}
	keep(hostOffset(t.h.l1Offset), int64(t.h.l1Size)*8)
	for _, e := range t.l1 {
		if e.l2Table() != 0 {
			keep(e.l2Table(), 1)
		}
	}
	if len(t.snapshots) > 0 {
		keep(hostOffset(t.h.snapshotsOffset), snapshotTableSize(t.snapshots))
	}
	for _, s := range t.snapshots {
		if s.checkL1(g) == nil {
			keep(s.l1Offset, int64(s.l1Size)*8)
		}
	}
	return err
}

// commit makes the header point to the new tables, and takes them over.
func (t *rewrite) commit() error {
	img := t.img
	if err := img.barrier(); err != nil {
		return err
	}
	if err := img.writeMeta(t.h.fields(), 0); err != nil {
		// Which of the two the file has is not known.
		return img.refuseWrites(fmt.Errorf("write header: %w", err))
	}
	if err := img.barrier(); err != nil {
		return err
	}
	freed := img.refs.moving.freed
	img.hdr, img.l1, img.l1Dirty, img.snapshots = t.h, t.l1, span{}, t.snapshots
	img.snapshotBytes = snapshotTableSize(t.snapshots)
	img.size.Store(int64(t.h.size))
	img.openEnd = img.g.roundUp(img.file.Size())
	img.forget()
	img.refs = newRefcounts(img.refs.table, img.g)
	img.noteMetadata()
	t.discard(&freed)
	return nil
}

// forget drops what is remembered of the content of tables and clusters.
func (img *Image) forget() {
	img.l2 = newL2Cache(img.g)
	img.pack = packCursor{}
	img.inflated.clear()
}

// reloadTables reads again what is kept in memory of the tables. The caller
// holds wbMu and mu.
func (img *Image) reloadTables() error {
	b := make([]byte, int64(img.hdr.l1Size)*8)
	if err := readPadded(img.file, b, int64(img.hdr.l1Offset)); err != nil {
		return fmt.Errorf("read the L1 table again: %w", err)
	}
	img.l1, img.l1Dirty = decodeL1(b), span{}
	img.forget()
	img.openEnd = img.g.roundUp(img.file.Size())
	img.fileEnd = img.openEnd
	if err := img.readRefTable(); err != nil {
		return err
	}
	img.noteMetadata()
	return nil
}

// discard gives the space of clusters that were freed back to the file system.
func (t *rewrite) discard(freed *clusterSet) {
	img := t.img
	d, ok := block.As[block.Discarder](img.file)
	if !ok || img.rt.keepSpace[discardSnapshot] {
		return
	}
	for first, n := range freed.runs() {
		off := first << img.g.clusterBits
		if n = min(n<<img.g.clusterBits, img.file.Size()-off); n > 0 {
			// Without it the file only keeps space that it could give back.
			_ = d.Discard(off, n)
		}
	}
}

// alloc takes n clusters that lie together.
func (t *rewrite) alloc(n int64) (first int64, err error) {
	for {
		first, err = t.img.allocAnywhere(n)
		if err != errTableFull {
			return first, err
		}
		if err := t.extendRefTable(t.img.refs.need); err != nil {
			return 0, err
		}
	}
}

// allocAnywhere takes n clusters that lie together, at the first place where
// so many are free. The caller holds mu.
func (img *Image) allocAnywhere(n int64) (int64, error) {
	if n == 1 {
		first, _, _, err := img.allocRun(1)
		return first, err
	}
	run := int64(0)
	for c := int64(1); c < img.g.cluster(img.fileEnd); c++ {
		refs, err := img.refcount(c)
		if err != nil {
			return 0, err
		}
		if refs != 0 || img.refs.moving.holds(c) {
			run = 0
		} else if run++; run == n {
			return c + 1 - n, img.take(c+1-n, n)
		}
	}
	return img.allocTogether(n)
}

// extendRefTable makes the refcount table in memory longer. It gets a new
// place anyhow.
func (t *rewrite) extendRefTable(need int64) error {
	img := t.img
	old := int64(len(img.refs.table))
	perCluster := img.g.clusterSize() / 8
	entries := ceilDiv(max(need, old+old/2), perCluster) * perCluster
	if entries*8 > maxRefTableBytes {
		return fmt.Errorf("the refcount table would need %d bytes: the image file is too large for its cluster size: %w", entries*8, block.ErrUnsupported)
	}
	img.refs.table = append(img.refs.table, make([]refTableEntry, entries-old)...)
	return nil
}

// placeBlocks gives every refcount block that has changed its new place, which
// may change more of them.
func (t *rewrite) placeBlocks() error {
	img := t.img
	for m := img.refs.moving; len(m.pending) > 0; {
		index := m.pending[len(m.pending)-1]
		m.pending = m.pending[:len(m.pending)-1]
		b := img.refs.blocks[index] // it is dirty, so it is there
		at, err := t.alloc(1)
		if err != nil {
			return err
		}
		old := img.g.cluster(int64(b.host))
		b.host = hostOffset(at << img.g.clusterBits)
		b.dirty.add(0, img.g.clusterSize())
		img.refs.table[index] = refTableEntry(b.host)
		img.meta.add(at, 1)
		if err := img.addRefs(old, 1, -1); err != nil {
			return err
		}
	}
	return nil
}

// relieve writes refcount blocks to their new places when there are many.
func (t *rewrite) relieve() error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	if len(t.img.refs.blocks) <= t.img.refs.limit {
		return nil
	}
	if err := t.placeBlocks(); err != nil {
		return err
	}
	return t.writeBlocks()
}

// writeBlocks writes the refcount blocks, all of which have new places.
func (t *rewrite) writeBlocks() error {
	s := t.img.snapshotRefBlocks()
	err := t.img.writeRefBlocks(s)
	t.img.settleRefBlocks(s, err)
	if err != nil {
		return fmt.Errorf("write refcount block: %w", err)
	}
	return nil
}

// writeTable writes a table to new clusters, which it returns.
func (t *rewrite) writeTable(what string, b []byte) (hostOffset, error) {
	g := t.img.g
	n := ceilDiv(int64(len(b)), g.clusterSize())
	first, err := t.alloc(n)
	if err != nil {
		return 0, err
	}
	if pad := n<<g.clusterBits - int64(len(b)); pad > 0 {
		b = append(b[:len(b):len(b)], make([]byte, pad)...)
	}
	if err := t.img.writeMeta(b, first<<g.clusterBits); err != nil {
		return 0, fmt.Errorf("write %s: %w", what, err)
	}
	return hostOffset(first << g.clusterBits), nil
}

// freeTable takes the reference of the old image from a table of n bytes.
func (t *rewrite) freeTable(off hostOffset, n int64) error {
	if n <= 0 {
		return nil
	}
	g := t.img.g
	return t.img.addRefs(g.cluster(int64(off)), ceilDiv(n, g.clusterSize()), -1)
}
