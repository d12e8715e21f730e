package qcow2

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// zeroBuffer is what is written where zeros cannot be had otherwise.
var zeroBuffer [1 << 20]byte

// WriteZeroes implements [block.Zeroer]. Whole clusters become zero clusters,
// which keep their space unless flags say ZeroMayUnmap; what version 2, which
// has none, cannot leave unallocated is written.
func (img *Image) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if err := img.checkChange(off, n); err != nil {
		return img.fail("zero", err)
	}
	if n == 0 {
		return nil
	}
	if err := img.begin(); err != nil {
		return img.fail("zero", err)
	}
	defer img.noteDirty(off, n)
	hold := img.lockBytes(off, n, true)
	defer img.guest.unlock(hold)
	zero := img.zeroRange
	if flags&block.ZeroExplicit != 0 {
		zero = img.zeroExplicit
	}
	if err := zero(off, n, flags); err != nil {
		return img.fail("zero", err)
	}
	return nil
}

// zeroRange makes [off, off+n) read as zeros. The caller holds it alone.
func (img *Image) zeroRange(off, n int64, flags block.ZeroFlags) error {
	first, last := img.wholeClusters(off, n)
	end := off + n
	if last <= first { // within one cluster, or the ends of two
		first = min(img.g.roundUp(off), end)
		last = first
	}
	if flags&block.ZeroNoFallback != 0 {
		if err := img.canZero(off, first, last, end); err != nil {
			return err
		}
	}
	if err := img.zeroPart(off, first-off); err != nil {
		return err
	}
	if err := img.zeroClusters(first, last-first, flags&block.ZeroMayUnmap != 0); err != nil {
		return err
	}
	return img.zeroPart(last, end-last)
}

// wholeClusters returns the guest range of the clusters that [off, off+n)
// covers. A cluster that the end of the disk cuts is covered up to there.
func (img *Image) wholeClusters(off, n int64) (first, last int64) {
	first, last = img.g.roundUp(off), img.g.roundDown(off+n)
	if off+n == img.Size() {
		last = off + n
	}
	return first, last
}

// canZero refuses what would have to be written.
func (img *Image) canZero(off, first, last, end int64) error {
	ok := img.readsZero(off, first-off) && img.readsZero(last, end-last)
	if ok && img.version < 3 {
		ok = img.readsZero(first, last-first) || img.backingIsZero(first, last-first)
	}
	if !ok {
		return fmt.Errorf("zeros at guest offset %d, length %d, would have to be written: %w", off, end-off, block.ErrUnsupported)
	}
	return nil
}

// zeroPart makes a part of a cluster read as zeros.
func (img *Image) zeroPart(off, n int64) error {
	if n == 0 || img.readsZero(off, n) {
		return nil
	}
	start := img.g.roundDown(off)
	end := min(start+img.g.clusterSize(), img.Size())
	if img.version >= 3 && img.readsZero(start, off-start) && img.readsZero(off+n, end-off-n) {
		return img.zeroClusters(start, end-start, false)
	}
	return img.writeZeroBytes(off, n)
}

// writeZeroBytes writes zeros.
func (img *Image) writeZeroBytes(off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroBuffer)))
		if _, err := img.writeRange(zeroBuffer[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// zeroClusters makes whole clusters read as zeros.
func (img *Image) zeroClusters(off, n int64, unmap bool) error {
	for end := off + n; off < end; {
		if err := img.relieve(); err != nil {
			return err
		}
		r, err := img.lookup(off, min(end, img.g.tableEnd(off))-off)
		if err != nil {
			return err
		}
		if err := img.zeroRun(off, r, unmap); err != nil {
			return err
		}
		off += r.length
	}
	return nil
}

// zeroRun makes the clusters of a run read as zeros.
func (img *Image) zeroRun(off int64, r run, unmap bool) error {
	if err := img.zeroExternal(off, r, unmap); err != nil {
		return err
	}
	keepsHost := !unmap && r.copied && (r.kind == clusterData || r.kind == clusterZeroAlloc)
	switch {
	case r.kind == clusterUnallocated && img.backingIsZero(off, r.length),
		r.kind == clusterZeroPlain,
		r.kind == clusterZeroAlloc && keepsHost:
		return nil
	case img.version >= 3:
		return img.setRun(off, r, func(old l2Entry) l2Entry {
			if keepsHost {
				return old | l2Zero
			}
			return l2Zero
		})
	case r.kind != clusterUnallocated && unmap && img.backingIsZero(off, r.length):
		return img.setRun(off, r, func(l2Entry) l2Entry { return 0 })
	}
	return img.writeZeroBytes(off, r.length)
}

// setRun changes the L2 entries of a run that lies in one L2 table.
func (img *Image) setRun(off int64, r run, entry func(l2Entry) l2Entry) error {
	clusters := ceilDiv(r.length, img.g.clusterSize())
	return img.update(func() error {
		return img.setEntries(off, clusters, func(_ int64, old l2Entry) l2Entry { return entry(old) })
	})
}
