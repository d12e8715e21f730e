package qcow2

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// noteDirty records in the enabled bitmaps that [off, off+n) of the disk was
// changed, or may have been. It is called behind every change of what the guest
// sees: a bitmap cleared meanwhile has it all the same. It never fails: a
// bitmap that cannot be kept stays in use in the file, and so inconsistent.
func (img *Image) noteDirty(off, n int64) {
	s := &img.bitmaps
	if n <= 0 || !s.tracking.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.header.count > 0 && !s.marked {
		img.markAgain()
	}
	for _, b := range s.list {
		if b.enabled && !b.broken {
			if err := img.setDirty(b, off, n); err != nil {
				img.giveUp(b)
			}
		}
	}
}

// markAgain is for a change that went on while the bitmaps were stored.
func (img *Image) markAgain() {
	err := img.markBitmaps()
	if err == nil {
		err = img.barrier()
	}
	for _, b := range img.bitmaps.list {
		if err != nil && !b.broken {
			img.giveUp(b)
		}
	}
}

// giveUp leaves a bitmap as the file has it: in use.
func (img *Image) giveUp(b *dirtyBitmap) {
	s := &img.bitmaps
	img.forgetBits(b)
	b.broken, s.changed = true, true
	b.flags |= bitmapInUse
}

// setDirty sets the bits of [off, off+n). The caller holds bitmapSet.mu.
func (img *Image) setDirty(b *dirtyBitmap, off, n int64) error {
	if off >= img.Size() || n <= 0 {
		return nil
	}
	n = min(n, img.Size()-off)
	lo, hi := off>>b.shift, (off+n-1)>>b.shift+1
	perPage := img.g.pageBits()
	for lo < hi {
		i := lo / perPage
		end := min(hi, (i+1)*perPage)
		pageEnd := min(b.bits, (i+1)*perPage)
		if lo == i*perPage && end == pageEnd {
			img.setPage(b, i, bitmapTableAllOnes)
		} else if b.pages[i] != bitmapTableAllOnes {
			img.setRecent(b, lo, end)
		}
		lo = end
	}
	b.dirty, img.bitmaps.changed = true, true
	if img.bitmaps.recent <= recentBytes {
		return nil
	}
	for _, other := range img.bitmaps.list {
		if err := img.settleBits(other); err != nil {
			if other == b {
				return err
			}
			img.giveUp(other)
		}
	}
	return nil
}

// setRecent sets bits in memory.
func (img *Image) setRecent(b *dirtyBitmap, lo, hi int64) {
	size := chunkBytes(img.g)
	if b.recent == nil {
		b.recent = map[int64][]byte{}
	}
	for lo < hi {
		k := lo / (size * 8)
		c := b.recent[k]
		if c == nil {
			c = make([]byte, size)
			b.recent[k] = c
			img.bitmaps.recent += size
		}
		end := min(hi, (k+1)*size*8)
		setBits(c, lo-k*size*8, end-k*size*8)
		lo = end
	}
}

// setPage makes a whole cluster of bits one or zero.
func (img *Image) setPage(b *dirtyBitmap, i int64, e bitmapEntry) {
	size := chunkBytes(img.g)
	first := i * img.g.clusterSize() / size
	for k := first; k < first+img.g.clusterSize()/size && len(b.recent) > 0; k++ {
		if b.recent[k] != nil {
			delete(b.recent, k)
			img.bitmaps.recent -= size
		}
	}
	if old := b.pages[i]; old.host() != 0 {
		img.abandonMeta(old.host(), img.g.clusterSize())
	}
	if b.pages == nil {
		b.pages = map[int64]bitmapEntry{}
	}
	b.pages[i] = e
}

// settleBits moves the bits set lately into clusters of the file to which
// nothing refers yet.
func (img *Image) settleBits(b *dirtyBitmap) error {
	if len(b.recent) == 0 {
		return nil
	}
	size := chunkBytes(img.g)
	perPage := img.g.clusterSize() / size
	chunks := slices.Sorted(maps.Keys(b.recent))
	r := img.bitmapTableOf(b)
	p := clusterBuffers.get(img.g.clusterSize())
	defer clusterBuffers.put(p)
	for len(chunks) > 0 {
		i := chunks[0] / perPage
		if err := img.readPage(b, r, i, p); err != nil {
			return err
		}
		if err := img.writePage(b, i, p); err != nil {
			return err
		}
		for len(chunks) > 0 && chunks[0]/perPage == i {
			delete(b.recent, chunks[0])
			img.bitmaps.recent -= size
			chunks = chunks[1:]
		}
	}
	return nil
}

// writePage stores a cluster of bits where nothing in the file refers to it.
func (img *Image) writePage(b *dirtyBitmap, i int64, p []byte) error {
	n := min(b.bits-i*img.g.pageBits(), img.g.pageBits())
	switch {
	case nextBit(p, 0, n, true) == n:
		img.setPage(b, i, 0)
		return nil
	case nextBit(p, 0, n, false) == n:
		img.setPage(b, i, bitmapTableAllOnes)
		return nil
	}
	host := b.pages[i].host()
	if host == 0 {
		var err error
		if host, err = img.allocMeta(img.g.clusterSize()); err != nil {
			return err
		}
	}
	if b.pages == nil {
		b.pages = map[int64]bitmapEntry{}
	}
	b.pages[i] = bitmapEntry(host)
	return img.writeMeta(p, int64(host))
}

// forgetBits drops what is not in the file yet.
func (img *Image) forgetBits(b *dirtyBitmap) {
	img.bitmaps.recent -= int64(len(b.recent)) * chunkBytes(img.g)
	for _, e := range b.pages {
		if e.host() != 0 {
			img.abandonMeta(e.host(), img.g.clusterSize())
		}
	}
	b.recent, b.pages = nil, nil
}

// markBitmaps says in the file that the bitmaps are in use, before the first
// change of the disk. The caller holds bitmapSet.mu, and makes it durable.
func (img *Image) markBitmaps() error {
	s := &img.bitmaps
	if s.marked || s.header.count == 0 {
		return nil
	}
	dir := make([]byte, s.header.directorySize)
	if err := readPadded(img.file, dir, int64(s.header.directoryOffset)); err != nil {
		return couldNotRead("bitmap directory", err)
	}
	changed := false
	for rest := dir; len(rest) >= bitmapDirEntryFixed; {
		flags := binary.BigEndian.Uint32(rest[12:])
		changed = changed || flags&bitmapInUse == 0
		binary.BigEndian.PutUint32(rest[12:], flags|bitmapInUse)
		n := (bitmapDirEntryFixed + int64(binary.BigEndian.Uint16(rest[18:])) + int64(binary.BigEndian.Uint32(rest[20:])) + 7) &^ 7
		if n > int64(len(rest)) {
			return corruptf("Broken bitmap directory")
		}
		rest = rest[n:]
	}
	if changed {
		// Each flag lies in one sector: some marked, some not is a state of
		// an image to which nothing was written yet.
		if err := img.writeMeta(dir, int64(s.header.directoryOffset)); err != nil {
			return fmt.Errorf("mark the bitmaps as in use: %w", err)
		}
	}
	s.marked = s.marked || changed
	return nil
}

// bitmapsResizable refuses what a change of the disk's size could not follow.
func (img *Image) bitmapsResizable() error {
	s := &img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.list {
		if err := b.usable(); err != nil {
			return err
		}
	}
	return nil
}

// resizeBitmaps makes the bitmaps fit the disk's present size. New bits are
// clean: nothing was written there.
func (img *Image) resizeBitmaps() {
	s := &img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.list {
		if bits := bitmapBits(img.Size(), b.shift); !b.broken && bits != b.bits {
			if err := img.resizeBitmap(b, bits); err != nil {
				img.giveUp(b)
			}
		}
	}
}

func (img *Image) resizeBitmap(b *dirtyBitmap, bits int64) error {
	if err := img.settleBits(b); err != nil {
		return err
	}
	// The cluster with the last bit of the shorter one keeps no bits behind it.
	perPage := img.g.pageBits()
	short := min(bits, b.bits)
	if i := short / perPage; short%perPage != 0 {
		p := clusterBuffers.get(img.g.clusterSize())
		defer clusterBuffers.put(p)
		if err := img.readPage(b, img.bitmapTableOf(b), i, p); err != nil {
			return err
		}
		clearFrom(p, short-i*perPage)
		old := b.bits
		b.bits = max(bits, old) // so that a cluster that is full now is not taken for one of ones
		if err := img.writePage(b, i, p); err != nil {
			return err
		}
	}
	for i := range b.pages {
		if i >= img.g.bitmapEntries(bits) {
			img.setPage(b, i, 0)
			delete(b.pages, i)
		}
	}
	b.bits, b.valid = bits, min(b.valid, bits)
	b.dirty, img.bitmaps.changed = true, true
	return nil
}
