package qcow2

import (
	"io"
	"sync/atomic"
)

// l2SliceBytes is the unit in which L2 tables are read, cached and written:
// 512 entries map 32 MiB with clusters of 64 KiB, 256 extended ones half of it. Smaller than a table, so that
// one changed entry costs one small write.
const l2SliceBytes = 4096

// l2CacheBytes bounds the slices kept in memory of one image: 16 MiB map 128 GiB
// with clusters of 64 KiB. Slices that are not written back yet are kept whatever
// their number; writers write back before it exceeds half the bound.
const l2CacheBytes = 16 << 20

// l2Slice is a part of an L2 table.
type l2Slice struct {
	host hostOffset // where it lies in the file
	l2Table
	// gen counts changes; the slice is dirty while the file does not hold
	// the newest generation, written.
	gen, written uint64
	used         atomic.Bool // since the clock hand passed
}

func (s *l2Slice) dirty() bool { return s.gen != s.written }

// l2Cache holds slices by host offset and replaces them by the clock
// algorithm. It is guarded by Image.mu; only used is set under the read lock.
type l2Cache struct {
	slices map[hostOffset]*l2Slice
	clock  []*l2Slice
	hand   int
	limit  int
	dirty  int // dirty slices, an upper bound
}

func (c *l2Cache) get(host hostOffset) *l2Slice {
	s := c.slices[host]
	if s != nil && !s.used.Load() {
		s.used.Store(true)
	}
	return s
}

// put adds a slice, in the place of one that is clean and was not used lately.
func (c *l2Cache) put(s *l2Slice) {
	c.slices[s.host] = s
	if len(c.clock) < c.limit {
		c.clock = append(c.clock, s)
		return
	}
	for range 2 * len(c.clock) {
		c.hand = (c.hand + 1) % len(c.clock)
		old := c.clock[c.hand]
		if old.dirty() || old.used.Swap(false) {
			continue
		}
		if c.slices[old.host] == old {
			delete(c.slices, old.host)
		}
		c.clock[c.hand] = s
		return
	}
	c.clock = append(c.clock, s) // everything is dirty: the writer will write back
}

// drop forgets the slices of a table that is no longer one.
func (c *l2Cache) drop(table hostOffset, g geometry) {
	for off := int64(0); off < g.clusterSize(); off += g.sliceBytes() {
		s := c.slices[table+hostOffset(off)]
		if s == nil {
			continue
		}
		delete(c.slices, s.host)
		if s.dirty() {
			s.written = s.gen
			c.dirty--
		}
		s.used.Store(false)
	}
}

// sliceBytes returns the bytes of a slice.
func (g geometry) sliceBytes() int64 { return min(l2SliceBytes, g.clusterSize()) }

// sliceEntries returns the entries of a slice.
func (g geometry) sliceEntries() int { return int(g.sliceBytes() / g.l2EntryBytes()) }

// sliceAt returns where the slice that maps off lies in its table, and the
// index of off's entry in it.
func (g geometry) sliceAt(off guestOffset) (hostOffset, int) {
	i := g.l2Index(off)
	n := g.sliceEntries()
	return hostOffset(int64(i/n*n) * g.l2EntryBytes()), i % n
}

// newL2Cache returns an empty cache.
func newL2Cache(g geometry) l2Cache {
	return l2Cache{
		slices: map[hostOffset]*l2Slice{},
		limit:  int(l2CacheBytes / g.sliceBytes()),
	}
}

// loadSlice returns a slice, from the file if need be. The caller holds mu
// exclusively.
func (img *Image) loadSlice(host hostOffset) (*l2Slice, error) {
	if s := img.l2.get(host); s != nil {
		return s, nil
	}
	table := hostOffset(img.g.roundDown(int64(host)))
	if int64(table) >= img.openEnd && !img.meta.has(img.g.cluster(int64(table))) {
		return nil, corruptf("L2 table at offset %#x lies behind the end of the file (%d bytes): the file is truncated or the L1 table is damaged", int64(table), img.file.Size())
	}
	s := &l2Slice{host: host, l2Table: img.g.newL2Table(img.g.sliceEntries())}
	b := make([]byte, img.g.sliceBytes())
	if err := readPadded(img.file, b, int64(host)); err != nil {
		return nil, err
	}
	s.decode(b)
	img.l2.put(s)
	return s, nil
}

// readPadded fills p from off; what lies behind the end of the file is zeros.
func readPadded(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return nil
	}
	return err
}
