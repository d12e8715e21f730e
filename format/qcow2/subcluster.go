package qcow2

import (
	"encoding/binary"
	"math/bits"
)

// subclustersPerCluster is how many subclusters a cluster has in an image with
// extended L2 entries.
const subclustersPerCluster = 32

// minSubclusterSize is the smallest subcluster: QEMU's limit.
const minSubclusterSize = 512

// A subclusters is the second half of an extended L2 entry (spec "Extended L2
// Entries"): the state of the 32 subclusters of a standard cluster.
//
//	 0 - 31  subcluster x is allocated: the host cluster holds its bytes
//	32 - 63  subcluster x-32 reads as zeros; it is not allocated then
//
// A subcluster with neither bit is unallocated. Compressed clusters have no
// subclusters; their bitmap is reserved, 0.
type subclusters uint64

const (
	allData subclusters = 1<<subclustersPerCluster - 1
	allZero subclusters = allData << subclustersPerCluster
)

// subclusterRange returns the allocation bits of subclusters [first, end).
func subclusterRange(first, end uint) subclusters { return 1<<end - 1<<first }

// data returns the allocation bits.
func (s subclusters) data() uint32 { return uint32(s) }

// zero returns the bits of subclusters that read as zeros.
func (s subclusters) zero() uint32 { return uint32(s >> subclustersPerCluster) }

// withData returns s with subclusters [first, end) allocated.
func (s subclusters) withData(first, end uint) subclusters {
	r := subclusterRange(first, end)
	return s&^(r<<subclustersPerCluster) | r
}

// withZero returns s with subclusters [first, end) reading as zeros.
func (s subclusters) withZero(first, end uint) subclusters {
	r := subclusterRange(first, end)
	return s&^r | r<<subclustersPerCluster
}

// A mapping is an entry of an L2 table with its bitmap, which is 0 in an image
// without extended L2 entries.
type mapping struct {
	entry l2Entry
	sub   subclusters
}

// subclusters returns the bitmap that a changed entry goes on from: what that
// of a compressed cluster holds means nothing.
func (m mapping) subclusters(g geometry) subclusters {
	if m.entry.kind(g) == clusterCompressed {
		return 0
	}
	return m.sub
}

// valid reports whether the bitmap of an extended entry says one thing: no
// subcluster is both allocated and zero, and none is allocated without a host
// cluster.
func (m mapping) valid(g geometry) bool {
	switch m.entry.kind(g) {
	case clusterCompressed:
		return true
	case clusterUnallocated:
		return m.sub.data() == 0
	}
	return m.sub.data()&m.sub.zero() == 0
}

// holdsData reports whether any bytes of the guest lie in the host cluster of a
// standard entry.
func (m mapping) holdsData(g geometry) bool {
	if g.extendedL2 {
		return m.sub.data() != 0
	}
	return m.entry.kind(g) == clusterData
}

// stretch returns what an extended entry says of subcluster index, and of how
// many from there on it says the same.
func (m mapping) stretch(g geometry, index uint) (kind clusterKind, n uint) {
	kind = m.entry.kind(g)
	if kind == clusterCompressed {
		return kind, subclustersPerCluster - index
	}
	host := kind != clusterUnallocated
	data, zero := m.sub.data()>>index, m.sub.zero()>>index
	var other uint32 // the subclusters that are of another kind
	switch {
	case data&1 != 0:
		kind, other = clusterData, ^data
	case zero&1 != 0:
		kind, other = clusterZeroPlain, ^zero
		if host {
			kind = clusterZeroAlloc
		}
	default:
		kind, other = clusterUnallocated, data|zero
		if host {
			kind = clusterUnallocatedAlloc
		}
	}
	return kind, min(uint(bits.TrailingZeros32(other)), subclustersPerCluster-index)
}

// successor returns the mapping of the next cluster that continues this one's
// run as a whole, and is as good; ok is false where that takes another look.
func (m mapping) successor(g *geometry) (next mapping, ok bool) {
	if m.entry&l2Compressed != 0 || m.sub != 0 && m.sub != allData && m.sub != allZero {
		return m, false
	}
	if k := m.entry.kind(*g); k == clusterUnallocated || k == clusterZeroPlain {
		return m, true
	}
	m.entry += l2Entry(g.clusterSize())
	return m, m.entry&l2ReservedMask == 0
}

// stored returns the range of subclusters, from first up to last, around all
// whose bytes lie in what the entry refers to; it is empty, from the number of
// subclusters up to 0, if there are none.
func (m mapping) stored(g geometry) (first, last uint) {
	if m.entry.kind(g) == clusterCompressed {
		return 0, subclustersPerCluster
	}
	return uint(bits.TrailingZeros32(m.sub.data())), uint(bits.Len32(m.sub.data()))
}

// An l2Table is an L2 table, or a part of one, in memory.
type l2Table struct {
	entries []l2Entry
	bitmaps []subclusters // as many; nil without extended L2 entries
}

// newL2Table returns a table of n entries that refer to nothing.
func (g geometry) newL2Table(n int) l2Table {
	t := l2Table{entries: make([]l2Entry, n)}
	if g.extendedL2 {
		t.bitmaps = make([]subclusters, n)
	}
	return t
}

// at returns entry k.
func (t *l2Table) at(k int) mapping {
	m := mapping{entry: t.entries[k]}
	if t.bitmaps != nil {
		m.sub = t.bitmaps[k]
	}
	return m
}

// set changes entry k.
func (t *l2Table) set(k int, m mapping) {
	t.entries[k] = m.entry
	if t.bitmaps != nil {
		t.bitmaps[k] = m.sub
	}
}

// decode fills the table from its bytes in the file.
func (t *l2Table) decode(b []byte) {
	be := binary.BigEndian
	if t.bitmaps == nil {
		for i := range t.entries {
			t.entries[i] = l2Entry(be.Uint64(b[i*8:]))
		}
		return
	}
	for i := range t.entries {
		t.set(i, decodeExtended(b[i*16:]))
	}
}

// decodeExtended decodes an extended entry. Its zero bit is forgotten: it has
// to be 0 and means nothing; stock QEMU does not look at it either.
func decodeExtended(b []byte) mapping {
	be := binary.BigEndian
	m := mapping{l2Entry(be.Uint64(b)), subclusters(be.Uint64(b[8:]))}
	if m.entry&l2Compressed == 0 {
		m.entry &^= l2Zero
	}
	return m
}

// entryAt decodes entry i of an L2 table in the file, without its bitmap.
func (g geometry) entryAt(b []byte, i int64) l2Entry {
	if g.extendedL2 {
		return decodeExtended(b[i*16:]).entry
	}
	return l2Entry(binary.BigEndian.Uint64(b[i*8:]))
}

// encode is the inverse of decode.
func (t *l2Table) encode() []byte {
	be := binary.BigEndian
	if t.bitmaps == nil {
		b := make([]byte, 0, len(t.entries)*8)
		for _, e := range t.entries {
			b = be.AppendUint64(b, uint64(e))
		}
		return b
	}
	b := make([]byte, 0, len(t.entries)*16)
	for i, e := range t.entries {
		b = be.AppendUint64(be.AppendUint64(b, uint64(e)), uint64(t.bitmaps[i]))
	}
	return b
}
