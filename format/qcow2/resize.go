package qcow2

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

// Resize implements [block.Resizer]. Sizes are whole sectors.
func (img *Image) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if err := img.resize(ctx, size, opts); err != nil {
		return img.fail("resize", err)
	}
	return nil
}

func (img *Image) resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := img.checkChange(0, 0); err != nil {
		return err
	}
	if opts.Prealloc == "" {
		opts.Prealloc = block.PreallocOff
	}
	if _, err := parsePrealloc(string(opts.Prealloc)); err != nil {
		return err
	}
	old := img.Size()
	switch {
	case size < 0:
		return fmt.Errorf("size %d: %w", size, block.ErrOutOfRange)
	case size%block.SectorSize != 0:
		return unsupportedf("The new size must be a multiple of %d", block.SectorSize)
	case size > img.g.maxSize():
		return &errnoError{"the image size is too large, try a larger cluster size", block.ErrUnsupported, syscall.EFBIG}
	case size == old:
		return nil
	case len(img.snapshots) > 0 && img.version < 3:
		return unsupportedf("Can't resize a v2 image which has snapshots")
	case size > old && img.backing == nil && img.backingFile != "":
		// A longer one would show behind the old end.
		return fmt.Errorf("growing: %w", errNotOpened(img.backingFile))
	case size < old && !opts.AllowShrink:
		return fmt.Errorf("from %d to %d bytes: shrinking was not allowed: %w", old, size, block.ErrUnsupported)
	case size < old && opts.Prealloc != block.PreallocOff:
		return unsupportedf("Preallocation can't be used for shrinking an image")
	}
	if err := img.bitmapsResizable(); err != nil {
		return err
	}
	if err := img.begin(); err != nil {
		return err
	}
	defer img.resizeBitmaps()
	if size < old {
		return img.shrink(ctx, size)
	}
	return img.grow(ctx, size, opts.Prealloc)
}

// grow makes the disk larger. The header says so last, when the new range
// reads as zeros.
func (img *Image) grow(ctx context.Context, size int64, mode block.Preallocation) error {
	old := img.Size()
	if err := img.dropState(ctx); err != nil {
		return err
	}
	if err := img.growL1(img.g.l1EntriesFor(size)); err != nil {
		return err
	}
	if img.rawData() && mode == block.PreallocOff {
		mode = block.PreallocMetadata // every cluster stays mapped
	}
	if err := img.growExternal(ctx, old, size, mode); err != nil {
		return err
	}
	if err := img.clearTail(old, size); err != nil {
		return err
	}
	from := min(img.g.roundUp(old), size)
	if mode != block.PreallocOff {
		if err := img.preallocate(ctx, from, size, mode); err != nil {
			return errors.Join(err, img.undoGrow(context.WithoutCancel(ctx), old))
		}
	} else if img.backing != nil && img.backing.Size() > from {
		// What a longer backing file has there must not show.
		if err := img.hideBacking(from, min(img.g.roundUp(img.backing.Size()), size)); err != nil {
			return err
		}
	}
	return img.storeSize(size)
}

// dropState unlinks what the L1 table has behind the disk: the state of a
// machine, which a snapshot that was gone back to left there and which would
// show in the larger disk. The snapshot keeps it.
func (img *Image) dropState(ctx context.Context) error {
	for index := img.g.l1EntriesFor(img.Size()); index < int64(len(img.l1)); index++ {
		if img.l1[index].l2Table() == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := img.relieve(); err != nil {
			return err
		}
		if err := img.dropEntries(index*img.g.l2Span(), img.g.l2Entries(), true); err != nil {
			return err
		}
	}
	return nil
}

// clearTail makes what the disk's last cluster holds behind the old end, up to
// the new one, read as zeros: a longer backing file, or whatever another
// program left there.
func (img *Image) clearTail(old, size int64) error {
	end := min(img.g.roundUp(old), size)
	if end == old {
		return nil
	}
	for old < end {
		r, err := img.lookup(old, end-old)
		if err != nil {
			return err
		}
		if !r.kind.zero() && !(r.kind.unallocated() && img.backingIsZero(old, r.length)) {
			return img.writeZeroBytes(old, end-old)
		}
		old += r.length
	}
	return nil
}

// hideBacking makes unallocated clusters behind the end of the disk read as
// zeros.
func (img *Image) hideBacking(off, end int64) error {
	if img.version < 3 {
		for off < end {
			n := min(end, img.g.tableEnd(off)) - off
			if !img.backingIsZero(off, n) {
				if err := img.relieve(); err != nil {
					return err
				}
				if err := img.writeZeroBytes(off, n); err != nil {
					return err
				}
			}
			off += n
		}
		return nil
	}
	return img.zeroSubclusters(off, end-off, 0)
}

// preallocate allocates every cluster of [off, end), which lies behind the end
// of the disk. The host clusters read as zeros.
func (img *Image) preallocate(ctx context.Context, off, end int64, mode block.Preallocation) error {
	g := img.g
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := img.relieve(); err != nil {
			return err
		}
		var first, count int64
		var fresh bool
		want := min(ceilDiv(min(end, g.tableEnd(off))-off, g.clusterSize()), 1<<30>>g.clusterBits)
		err := img.update(func() (err error) {
			first, count, fresh, err = img.place(off, want)
			return err
		})
		if err != nil {
			return err
		}
		if img.crypt != nil && img.version < 3 {
			err = img.fillGuest(ctx, off, first<<g.clusterBits, count<<g.clusterBits)
		} else {
			err = img.prepareHost(ctx, first<<g.clusterBits, count<<g.clusterBits, fresh, mode)
		}
		if err != nil {
			img.abandon(first, count)
			return err
		}
		if err := img.linkEmpty(off, first, count, img.backing != nil && img.backing.Size() > off); err != nil {
			return err
		}
		off += count << g.clusterBits
	}
	return nil
}

// prepareHost makes host clusters read as zeros, with their space as mode says.
// growExternal has done that for an external data file.
func (img *Image) prepareHost(ctx context.Context, host, n int64, fresh bool, mode block.Preallocation) error {
	switch {
	case img.g.external:
		return nil
	case mode == block.PreallocFull:
		return img.fillHost(ctx, host, n)
	case mode == block.PreallocFalloc || !fresh:
		z, ok := block.As[block.Zeroer](img.file)
		if !ok || z.WriteZeroes(host, n, 0) != nil {
			return img.fillHost(ctx, host, n)
		}
		return nil
	}
	return extendFile(ctx, img.wr, host+n, block.PreallocOff)
}

// fillHost writes zeros to host clusters.
func (img *Image) fillHost(ctx context.Context, host, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(zeroBuffer)))
		if err := img.writeData(zeroBuffer[:k], hostOffset(host)); err != nil {
			return err
		}
		host, n = host+k, n-k
	}
	return nil
}

// growL1 makes the L1 table at least entries long: in the rest of its last
// cluster if they fit there, else in a new place, which is written before the
// header refers to it.
func (img *Image) growL1(entries int64) error {
	img.mu.RLock()
	have := int64(len(img.l1))
	img.mu.RUnlock()
	if entries <= have {
		return nil
	}
	if err := img.writeback(false); err != nil {
		return err
	}
	g := img.g
	l1 := append(img.l1[:have:have], make([]l1Entry, entries-have)...)
	off := int64(img.hdr.l1Offset)
	moved := entries*8 > g.roundUp(have*8)
	if moved {
		err := img.update(func() (err error) {
			first, err := img.allocTogether(ceilDiv(entries*8, g.clusterSize()))
			if err == nil {
				off = first << g.clusterBits
				img.meta.add(first, ceilDiv(entries*8, g.clusterSize()))
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := img.writeback(true); err != nil { // its refcounts come first
			return err
		}
	}
	return img.switchL1(l1, off, moved)
}

// switchL1 writes an L1 table and then makes the header refer to it. A
// failure in between leaves the old one; the header in memory follows the one
// on disk.
func (img *Image) switchL1(l1 []l1Entry, off int64, moved bool) error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	if err := img.writeMeta(encodeL1(l1), off); err != nil {
		return err
	}
	if err := img.barrier(); err != nil {
		return err
	}
	h := img.hdr
	h.l1Offset, h.l1Size = uint64(off), uint32(len(l1))
	if err := img.writeMeta(h.fields(), 0); err != nil {
		return img.refuseWrites(err)
	}
	if err := img.barrier(); err != nil {
		return err
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	oldOff, oldLen := int64(img.hdr.l1Offset), int64(len(img.l1))
	img.hdr, img.l1 = h, l1
	if !moved || oldLen == 0 {
		return nil
	}
	first, n := img.g.cluster(oldOff), ceilDiv(oldLen*8, img.g.clusterSize())
	img.meta.remove(first, n)
	return img.addRefs(first, n, -1)
}

// storeSize writes everything, then the new size.
func (img *Image) storeSize(size int64) error {
	if err := img.writeback(false); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	h := img.hdr
	h.size = uint64(size)
	if err := img.writeMeta(h.fields(), 0); err != nil {
		return img.refuseWrites(err)
	}
	if err := img.barrier(); err != nil {
		return err
	}
	img.mu.Lock()
	img.hdr = h
	img.mu.Unlock()
	img.size.Store(size)
	return nil
}

// shrink makes the disk smaller: the clusters behind the new end are unlinked,
// then their L2 tables, then the header says so, then the file is cut.
func (img *Image) shrink(ctx context.Context, size int64) error {
	g := img.g
	// The cluster that the new end cuts keeps no data behind it.
	if cut := min(g.roundUp(size), img.Size()); cut > size && !img.readsZero(size, cut-size) {
		if err := img.writeZeroBytes(size, cut-size); err != nil {
			return err
		}
	}
	if err := img.dropBehind(ctx, size); err != nil {
		return err
	}
	if err := img.storeSize(size); err != nil {
		return err
	}
	if err := img.cutExternal(ctx, size); err != nil {
		return err
	}
	return img.cutFile(ctx)
}

// undoGrow undoes a preallocation that could not be completed, behind a disk of
// size bytes: a full disk is not left full.
func (img *Image) undoGrow(ctx context.Context, size int64) error {
	if err := img.dropBehind(ctx, size); err != nil {
		return err
	}
	if err := img.writeback(false); err != nil {
		return err
	}
	return img.cutFile(ctx)
}

// dropBehind unlinks what lies behind a disk of size bytes, but for the rest of
// its last cluster.
func (img *Image) dropBehind(ctx context.Context, size int64) error {
	g := img.g
	tables := int(g.l1EntriesFor(size))
	for off := g.roundUp(size); off < int64(len(img.l1))*g.l2Span(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := img.relieve(); err != nil {
			return err
		}
		index := g.l1Index(guestOffset(off))
		next := g.tableEnd(off)
		if img.l1[index].l2Table() != 0 {
			if err := img.dropEntries(off, (next-off)>>g.clusterBits, index >= tables); err != nil {
				return err
			}
		}
		off = next
	}
	return nil
}

// dropEntries unlinks n clusters, and the L2 table that maps them if whole.
func (img *Image) dropEntries(off, n int64, whole bool) error {
	index := img.g.l1Index(guestOffset(off))
	img.mu.RLock()
	e := img.l1[index]
	img.mu.RUnlock()
	return img.update(func() error {
		if !whole || e.copied() {
			err := img.setEntries(off, n, func(int64, mapping) mapping { return mapping{} })
			if err != nil || !whole {
				return err
			}
		}
		// A table that a snapshot shares keeps its entries: the snapshot's
		// references to the clusters go on; ours end with the table's.
		first := img.g.cluster(int64(e.l2Table()))
		if e.copied() {
			img.release(first, 1)
		} else {
			if err := img.releaseShared(e.l2Table()); err != nil {
				return err
			}
			if err := img.leaveTable(e.l2Table()); err != nil {
				return err
			}
		}
		img.l1[index] = 0
		img.l1Dirty.add(int64(index), int64(index)+1)
		if e.copied() {
			// Its slices need not be written: the L1 entry goes in the same
			// writeback, before anything is given back.
			img.l2.drop(e.l2Table(), img.g)
			img.meta.remove(first, 1)
		}
		return nil
	})
}

// releaseShared releases what the entries of a shared L2 table refer to: every
// table that shares it counts in the refcounts of its clusters.
func (img *Image) releaseShared(table hostOffset) error {
	for off := int64(0); off < img.g.clusterSize(); off += img.g.sliceBytes() {
		s, err := img.loadSlice(table + hostOffset(off))
		if err != nil {
			return err
		}
		for _, e := range s.entries {
			if err := img.releaseEntry(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutFile takes the unused end of the file away.
func (img *Image) cutFile(ctx context.Context) error {
	r, ok := block.As[block.Resizer](img.file)
	if !ok {
		return nil
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	defer img.mu.Unlock()
	end, err := img.lastUsed()
	if err != nil {
		return err
	}
	if end <<= img.g.clusterBits; end >= img.file.Size() {
		return nil
	}
	if err := r.Resize(ctx, end, block.ResizeOptions{AllowShrink: true}); err != nil {
		return err
	}
	if img.file.Size() > end {
		return nil // a block device: what is behind stays as it was
	}
	img.fileEnd = end
	img.openEnd = min(img.openEnd, end)
	return nil
}

// lastUsed returns the cluster behind the last one with a refcount.
func (img *Image) lastUsed() (int64, error) {
	g := img.g
	for i := int64(len(img.refs.table)) - 1; i >= 0; i-- {
		b, err := img.refBlockAt(i)
		if err != nil {
			return 0, err
		}
		if b == nil || b.free == g.refBlockEntries() {
			continue
		}
		for k := g.refBlockEntries() - 1; k >= 0; k-- {
			if getRefcount(b.data, g.refcountOrder, k) != 0 {
				return i<<g.refBlockBits() + k + 1, nil
			}
		}
	}
	return 0, nil
}
