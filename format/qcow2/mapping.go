package qcow2

// run is what one stretch of the disk is in this image alone. All (sub)clusters
// of a run are of one kind; those with a host offset lie one behind the other in
// the file.
type run struct {
	kind   clusterKind
	length int64      // bytes from the offset asked for, at least 1
	host   hostOffset // of the offset asked for; for compressed clusters unused
	copied bool       // with a host cluster: that may be changed in place
	entry  l2Entry    // of the first cluster
}

// lookup says what the disk is at off, for at most n bytes; both lie in the
// disk. Everything that needs to know (read, extents, write, zero, discard)
// asks here. A compressed run is one cluster.
func (img *Image) lookup(off, n int64) (run, error) {
	img.mu.RLock()
	r, ok, err := img.classify(off, n, img.cachedSlice)
	img.mu.RUnlock()
	if ok || err != nil {
		return r, img.damaged(err)
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.lookupLocked(off, n)
}

// lookupLocked is lookup for a caller that holds mu exclusively.
func (img *Image) lookupLocked(off, n int64) (run, error) {
	if _, err := img.loadedSlice(off); err != nil {
		return run{}, img.damaged(err)
	}
	r, _, err := img.classify(off, n, img.cachedSlice)
	return r, img.damaged(err)
}

// loadedSlice makes sure that the slice for off, if there is one, is cached.
func (img *Image) loadedSlice(off int64) (*l2Slice, error) {
	e := img.l1[img.g.l1Index(guestOffset(off))]
	if err := e.check(img.g); err != nil {
		return nil, where(err, " (L1 index: %s)", hexOf(int64(img.g.l1Index(guestOffset(off)))))
	}
	if e.l2Table() == 0 {
		return nil, nil
	}
	in, _ := img.g.sliceAt(guestOffset(off))
	return img.loadSlice(e.l2Table() + in)
}

// cachedSlice returns a slice if it is cached.
func (img *Image) cachedSlice(host hostOffset) *l2Slice { return img.l2.get(host) }

// classify finds the run at off from what is cached; ok is false where the
// first slice is not. The caller holds mu.
func (img *Image) classify(off, n int64, cached func(hostOffset) *l2Slice) (r run, ok bool, err error) {
	g := img.g
	for r.length < n {
		pos := off + r.length
		l1 := img.l1[g.l1Index(guestOffset(pos))]
		if err := l1.check(g); err != nil {
			if r.length > 0 {
				return r, true, nil
			}
			return run{}, false, where(err, " (L1 index: %s)", hexOf(int64(g.l1Index(guestOffset(pos)))))
		}
		if l1.l2Table() == 0 {
			if r.length > 0 && r.kind != clusterUnallocated {
				return r, true, nil
			}
			r.kind = clusterUnallocated
			r.length += min(n-r.length, g.l2Span()-pos&(g.l2Span()-1))
			continue
		}
		in, index := g.sliceAt(guestOffset(pos))
		s := cached(l1.l2Table() + in)
		if s == nil {
			return r, r.length > 0, nil
		}
		more, err := img.extend(&r, &s.l2Table, index, pos, n)
		if err != nil || !more {
			return r, err == nil, err
		}
	}
	return r, true, nil
}

// extend adds clusters of table, from entry index on, which is the one of guest
// offset pos, to r as long as they continue it. It reports whether all did; the
// error is only for a run that would be empty.
func (img *Image) extend(r *run, table *l2Table, index int, pos, n int64) (bool, error) {
	if r.length == 0 {
		if err := img.clusterRun(r, table.at(index), pos); err != nil {
			return false, img.badEntry(err, pos)
		}
		if r.length >= n {
			r.length = n
			return true, nil
		}
		pos += r.length
		index++
		if img.g.inCluster(pos) != 0 {
			return false, nil // another subcluster is different
		}
	}
	return img.extendWhole(r, table, index, pos, n), nil
}

// extendWhole is extend for a run that has a beginning; pos begins a cluster.
func (img *Image) extendWhole(r *run, table *l2Table, index int, pos, n int64) bool {
	cs := img.g.clusterSize()
	var next mapping // what continues r without another look
	known := false
	for ; index < len(table.entries) && r.length < n; index++ {
		m := table.at(index)
		if !known || m != next {
			var one run
			if img.clusterRun(&one, m, pos) != nil || !r.continues(&one) {
				return false
			}
			if one.length < cs { // unless that is all that is asked for
				r.length += min(one.length, n-r.length)
				return r.length >= n
			}
		}
		next, known = m.successor(&img.g)
		r.length += min(cs, n-r.length)
		pos += cs
	}
	return true
}

// clusterRun finds what a mapping says of the cluster that holds guest offset
// pos, from there on.
func (img *Image) clusterRun(r *run, m mapping, pos int64) error {
	g := &img.g
	if err := m.entry.check(*g, img.version); err != nil {
		return err
	}
	if g.external {
		if err := m.entry.checkExternal(*g, pos); err != nil {
			return err
		}
	}
	in := g.inCluster(pos)
	r.kind, r.length, r.copied, r.entry = m.entry.kind(*g), g.clusterSize()-in, m.entry.copied(), m.entry
	if g.extendedL2 {
		if !m.valid(*g) {
			return &damageError{"Invalid cluster entry found "}
		}
		first := g.subcluster(pos)
		kind, same := m.stretch(*g, first)
		r.kind, r.length = kind, int64(first+same)<<g.subclusterBits()-in
	}
	if r.kind.hasHost() {
		r.host = m.entry.host() + hostOffset(in)
	}
	return nil
}

// continues reports whether what lies behind r is a part of it.
func (r *run) continues(o *run) bool {
	return o.kind == r.kind && o.kind != clusterCompressed && o.copied == r.copied &&
		(!o.kind.hasHost() || o.host == r.host+hostOffset(r.length))
}

// mappingAt returns the L2 entry of the cluster that holds off.
func (img *Image) mappingAt(off int64) (mapping, error) {
	img.mu.Lock()
	defer img.mu.Unlock()
	s, err := img.loadedSlice(off)
	if s == nil || err != nil {
		return mapping{}, err
	}
	_, k := img.g.sliceAt(guestOffset(off))
	return s.at(k), nil
}
