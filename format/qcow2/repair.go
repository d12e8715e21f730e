package qcow2

import "slices"

// repairDirty makes the refcounts of an image true that was not closed while
// they were kept lazily, and then clears the dirty bit. The other tables of
// such an image hold together; if they do not, it is not touched. Power loss
// meanwhile leaves the image dirty, and it is done again.
func (img *Image) repairDirty() error {
	if img.overlap != nil {
		return img.overlap
	}
	refs, err := img.countReferences()
	if err != nil {
		return err
	}
	// What the file is too short for was never written; its refcounts would
	// be in the way of new refcount blocks there.
	if err := img.setRefcounts(refs, true); err != nil {
		return err
	}
	for {
		missing, err := img.missingBlocks(refs)
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			break
		}
		need := missing[len(missing)-1] + 1
		if need <= int64(len(img.refs.table)) {
			img.mu.Lock()
			err := img.newTailBlocks(img.g.cluster(img.fileEnd), missing)
			img.fileEnd += int64(len(missing)) << img.g.clusterBits
			img.mu.Unlock()
			if err != nil {
				return err
			}
			break
		}
		// The old table becomes free, so the references change.
		if err := img.growRefTable(need); err != nil {
			return err
		}
		if err := img.writeback(true); err != nil {
			return err
		}
		if refs, err = img.countReferences(); err != nil {
			return err
		}
	}
	if err := img.setRefcounts(refs, false); err != nil {
		return err
	}
	if err := img.writeback(true); err != nil {
		return err
	}
	img.hdr.incompat &^= incompatDirty
	if err := img.writeMeta(img.hdr.fields(), 0); err != nil {
		return err
	}
	return img.barrier()
}

// missingBlocks returns the indexes of the refcount blocks that the references
// need and that are not there, and of those that these need when they are put
// at the end of the file.
func (img *Image) missingBlocks(refs *references) ([]int64, error) {
	img.mu.Lock()
	defer img.mu.Unlock()
	g := img.g
	set := map[int64]bool{}
	lacks := func(index int64) error {
		b, err := img.refBlockAt(index)
		if b == nil && err == nil {
			set[index] = true
		}
		return err
	}
	for chunk := range refs.counts.chunks {
		for i := range int64(countChunk) {
			if refs.of(chunk*countChunk+i) == 0 {
				continue
			}
			if err := lacks((chunk*countChunk + i) >> g.refBlockBits()); err != nil {
				return nil, err
			}
		}
	}
	if len(set) > 0 {
		first := g.cluster(img.fileEnd)
		for i := first >> g.refBlockBits(); i <= (first+int64(len(set))-1)>>g.refBlockBits(); i++ {
			if err := lacks(i); err != nil {
				return nil, err
			}
		}
	}
	missing := make([]int64, 0, len(set))
	for i := range set {
		missing = append(missing, i)
	}
	slices.Sort(missing)
	return missing, nil
}

// setRefcounts sets the refcounts of everything that was in the file when it
// was walked; with all, those of what lies behind it to 0.
func (img *Image) setRefcounts(refs *references, all bool) error {
	img.mu.Lock()
	defer img.mu.Unlock()
	g := img.g
	for i := range int64(len(img.refs.table)) {
		first := i << g.refBlockBits()
		n := g.refBlockEntries()
		if !all {
			n = min(n, g.cluster(refs.end)-first)
		}
		if n <= 0 {
			return nil
		}
		b, err := img.refBlockAt(i)
		if err != nil {
			return err
		}
		if b == nil {
			continue // and nothing refers to what it would count
		}
		for in := range n {
			img.setRefcount(b, first, in, refs.of(first+in))
		}
	}
	return nil
}

// setRefcount sets a refcount of a block whose range begins with the cluster
// first. The caller holds mu.
func (img *Image) setRefcount(b *refBlock, first, in int64, want uint64) {
	have := getRefcount(b.data, img.g.refcountOrder, in)
	if have == want {
		return
	}
	setRefcount(b.data, img.g.refcountOrder, in, want)
	b.touch(img.g.refcountOrder, in)
	switch {
	case have == 0:
		b.free--
	case want == 0:
		b.free, b.low = b.free+1, min(b.low, in)
		img.refs.hint = min(img.refs.hint, first+in)
	}
}
