package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"syscall"
)

// checkSnapshotTable reads the snapshot table, which was not looked at when
// the image was opened. A repair makes a table that is too large shorter at
// once, in the header, as everything that follows relies on it; what the
// entries lack is written by [checker.fixSnapshotTable] when the refcounts are
// right.
func (c *checker) checkSnapshotTable() error {
	h := &c.img.hdr
	c.img.snapshots, c.img.snapshotBytes = nil, 0
	var repair func(string, ...any)
	count, discarded := h.snapshotCount, 0
	if c.fixErrors {
		repair = c.report
		if count > maxSnapshots {
			c.report("Discarding %d overhanging snapshots", count-maxSnapshots)
			count, discarded = maxSnapshots, int(count-maxSnapshots)
		}
	}
	if err := c.checkSnapshotPlace(count); err != nil {
		c.res.CheckErrors++
		return err
	}
	t, err := readSnapshotTable(c.img.file, int64(h.snapshotsOffset), int(count), maxSnapshotBytes, repair)
	if err != nil {
		c.res.CheckErrors++
		c.report("ERROR failed to read the snapshot table: %v", err)
		return err
	}
	if discarded += t.overhanging; discarded > 0 {
		if err := c.writeSnapshotCount(uint32(len(t.list))); err != nil {
			c.res.CheckErrors++
			c.report("ERROR failed to update the snapshot count in the image header: %s", errnoText(err))
			return err
		}
		c.res.CorruptionsFixed += int64(discarded)
	}
	c.img.snapshots, c.img.snapshotBytes = t.list, t.bytes
	c.snapshotDamage = int64(t.cut)
	for i, s := range t.list {
		if len(s.extra) < 16 && c.img.version >= 3 {
			c.snapshotDamage++
			c.report("%s snapshot table entry %d is incomplete", c.label(c.fixErrors), i)
		}
	}
	return nil
}

// checkSnapshotPlace refuses a table that cannot be read.
func (c *checker) checkSnapshotPlace(count uint32) error {
	off := c.img.hdr.snapshotsOffset
	switch {
	case count > maxSnapshots:
		c.report("ERROR snapshot table too large")
		c.report("You can force-remove all %d overhanging snapshots with qemu-img check -r all", count-maxSnapshots)
		return fmt.Errorf("the header says that there are %d snapshots: %w", count, syscall.EFBIG)
	case off > math.MaxInt64-uint64(count)*snapshotFixed, off&uint64(c.g.clusterSize()-1) != 0:
		c.report("ERROR snapshot table offset invalid")
		return fmt.Errorf("snapshot table at offset %#x: %w", off, syscall.EINVAL)
	}
	return nil
}

func (c *checker) writeSnapshotCount(n uint32) error {
	if err := c.write(binary.BigEndian.AppendUint32(nil, n), offSnapshotCount); err != nil {
		return err
	}
	c.img.hdr.snapshotCount = n
	return c.barrier()
}

// fixSnapshotTable writes the snapshot table anew, with what entries lacked
// and without what was too much.
func (c *checker) fixSnapshotTable() error {
	if c.snapshotDamage == 0 || !c.fixErrors {
		c.res.Corruptions += c.snapshotDamage
		return nil
	}
	// The references of a table that does not lie in the file were not counted.
	off, n := int64(c.img.hdr.snapshotsOffset), c.img.snapshotBytes
	counted := off+n-c.fileLen < c.g.clusterSize()
	err := c.img.reload()
	if err == nil {
		c.changed = true
		err = c.img.moveSnapshotTable(counted)
	}
	if err != nil {
		c.res.CheckErrors++
		c.res.Corruptions += c.snapshotDamage
		c.report("ERROR failed to update snapshot table: %s", errnoText(err))
		return fmt.Errorf("update of the snapshot table: %w", err)
	}
	c.res.CorruptionsFixed += c.snapshotDamage
	return nil
}

// moveSnapshotTable writes the snapshot table, with complete entries, to a new
// place: first the refcounts, then the table, then the header. counted says
// that the refcounts count the old one, which is free then.
func (img *Image) moveSnapshotTable(counted bool) error {
	list := slices.Clone(img.snapshots)
	for i := range list {
		list[i] = list[i].complete(img.Size())
	}
	if err := checkSnapshotTable(list); err != nil {
		return err
	}
	old, oldBytes := int64(img.hdr.snapshotsOffset), img.snapshotBytes
	b := encodeSnapshots(list)
	clusters := ceilDiv(int64(len(b)), img.g.clusterSize())
	var first int64
	err := img.update(func() (err error) {
		if counted {
			first, err = img.allocAnywhere(clusters)
			return err
		}
		// Until the header is written the old table is needed, where nobody
		// has allocated anything: the new one lies behind it.
		if end := img.g.roundUp(old + oldBytes); end > img.fileEnd && old < img.fileEnd+(clusters+4)<<img.g.clusterBits {
			img.fileEnd = end
		}
		first, err = img.allocTogether(clusters)
		return err
	})
	if err != nil {
		return err
	}
	b = append(b, make([]byte, clusters<<img.g.clusterBits-int64(len(b)))...)
	if err := img.writeback(true); err != nil {
		return err
	}
	if err := img.switchSnapshots(list, b, first<<img.g.clusterBits); err != nil {
		return err
	}
	if counted {
		img.mu.Lock()
		img.release(img.g.cluster(old), ceilDiv(oldBytes, img.g.clusterSize()))
		img.mu.Unlock()
	}
	return img.writeback(true)
}

// switchSnapshots writes a snapshot table and then makes the header refer to it.
func (img *Image) switchSnapshots(list []snapshot, table []byte, off int64) error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	if err := img.writeMeta(table, off); err != nil {
		return err
	}
	if err := img.barrier(); err != nil {
		return err
	}
	h := img.hdr
	h.snapshotCount, h.snapshotsOffset = uint32(len(list)), uint64(off)
	if err := img.writeMeta(h.fields(), 0); err != nil {
		return img.refuseWrites(err)
	}
	if err := img.barrier(); err != nil {
		return err
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	img.hdr, img.snapshots, img.snapshotBytes = h, list, snapshotTableSize(list)
	img.noteMetadata()
	return nil
}

// countSnapshots counts the internal snapshots and their table.
func (c *checker) countSnapshots(fix bool) error {
	for _, s := range c.img.snapshots {
		if c.g.inCluster(int64(s.l1Offset)) != 0 {
			c.report("ERROR snapshot %s (%s) l1_offset=%#x: L1 table is not cluster aligned; snapshot table entry corrupted", s.id, s.name, int64(s.l1Offset))
			c.res.Corruptions++
			continue
		}
		if s.l1Size > maxL1Bytes/8 {
			c.report("ERROR snapshot %s (%s) l1_size=%#x: L1 table is too large; snapshot table entry corrupted", s.id, s.name, s.l1Size)
			c.res.Corruptions++
			continue
		}
		if err := c.countL1(int64(s.l1Offset), int64(s.l1Size), false, fix); err != nil {
			return err
		}
	}
	c.count(int64(c.img.hdr.snapshotsOffset), c.img.snapshotBytes)
	return nil
}
