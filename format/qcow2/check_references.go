package qcow2

import (
	"encoding/binary"
	"fmt"
)

// countReferences counts what every table of the image refers to. fix lets it
// repair damaged entries on the way.
func (c *checker) countReferences(fix bool) error {
	c.count(0, c.g.clusterSize())
	if err := c.countL1(int64(c.img.hdr.l1Offset), int64(c.img.hdr.l1Size), true, fix); err != nil {
		return err
	}
	if err := c.countSnapshots(fix); err != nil {
		return err
	}
	if e := c.img.crypt; e != nil {
		c.count(int64(e.offset), e.length)
	}
	c.count(int64(c.img.hdr.refTableOffset), int64(c.img.hdr.refTableClusters)<<c.g.clusterBits)
	if err := c.countBitmaps(); err != nil {
		return err
	}
	return c.countRefBlocks(fix)
}

// count counts one reference to every cluster of [off, off+n).
func (c *checker) count(off, n int64) {
	if n <= 0 {
		return
	}
	// The last cluster may be cut off behind what was written.
	if off < 0 || off >= c.fileLen+c.g.clusterSize()-n {
		c.report("ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x%x size 0x%x", uint64(off), n)
		c.res.Corruptions++
		return
	}
	for k := off >> c.g.clusterBits; k <= (off+n-1)>>c.g.clusterBits; k++ {
		c.clusters = max(c.clusters, k+1)
		if !c.refs.add(k, c.g.maxRefcount()) {
			c.report("ERROR: overflow cluster offset=0x%x", k<<c.g.clusterBits)
			c.report("Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing")
			c.res.Corruptions++
		}
	}
}

// l1Chunk is how much of an L1 table is read at a time.
const l1Chunk = 64 << 10

// countL1 counts an L1 table and what it refers to. active says that it is
// that of the disk, not of a snapshot.
func (c *checker) countL1(off, entries int64, active, fix bool) error {
	if entries == 0 {
		return nil
	}
	c.count(off, entries*8)
	b := make([]byte, min(l1Chunk, entries*8))
	for at := int64(0); at < entries*8; at += int64(len(b)) {
		b = b[:min(int64(len(b)), entries*8-at)]
		if err := c.read(b, off+at); err != nil {
			c.report("ERROR: I/O error in check_refcounts_l1")
			c.res.CheckErrors++
			return fmt.Errorf("L1 table at offset %#x: %w", off, err)
		}
		for _, e := range decodeL1(b) {
			if e == 0 {
				continue
			}
			if e&l1ReservedMask != 0 {
				c.report("ERROR found L1 entry with reserved bits set: %x", uint64(e))
				c.res.Corruptions++
			}
			table := int64(e.l2Table())
			c.count(table, c.g.clusterSize())
			if c.g.inCluster(table) != 0 {
				c.report("ERROR l2_offset=%x: Table is not cluster aligned; L1 entry corrupted", table)
				c.res.Corruptions++
			}
			if err := c.countL2(table, active, fix); err != nil {
				return err
			}
		}
	}
	return nil
}

// countL2 counts what an L2 table refers to.
func (c *checker) countL2(table int64, active, fix bool) error {
	if err := c.read(c.l2, table); err != nil {
		c.report("ERROR: I/O error in check_refcounts_l2")
		c.res.CheckErrors++
		return fmt.Errorf("L2 table at offset %#x: %w", table, err)
	}
	next := int64(0) // where the next cluster of an unfragmented table lies
	t := c.l2Table
	t.decode(c.l2)
	for i := range c.g.l2Entries() {
		m := t.at(int(i))
		if m == (mapping{}) {
			continue
		}
		e, kind := m.entry, m.entry.kind(c.g)
		if kind != clusterCompressed && e&l2ReservedMask != 0 {
			c.report("ERROR found l2 entry with reserved bits set: %x", binary.BigEndian.Uint64(c.l2[i*c.g.l2EntryBytes():]))
			c.res.Corruptions++
		}
		switch {
		case kind == clusterCompressed && c.g.external:
			c.report("ERROR compressed cluster %d with data file, entry=0x%x", i, uint64(e))
			c.res.Corruptions++
		case kind == clusterCompressed:
			c.countCompressed(m, i, active)
		case kind == clusterUnallocated:
			if !m.valid(c.g) {
				c.report("ERROR: Unallocated cluster has non-zero subcluster allocation map")
				c.res.Corruptions++
			}
		case kind == clusterData, kind == clusterZeroAlloc:
			gone, err := c.checkStandard(m, table, i, fix)
			if err != nil {
				return err
			}
			if gone {
				continue
			}
			host := int64(e.host())
			if active {
				c.res.AllocatedClusters++
				if next != 0 && host != next {
					c.res.FragmentedClusters++
				}
				next = host + c.g.clusterSize()
			}
			if !c.g.external {
				c.count(host, c.g.clusterSize())
			}
		}
	}
	return nil
}

// countCompressed counts the clusters in which compressed bytes lie.
func (c *checker) countCompressed(m mapping, i int64, active bool) {
	e := m.entry
	off, n := e.compressedRange(c.g)
	if e.copied() {
		c.report("ERROR: coffset=0x%x: copied flag must never be set for compressed clusters", int64(off))
		c.res.Corruptions++
	}
	if m.sub != 0 {
		// Stock does not count what it refers to, and a repair of leaks frees
		// it; but it can still be read.
		c.report("ERROR compressed cluster %d with non-zero subcluster allocation bitmap, entry=0x%x", i, uint64(e))
		c.res.Corruptions++
	}
	c.count(int64(off), n)
	if active {
		c.res.AllocatedClusters++
		c.res.CompressedClusters++
		// A reader can never take two of them in one piece.
		c.res.FragmentedClusters++
	}
}

// checkStandard looks at entry i of a table, which has a host cluster: at its
// bitmap and at the alignment of the cluster. One that is not aligned and holds
// no data can be given up; gone says that it was.
func (c *checker) checkStandard(m mapping, table, i int64, fix bool) (gone bool, err error) {
	host, off := int64(m.entry.host()), table+i*c.g.l2EntryBytes()
	if !m.valid(c.g) {
		c.report("ERROR offset=%x: Allocated cluster has corrupted subcluster allocation bitmap", host)
		c.res.Corruptions++
	}
	if c.g.inCluster(host) == 0 {
		return false, nil
	}
	if m.holdsData(c.g) {
		c.report("ERROR offset=%x: Data cluster is not properly aligned; L2 entry corrupted.", host)
		c.res.Corruptions++
		return false, nil
	}
	// What an unaligned L2 table seems to say is somebody else's data.
	fix = fix && table%c.g.clusterSize() == 0
	c.report("%s offset=%x: Preallocated cluster is not properly aligned; L2 entry corrupted.", c.label(fix), host)
	if !fix || !c.mayWriteL2(off) {
		c.res.Corruptions++
		return false, nil
	}
	entry := l2Entry(l2Zero)
	if c.g.extendedL2 {
		entry = 0 // the bitmap stays
	}
	if err := c.write(binary.BigEndian.AppendUint64(nil, uint64(entry)), off); err != nil {
		c.res.CheckErrors++
		return false, fmt.Errorf("repair of the L2 entry at offset %#x: %w", off, err)
	}
	c.res.CorruptionsFixed++
	return true, nil
}

// mayWriteL2 says whether the cluster at off may be changed as an L2 table:
// not if it is the header, an L1 table or part of the refcount structure, which
// a damaged L1 entry can point into.
func (c *checker) mayWriteL2(off int64) bool {
	if c.guarded == nil {
		c.guarded = c.guard()
	}
	if c.guarded.has(c.g.cluster(off)) {
		c.report("ERROR: Overlap check failed")
		c.res.CheckErrors++
		return false
	}
	return true
}

// guard collects the clusters of all tables but L2 tables.
func (c *checker) guard() *clusterSet {
	s := &clusterSet{}
	add := func(off, n int64) {
		if off >= 0 && off < c.fileLen && n > 0 {
			first := c.g.cluster(off)
			s.add(first, c.g.cluster(min(off+n, c.fileLen)-1)-first+1)
		}
	}
	h := &c.img.hdr
	add(0, 1)
	add(int64(h.l1Offset), int64(h.l1Size)*8)
	add(int64(h.refTableOffset), int64(h.refTableClusters)<<c.g.clusterBits)
	add(int64(h.snapshotsOffset), c.img.snapshotBytes)
	for _, e := range c.table {
		if e.block() != 0 {
			add(int64(e.block()), 1)
		}
	}
	for _, snap := range c.img.snapshots {
		if snap.checkL1(c.g) == nil {
			add(int64(snap.l1Offset), int64(snap.l1Size)*8)
		}
	}
	// Keys that are written over are the loss of all data.
	if p, ok := findExtension(c.img.exts, extEncryption); ok && len(p) >= 16 {
		be := binary.BigEndian
		add(int64(be.Uint64(p)), int64(min(be.Uint64(p[8:]), maxFileSize)))
	}
	if p, ok := findExtension(c.img.exts, extBitmaps); ok {
		if h, err := decodeBitmaps(p); err == nil {
			add(int64(h.directoryOffset), int64(h.directorySize))
		}
	}
	return s
}

// countRefBlocks counts the refcount blocks.
func (c *checker) countRefBlocks(fix bool) error {
	for i, e := range c.table {
		cluster := uint64(e.block()) >> c.g.clusterBits
		switch {
		case e&refTableReserved != 0:
			c.report("ERROR refcount table entry %d has reserved bits set", i)
			c.res.Corruptions++
			c.rebuild = true
		case c.g.inCluster(int64(e.block())) != 0:
			c.report("ERROR refcount block %d is not cluster aligned; refcount table entry corrupted", i)
			c.res.Corruptions++
			c.rebuild = true
		case cluster >= uint64(c.clusters):
			c.report("%s refcount block %d is outside image", c.label(fix), i)
			c.res.Corruptions++
			c.rebuild = c.rebuild || fix
		case e.block() != 0:
			c.count(int64(e.block()), c.g.clusterSize())
			if n := c.refs.get(int64(cluster)); n != 1 {
				c.report("ERROR refcount block %d refcount=%d", i, n)
				c.res.Corruptions++
				c.rebuild = true
			}
		}
	}
	return nil
}
