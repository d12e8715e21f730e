package qcow2

import "github.com/lamina-vm/lamina/block"

// Discard implements [block.Discarder]. The host clusters of guest clusters are
// given back when all their subclusters are discarded or zero; the range then
// reads as zeros. Version 2 cannot hide what a backing file has there, so such
// clusters stay as they are. Parts of subclusters, and of compressed clusters,
// stay too.
func (img *Image) Discard(off, n int64) error {
	if err := img.checkChange(off, n); err != nil {
		return img.failAccess("discard", err)
	}
	first, last := img.wholeSubclusters(off, n)
	if last <= first {
		return nil
	}
	if err := img.begin(); err != nil {
		return img.failAccess("discard", err)
	}
	defer img.noteDirty(off, n)
	hold := img.lockBytes(first, last-first, true)
	defer img.guest.unlock(hold)
	for at := first; at < last; {
		if err := img.relieve(); err != nil {
			return img.failAccess("discard", err)
		}
		r, err := img.lookup(at, min(last, img.g.tableEnd(at))-at)
		if err != nil {
			return img.failAccess("discard", err)
		}
		if err := img.discardRun(at, r); err != nil {
			return img.failAccess("discard", err)
		}
		at += r.length
	}
	return nil
}

func (img *Image) discardRun(off int64, r run) error {
	if err := img.zeroExternal(off, r, true); err != nil {
		return err
	}
	zero := img.backingIsZero(off, r.length)
	switch {
	case r.kind == clusterZeroPlain,
		r.kind == clusterUnallocated && zero,
		r.kind == clusterCompressed && !img.coversCluster(off, off, off+r.length):
		return nil
	case img.version >= 3:
		return img.setZero(off, r, true)
	case zero:
		return img.setUnallocated(off, r)
	}
	return nil
}

var (
	_ block.Discarder        = (*Image)(nil)
	_ block.Zeroer           = (*Image)(nil)
	_ block.CompressedWriter = (*Image)(nil)
	_ block.Backed           = (*Image)(nil)
)
