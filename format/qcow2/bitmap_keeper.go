package qcow2

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.BitmapKeeper = (*Image)(nil)

// KeepsBitmaps implements [format.BitmapKeeper]: version 2 has no autoclear
// bits, by which programs that do not know bitmaps would say so.
func (img *Image) KeepsBitmaps() bool { return img.version >= 3 }

// Bitmaps implements [format.BitmapKeeper].
func (img *Image) Bitmaps() []format.Bitmap {
	s := &img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []format.Bitmap
	for _, b := range s.list {
		list = append(list, format.Bitmap{Name: b.name, Granularity: 1 << b.shift, Enabled: b.enabled, Inconsistent: b.broken})
	}
	return list
}

// changeBitmaps runs change, which is one of the bitmaps only.
func (img *Image) changeBitmaps(change func(s *bitmapSet) error) error {
	if err := img.checkChange(0, 0); err != nil {
		return img.fail("change bitmaps", err)
	}
	s := &img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	if img.overlap != nil {
		return img.refuseWrites(img.overlap)
	}
	if err := change(s); err != nil {
		return err
	}
	s.changed = true
	if img.begun.Load() {
		s.retrack()
	}
	return nil
}

// AddBitmap implements [format.BitmapKeeper]. The default granularity is that
// of a cluster, at least 4 KiB.
func (img *Image) AddBitmap(name string, opts format.BitmapOptions) error {
	if name == "" {
		return unsupportedf("Bitmap name cannot be empty")
	}
	g := opts.Granularity
	if g == 0 {
		g = max(img.g.clusterSize(), 4096)
	}
	if g < 1<<minGranularityBits || g > 1<<maxGranularityBits || g&(g-1) != 0 {
		return unsupportedf("Granularity must be power of 2 and at least 512")
	}
	return img.changeBitmaps(func(s *bitmapSet) error {
		if _, err := s.named(name); err == nil {
			return unsupportedf("Bitmap already exists: %s", name)
		}
		b := &dirtyBitmap{name: name, shift: uint(bits.TrailingZeros64(uint64(g))), enabled: !opts.Disabled, dirty: true, drop: true}
		b.bits = bitmapBits(img.Size(), b.shift)
		if err := img.canKeep(b); err != nil {
			return &stockError{fmt.Sprintf("Can't make bitmap '%s' persistent in '%s': %v", name, img.name, err), err}
		}
		s.list = append(s.list, b)
		return nil
	})
}

// canKeep refuses a bitmap that the image cannot hold.
func (img *Image) canKeep(b *dirtyBitmap) error {
	if !img.KeepsBitmaps() {
		return unsupportedf("Cannot store dirty bitmaps in qcow2 v2 files")
	}
	if ceilDiv(b.bits, 8) > maxBitmapBytes {
		return unsupportedf("Too much space will be occupied by the bitmap. Use larger granularity")
	}
	if len(b.name) > maxBitmapName {
		return unsupportedf("Name length exceeds maximum (%d characters)", maxBitmapName)
	}
	s := &img.bitmaps
	if len(s.list) >= maxBitmaps {
		return unsupportedf("Maximum number of persistent bitmaps is already reached")
	}
	size := dirEntrySize(b.name)
	for _, other := range s.list {
		size += dirEntrySize(other.name)
	}
	if size > maxBitmapDirectory {
		return unsupportedf("Not enough space in the bitmap directory")
	}
	return nil
}

// RemoveBitmap implements [format.BitmapKeeper].
func (img *Image) RemoveBitmap(name string) error {
	return img.changeBitmaps(func(s *bitmapSet) error {
		b, err := s.named(name)
		if err != nil {
			return err
		}
		img.forgetBits(b)
		if b.table.entries > 0 {
			s.removed = append(s.removed, b.table)
		}
		s.list = slices.Delete(s.list, slices.Index(s.list, b), slices.Index(s.list, b)+1)
		return nil
	})
}

// onUsable runs change on a bitmap that is consistent.
func (img *Image) onUsable(name string, change func(b *dirtyBitmap) error) error {
	return img.changeBitmaps(func(s *bitmapSet) error {
		b, err := s.named(name)
		if err != nil {
			return err
		}
		if err := b.usable(); err != nil {
			return err
		}
		return change(b)
	})
}

// ClearBitmap implements [format.BitmapKeeper].
func (img *Image) ClearBitmap(name string) error {
	return img.onUsable(name, func(b *dirtyBitmap) error {
		img.forgetBits(b)
		b.drop, b.dirty = true, true
		return nil
	})
}

// SetBitmapEnabled implements [format.BitmapKeeper].
func (img *Image) SetBitmapEnabled(name string, enabled bool) error {
	return img.onUsable(name, func(b *dirtyBitmap) error {
		b.enabled = enabled
		return nil
	})
}

// MarkDirty implements [format.BitmapKeeper].
func (img *Image) MarkDirty(name string, runs iter.Seq2[format.DirtyRun, error]) error {
	// The runs may come from this very image: its lock is not held while they
	// are asked for.
	if err := img.onUsable(name, func(*dirtyBitmap) error { return nil }); err != nil {
		return err
	}
	for run, err := range runs {
		if err != nil {
			return err
		}
		if run.Start < 0 || run.Length < 0 {
			return fmt.Errorf("bitmap '%s': run at %d of %d bytes: %w", name, run.Start, run.Length, block.ErrOutOfRange)
		}
		err := img.onUsable(name, func(b *dirtyBitmap) error { return img.setDirty(b, run.Start, run.Length) })
		if err != nil {
			return err
		}
	}
	return nil
}

// StoreBitmaps implements [format.BitmapKeeper].
func (img *Image) StoreBitmaps() error {
	if err := img.checkChange(0, 0); err != nil {
		return img.fail("store bitmaps", err)
	}
	if err := img.storeAgain(); err != nil {
		return img.fail("store bitmaps", err)
	}
	return nil
}

// storeAgain stores the bitmaps; the next change finds them not in use.
func (img *Image) storeAgain() error {
	if err := img.storeBitmaps(); err != nil {
		return err
	}
	img.begun.Store(false)
	return nil
}

// DirtyRuns implements [format.BitmapKeeper]. It takes one cluster of memory,
// and a cluster of bits is read when the iteration comes to it.
func (img *Image) DirtyRuns(name string, off, n int64) iter.Seq2[format.DirtyRun, error] {
	return func(yield func(format.DirtyRun, error) bool) {
		if err := block.CheckRange(off, n, img.Size()); err != nil {
			yield(format.DirtyRun{}, img.fail("read bitmap", err))
			return
		}
		if n == 0 {
			return
		}
		w := runWalk{img: img, name: name, off: off, end: off + n, page: make([]byte, img.g.clusterSize())}
		if w.walk(yield) && w.run.Length > 0 {
			yield(w.run, nil)
		}
	}
}

// runWalk joins the dirty bits of a range to runs.
type runWalk struct {
	img      *Image
	name     string
	off, end int64
	page     []byte
	run      format.DirtyRun // that may go on
	table    *tableReader
}

// walk goes through the range. It reports whether all of it was done.
func (w *runWalk) walk(yield func(format.DirtyRun, error) bool) bool {
	for at := w.off; at < w.end; {
		shift, bits, empty, err := w.load(at)
		if err != nil {
			yield(format.DirtyRun{}, err)
			return false
		}
		perPage := w.img.g.pageBits()
		first := at >> shift / perPage * perPage
		to := min(first+perPage, bits)
		next := w.end
		if to < bits {
			next = min(next, to<<shift)
		}
		for i := at >> shift; i < to && !empty; {
			lo := first + nextBit(w.page, i-first, to-first, true)
			hi := first + nextBit(w.page, lo-first, to-first, false)
			if lo == to || lo<<shift >= next {
				break
			}
			end := next
			if hi < to {
				end = min(next, hi<<shift)
			}
			if !w.add(max(lo<<shift, at), end, yield) {
				return false
			}
			i = hi
		}
		at = next
	}
	return true
}

// load reads the cluster of bits that covers at. empty says that no bit of it
// is set.
func (w *runWalk) load(at int64) (shift uint, bits int64, empty bool, err error) {
	s := &w.img.bitmaps
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.img.closed.Load() {
		return 0, 0, false, w.img.fail("read bitmap", block.ErrClosed)
	}
	b, err := s.named(w.name)
	if err != nil {
		return 0, 0, false, err
	}
	if err := b.usable(); err != nil {
		return 0, 0, false, err
	}
	if t := w.img.bitmapTableOf(b); w.table == nil || w.table.table != t.table {
		w.table = t
	}
	i := at >> b.shift / w.img.g.pageBits()
	if e, ours := b.pages[i]; len(b.recent) == 0 && (!ours || e == 0) {
		if !ours {
			if e, err = w.table.entry(i); err != nil {
				return 0, 0, false, err
			}
		}
		if e == 0 {
			return b.shift, b.bits, true, nil
		}
	}
	return b.shift, b.bits, false, w.img.readPage(b, w.table, i, w.page)
}

// add joins [lo, hi) to the run under way, or yields that and begins another.
func (w *runWalk) add(lo, hi int64, yield func(format.DirtyRun, error) bool) bool {
	if w.run.Length > 0 && w.run.Start+w.run.Length == lo {
		w.run.Length += hi - lo
		return true
	}
	if w.run.Length > 0 && !yield(w.run, nil) {
		return false
	}
	w.run = format.DirtyRun{Start: lo, Length: hi - lo}
	return true
}
