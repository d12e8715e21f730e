package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// countChunk is the number of clusters whose counts are kept together.
const countChunk = 64

// referenceCounts counts references by cluster, in memory that grows with the
// clusters referred to. The zero value is empty.
type referenceCounts struct {
	chunks map[int64]*[countChunk]uint16
	large  map[int64]uint64 // of those whose count does not fit; the chunk then has 1<<16-1
	at     int64            // the chunk used last
	last   *[countChunk]uint16
}

func (r *referenceCounts) chunk(i int64) *[countChunk]uint16 {
	if r.last == nil || r.at != i {
		c := r.chunks[i]
		if c == nil {
			return nil
		}
		r.at, r.last = i, c
	}
	return r.last
}

// get returns the count of a cluster.
func (r *referenceCounts) get(cluster int64) uint64 {
	c := r.chunk(cluster / countChunk)
	if c == nil {
		return 0
	}
	n := c[cluster%countChunk]
	if n == 1<<16-1 {
		return r.large[cluster]
	}
	return uint64(n)
}

// add counts one reference more; false means that the count is limit already.
func (r *referenceCounts) add(cluster int64, limit uint64) bool {
	n := r.get(cluster)
	if n == limit {
		return false
	}
	c := r.chunk(cluster / countChunk)
	if c == nil {
		if r.chunks == nil {
			r.chunks, r.large = map[int64]*[countChunk]uint16{}, map[int64]uint64{}
		}
		c = new([countChunk]uint16)
		r.chunks[cluster/countChunk] = c
		r.at, r.last = cluster/countChunk, c
	}
	if n+1 >= 1<<16-1 {
		r.large[cluster] = n + 1
		c[cluster%countChunk] = 1<<16 - 1
		return true
	}
	c[cluster%countChunk] = uint16(n + 1)
	return true
}

// loadBlock makes the refcount block with index i the current one; false means
// that there is none, so that its refcounts are 0.
func (c *checker) loadBlock(i int64) (bool, error) {
	if i >= int64(len(c.table)) {
		return false, nil
	}
	e := c.table[i]
	if e.block() == 0 {
		return false, nil
	}
	if c.g.inCluster(int64(e.block())) != 0 {
		if !c.corrupt {
			c.corrupt = true
			c.report("qcow2: Image is corrupt: Refblock offset 0x%x unaligned (reftable index: %s); further non-fatal corruption events will be suppressed", int64(e.block()), altHex(i))
		}
		return false, syscall.EIO
	}
	if c.blockAt == i {
		return true, nil
	}
	c.blockAt = -1
	if e > refTableOffsetMax {
		return false, syscall.EIO
	}
	if err := c.read(c.block, int64(e.block())); err != nil {
		return false, err
	}
	c.blockAt, c.blockOff = i, int64(e.block())
	return true, nil
}

// altHex formats as C's %#x, which has no prefix for 0.
func altHex(n int64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("0x%x", n)
}

// refcount returns the refcount of a cluster as the image records it.
func (c *checker) refcount(cluster int64) (uint64, error) {
	ok, err := c.loadBlock(cluster >> c.g.refBlockBits())
	if !ok || err != nil {
		return 0, err
	}
	return getRefcount(c.block, c.g.refcountOrder, cluster&(c.g.refBlockEntries()-1)), nil
}

// setRefcount changes the refcount of a cluster that has a refcount block.
func (c *checker) setRefcount(cluster int64, v uint64) error {
	if ok, err := c.loadBlock(cluster >> c.g.refBlockBits()); !ok || err != nil {
		return errors.Join(err, corruptf("no refcount block for cluster %d", cluster))
	}
	order, i := c.g.refcountOrder, cluster&(c.g.refBlockEntries()-1)
	setRefcount(c.block, order, i, v)
	at := refcountByte(order, i)
	n := int64(1)
	if order > 3 {
		n = 1 << order >> 3
	}
	return c.write(c.block[at:at+n], c.blockOff+at)
}

// compare compares the references with the refcounts, and makes the refcounts
// true where it may.
func (c *checker) compare(fixLeaks, fixErrors bool) error {
	c.highest = 0
	for k := int64(0); k < c.clusters; k++ {
		if k%countChunk == 0 {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			// A stretch that nobody counts and nobody refers to. What makes
			// the refcount unreadable is said for each cluster, though.
			if ok, err := c.loadBlock(k >> c.g.refBlockBits()); !ok && err == nil && c.refs.chunk(k/countChunk) == nil {
				k += countChunk - 1
				continue
			}
		}
		have, err := c.refcount(k)
		if err != nil {
			c.report("Can't get refcount for cluster %d: %s", k, errnoText(err))
			c.res.CheckErrors++
			continue
		}
		want := c.refs.get(k)
		if have > 0 || want > 0 {
			c.highest = k
		}
		if have != want {
			c.mismatch(k, have, want, fixLeaks, fixErrors)
		}
	}
	return nil
}

// mismatch reports, and repairs, one refcount.
func (c *checker) mismatch(k int64, have, want uint64, fixLeaks, fixErrors bool) {
	fix := false
	switch {
	case have == 0:
		// The refcount block may be missing or be that of another place.
		c.rebuild = true
	case have > want:
		fix = fixLeaks
	default:
		fix = fixErrors
	}
	word := "Leaked"
	switch {
	case fix:
		word = "Repairing"
	case have < want:
		word = "ERROR"
	}
	c.report("%s cluster %d refcount=%d reference=%d", word, k, have, want)
	fixed := fix && c.setRefcount(k, want) == nil
	switch {
	case fixed && have > want:
		c.res.LeaksFixed++
	case fixed:
		c.res.CorruptionsFixed++
	case have < want:
		c.res.Corruptions++
	default:
		c.res.Leaks++
	}
}

// errnoText is the C library's text for the cause of err.
func errnoText(err error) string {
	if errors.Is(err, syscall.EIO) {
		return "Input/output error"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return err.Error()
}

// writeNewStructure writes refcount blocks and a refcount table that count
// what was counted, into clusters that nothing refers to, and then makes the
// header point to them.
func (c *checker) writeNewStructure() error {
	a := &structurePlan{c: c, blocks: map[int64]int64{}, avoid: map[int64]bool{}}
	for _, e := range c.table {
		// The old structure stays as it is until the header is written.
		a.avoid[int64(uint64(e.block())>>c.g.clusterBits)] = true
	}
	tableAt, tableClusters, err := a.place()
	if err != nil {
		return err
	}
	table := make([]refTableEntry, tableClusters<<c.g.clusterBits>>3)
	buf := make([]byte, c.g.clusterSize())
	for i, at := range a.blocks {
		clear(buf)
		first := i << c.g.refBlockBits()
		for in := range c.g.refBlockEntries() {
			if n := c.refs.get(first + in); n > 0 {
				setRefcount(buf, c.g.refcountOrder, in, n)
			}
		}
		if err := c.write(buf, at<<c.g.clusterBits); err != nil {
			return err
		}
		table[i] = refTableEntry(at << c.g.clusterBits)
	}
	if err := c.write(encodeRefTable(table), tableAt<<c.g.clusterBits); err != nil {
		return err
	}
	if err := c.barrier(); err != nil {
		return err
	}
	pointer := binary.BigEndian.AppendUint64(nil, uint64(tableAt<<c.g.clusterBits))
	pointer = binary.BigEndian.AppendUint32(pointer, uint32(tableClusters))
	if err := c.write(pointer, offRefTableOffset); err != nil {
		return err
	}
	c.img.hdr.refTableOffset = uint64(tableAt << c.g.clusterBits)
	c.img.hdr.refTableClusters = uint32(tableClusters)
	c.table, c.blockAt, c.corrupt, c.guarded = table, -1, false, nil
	c.fileLen = c.img.file.Size()
	c.clusters = max(c.clusters, ceilDiv(c.fileLen, c.g.clusterSize()))
	return c.barrier()
}

// structurePlan finds places for a new refcount structure, which has to count
// its own clusters too.
type structurePlan struct {
	c      *checker
	blocks map[int64]int64 // by index in the refcount table: the cluster
	avoid  map[int64]bool
	free   int64 // every cluster below is taken
}

// place finds places for a block for every cluster that is counted, and for
// the table.
func (p *structurePlan) place() (tableAt, tableClusters int64, err error) {
	for {
		if err := p.placeBlocks(); err != nil {
			return 0, 0, err
		}
		// The table lies behind everything else but in free clusters, and
		// its own clusters may need another block, and that a longer table.
		n := p.tableClusters()
		at := p.run(n)
		if n<<p.c.g.clusterBits > maxRefTableBytes {
			return 0, 0, unsupportedf("the refcount table would be larger than %d bytes: convert the image to a larger cluster size", maxRefTableBytes)
		}
		more := false
		for k := at; k < at+n; k++ {
			_, ok := p.blocks[k>>p.c.g.refBlockBits()]
			more = more || !ok
		}
		if !more {
			p.take(at, n)
			return at, n, nil
		}
		for k := at; k < at+n; k++ {
			if i := k >> p.c.g.refBlockBits(); p.blocks[i] == 0 {
				p.blocks[i] = p.one()
			}
		}
	}
}

// placeBlocks places a block for each index that has counts, until the blocks
// themselves need no other.
func (p *structurePlan) placeBlocks() error {
	for {
		var need []int64
		for chunk := range p.c.refs.chunks {
			i := chunk * countChunk >> p.c.g.refBlockBits()
			if _, ok := p.blocks[i]; !ok {
				need = append(need, i)
			}
		}
		if len(need) == 0 {
			return nil
		}
		if err := p.c.ctx.Err(); err != nil {
			return err
		}
		slices.Sort(need)
		for _, i := range slices.Compact(need) {
			p.blocks[i] = p.one()
		}
	}
}

// tableClusters returns the clusters of a table that has all blocks.
func (p *structurePlan) tableClusters() int64 {
	last := int64(0)
	for i := range p.blocks {
		last = max(last, i)
	}
	return ceilDiv((last+1)*8, p.c.g.clusterSize())
}

func (p *structurePlan) taken(k int64) bool { return p.c.refs.get(k) > 0 || p.avoid[k] }

// one takes the first free cluster.
func (p *structurePlan) one() int64 {
	for p.taken(p.free) {
		p.free++
	}
	p.take(p.free, 1)
	return p.free
}

// run returns the first n free clusters that lie in a row, without taking them.
func (p *structurePlan) run(n int64) int64 {
	at := p.free
	for k := at; k < at+n; k++ {
		if p.taken(k) {
			at = k + 1
		}
	}
	return at
}

func (p *structurePlan) take(at, n int64) {
	for k := at; k < at+n; k++ {
		p.c.refs.add(k, p.c.g.maxRefcount())
		p.c.clusters = max(p.c.clusters, k+1)
	}
}
