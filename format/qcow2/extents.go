package qcow2

import (
	"fmt"
	"iter"
	"sync"

	"github.com/lamina-vm/lamina/block"
)

// Extents implements [block.Node]. Ranges that the image does not hold are the
// backing file's, one layer deeper.
func (img *Image) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		err := error(nil)
		if img.closed.Load() {
			err = block.ErrClosed
		} else {
			err = block.CheckRange(off, n, img.Size())
		}
		if err != nil {
			yield(block.Extent{}, img.fail("map", err))
			return
		}
		m := extentMerger{yield: yield}
		if err := img.extents(&m, off, n); err != nil {
			if !m.stopped {
				m.flush()
			}
			if !m.stopped {
				yield(block.Extent{}, img.fail("map", err))
			}
			return
		}
		m.flush()
	}
}

// extentMerger joins extents that are one before it hands them on.
type extentMerger struct {
	yield   func(block.Extent, error) bool
	last    block.Extent // Length 0: none
	stopped bool
}

// add takes the next extent and reports whether to go on.
func (m *extentMerger) add(e block.Extent) bool {
	if m.last.Length > 0 && e.Follows(m.last) {
		m.last.Length += e.Length
		return true
	}
	m.flush()
	m.last = e
	return !m.stopped
}

func (m *extentMerger) flush() {
	if m.last.Length > 0 && !m.stopped {
		m.stopped = !m.yield(m.last, nil)
	}
	m.last = block.Extent{}
}

// extents adds the extents of [off, off+n) to m until it stops.
func (img *Image) extents(m *extentMerger, off, n int64) error {
	holes := map[*Image]*holeCursor{}
	for end := off + n; off < end && !m.stopped; {
		r, err := img.lookup(off, end-off)
		if err != nil {
			return fmt.Errorf("guest offset %#x: %w", off, err)
		}
		if r.kind.unallocated() {
			if err := img.extentsBelow(m, holes, off, r); err != nil {
				return err
			}
		} else {
			img.addRun(m, holes, off, r, 0)
		}
		off += r.length
	}
	return nil
}

// addRun adds the extents of a run of the layer at depth.
func (img *Image) addRun(m *extentMerger, holes map[*Image]*holeCursor, off int64, r run, depth int) {
	for end := off + r.length; off < end; {
		e := block.Extent{Start: off, Length: end - off, Depth: depth, HostOffset: block.NoHostOffset}
		host := int64(r.host) + r.length - e.Length
		switch r.kind {
		case clusterZeroPlain:
			e.Kind = block.Zero
		case clusterZeroAlloc:
			e.Kind, e.HostOffset, e.File = block.Zero, host, img.data.node
			if img.crypt != nil {
				e.HostOffset, e.File = block.NoHostOffset, nil
			}
		case clusterCompressed:
			e.Kind = block.Compressed
		case clusterData:
			e.Kind, e.HostOffset, e.File = block.Data, host, img.data.node
			if img.crypt != nil || img.g.external && img.data.node == nil {
				e.HostOffset = block.NoHostOffset
			} else if img.preallocated() {
				if holes[img] == nil {
					holes[img] = &holeCursor{file: img.dataNode()}
				}
				e.Length, e.ReadsZero = holes[img].at(host, e.Length)
			}
		}
		if !m.add(e) {
			return
		}
		off += e.Length
	}
}

// extentsBelow adds the extents of a run that the image does not hold.
func (img *Image) extentsBelow(m *extentMerger, holes map[*Image]*holeCursor, off int64, r run) error {
	start := off
	for end := off + r.length; off < end && !m.stopped; {
		if img.backing == nil {
			m.add(img.unallocated(r, start, off, end, 0))
			return nil
		}
		c, err := img.resolve(off, end-off)
		if err != nil {
			return err
		}
		switch {
		case c.owner != nil:
			c.owner.addRun(m, holes, off, c.run, c.depth)
		case c.base != nil:
			for e, err := range c.base.Extents(off, c.end-off) {
				if err != nil {
					return err
				}
				e.Depth += c.depth
				if !m.add(e) {
					return nil
				}
			}
		default:
			if c.depth == 0 {
				m.add(img.unallocated(r, start, off, c.end, 0))
			} else {
				m.add(c.last.unallocated(c.run, c.start, off, c.end, c.depth))
			}
		}
		off = c.end
	}
	return nil
}

// unallocated returns the extent [off, end), which no layer holds, where r,
// which begins at start, is what img, the last layer that was looked at, says
// of it. That may have space for it.
func (img *Image) unallocated(r run, start, off, end int64, depth int) block.Extent {
	e := block.Extent{Start: off, Length: end - off, Kind: block.Unallocated, Depth: depth, HostOffset: block.NoHostOffset}
	if r.kind == clusterUnallocatedAlloc && img.dataNode() != nil {
		e.HostOffset, e.File = int64(r.host)+off-start, img.data.node
	}
	return e
}

// holeCursor tells holes of the image file from data, for host offsets that
// mostly ascend: it asks once for each extent of the file.
type holeCursor struct {
	file block.Node
	last block.Extent
}

// at returns how much of [off, off+n) is alike and whether it is a hole.
func (c *holeCursor) at(off, n int64) (int64, bool) {
	if off < c.last.Start || off >= c.last.End() {
		size := c.file.Size()
		if off >= size {
			return n, true
		}
		c.last = block.Extent{Start: off, Length: size - off, Kind: block.Data}
		for e, err := range c.file.Extents(off, size-off) {
			if err == nil {
				c.last = e
			}
			break
		}
	}
	return min(n, c.last.End()-off), c.last.IsZero()
}

// preallocProbe remembers whether the image file looks preallocated.
type preallocProbe struct {
	once sync.Once
	yes  bool
}

// preallocated reports whether more clusters are in use than the file has
// blocks for, so that data clusters are worth a look for holes. The rule is
// stock QEMU's, so that map says the same.
func (img *Image) preallocated() bool {
	img.prealloc.once.Do(func() {
		stored, err := img.storedBytes()
		if err != nil {
			return
		}
		clusters := img.g.cluster(stored)
		img.prealloc.yes = img.usesAtLeast(max(clusters+clusters/9, clusters+2), stored/block.SectorSize+1)
	})
	return img.prealloc.yes
}

// storedBytes returns how much of the image file takes space.
func (img *Image) storedBytes() (int64, error) {
	if d, ok := block.As[block.DiskSizer](img.file); ok {
		return d.DiskSize()
	}
	stored := int64(0)
	for e, err := range img.file.Extents(0, img.file.Size()) {
		if err != nil {
			return 0, err
		}
		if !e.IsZero() {
			stored += e.Length
		}
	}
	return stored, nil
}

// usesAtLeast reports whether at least n clusters of the file are in use. It
// looks at no more than the given number of refcount blocks: a damaged table
// could list one block, or one hole, a million times.
func (img *Image) usesAtLeast(n, blocks int64) bool {
	end := ceilDiv(img.file.Size(), img.g.clusterSize())
	if n > end {
		return false
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	if img.refs.table == nil && img.readRefTable() != nil {
		return false
	}
	// Nothing behind the range of the refcount table is in use.
	end = min(end, int64(len(img.refs.table))<<img.g.refBlockBits())
	used := int64(0)
	for i := int64(0); i < end && used < n; {
		b, err := img.refBlockAt(i >> img.g.refBlockBits())
		if err != nil {
			return false
		}
		next := min((i>>img.g.refBlockBits()+1)<<img.g.refBlockBits(), end)
		if b != nil {
			if blocks--; blocks < 0 {
				return false
			}
			for k := i; k < next && b.free < img.g.refBlockEntries(); k++ {
				if getRefcount(b.data, img.g.refcountOrder, k&(img.g.refBlockEntries()-1)) != 0 {
					used++
				}
			}
		}
		i = next
	}
	return used >= n
}
