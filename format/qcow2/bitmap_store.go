package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// allocMeta takes n bytes of clusters that lie together, for metadata that
// nothing refers to yet.
func (img *Image) allocMeta(n int64) (hostOffset, error) {
	clusters := ceilDiv(n, img.g.clusterSize())
	var first int64
	err := img.update(func() (err error) {
		if clusters == 1 {
			first, _, _, err = img.allocRun(1)
		} else {
			first, err = img.allocTogether(clusters)
		}
		return err
	})
	return hostOffset(first << img.g.clusterBits), err
}

// abandonMeta gives back what allocMeta took. An error only leaks it.
func (img *Image) abandonMeta(off hostOffset, n int64) {
	img.mu.Lock()
	defer img.mu.Unlock()
	_ = img.addRefs(img.g.cluster(int64(off)), ceilDiv(n, img.g.clusterSize()), -1)
}

// storeBitmaps writes the bitmaps as they are and says that they are not in use
// any more. Everything else is written before that.
//
// New bits, tables and directory come first, with their refcounts; then, after
// a barrier, the header's extension names the new directory, in one sector;
// what only the old one referred to is given back after that. A power loss
// leaves the bitmaps as they were, which is in use if the disk was changed, or
// as they are now.
func (img *Image) storeBitmaps() error {
	s := &img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.changed && !s.marked && !(s.ignored && img.begun.Load()) {
		return nil
	}
	if img.overlap != nil {
		return img.refuseWrites(img.overlap)
	}
	moved := len(s.removed) > 0 || len(s.list) != int(s.header.count)
	for _, b := range s.list {
		moved = moved || b.dirty && !b.broken
	}
	if !moved {
		return img.storeBitmapFlags()
	}
	next := make([]bitmapDirEntry, len(s.list))
	for i, b := range s.list {
		if !b.broken && b.dirty {
			t, err := img.storeBitmap(b)
			if err != nil {
				// The others are worth storing all the same.
				img.giveUp(b)
				if b.table.entries == 0 {
					// A new one, which the image never had: an entry without
					// a table would keep the image from being opened.
					s.list = slices.Delete(slices.Clone(s.list), i, i+1)
					s.retrack()
					return fmt.Errorf("store bitmap '%s': %w", b.name, err)
				}
				t = b.table
			}
			next[i].table = t
		} else {
			next[i].table = b.table
		}
		next[i].name, next[i].granularityBits, next[i].flags = b.name, uint8(b.shift), b.fileFlags()
	}
	h := bitmapsHeader{count: uint32(len(next))}
	if len(next) > 0 {
		dir := encodeBitmapDirectory(next)
		off, err := img.allocMeta(int64(len(dir)))
		if err != nil {
			return fmt.Errorf("store the bitmap directory: %w", err)
		}
		if err := img.writeMeta(dir, int64(off)); err != nil {
			return fmt.Errorf("store the bitmap directory: %w", err)
		}
		h.directorySize, h.directoryOffset = uint64(len(dir)), off
	}
	if err := img.writeback(true); err != nil {
		return err
	}
	if err := img.switchBitmaps(h); err != nil {
		return fmt.Errorf("write the header's bitmaps extension: %w", err)
	}
	return img.settleBitmaps(h, next)
}

// fileFlags returns the flags as they are stored.
func (b *dirtyBitmap) fileFlags() uint32 {
	switch {
	case b.broken:
		return b.flags
	case b.enabled:
		return bitmapAuto
	}
	return 0
}

// storeBitmapFlags writes flags where they are: each lies in one sector.
func (img *Image) storeBitmapFlags() error {
	s := &img.bitmaps
	if s.header.count == 0 {
		return img.switchBitmaps(s.header)
	}
	list := make([]bitmapDirEntry, len(s.list))
	for i, b := range s.list {
		list[i] = bitmapDirEntry{table: b.table, name: b.name, granularityBits: uint8(b.shift), flags: b.fileFlags()}
	}
	// What was clean when a bitmap was cleared must not go back to what it was.
	if err := img.writeback(true); err != nil {
		return err
	}
	if err := img.writeMeta(encodeBitmapDirectory(list), int64(s.header.directoryOffset)); err != nil {
		return fmt.Errorf("store the bitmap directory: %w", err)
	}
	if err := img.barrier(); err != nil {
		return err
	}
	s.marked, s.changed = false, false
	return nil
}

// storeBitmap writes what differs of a bitmap, and its table, to new clusters.
func (img *Image) storeBitmap(b *dirtyBitmap) (bitmapTable, error) {
	if err := img.settleBits(b); err != nil {
		return bitmapTable{}, err
	}
	t := bitmapTable{entries: img.g.bitmapEntries(b.bits)}
	if t.entries == 0 {
		t.entries = 1 // a disk without a byte; no directory entry may be without a table
	}
	// The table lies in whole clusters, which end with zeros.
	size := img.g.roundUp(t.bytes())
	var err error
	if t.off, err = img.allocMeta(size); err != nil {
		return bitmapTable{}, err
	}
	r := img.bitmapTableOf(b)
	buf := make([]byte, min(size, regionBuffer))
	for at := int64(0); at < size; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), size-at)]
		for k := 0; k < len(buf); k += 8 {
			i := (at + int64(k)) / 8
			e, ours := b.pages[i]
			if i >= img.g.bitmapEntries(b.bits) {
				e, ours = 0, true
			}
			if !ours {
				if e, err = r.entry(i); err != nil {
					img.abandonMeta(t.off, size)
					return bitmapTable{}, err
				}
			}
			binary.BigEndian.PutUint64(buf[k:], uint64(e))
		}
		if err := img.writeMeta(buf, int64(t.off)+at); err != nil {
			img.abandonMeta(t.off, size)
			return bitmapTable{}, err
		}
	}
	return t, nil
}

// settleBitmaps makes the bitmaps in memory those of the new directory, and
// gives back what only the old one referred to.
func (img *Image) settleBitmaps(h bitmapsHeader, next []bitmapDirEntry) error {
	s := &img.bitmaps
	old := s.header
	s.header, s.marked, s.changed = h, false, false
	removed := s.removed
	s.removed = nil
	if old.count > 0 {
		img.releaseMeta(old.directoryOffset, int64(old.directorySize))
	}
	for _, t := range removed {
		if err := img.releaseBitmap(t, func(int64) bool { return true }); err != nil {
			return err
		}
	}
	for i, b := range s.list {
		if b.broken || !b.dirty {
			continue
		}
		t := b.table
		err := img.releaseBitmap(t, func(i int64) bool {
			_, replaced := b.pages[i]
			return replaced || b.drop || i >= img.g.bitmapEntries(b.bits)
		})
		if err != nil {
			return err
		}
		b.table, b.pages, b.drop, b.dirty, b.valid = next[i].table, nil, false, false, b.bits
	}
	return img.writeback(true)
}

// releaseMeta gives back clusters of metadata that nothing refers to any more.
func (img *Image) releaseMeta(off hostOffset, n int64) {
	img.mu.Lock()
	defer img.mu.Unlock()
	first, clusters := img.g.cluster(int64(off)), ceilDiv(n, img.g.clusterSize())
	img.meta.remove(first, clusters)
	img.release(first, clusters)
}

// releaseBitmap gives back a table that nothing refers to any more, and the
// clusters of those of its entries that gone says are not used either.
func (img *Image) releaseBitmap(t bitmapTable, gone func(i int64) bool) error {
	if t.entries == 0 {
		return nil
	}
	r := tableReader{img: img, table: t}
	for i := range t.entries {
		e, err := r.entry(i)
		if err != nil || e.host() == 0 || !gone(i) {
			continue // what a damaged entry referred to is left: it leaks
		}
		img.mu.Lock()
		if c := img.g.cluster(int64(e.host())); !img.meta.has(c) {
			img.release(c, 1) // unless a damaged entry points at another table
		}
		full := len(img.freed) > maxFreedRuns
		img.mu.Unlock()
		if full {
			if err := img.writeback(true); err != nil {
				return err
			}
		}
	}
	img.releaseMeta(t.off, t.bytes())
	return nil
}

// dropBitmaps removes all bitmaps.
func (img *Image) dropBitmaps() error {
	s := &img.bitmaps
	s.mu.Lock()
	for _, b := range s.list {
		img.forgetBits(b)
		if b.table.entries > 0 {
			s.removed = append(s.removed, b.table)
		}
	}
	s.changed = s.changed || s.ignored || len(s.list) > 0
	s.list = nil
	s.retrack()
	s.mu.Unlock()
	return img.storeBitmaps()
}
