package qcow2

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// WriteAt implements [block.Writer]. Clusters that are allocated are written in
// place, concurrently with everything that does not change their mapping.
func (img *Image) WriteAt(p []byte, off int64) (int, error) {
	if err := img.checkChange(off, int64(len(p))); err != nil {
		return 0, img.failAccess("write", err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := img.begin(); err != nil {
		return 0, img.failAccess("write", err)
	}
	defer img.noteDirty(off, int64(len(p)))
	var done bool
	var err error
	// A part of an encrypted sector is read and written, by one at a time.
	if img.crypt == nil || (off|int64(len(p)))%block.SectorSize == 0 {
		done, err = img.writeInPlace(p, off)
	}
	if err != nil {
		return 0, img.failAccess("write", err)
	}
	if done {
		return len(p), nil
	}
	if err := img.relieve(); err != nil {
		return 0, img.failAccess("write", err)
	}
	hold := img.lockBytes(off, int64(len(p)), true)
	defer img.guest.unlock(hold)
	if n, err := img.writeRange(p, off); err != nil {
		return n, img.failAccess("write", err)
	}
	return len(p), nil
}

// writeInPlace writes p if every cluster of it is allocated, ours alone and
// stored as it is.
func (img *Image) writeInPlace(p []byte, off int64) (bool, error) {
	hold := img.lockBytes(off, int64(len(p)), false)
	defer img.guest.unlock(hold)
	for at, end := off, off+int64(len(p)); at < end; {
		r, err := img.lookup(at, end-at)
		if err != nil {
			return false, err
		}
		if r.kind != clusterData || !r.copied {
			return false, nil
		}
		if r.length == int64(len(p)) {
			return true, img.writeGuest(p, off, r.host)
		}
		at += r.length
	}
	for len(p) > 0 {
		r, err := img.lookup(off, int64(len(p)))
		if err != nil {
			return false, err
		}
		if err := img.writeGuest(p[:r.length], off, r.host); err != nil {
			return false, err
		}
		p, off = p[r.length:], off+r.length
	}
	return true, nil
}

// writeData writes guest data to host clusters, unless the image's own tables
// lie there.
func (img *Image) writeData(p []byte, host hostOffset) error {
	if img.g.external {
		return img.writeExternal(p, host)
	}
	g := img.g
	first := g.cluster(int64(host))
	img.mu.RLock()
	bad := img.meta.first(first, g.cluster(int64(host)+int64(len(p))-1)-first+1)
	img.mu.RUnlock()
	if bad >= 0 {
		return img.damaged(img.overlapError(bad))
	}
	_, err := img.wr.WriteAt(p, int64(host))
	return err
}

// writeRange writes p at off. The caller holds the guest range alone. It
// returns how many bytes were written before an error.
func (img *Image) writeRange(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		r, err := img.lookup(off, int64(len(p)-done))
		if err != nil {
			return done, err
		}
		n := r.length
		switch {
		case r.copied && r.kind == clusterData:
			err = img.writeGuest(p[done:done+int(n)], off, r.host)
		case r.copied && r.kind.hasHost():
			err = img.writeReused(p[done:done+int(n)], off, r.host)
		default:
			if n, err = img.needsClusters(off, n, int64(len(p)-done)); err == nil {
				err = img.writeNew(p[done:done+int(n)], off)
			}
		}
		if err != nil {
			return done, fmt.Errorf("guest offset %#x: %w", off, err)
		}
		off += n
		done += int(n)
	}
	return done, nil
}

// needsClusters extends [off, off+n) over what follows, up to limit bytes, as
// long as it cannot be written in place either.
func (img *Image) needsClusters(off, n, limit int64) (int64, error) {
	for n < limit {
		r, err := img.lookup(off+n, limit-n)
		if err != nil {
			return 0, err
		}
		if r.copied && r.kind.hasHost() {
			break
		}
		n += r.length
	}
	return n, nil
}

// writeReused writes to subclusters that have their place in a host cluster but
// do not hold the bytes that are read: what p does not cover of them is written
// with it.
func (img *Image) writeReused(p []byte, off int64, host hostOffset) error {
	g := img.g
	start, end := g.subDown(off), g.subUp(off+int64(len(p)))
	host -= hostOffset(off - start)
	if err := img.fillClusters(p, off, host, span{start, end}, false); err != nil {
		return err
	}
	return img.link(start, end, g.cluster(int64(host)))
}

// writeNew writes to newly allocated clusters: data first, then the L2 entries
// in memory; the writeback orders them on disk.
func (img *Image) writeNew(p []byte, off int64) error {
	g := img.g
	for len(p) > 0 {
		start := g.roundDown(off)
		var first, count int64
		var fresh bool
		err := img.update(func() (err error) {
			first, count, fresh, err = img.place(start, (g.roundUp(off+int64(len(p)))-start)>>g.clusterBits)
			return err
		})
		if err != nil {
			return err
		}
		n := min(int64(len(p)), start+count<<g.clusterBits-off)
		area, err := img.movedWith(off, off+n)
		if err == nil {
			host := hostOffset(first<<g.clusterBits + g.inCluster(area.lo))
			err = img.fillClusters(p[:n], off, host, area, fresh)
		}
		if err != nil {
			img.abandon(first, count)
			return err
		}
		if err := img.link(area.lo, area.hi, first); err != nil {
			return err // a part may be linked: the rest leaks
		}
		p, off = p[n:], off+n
	}
	return nil
}

// movedWith returns the guest range that has to be written when [off, end)
// goes to new host clusters: whole clusters; or, with subclusters, whole ones of
// these, and on to the first and the last in the same clusters whose bytes the
// old host cluster holds. The others keep reading as they do: they stay
// unallocated or zero.
func (img *Image) movedWith(off, end int64) (span, error) {
	g := img.g
	if !g.extendedL2 {
		return span{g.roundDown(off), g.roundUp(end)}, nil
	}
	area := span{g.subDown(off), g.subUp(end)}
	m, err := img.mappingAt(off)
	if err != nil {
		return area, err
	}
	if first, _ := m.stored(g); first < subclustersPerCluster {
		area.lo = min(area.lo, g.roundDown(off)+int64(first)<<g.subclusterBits())
	}
	if m, err = img.mappingAt(end - 1); err != nil {
		return area, err
	}
	if _, last := m.stored(g); last > 0 {
		area.hi = max(area.hi, g.roundDown(end-1)+int64(last)<<g.subclusterBits())
	}
	return area, nil
}

// fillClusters writes the guest range area, of which p at guest offset off is a
// part, to host; the rest is what the guest reads there now. Where the file is
// fresh, zeros need not be written.
func (img *Image) fillClusters(p []byte, off int64, host hostOffset, area span, fresh bool) error {
	g := img.g
	n := area.hi - area.lo
	fresh = fresh && img.crypt == nil // a hole decrypts to anything
	head := off - area.lo
	tail := n - head - int64(len(p))
	start := off - head
	end := off + int64(len(p))
	if head > 0 && fresh && img.readsZero(start, head) {
		host, n, start, head = host+hostOffset(head), n-head, off, 0
	}
	if tail > 0 && fresh && img.readsZero(end, tail) {
		n, tail = n-tail, 0
	}
	if head == 0 && tail == 0 {
		return img.writeGuest(p, off, host)
	}
	// One request for at most two clusters; otherwise the large middle is
	// not worth a copy.
	if n <= 2*g.clusterSize() {
		b := clusterBuffers.get(n)
		defer clusterBuffers.put(b)
		if err := img.readOld(b[:head], start); err != nil {
			return err
		}
		copy(b[head:], p)
		if err := img.readOld(b[n-tail:], end); err != nil {
			return err
		}
		return img.writeGuest(b, start, host)
	}
	b := clusterBuffers.get(g.clusterSize())
	defer clusterBuffers.put(b)
	if err := img.readOld(b[:head], start); err != nil {
		return err
	}
	if head > 0 {
		if err := img.writeGuest(b[:head], start, host); err != nil {
			return err
		}
	}
	if err := img.writeGuest(p, off, host+hostOffset(head)); err != nil {
		return err
	}
	if tail == 0 {
		return nil
	}
	if err := img.readOld(b[:tail], end); err != nil {
		return err
	}
	return img.writeGuest(b[:tail], end, host+hostOffset(n-tail))
}

// readOld reads what the guest clusters hold now; behind the end of the disk
// it is zeros, whatever a longer backing file has there.
func (img *Image) readOld(p []byte, off int64) error {
	in := min(max(img.Size()-off, 0), int64(len(p)))
	clear(p[in:])
	_, err := img.readRange(p[:in], off)
	return err
}

// readsZero reports whether [off, off+n) is known to read as zeros, without
// looking at data. An error counts as no.
func (img *Image) readsZero(off, n int64) bool {
	for end := min(off+n, img.Size()); off < end; {
		r, err := img.lookup(off, end-off)
		switch {
		case err != nil:
			return false
		case r.kind.zero():
		case !r.kind.unallocated() || !img.backingIsZero(off, r.length):
			return false
		}
		off += r.length
	}
	return true
}

// backingIsZero reports whether the backing file is known to read as zeros.
func (img *Image) backingIsZero(off, n int64) bool {
	if img.backing == nil {
		return img.backingFile == ""
	}
	if n = min(n, img.backing.Size()-off); n <= 0 {
		return true
	}
	if b, ok := img.backing.(*Image); ok {
		return b.readsZero(off, n) // cheaper than merged extents
	}
	for e, err := range img.backing.Extents(off, n) {
		if err != nil || !e.IsZero() {
			return false
		}
	}
	return true
}

var _ block.Writer = (*Image)(nil)
