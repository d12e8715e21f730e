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
		return img.failAccess("zero", err)
	}
	if n == 0 {
		return nil
	}
	if err := img.begin(); err != nil {
		return img.failAccess("zero", err)
	}
	defer img.noteDirty(off, n)
	hold := img.lockBytes(off, n, true)
	defer img.guest.unlock(hold)
	if err := img.zeroRange(off, n, flags); err != nil {
		return img.failAccess("zero", err)
	}
	return nil
}

// zeroRange makes [off, off+n) read as zeros. The caller holds it alone.
func (img *Image) zeroRange(off, n int64, flags block.ZeroFlags) error {
	first, last := img.wholeSubclusters(off, n)
	end := off + n
	if last <= first { // within one subcluster, or the ends of two
		first = min(img.g.subUp(off), end)
		last = first
	}
	if flags&block.ZeroNoFallback != 0 {
		if err := img.canZero(off, first, last, end, flags); err != nil {
			return err
		}
	}
	if err := img.zeroPart(off, first-off, flags); err != nil {
		return err
	}
	if err := img.zeroSubclusters(first, last-first, flags); err != nil {
		return err
	}
	return img.zeroPart(last, end-last, flags)
}

// wholeSubclusters returns the guest range of the subclusters, or clusters
// where there are none, that [off, off+n) covers. One that the end of the disk
// cuts is covered up to there.
func (img *Image) wholeSubclusters(off, n int64) (first, last int64) {
	first, last = img.g.subUp(off), img.g.subDown(off+n)
	if off+n == img.Size() {
		last = off + n
	}
	return first, last
}

// canZero refuses what would have to be written.
func (img *Image) canZero(off, first, last, end int64, flags block.ZeroFlags) error {
	ok := img.partCanZero(off, first-off, flags) && img.partCanZero(last, end-last, flags)
	if ok && first < last && img.version < 3 {
		ok = flags&block.ZeroExplicit == 0 && (img.readsZero(first, last-first) || img.backingIsZero(first, last-first))
	}
	if ok && first < last && img.g.extendedL2 {
		ok = !img.cutsCompressed(first, last)
	}
	if !ok {
		return fmt.Errorf("zeros at guest offset %d, length %d, would have to be written: %w", off, end-off, block.ErrUnsupported)
	}
	return nil
}

// partCanZero reports whether zeroPart writes nothing.
func (img *Image) partCanZero(off, n int64, flags block.ZeroFlags) bool {
	return n == 0 || img.partIsZero(off, n, flags) || img.restIsZero(off, n)
}

// partIsZero reports whether a part of a subcluster is zeros as flags want it.
func (img *Image) partIsZero(off, n int64, flags block.ZeroFlags) bool {
	return flags&block.ZeroExplicit == 0 && img.readsZero(off, n)
}

// restIsZero reports whether the rest of the subcluster of which [off, off+n)
// is a part reads as zeros, so that it can be marked as zero as a whole.
func (img *Image) restIsZero(off, n int64) bool {
	start, end := img.subclusterAt(off)
	return img.version >= 3 && img.readsZero(start, off-start) && img.readsZero(off+n, end-off-n)
}

// subclusterAt returns the guest range of the subcluster that holds off, as far
// as it belongs to the disk.
func (img *Image) subclusterAt(off int64) (start, end int64) {
	start = img.g.subDown(off)
	return start, min(start+img.g.subclusterSize(), img.Size())
}

// cutsCompressed reports whether [first, last) covers a part of a compressed
// cluster, which has no subclusters that could read as zeros. An error counts
// as yes.
func (img *Image) cutsCompressed(first, last int64) bool {
	for _, at := range []int64{first, last - 1} {
		m, err := img.mappingAt(at)
		if err != nil || m.entry.kind(img.g) == clusterCompressed && !img.coversCluster(at, first, last) {
			return true
		}
	}
	return false
}

// coversCluster reports whether [first, last) covers the cluster that holds at,
// as far as it belongs to the disk.
func (img *Image) coversCluster(at, first, last int64) bool {
	start := img.g.roundDown(at)
	return first <= start && last >= min(start+img.g.clusterSize(), img.Size())
}

// zeroPart makes a part of a subcluster read as zeros.
func (img *Image) zeroPart(off, n int64, flags block.ZeroFlags) error {
	switch {
	case n == 0 || img.partIsZero(off, n, flags):
		return nil
	case img.restIsZero(off, n):
		start, end := img.subclusterAt(off)
		return img.zeroSubclusters(start, end-start, flags)
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

// zeroSubclusters makes whole subclusters, or clusters where there are none,
// read as zeros.
func (img *Image) zeroSubclusters(off, n int64, flags block.ZeroFlags) error {
	for end := off + n; off < end; {
		if err := img.relieve(); err != nil {
			return err
		}
		r, err := img.lookup(off, min(end, img.g.tableEnd(off))-off)
		if err != nil {
			return err
		}
		if err := img.zeroRun(off, r, flags); err != nil {
			return err
		}
		off += r.length
	}
	return nil
}

// zeroRun makes the subclusters of a run read as zeros.
func (img *Image) zeroRun(off int64, r run, flags block.ZeroFlags) error {
	unmap, explicit := flags&block.ZeroMayUnmap != 0, flags&block.ZeroExplicit != 0
	if err := img.zeroExternal(off, r, unmap); err != nil {
		return err
	}
	switch {
	case r.kind == clusterUnallocated && !explicit && img.backingIsZero(off, r.length),
		r.kind == clusterZeroPlain,
		r.kind == clusterZeroAlloc && !unmap:
		return nil
	case r.kind == clusterCompressed && !img.coversCluster(off, off, off+r.length):
		return img.writeZeroBytes(off, r.length) // it has no subclusters
	case img.version >= 3:
		return img.setZero(off, r, unmap)
	case !r.kind.unallocated() && unmap && !explicit && img.backingIsZero(off, r.length):
		return img.setUnallocated(off, r)
	}
	return img.writeZeroBytes(off, r.length)
}

// setZero marks the subclusters of a run, which lies in one L2 table, as zero.
// The host clusters stay, unless unmap is set and all of their subclusters read
// as zeros now.
func (img *Image) setZero(off int64, r run, unmap bool) error {
	punch := unmap && img.rt.keepHost
	unmap = unmap && !punch
	err := img.updateRequested(func() error {
		return img.setRange(off, img.runEnd(off, r), func(_ int64, old mapping, first, end uint) mapping {
			keeps := old.entry.kind(img.g) != clusterCompressed && !unmap
			if !img.g.extendedL2 {
				if keeps {
					return mapping{entry: old.entry | l2Zero}
				}
				return mapping{entry: l2Zero}
			}
			m := mapping{entry: old.entry, sub: old.subclusters(img.g).withZero(first, end)}
			if !keeps && m.sub == allZero {
				m.entry = 0
			}
			return m
		})
	})
	if punch && err == nil {
		img.punch(r)
	}
	return err
}

// updateRequested is update for what the guest asked to give up.
func (img *Image) updateRequested(change func() error) error {
	return img.update(func() error {
		img.freeing = discardRequest
		defer func() { img.freeing = discardOther }()
		return change()
	})
}

// setUnallocated makes the clusters of a run, which lies in one L2 table, refer
// to nothing.
func (img *Image) setUnallocated(off int64, r run) error {
	return img.updateRequested(func() error {
		return img.setRange(off, img.runEnd(off, r), func(int64, mapping, uint, uint) mapping { return mapping{} })
	})
}

// runEnd returns the end of a run, behind the last cluster if that is the one
// that the end of the disk cuts.
func (img *Image) runEnd(off int64, r run) int64 {
	if off+r.length == img.Size() {
		return img.g.roundUp(off + r.length)
	}
	return off + r.length
}
