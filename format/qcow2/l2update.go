package qcow2

// tableForWrite returns the L2 table of an L1 entry for changing it: the table
// that there is, a new one, or a copy of one that a snapshot shares. The
// caller holds mu; safe to run again after errTableFull.
func (img *Image) tableForWrite(index int) (hostOffset, error) {
	e := img.l1[index]
	if err := e.check(img.g); err != nil {
		return 0, err
	}
	if e.l2Table() != 0 && e.copied() {
		return e.l2Table(), nil
	}
	first, _, fresh, err := img.allocRun(1)
	if err != nil {
		return 0, err
	}
	table := hostOffset(first << img.g.clusterBits)
	img.meta.add(first, 1)
	if err := img.fillTable(table, e.l2Table(), fresh); err != nil {
		img.meta.remove(first, 1)
		img.l2.drop(table, img.g)
		_ = img.addRefs(first, 1, -1) // nothing refers to it; an error leaks it
		return 0, err
	}
	if err := img.leaveTable(e.l2Table()); err != nil {
		return 0, err
	}
	img.l1[index] = newL1Entry(table)
	img.l1Dirty.add(int64(index), int64(index)+1)
	return table, nil
}

// leaveTable releases the L2 table that an L1 entry without the COPIED flag
// referred to. Mostly a snapshot goes on using it; where the flag was only
// missing, the cluster will be free, and no metadata any more.
func (img *Image) leaveTable(old hostOffset) error {
	if old == 0 {
		return nil
	}
	c := img.g.cluster(int64(old))
	n, err := img.refcount(c)
	if err != nil {
		return err
	}
	if n == 1 {
		img.meta.remove(c, 1)
		img.l2.drop(old, img.g)
	}
	img.release(c, 1)
	return nil
}

// fillTable puts the slices of a new table into the cache: copies of old's, or
// zeros. Where the file reads as zeros anyhow they come when they are needed.
func (img *Image) fillTable(table, old hostOffset, fresh bool) error {
	start := int64(0)
	if old == 0 && fresh {
		// The last slice is written, so that the whole table is in the file.
		start = img.g.clusterSize() - img.g.sliceBytes()
	}
	for off := start; off < img.g.clusterSize(); off += img.g.sliceBytes() {
		s := &l2Slice{host: table + hostOffset(off), entries: make([]l2Entry, img.g.sliceEntries())}
		if old != 0 {
			from, err := img.loadSlice(old + hostOffset(off))
			if err != nil {
				return err
			}
			copy(s.entries, from.entries)
		}
		img.touch(s)
		img.l2.put(s)
	}
	return nil
}

// touch marks a slice as changed.
func (img *Image) touch(s *l2Slice) {
	if !s.dirty() {
		img.l2.dirty++
	}
	s.gen++
}

// setEntries changes the L2 entries of n clusters from guest offset off on, in
// the range of one L2 table, to what entry returns for the old one, and
// releases what the old ones alone referred to. The caller holds mu.
func (img *Image) setEntries(off, n int64, entry func(i int64, old l2Entry) l2Entry) error {
	table, err := img.tableForWrite(img.g.l1Index(guestOffset(off)))
	if err != nil {
		return err
	}
	for i := range n {
		in, k := img.g.sliceAt(guestOffset(off + i<<img.g.clusterBits))
		s, err := img.loadSlice(table + in)
		if err != nil {
			return err
		}
		old := s.entries[k]
		e := entry(i, old)
		if e == old {
			continue
		}
		if keeps := old.kind(img.g) != clusterCompressed && e.kind(img.g) != clusterCompressed && e.host() == old.host(); !keeps {
			if err := img.releaseEntry(old); err != nil {
				return err
			}
		}
		s.entries[k] = e
		img.touch(s)
	}
	return nil
}

// tableEnd returns the guest offset behind the range of off's L2 table.
func (g geometry) tableEnd(off int64) int64 { return (off/g.l2Span() + 1) * g.l2Span() }

// link makes the guest clusters from off on refer to n host clusters from
// first on. The caller holds the guest range alone.
func (img *Image) link(off, first, n int64) error {
	for n > 0 {
		k := min(n, (img.g.tableEnd(off)-off)>>img.g.clusterBits)
		err := img.update(func() error {
			return img.setEntries(off, k, func(i int64, _ l2Entry) l2Entry {
				return newDataEntry(hostOffset((first + i) << img.g.clusterBits))
			})
		})
		if err != nil {
			return err
		}
		off, first, n = off+k<<img.g.clusterBits, first+k, n-k
	}
	return nil
}
