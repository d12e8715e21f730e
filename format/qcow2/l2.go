package qcow2

// Bits of an L2 entry (spec "L2 table entry"):
//
//	62      the cluster is compressed; decides the meaning of bits 0-61
//	63      COPIED: the refcount of the cluster is exactly 1; 0 if compressed
//
// Standard clusters:
//
//	0       version 3: the cluster reads as zeros
//	1 -  8  reserved, 0
//	9 - 55  bits 9-55 of the host offset; 0 if unallocated
//	56 - 61 reserved, 0
//
// Compressed clusters, with x = 62 - (cluster_bits - 8):
//
//	0 .. x-1  host offset of the compressed bytes, of any alignment
//	x .. 61   number of 512-byte sectors behind the one that holds the offset
const (
	l2Zero         = 1 << 0
	l2Compressed   = 1 << 62
	l2ReservedMask = 0x3f00_0000_0000_01fe
)

// An l2Entry is an entry of an L2 table.
type l2Entry uint64

// A clusterKind is what an L2 entry says of its cluster, or of a subcluster.
type clusterKind uint8

const (
	clusterUnallocated      clusterKind = iota // the backing file decides
	clusterUnallocatedAlloc                    // so it does, but there is a host cluster (only subclusters)
	clusterZeroPlain                           // reads as zeros, no host cluster
	clusterZeroAlloc                           // reads as zeros, has a host cluster
	clusterData                                // the host cluster holds the bytes
	clusterCompressed
)

// unallocated reports whether the backing file decides what is read.
func (k clusterKind) unallocated() bool {
	return k == clusterUnallocated || k == clusterUnallocatedAlloc
}

// zero reports whether zeros are read.
func (k clusterKind) zero() bool { return k == clusterZeroPlain || k == clusterZeroAlloc }

// hasHost reports whether there is a host cluster that holds the bytes, or
// could.
func (k clusterKind) hasHost() bool {
	return k == clusterData || k == clusterZeroAlloc || k == clusterUnallocatedAlloc
}

// kind classifies the entry alone: where there are subclusters, clusterData
// only says that there is a host cluster, and [mapping.stretch] says more. In
// version 2 bit 0 is reserved; [l2Entry.check] refuses it there. In an external
// data file offset 0 is the first cluster's place; the COPIED flag then tells
// data from nothing.
func (e l2Entry) kind(g geometry) clusterKind {
	switch {
	case e&l2Compressed != 0:
		return clusterCompressed
	case e&l2Zero != 0 && e&entryOffsetMask != 0:
		return clusterZeroAlloc
	case e&l2Zero != 0:
		return clusterZeroPlain
	case e&entryOffsetMask != 0, g.external && e&entryCopied != 0:
		return clusterData
	}
	return clusterUnallocated
}

// host returns the host offset of a standard cluster, 0 if it has none.
func (e l2Entry) host() hostOffset { return hostOffset(e & entryOffsetMask) }

// copied reports whether the host cluster may be changed in place.
func (e l2Entry) copied() bool { return e&entryCopied != 0 }

// check refuses reserved bits and unaligned clusters.
func (e l2Entry) check(g geometry, version uint32) error {
	if e&l2Compressed != 0 {
		if e&entryCopied != 0 {
			return corruptf("L2 entry %#016x: compressed cluster has the COPIED flag", uint64(e))
		}
		return nil
	}
	if e&l2ReservedMask != 0 || (version < 3 && e&l2Zero != 0) {
		return corruptf("L2 entry %#016x has reserved bits set", uint64(e))
	}
	if g.inCluster(int64(e.host())) != 0 {
		return damagef("Cluster allocation offset %#x unaligned", int64(e.host()))
	}
	return nil
}

// sameHost reports whether both entries refer to the same host cluster, or to
// none.
func (e l2Entry) sameHost(o l2Entry, g geometry) bool {
	return e.kind(g) != clusterCompressed && o.kind(g) != clusterCompressed && e.host() == o.host()
}

// newDataEntry returns the entry of a cluster that only it refers to.
func newDataEntry(host hostOffset) l2Entry { return l2Entry(host) | entryCopied }

// compressedRange returns where the compressed bytes lie: the host offset and
// the number of bytes up to the end of the last sector.
func (e l2Entry) compressedRange(g geometry) (hostOffset, int64) {
	x := 62 - (g.clusterBits - 8)
	off := int64(e) & (1<<x - 1)
	sectors := int64(e>>x)&(1<<(g.clusterBits-8)-1) + 1
	return hostOffset(off), sectors*512 - off&511
}

// maxCompressedOffset bounds the host offsets that a compressed entry can hold.
func (g geometry) maxCompressedOffset() int64 { return 1 << (62 - (g.clusterBits - 8)) }

// newCompressedEntry returns the entry for n compressed bytes at off.
func newCompressedEntry(off hostOffset, n int64, g geometry) l2Entry {
	x := 62 - (g.clusterBits - 8)
	extra := (int64(off)+n-1)>>9 - int64(off)>>9
	return l2Entry(l2Compressed | uint64(extra)<<x | uint64(off))
}
