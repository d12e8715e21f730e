package qcow2

import (
	"encoding/binary"
	"fmt"
)

// readL2 reads an L2 table into t.buf.
func (t *rewrite) readL2(table hostOffset) error {
	img := t.img
	if int64(table) >= img.g.roundUp(img.file.Size()) {
		return corruptf("L2 table at offset %#x lies behind the end of the file (%d bytes): run a check with repair", int64(table), img.file.Size())
	}
	return readPadded(img.file, t.buf, int64(table))
}

// entries returns the number of entries of the L2 table in t.buf.
func (t *rewrite) entries() int64 { return t.img.g.l2Entries() }

// entry returns an entry of the L2 table in t.buf.
func (t *rewrite) entry(i int64) l2Entry { return t.img.g.entryAt(t.buf, i) }

// setEntry changes an entry of the L2 table in t.buf. Its bitmap stays.
func (t *rewrite) setEntry(i int64, e l2Entry) {
	binary.BigEndian.PutUint64(t.buf[i*t.img.g.l2EntryBytes():], uint64(e))
}

// addTree adds delta, 1 or -1, to the refcounts of everything that an L1 table
// refers to: its L2 tables and, once for each table, what these refer to.
func (t *rewrite) addTree(l1 []l1Entry, delta int) error {
	for i, e := range l1 {
		if e.l2Table() == 0 {
			continue
		}
		if err := t.relieve(); err != nil {
			return err
		}
		err := e.check(t.img.g)
		if err == nil {
			err = t.readL2(e.l2Table())
		}
		if err == nil {
			err = t.addL2(delta)
		}
		if err == nil {
			err = t.add(t.img.g.cluster(int64(e.l2Table())), 1, delta)
		}
		if err != nil {
			return fmt.Errorf("L1 entry %d, L2 table at offset %#x: %w", i, int64(e.l2Table()), err)
		}
	}
	return nil
}

// addL2 adds delta to the refcounts of what the L2 table in t.buf refers to.
func (t *rewrite) addL2(delta int) error {
	g := t.img.g
	var run freedRun // clusters that lie together
	flush := func() error {
		r := run
		run = freedRun{}
		return t.add(r.first, r.n, delta)
	}
	for i := range t.entries() {
		e := t.entry(i)
		if err := e.check(g, t.img.version); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		var r freedRun
		switch e.kind(t.img.g) {
		case clusterData, clusterZeroAlloc:
			r = freedRun{first: g.cluster(int64(e.host())), n: 1}
		case clusterCompressed:
			off, n := e.compressedRange(g)
			first := g.cluster(int64(off))
			r = freedRun{first: first, n: g.cluster(int64(off)+n-1) - first + 1}
		default:
			continue
		}
		if run.n > 0 && r.first == run.first+run.n {
			run.n += r.n
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		run = r
	}
	return flush()
}

// add adds delta to the refcounts of clusters, which have at least one
// reference.
func (t *rewrite) add(first, n int64, delta int) error {
	if delta > 0 {
		for c := first; c < first+n; c++ {
			if _, err := t.inUse(c); err != nil {
				return err
			}
		}
	}
	return t.img.addRefs(first, n, delta)
}

// inUse returns the refcount of a cluster that something refers to.
func (t *rewrite) inUse(cluster int64) (uint64, error) {
	n, err := t.img.refcount(cluster)
	if n == 0 && err == nil {
		err = corruptf("the cluster at offset %#x is in use but has the refcount 0: run a check with repair", cluster<<t.img.g.clusterBits)
	}
	return n, err
}

// settle returns an L1 table whose COPIED flags, and those of its L2 tables,
// agree with the refcounts: it has new L2 tables where flags change. refs is
// how many references to each L2 table come by this L1 table, which a new one
// takes over.
func (t *rewrite) settle(l1 []l1Entry, refs int) ([]l1Entry, error) {
	out := make([]l1Entry, len(l1))
	for i, e := range l1 {
		table := e.l2Table()
		if table == 0 {
			continue
		}
		if err := t.relieve(); err != nil {
			return nil, err
		}
		if err := t.readL2(table); err != nil {
			return nil, err
		}
		changed, err := t.settleL2()
		if err == nil && changed {
			table, err = t.replaceL2(table, refs)
		}
		if err != nil {
			return nil, fmt.Errorf("L1 entry %d, L2 table at offset %#x: %w", i, int64(e.l2Table()), err)
		}
		n, err := t.inUse(t.img.g.cluster(int64(table)))
		if err != nil {
			return nil, err
		}
		out[i] = l1Entry(uint64(table) | copiedIf(n == 1))
	}
	return out, nil
}

// settleL2 sets the COPIED flags of the table in t.buf and reports whether
// any changed.
func (t *rewrite) settleL2() (changed bool, err error) {
	for i := range t.entries() {
		e := t.entry(i)
		switch e.kind(t.img.g) {
		case clusterCompressed:
			off, n := e.compressedRange(t.img.g)
			for c := t.img.g.cluster(int64(off)); c <= t.img.g.cluster(int64(off)+n-1); c++ {
				if _, err := t.inUse(c); err != nil {
					return false, err
				}
			}
			continue
		case clusterUnallocated, clusterZeroPlain:
			continue
		}
		n, err := t.inUse(t.img.g.cluster(int64(e.host())))
		if err != nil {
			return false, err
		}
		if (n == 1) != e.copied() {
			t.setEntry(i, e&^entryCopied|l2Entry(copiedIf(n == 1)))
			changed = true
		}
	}
	return changed, nil
}

// replaceL2 writes the table in t.buf to a new place, with refs references
// that old loses.
func (t *rewrite) replaceL2(old hostOffset, refs int) (hostOffset, error) {
	at, err := t.writeTable("L2 table", t.buf)
	if err != nil {
		return 0, err
	}
	g := t.img.g
	for k := range refs {
		if k > 0 {
			if err := t.img.addRefs(g.cluster(int64(at)), 1, 1); err != nil {
				return 0, err
			}
		}
		if err := t.img.addRefs(g.cluster(int64(old)), 1, -1); err != nil {
			return 0, err
		}
	}
	return at, nil
}
