package qcow2

import (
	"encoding/binary"
	"fmt"
)

// checkCopied compares the COPIED flags of the active L1 and L2 tables with
// the refcounts: an entry has the flag exactly if the refcount is 1.
func (c *checker) checkCopied() error {
	// Without the permission to change references only flags of an image
	// that is otherwise whole are set right.
	fix := c.fixErrors || c.w != nil && c.res.CheckErrors == 0 && c.res.Corruptions == 0 && c.res.Leaks == 0
	off, entries := int64(c.img.hdr.l1Offset), int64(c.img.hdr.l1Size)
	b := make([]byte, min(l1Chunk, entries*8))
	for at := int64(0); at < entries*8; at += int64(len(b)) {
		b = b[:min(int64(len(b)), entries*8-at)]
		if err := c.read(b, off+at); err != nil {
			c.res.CheckErrors++
			return fmt.Errorf("L1 table: %w", err)
		}
		for i, e := range decodeL1(b) {
			if e.l2Table() == 0 {
				continue
			}
			if err := c.checkCopiedL1(e, at/8+int64(i), fix); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkCopiedL1 looks at the L1 entry with index i and at its L2 table.
func (c *checker) checkCopiedL1(e l1Entry, i int64, fix bool) error {
	table := int64(e.l2Table())
	n, err := c.refcount(c.g.cluster(table))
	if err != nil {
		return nil // was reported when the refcounts were compared
	}
	if (n == 1) != e.copied() {
		c.report("%s OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%x refcount=%d", c.label(fix), i, uint64(e), n)
		if fix {
			e = e&^entryCopied | l1Entry(copiedIf(n == 1))
			if err := c.write(binary.BigEndian.AppendUint64(nil, uint64(e)), int64(c.img.hdr.l1Offset)+i*8); err != nil {
				c.res.CheckErrors++
				return fmt.Errorf("repair of L1 entry %d: %w", i, err)
			}
			c.res.CorruptionsFixed++
		} else {
			c.res.Corruptions++
		}
	}
	return c.checkCopiedL2(table, fix)
}

func (c *checker) checkCopiedL2(table int64, fix bool) error {
	if err := c.read(c.l2, table); err != nil {
		c.report("ERROR: Could not read L2 table: %s", errnoText(err))
		c.res.CheckErrors++
		return fmt.Errorf("L2 table at offset %#x: %w", table, err)
	}
	// What an unaligned L2 table seems to say is somebody else's data.
	fix = fix && c.g.inCluster(table) == 0
	wrong := int64(0)
	for i := range c.g.l2Entries() {
		e := c.g.entryAt(c.l2, i)
		if kind := e.kind(c.g); kind != clusterData && kind != clusterZeroAlloc {
			continue
		}
		n, err := uint64(1), error(nil) // of an external data file, which has no refcounts
		if !c.g.external {
			n, err = c.refcount(c.g.cluster(int64(e.host())))
		}
		if err != nil || (n == 1) == e.copied() {
			continue
		}
		stored := c.l2[i*c.g.l2EntryBytes():]
		v := binary.BigEndian.Uint64(stored) // with a zero bit that means nothing
		c.report("%s OFLAG_COPIED data cluster: l2_entry=%x refcount=%d", c.label(fix), v, n)
		binary.BigEndian.PutUint64(stored, v&^entryCopied|copiedIf(n == 1))
		wrong++
	}
	switch {
	case wrong == 0:
		return nil
	case !fix || !c.mayWriteL2(table):
		c.res.Corruptions += wrong
		return nil
	}
	if err := c.write(c.l2, table); err != nil {
		c.res.CheckErrors++
		c.res.Corruptions += wrong
		c.report("ERROR: Could not write L2 table: %s", errnoText(err))
		return fmt.Errorf("repair of the L2 table at offset %#x: %w", table, err)
	}
	c.res.CorruptionsFixed += wrong
	return nil
}

func copiedIf(yes bool) uint64 {
	if yes {
		return entryCopied
	}
	return 0
}
