package qcow2

import (
	"encoding/binary"
	"fmt"
)

// references counts what the image's tables refer to, by host cluster: what
// the refcounts have to be.
type references struct {
	g      geometry
	end    int64 // host offset behind which no reference may point
	counts referenceCounts
}

// of returns the references to a cluster.
func (r *references) of(cluster int64) uint64 { return r.counts.get(cluster) }

// add counts a reference to every cluster of [off, off+n).
func (r *references) add(what string, off hostOffset, n int64) error {
	if n == 0 {
		return nil
	}
	if off < 0 || n < 0 || int64(off) > r.end-min(n, r.end) || r.g.roundUp(int64(off)+n) > r.end {
		return corruptf("%s at offset %#x, %d bytes, does not lie in the file", what, int64(off), n)
	}
	for i := r.g.cluster(int64(off)); i <= r.g.cluster(int64(off)+n-1); i++ {
		if !r.counts.add(i, r.g.maxRefcount()) {
			return errRefcountFull
		}
	}
	return nil
}

// addOwn is add for what cannot share its first cluster with anything: a
// damaged image could otherwise have the same table walked without end.
func (r *references) addOwn(what string, off hostOffset, n int64) error {
	err := r.add(what, off, n)
	if err == nil && n > 0 && r.of(r.g.cluster(int64(off))) > 1 {
		err = corruptf("%s at offset %#x lies where something else does", what, int64(off))
	}
	return err
}

// countReferences walks all tables in the file. Nothing may be waiting to be
// written.
func (img *Image) countReferences() (*references, error) {
	g := img.g
	r := &references{g: g, end: g.roundUp(img.file.Size())}
	h := &img.hdr
	if err := r.add("header", 0, g.clusterSize()); err != nil {
		return nil, err
	}
	if c := img.crypt; c != nil {
		if err := r.add("LUKS header", c.offset, c.length); err != nil {
			return nil, err
		}
	}
	if err := r.add("refcount table", hostOffset(h.refTableOffset), int64(h.refTableClusters)<<g.clusterBits); err != nil {
		return nil, err
	}
	for i, e := range img.refs.table {
		if err := e.check(g); err != nil {
			return nil, fmt.Errorf("refcount table entry %d: %w", i, err)
		}
		if e.block() == 0 {
			continue
		}
		if err := r.addOwn("refcount block", e.block(), g.clusterSize()); err != nil {
			return nil, err
		}
	}
	if err := img.countL1(r, hostOffset(h.l1Offset), img.l1); err != nil {
		return nil, err
	}
	if err := img.countSnapshots(r); err != nil {
		return nil, err
	}
	return r, img.countBitmaps(r)
}

// countL1 counts an L1 table and all that it refers to.
func (img *Image) countL1(r *references, off hostOffset, l1 []l1Entry) error {
	g := img.g
	if err := r.addOwn("L1 table", off, int64(len(l1))*8); err != nil {
		return err
	}
	b := make([]byte, g.clusterSize())
	t := g.newL2Table(int(g.l2Entries()))
	for i, e := range l1 {
		if err := e.check(g); err != nil {
			return fmt.Errorf("L1 entry %d: %w", i, err)
		}
		if e.l2Table() == 0 {
			continue
		}
		if err := r.add("L2 table", e.l2Table(), g.clusterSize()); err != nil {
			return err
		}
		if err := readPadded(img.file, b, int64(e.l2Table())); err != nil {
			return err
		}
		t.decode(b)
		if err := img.countL2(r, t.entries); err != nil {
			return fmt.Errorf("L2 table at offset %#x: %w", int64(e.l2Table()), err)
		}
	}
	return nil
}

func (img *Image) countL2(r *references, entries []l2Entry) error {
	if img.g.external {
		return nil // what an external data file holds is not counted
	}
	for k, e := range entries {
		if err := e.check(img.g, img.version); err != nil {
			return fmt.Errorf("entry %d: %w", k, err)
		}
		var err error
		switch e.kind(img.g) {
		case clusterData, clusterZeroAlloc:
			err = r.add("data cluster", e.host(), img.g.clusterSize())
		case clusterCompressed:
			off, n := e.compressedRange(img.g)
			err = r.add("compressed cluster", off, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (img *Image) countSnapshots(r *references) error {
	if img.hdr.snapshotCount == 0 {
		return nil
	}
	if err := r.add("snapshot table", hostOffset(img.hdr.snapshotsOffset), img.snapshotBytes); err != nil {
		return err
	}
	for _, s := range img.snapshots {
		if err := s.checkL1(img.g); err != nil {
			return fmt.Errorf("snapshot %s: %w", s.id, err)
		}
		b := make([]byte, int64(s.l1Size)*8)
		if err := readPadded(img.file, b, int64(s.l1Offset)); err != nil {
			return err
		}
		if err := img.countL1(r, s.l1Offset, decodeL1(b)); err != nil {
			return fmt.Errorf("snapshot %s: %w", s.id, err)
		}
	}
	return nil
}

// countBitmaps counts persistent bitmaps (spec "Bitmaps extension"). They
// belong to the image as long as the autoclear bit says so.
func (img *Image) countBitmaps(r *references) error {
	data, ok := findExtension(img.exts, extBitmaps)
	if !ok || img.hdr.autoclear&autoclearBitmaps == 0 {
		return nil
	}
	h, err := decodeBitmaps(data)
	if err != nil {
		return err
	}
	if err := r.add("bitmap directory", h.directoryOffset, int64(h.directorySize)); err != nil {
		return err
	}
	dir := make([]byte, h.directorySize)
	if err := readPadded(img.file, dir, int64(h.directoryOffset)); err != nil {
		return err
	}
	for range h.count {
		if len(dir) < 24 {
			return corruptf("bitmap directory is cut off")
		}
		be := binary.BigEndian
		off, entries := hostOffset(be.Uint64(dir)), int64(be.Uint32(dir[8:]))
		n := (24 + int64(be.Uint32(dir[20:])) + int64(be.Uint16(dir[18:])) + 7) &^ 7
		if n > int64(len(dir)) || entries*8 > maxL1Bytes {
			return corruptf("bitmap directory entry is too large")
		}
		dir = dir[n:]
		if err := r.addOwn("bitmap table", off, entries*8); err != nil {
			return err
		}
		table := make([]byte, entries*8)
		if err := readPadded(img.file, table, int64(off)); err != nil {
			return err
		}
		for ; len(table) > 0; table = table[8:] {
			if host := hostOffset(be.Uint64(table) & entryOffsetMask); host != 0 {
				if err := r.add("bitmap data", host, img.g.clusterSize()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
