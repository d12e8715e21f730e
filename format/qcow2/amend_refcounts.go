package qcow2

import (
	"context"
)

// changeRefcountOrder gives the image refcounts of another width: a whole new
// table with its blocks is written behind everything in use, then, behind a
// barrier, the header changes to it, then the old one is given back. Power
// loss before the header changed leaves bytes that nothing refers to or
// counts; after it, the old table leaks.
func (img *Image) changeRefcountOrder(ctx context.Context, order uint, p *amendProgress) error {
	if err := img.writeback(true); err != nil {
		return err
	}
	img.wbMu.Lock()
	s, err := img.writeNewRefcounts(ctx, order, p)
	if err == nil {
		err = img.switchRefcounts(s)
	}
	img.wbMu.Unlock()
	if err != nil {
		return err
	}
	return img.writeback(true)
}

// newRefcountPlan is a refcount structure of another width.
type newRefcountPlan struct {
	g      geometry
	first  int64 // cluster of the table, followed by the blocks
	table  []refTableEntry
	blocks []int64 // indexes of the blocks, ascending
	end    int64   // cluster behind the last block
}

// tableClusters returns the clusters that the table takes.
func (s *newRefcountPlan) tableClusters() int64 {
	return ceilDiv(int64(len(s.table))*8, s.g.clusterSize())
}

// planRefcounts finds which blocks are needed and where they go. It refuses a
// refcount that does not fit, in stock's words.
func (img *Image) planRefcounts(order uint) (*newRefcountPlan, error) {
	img.mu.Lock()
	defer img.mu.Unlock()
	first, err := img.lastUsed()
	if err != nil {
		return nil, err
	}
	g := img.g
	g.refcountOrder = order
	s := &newRefcountPlan{g: g, first: first}
	need := make([]bool, g.refIndex(first)+1)
	for i := range int64(len(img.refs.table)) {
		b, err := img.refBlockAt(i)
		if err != nil {
			return nil, err
		}
		if b == nil || b.free == img.g.refBlockEntries() {
			continue
		}
		start := i << img.g.refBlockBits()
		for k := range img.g.refBlockEntries() {
			switch v := getRefcount(b.data, img.g.refcountOrder, k); {
			case v > g.maxRefcount():
				return nil, unsupportedf("Cannot decrease refcount entry width to %d bits: Cluster at offset %#x has a refcount of %d", g.refcountBits(), (start+k)<<g.clusterBits, v)
			case v != 0:
				need[g.refIndex(start+k)] = true
			}
		}
	}
	return s, img.placeRefcounts(s, need)
}

// refIndex returns the index of the refcount block that counts a cluster.
func (g geometry) refIndex(cluster int64) int64 { return cluster >> g.refBlockBits() }

// placeRefcounts finds the fixed point: the blocks count themselves and the
// table that lists them.
func (img *Image) placeRefcounts(s *newRefcountPlan, need []bool) error {
	g := s.g
	for {
		blocks := int64(0)
		for _, n := range need {
			if n {
				blocks++
			}
		}
		table := ceilDiv(int64(len(need))*8, g.clusterSize())
		s.end = s.first + table + blocks
		if table<<g.clusterBits > maxRefTableBytes {
			return unsupportedf("the refcount table would need %d bytes: the image file is too large for its cluster size and this refcount width", table<<g.clusterBits)
		}
		if last := g.refIndex(s.end - 1); last >= int64(len(need)) {
			need = append(need, make([]bool, last+1-int64(len(need)))...)
		}
		changed := false
		for i := g.refIndex(s.first); i <= g.refIndex(s.end-1); i++ {
			if !need[i] {
				need[i], changed = true, true
			}
		}
		if !changed && ceilDiv(int64(len(need))*8, g.clusterSize()) == table {
			s.table = make([]refTableEntry, table*g.clusterSize()/8)
			at := s.first + table
			for i, n := range need {
				if n {
					s.blocks = append(s.blocks, int64(i))
					s.table[i] = refTableEntry(at << g.clusterBits)
					at++
				}
			}
			break
		}
	}
	if s.end<<g.clusterBits > g.maxOffset() {
		return unsupportedf("the image file would grow beyond %d bytes", g.maxOffset())
	}
	if bad := img.meta.first(s.first, s.end-s.first); bad >= 0 {
		return corruptf("the cluster at offset %#x has the refcount 0 but holds metadata: run a check with repair", bad<<g.clusterBits)
	}
	return nil
}

// writeNewRefcounts writes table and blocks. The caller holds wbMu.
func (img *Image) writeNewRefcounts(ctx context.Context, order uint, p *amendProgress) (*newRefcountPlan, error) {
	s, err := img.planRefcounts(order)
	if err != nil {
		return nil, err
	}
	p.add(int64(len(s.blocks)))
	img.mu.Lock()
	img.fileEnd = max(img.fileEnd, s.end<<s.g.clusterBits)
	img.mu.Unlock()
	for k, index := range s.blocks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := img.newBlockData(s, index)
		if err != nil {
			return nil, err
		}
		if err := img.writeMeta(b, (s.first+s.tableClusters()+int64(k))<<s.g.clusterBits); err != nil {
			return nil, err
		}
		p.step()
	}
	if err := img.writeMeta(encodeRefTable(s.table), s.first<<s.g.clusterBits); err != nil {
		return nil, err
	}
	return s, img.barrier()
}

// newBlockData returns a refcount block of the new width: what the old one
// counts, and the new structure itself.
func (img *Image) newBlockData(s *newRefcountPlan, index int64) ([]byte, error) {
	img.mu.Lock()
	defer img.mu.Unlock()
	g := s.g
	out := make([]byte, g.clusterSize())
	start := index << g.refBlockBits()
	for c := start; c < start+g.refBlockEntries(); {
		end := min((img.g.refIndex(c)+1)<<img.g.refBlockBits(), start+g.refBlockEntries())
		b, err := img.refBlockAt(img.g.refIndex(c))
		if err != nil {
			return nil, err
		}
		if b == nil || b.free == img.g.refBlockEntries() {
			c = end
			continue
		}
		for ; c < end; c++ {
			if v := getRefcount(b.data, img.g.refcountOrder, c&(img.g.refBlockEntries()-1)); v != 0 {
				setRefcount(out, g.refcountOrder, c-start, v)
			}
		}
	}
	for c := max(start, s.first); c < min(start+g.refBlockEntries(), s.end); c++ {
		setRefcount(out, g.refcountOrder, c-start, 1)
	}
	return out, nil
}

// switchRefcounts makes the header refer to the new structure and gives the
// old one back. The caller holds wbMu.
func (img *Image) switchRefcounts(s *newRefcountPlan) error {
	h := img.hdr
	oldTable := freedRun{first: img.g.cluster(int64(h.refTableOffset)), n: int64(h.refTableClusters)}
	h.refcountOrder = uint32(s.g.refcountOrder)
	h.refTableOffset = uint64(s.first << s.g.clusterBits)
	h.refTableClusters = uint32(s.tableClusters())
	if err := img.storeFields(h); err != nil {
		return img.refuseWrites(err)
	}
	img.mu.Lock()
	old := []freedRun{oldTable}
	for _, e := range img.refs.table {
		if e.block() != 0 {
			old = append(old, freedRun{first: img.g.cluster(int64(e.block())), n: 1})
		}
	}
	img.g = s.g
	img.refs = newRefcounts(s.table, s.g)
	for _, r := range old {
		img.meta.remove(r.first, r.n)
	}
	img.meta.add(s.first, s.end-s.first)
	img.mu.Unlock()
	if err := img.giveBack(old); err != nil {
		return img.refuseWrites(err)
	}
	return nil
}
