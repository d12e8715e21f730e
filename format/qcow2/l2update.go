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
		s := &l2Slice{host: table + hostOffset(off), l2Table: img.g.newL2Table(img.g.sliceEntries())}
		if old != 0 {
			from, err := img.loadSlice(old + hostOffset(off))
			if err != nil {
				return err
			}
			copy(s.entries, from.entries)
			copy(s.bitmaps, from.bitmaps)
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

// setEntries changes the L2 entries of n clusters from the one of guest offset
// off on, in the range of one L2 table, to what change returns for the old one,
// and releases what the old ones alone referred to. The caller holds mu.
func (img *Image) setEntries(off, n int64, change func(i int64, old mapping) mapping) error {
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
		old := s.at(k)
		m := change(i, old)
		if m == old {
			continue
		}
		if !m.entry.sameHost(old.entry, img.g) {
			if err := img.releaseEntry(old.entry); err != nil {
				return err
			}
		}
		s.set(k, m)
		img.touch(s)
	}
	return nil
}

// setRange is setEntries for the clusters that hold [off, end), which lies in
// the range of one L2 table: change is also told which subclusters of each
// cluster the range covers, from first up to end. The end of the disk ends no
// subcluster.
func (img *Image) setRange(off, end int64, change func(i int64, old mapping, first, end uint) mapping) error {
	g := img.g
	start := g.roundDown(off)
	clusters := (g.roundUp(end) - start) >> g.clusterBits
	return img.setEntries(start, clusters, func(i int64, old mapping) mapping {
		at := start + i<<g.clusterBits
		from := g.subcluster(max(off, at))
		to := g.subcluster(min(end, at+g.clusterSize())-1) + 1
		return change(i, old, from, to)
	})
}

// tableEnd returns the guest offset behind the range of off's L2 table.
func (g geometry) tableEnd(off int64) int64 { return (off/g.l2Span() + 1) * g.l2Span() }

// link makes the subclusters of [off, end) the data of host clusters from
// first on, where off's cluster begins; what else these clusters hold stays as
// the bitmap says. The caller holds the guest range alone.
func (img *Image) link(off, end, first int64) error {
	g := img.g
	for off < end {
		stop := min(end, g.tableEnd(off))
		err := img.update(func() error {
			return img.setRange(off, stop, func(i int64, old mapping, from, to uint) mapping {
				m := mapping{entry: newDataEntry(hostOffset((first + i) << g.clusterBits))}
				if g.extendedL2 {
					m.sub = old.subclusters(g).withData(from, to)
				}
				return m
			})
		})
		if err != nil {
			return err
		}
		first += g.cluster(stop) - g.cluster(off)
		off = stop
	}
	return nil
}

// linkEmpty makes the whole guest clusters from off on refer to n host clusters
// from first on that hold zeros. In an image with subclusters these stay
// unallocated, so that a backing file shows through them, or, with hide, become
// zeros.
func (img *Image) linkEmpty(off, first, n int64, hide bool) error {
	g := img.g
	for n > 0 {
		k := min(n, (g.tableEnd(off)-off)>>g.clusterBits)
		err := img.update(func() error {
			return img.setEntries(off, k, func(i int64, _ mapping) mapping {
				m := mapping{entry: newDataEntry(hostOffset((first + i) << g.clusterBits))}
				switch {
				case g.extendedL2 && (hide || img.crypt != nil):
					m.sub = allZero
				case img.crypt != nil && img.version >= 3:
					m.entry |= l2Zero // a hole does not decrypt to zeros
				}
				return m
			})
		})
		if err != nil {
			return err
		}
		off, first, n = off+k<<g.clusterBits, first+k, n-k
	}
	return nil
}
