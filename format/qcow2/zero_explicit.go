package qcow2

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// zeroExplicit makes [off, off+n) read as zeros whatever the backing file
// holds, or comes to hold: nothing of it stays unallocated. The caller holds
// the range alone.
func (img *Image) zeroExplicit(off, n int64, flags block.ZeroFlags) error {
	for end := off + n; off < end; {
		if err := img.relieve(); err != nil {
			return err
		}
		start := img.g.roundDown(off)
		next := min(start+img.g.clusterSize(), end)
		whole := off == start && (next == start+img.g.clusterSize() || next == img.Size())
		if !whole {
			if err := img.zeroExplicitPart(off, next-off, flags); err != nil {
				return err
			}
			off = next
			continue
		}
		_, last := img.wholeClusters(off, end-off)
		r, err := img.lookup(off, min(last, img.g.tableEnd(off))-off)
		if err != nil {
			return err
		}
		if err := img.zeroExplicitRun(off, r, flags); err != nil {
			return err
		}
		off += r.length
	}
	return nil
}

// zeroExplicitRun does it for the whole clusters of a run.
func (img *Image) zeroExplicitRun(off int64, r run, flags block.ZeroFlags) error {
	keepsHost := flags&block.ZeroMayUnmap == 0 && r.copied && (r.kind == clusterData || r.kind == clusterZeroAlloc)
	switch {
	case r.kind == clusterZeroPlain, r.kind == clusterZeroAlloc && keepsHost:
		return nil
	case img.version >= 3:
		return img.setRun(off, r, func(old l2Entry) l2Entry {
			if keepsHost {
				return old | l2Zero
			}
			return l2Zero
		})
	case flags&block.ZeroNoFallback != 0:
		return fmt.Errorf("zeros at guest offset %d, length %d, would have to be written: %w", off, r.length, block.ErrUnsupported)
	}
	return img.writeZeroBytes(off, r.length)
}

// zeroExplicitPart does it for a part of a cluster. Where the rest of the
// cluster reads as zeros too, the whole becomes a zero cluster.
func (img *Image) zeroExplicitPart(off, n int64, flags block.ZeroFlags) error {
	start := img.g.roundDown(off)
	end := min(start+img.g.clusterSize(), img.Size())
	if img.version >= 3 && img.readsZero(start, off-start) && img.readsZero(off+n, end-off-n) {
		r, err := img.lookup(start, end-start)
		if err == nil {
			err = img.zeroExplicitRun(start, r, flags)
		}
		return err
	}
	if flags&block.ZeroNoFallback != 0 {
		return fmt.Errorf("zeros at guest offset %d, length %d, would have to be written: %w", off, n, block.ErrUnsupported)
	}
	return img.writeZeroBytes(off, n)
}
