package qcow2

import "math/bits"

// Limits of the implementation, QEMU's own: an image beyond them could not be
// opened by anybody else either, and they bound what a header can make us
// allocate.
const (
	minClusterBits   = 9
	maxClusterBits   = 21
	maxRefcountOrder = 6
	maxL1Bytes       = 32 << 20
	maxRefTableBytes = 8 << 20
	maxSnapshots     = 65536
	maxSnapshotBytes = 64 << 20 // whole snapshot table
	maxBackingName   = 1023
	maxFileSize      = 1 << 62 // entries cannot refer to what lies behind 2^56 anyhow
)

// A guestOffset counts bytes of the disk that the guest sees.
type guestOffset int64

// A hostOffset counts bytes of the image file; of guest data, of the external
// data file where there is one.
type hostOffset int64

// geometry holds what follows from the cluster size, the refcount width and
// the length of L2 entries.
type geometry struct {
	clusterBits   uint
	refcountOrder uint
	// external: guest data lies in an external data file, where every guest
	// cluster has its own place, at the same offset.
	external   bool
	extendedL2 bool // L2 entries of 128 bits, with subclusters
}

// clusterSize returns the bytes of a cluster.
func (g geometry) clusterSize() int64 { return 1 << g.clusterBits }

// l2Bits is log2 of the number of entries of an L2 table.
func (g geometry) l2Bits() uint {
	if g.extendedL2 {
		return g.clusterBits - 4
	}
	return g.clusterBits - 3
}

// l2EntryBytes returns the length of an L2 entry.
func (g geometry) l2EntryBytes() int64 {
	if g.extendedL2 {
		return 16
	}
	return 8
}

// subclusterBits is log2 of the unit in which guest data is allocated.
func (g geometry) subclusterBits() uint {
	if g.extendedL2 {
		return g.clusterBits - 5
	}
	return g.clusterBits
}

// subclusterSize returns the bytes of a subcluster: of a cluster where there
// are none.
func (g geometry) subclusterSize() int64 { return 1 << g.subclusterBits() }

// subcluster returns the index in its cluster of the subcluster that holds off.
func (g geometry) subcluster(off int64) uint { return uint(g.inCluster(off) >> g.subclusterBits()) }

// subUp rounds n up to whole subclusters, as roundUp does to clusters.
func (g geometry) subUp(n int64) int64 {
	return (n + g.subclusterSize() - 1) &^ (g.subclusterSize() - 1)
}

// subDown rounds n down to whole subclusters.
func (g geometry) subDown(n int64) int64 { return n &^ (g.subclusterSize() - 1) }

// l2Entries returns the entries of an L2 table.
func (g geometry) l2Entries() int64 { return 1 << g.l2Bits() }

// l2Span returns the guest bytes that one L2 table maps.
func (g geometry) l2Span() int64 { return 1 << (g.clusterBits + g.l2Bits()) }

// refcountBits returns the width of a refcount in bits.
func (g geometry) refcountBits() int { return 1 << g.refcountOrder }

// maxRefcount is the largest refcount that the width can hold.
func (g geometry) maxRefcount() uint64 {
	if g.refcountOrder == 6 {
		return 1<<64 - 1
	}
	return 1<<(1<<g.refcountOrder) - 1
}

// refBlockBits is log2 of the number of refcounts in a refcount block.
func (g geometry) refBlockBits() uint { return g.clusterBits + 3 - g.refcountOrder }

// refBlockEntries returns the refcounts in a refcount block.
func (g geometry) refBlockEntries() int64 { return 1 << g.refBlockBits() }

// cluster returns the index of the cluster that holds off.
func (g geometry) cluster(off int64) int64 { return off >> g.clusterBits }

// roundUp rounds n up to whole clusters. n is at most 2^63 - 2^21.
func (g geometry) roundUp(n int64) int64 {
	return (n + g.clusterSize() - 1) &^ (g.clusterSize() - 1)
}

// roundDown rounds n down to whole clusters.
func (g geometry) roundDown(n int64) int64 { return n &^ (g.clusterSize() - 1) }

// inCluster returns the offset within its cluster.
func (g geometry) inCluster(n int64) int64 { return n & (g.clusterSize() - 1) }

// l1Index returns the index of the L1 entry that covers a guest offset.
func (g geometry) l1Index(off guestOffset) int { return int(off >> (g.clusterBits + g.l2Bits())) }

// l2Index returns the index in its L2 table of a guest offset.
func (g geometry) l2Index(off guestOffset) int {
	return int(int64(off)>>g.clusterBits) & int(g.l2Entries()-1)
}

// l1EntriesFor returns how many L1 entries a disk of size bytes needs.
func (g geometry) l1EntriesFor(size int64) int64 {
	return ceilDiv(size, g.l2Span())
}

// maxSize is the largest disk that the limit on the L1 table allows.
func (g geometry) maxSize() int64 {
	shift := g.clusterBits + g.l2Bits()
	if shift+uint(bits.Len(maxL1Bytes/8)) > 62 {
		return 1<<63 - 1<<maxClusterBits
	}
	return maxL1Bytes / 8 << shift
}

func ceilDiv(a, b int64) int64 {
	if a <= 0 {
		return 0
	}
	return (a-1)/b + 1
}
