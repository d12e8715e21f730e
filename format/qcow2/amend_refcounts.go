package qcow2

import (
	"context"

	"github.com/lamina-vm/lamina/block"
)

// changeRefcountOrder gives the image refcounts of another width: a whole new
// table with its blocks is written behind everything in use, and then, behind
// a barrier, the header changes to it. The new one does not count the old one,
// so that neither before nor after it there is a leak.
func (img *Image) changeRefcountOrder(ctx context.Context, order uint, p *amendProgress) error {
	if err := img.writeback(true); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	first, err := img.lastUsed()
	var s *newRefcountPlan
	if err == nil {
		s, err = img.planRefcounts(order, func(int64) (int64, error) { return first, nil })
	}
	img.mu.Unlock()
	if err != nil {
		return err
	}
	return img.replaceRefcounts(ctx, s, p)
}

// compactRefcounts makes the refcount structure of an image of which much was
// freed as small as it can be, at the first place that is free, if the file
// can be shorter then.
func (img *Image) compactRefcounts(ctx context.Context) error {
	if err := img.writeback(true); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	last, err := img.lastUsed()
	var s *newRefcountPlan
	if err == nil {
		s, err = img.planRefcounts(img.g.refcountOrder, img.firstFree)
	}
	img.mu.Unlock()
	if err != nil || s.end >= last {
		return err
	}
	return img.replaceRefcounts(ctx, s, &amendProgress{})
}

// firstFree returns the first of n free clusters that lie together. The caller
// holds mu.
func (img *Image) firstFree(n int64) (int64, error) {
	free := int64(0)
	for c := int64(1); ; c++ {
		v, err := img.refcount(c)
		if err != nil {
			return 0, err
		}
		if v != 0 || c<<img.g.clusterBits < img.fileEnd && img.meta.has(c) {
			free = 0
		} else if free++; free == n {
			return c - n + 1, nil
		}
	}
}

// replaceRefcounts writes a new structure and makes it the image's. The caller
// holds wbMu.
func (img *Image) replaceRefcounts(ctx context.Context, s *newRefcountPlan, p *amendProgress) error {
	if err := img.writeNewRefcounts(ctx, s, p); err != nil {
		return err
	}
	return img.switchRefcounts(s)
}

// newRefcountPlan is a refcount structure that is to take the place of the
// present one.
type newRefcountPlan struct {
	g      geometry
	old    []freedRun // table and blocks of the present one
	isOld  clusterSet // the same clusters
	first  int64      // cluster of the table, followed by the blocks
	table  []refTableEntry
	blocks []int64 // indexes of the blocks, ascending
	end    int64   // cluster behind the last block
}

// tableClusters returns the clusters that the table takes.
func (s *newRefcountPlan) tableClusters() int64 {
	return ceilDiv(int64(len(s.table))*8, s.g.clusterSize())
}

// count returns the new refcount of a cluster that has the refcount v.
func (s *newRefcountPlan) count(cluster int64, v uint64) uint64 {
	if v > 0 && s.isOld.has(cluster) {
		return v - 1
	}
	return v
}

// planRefcounts finds which blocks are needed and where they go: place returns
// the first of n clusters that are free. It refuses a refcount that does not
// fit, in stock's words. The caller holds mu.
func (img *Image) planRefcounts(order uint, place func(n int64) (int64, error)) (*newRefcountPlan, error) {
	g := img.g
	g.refcountOrder = order
	s := &newRefcountPlan{g: g}
	s.old = append(s.old, freedRun{first: img.g.cluster(int64(img.hdr.refTableOffset)), n: int64(img.hdr.refTableClusters)})
	for _, e := range img.refs.table {
		if e.block() != 0 {
			s.old = append(s.old, freedRun{first: img.g.cluster(int64(e.block())), n: 1})
		}
	}
	for _, r := range s.old {
		s.isOld.add(r.first, r.n)
	}
	need := []bool{false}
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
			v := getRefcount(b.data, img.g.refcountOrder, k)
			if v > g.maxRefcount() {
				return nil, unsupportedf("Cannot decrease refcount entry width to %d bits: Cluster at offset %#x has a refcount of %d", g.refcountBits(), (start+k)<<g.clusterBits, v)
			}
			if v == 0 || s.count(start+k, v) == 0 {
				continue
			}
			if at := g.refIndex(start + k); at >= int64(len(need)) {
				need = append(need, make([]bool, at+1-int64(len(need)))...)
			}
			need[g.refIndex(start+k)] = true
		}
	}
	return s, img.placeRefcounts(s, need, place)
}

// refIndex returns the index of the refcount block that counts a cluster.
func (g geometry) refIndex(cluster int64) int64 { return cluster >> g.refBlockBits() }

// placeRefcounts finds the fixed point: the blocks count themselves and the
// table that lists them.
func (img *Image) placeRefcounts(s *newRefcountPlan, need []bool, place func(n int64) (int64, error)) error {
	g := s.g
	for {
		blocks := int64(0)
		for _, n := range need {
			if n {
				blocks++
			}
		}
		table := ceilDiv(int64(len(need))*8, g.clusterSize())
		if table<<g.clusterBits > maxRefTableBytes {
			return unsupportedf("the refcount table would need %d bytes: the image file is too large for its cluster size and this refcount width", table<<g.clusterBits)
		}
		var err error
		if s.first, err = place(table + blocks); err != nil {
			return err
		}
		s.end = s.first + table + blocks
		if last := g.refIndex(s.end - 1); last >= int64(len(need)) {
			need = append(need, make([]bool, last+1-int64(len(need)))...)
		}
		changed := ceilDiv(int64(len(need))*8, g.clusterSize()) != table
		for i := g.refIndex(s.first); i <= g.refIndex(s.end-1); i++ {
			if !need[i] {
				need[i], changed = true, true
			}
		}
		if !changed {
			s.list(need, table)
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

// list makes the table of the blocks that are needed.
func (s *newRefcountPlan) list(need []bool, clusters int64) {
	s.table = make([]refTableEntry, clusters*s.g.clusterSize()/8)
	at := s.first + clusters
	for i, n := range need {
		if n {
			s.blocks = append(s.blocks, int64(i))
			s.table[i] = refTableEntry(at << s.g.clusterBits)
			at++
		}
	}
}

// writeNewRefcounts writes table and blocks. The caller holds wbMu.
func (img *Image) writeNewRefcounts(ctx context.Context, s *newRefcountPlan, p *amendProgress) error {
	p.add(int64(len(s.blocks)))
	img.mu.Lock()
	img.fileEnd = max(img.fileEnd, s.end<<s.g.clusterBits)
	img.mu.Unlock()
	for k, index := range s.blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := img.newBlockData(s, index)
		if err != nil {
			return err
		}
		if err := img.writeMeta(b, (s.first+s.tableClusters()+int64(k))<<s.g.clusterBits); err != nil {
			return err
		}
		p.step()
	}
	if err := img.writeMeta(encodeRefTable(s.table), s.first<<s.g.clusterBits); err != nil {
		return err
	}
	return img.barrier()
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
				setRefcount(out, g.refcountOrder, c-start, s.count(c, v))
			}
		}
	}
	for c := max(start, s.first); c < min(start+g.refBlockEntries(), s.end); c++ {
		setRefcount(out, g.refcountOrder, c-start, 1)
	}
	return out, nil
}

// switchRefcounts makes the header refer to the new structure. The caller
// holds wbMu.
func (img *Image) switchRefcounts(s *newRefcountPlan) error {
	h := img.hdr
	h.refcountOrder = uint32(s.g.refcountOrder)
	h.refTableOffset = uint64(s.first << s.g.clusterBits)
	h.refTableClusters = uint32(s.tableClusters())
	if err := img.storeFields(h); err != nil {
		return img.refuseWrites(err)
	}
	img.mu.Lock()
	img.g = s.g
	img.refs = newRefcounts(s.table, s.g)
	for _, r := range s.old {
		img.meta.remove(r.first, r.n)
	}
	img.meta.add(s.first, s.end-s.first)
	img.mu.Unlock()
	if d, ok := block.As[block.Discarder](img.file); ok {
		for _, r := range joinRuns(s.old) {
			off := r.first << s.g.clusterBits
			if n := min(r.n<<s.g.clusterBits, img.file.Size()-off); n > 0 {
				// Without it the file only keeps space that it could give back.
				_ = d.Discard(off, n)
			}
		}
	}
	return nil
}
