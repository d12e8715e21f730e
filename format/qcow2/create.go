package qcow2

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// layout is where the parts of a new image lie, in clusters and in the order
// of the fields: that of stock QEMU, one behind the other from 0.
type layout struct {
	header, refTable, refBlocks, l1, luks, l2, data int64
}

func (l layout) total() int64 {
	return l.header + l.refTable + l.refBlocks + l.l1 + l.luks + l.l2 + l.data
}

// planLayout finds the fixed point: the refcount blocks count themselves and
// the table that lists them.
func (p *createPlan) planLayout() layout {
	l := layout{header: 1, refTable: 1, l1: ceilDiv(p.g.l1EntriesFor(p.size)*8, p.g.clusterSize())}
	l.luks = ceilDiv(p.crypt.bytes, p.g.clusterSize())
	if p.prealloc != block.PreallocOff {
		l.l2 = p.g.l1EntriesFor(p.size)
		if !p.g.external {
			l.data = ceilDiv(p.size, p.g.clusterSize())
		}
	}
	for {
		blocks := ceilDiv(l.total(), p.g.refBlockEntries())
		table := max(ceilDiv(blocks*8, p.g.clusterSize()), 1)
		if blocks == l.refBlocks && table == l.refTable {
			return l
		}
		l.refBlocks, l.refTable = blocks, table
	}
}

// create writes a new image. Only what is not zero is written, as few requests
// as possible: in an empty file the rest is a hole.
func create(ctx context.Context, file block.Node, size int64, opts format.CreateOptions) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, l, head, err := prepareCreate(size, opts)
	if err != nil {
		return err
	}
	w, ok := file.(block.Writer)
	if !ok {
		return fmt.Errorf("create %s: its file cannot be written: %w", opts.Filename, block.ErrReadOnly)
	}
	p.fileIsNotEmpty = file.Size() > 0
	if p.g.external {
		if opts.Data == nil {
			return fmt.Errorf("create %s: its data file %s was not made: %w", opts.Filename, p.dataFile, block.ErrUnsupported)
		}
		if err := resizeData(ctx, opts.Data, p.size, p.prealloc); err != nil {
			return fmt.Errorf("create %s: %w", opts.Filename, err)
		}
	}
	if err := p.crypt.make(ctx, opts.Secrets); err != nil {
		return err
	}
	if err := p.write(ctx, w, l, head); err != nil {
		return fmt.Errorf("create %s: %w", opts.Filename, err)
	}
	return nil
}

// prepareCreate checks size and options and lays the image out.
func prepareCreate(size int64, opts format.CreateOptions) (p *createPlan, l layout, head []byte, err error) {
	if p, err = planCreate(size, opts); err != nil {
		return nil, l, nil, err
	}
	l = p.planLayout()
	if l.refTable<<p.g.clusterBits > maxRefTableBytes {
		return nil, l, nil, p.tooLarge()
	}
	head, err = p.head(l)
	return p, l, head, err
}

// head returns the bytes of the header cluster.
func (p *createPlan) head(l layout) ([]byte, error) {
	cs := uint64(p.g.clusterSize())
	h := &header{
		version:          p.version,
		clusterBits:      uint32(p.g.clusterBits),
		size:             uint64(p.size),
		l1Size:           uint32(p.g.l1EntriesFor(p.size)),
		refTableOffset:   cs,
		refTableClusters: uint32(l.refTable),
		refcountOrder:    uint32(p.g.refcountOrder),
		compressionType:  p.compression,
		cryptMethod:      p.crypt.method,
	}
	if l.l1 > 0 {
		h.l1Offset = uint64(l.header+l.refTable+l.refBlocks) * cs
	}
	if p.lazyRefcounts {
		h.compat |= compatLazyRefcounts
	}
	if p.compression != compressionZlib {
		h.incompat |= incompatCompression
	}
	if p.g.external {
		h.incompat |= incompatDataFile
	}
	if p.dataRaw {
		h.autoclear |= autoclearRawData
	}
	if p.g.extendedL2 {
		h.incompat |= incompatExtendedL2
	}
	var exts []extension
	if p.backingFormat != "" {
		exts = append(exts, extension{extBackingFormat, []byte(p.backingFormat)})
	}
	if p.g.external {
		exts = append(exts, extension{extDataFile, []byte(p.dataFile)})
	}
	if p.crypt.method == cryptLUKS {
		exts = append(exts, p.crypt.extension((l.header+l.refTable+l.refBlocks+l.l1)*int64(cs)))
	}
	// Small clusters have no room for the names of features, which only serve
	// messages, beside a backing file name; stock leaves them out too.
	if p.version >= 3 && cs > 4096 {
		exts = append(exts, extension{extFeatureNames, encodeFeatureNames(knownFeatures)})
	}
	return encodeHead(h, exts, p.backing)
}

// write writes the image.
func (p *createPlan) write(ctx context.Context, w block.Writer, l layout, head []byte) error {
	g := p.g
	cs := g.clusterSize()
	table := make([]refTableEntry, l.refBlocks)
	for i := range table {
		table[i] = refTableEntry((l.header + l.refTable + int64(i)) * cs)
	}
	l1At := (l.header + l.refTable + l.refBlocks) * cs
	l1Bytes := g.l1EntriesFor(p.size) * 8
	small := l1At+l1Bytes <= 32<<10 && p.prealloc == block.PreallocOff
	out := &regionWriter{w: w, cs: cs, pad: p.fileIsNotEmpty, gather: small}
	out.put(head, 0)
	out.put(encodeRefTable(table), cs)
	p.putRefBlocks(out, l)
	if p.prealloc == block.PreallocOff {
		if small || p.fileIsNotEmpty {
			out.put(make([]byte, l1Bytes), l1At)
		}
		p.putLUKS(out, l1At+l.l1*cs)
		if err := out.finish(); err != nil {
			return err
		}
		if l.luks > 0 {
			return extendFile(ctx, w, l.total()*cs, block.PreallocOff)
		}
		if small || p.fileIsNotEmpty {
			return nil
		}
		return extendFile(ctx, w, l1At+l1Bytes, block.PreallocOff)
	}
	p.putMapping(out, l)
	if err := out.finish(); err != nil {
		return err
	}
	mode := p.prealloc
	if mode == block.PreallocMetadata || p.g.external {
		mode = block.PreallocOff
	}
	if err := extendFile(ctx, w, l.total()*cs, mode); err != nil || p.crypt.method == cryptNone || p.version >= 3 {
		return err
	}
	return p.fill(ctx, w, (l.total()-l.data)*cs)
}

// putLUKS writes the LUKS header.
func (p *createPlan) putLUKS(out *regionWriter, at int64) {
	for _, off := range slices.Sorted(maps.Keys(p.crypt.parts)) {
		out.put(p.crypt.parts[off], at+off)
	}
}

// putRefBlocks writes the refcount blocks: every cluster of the layout has the
// refcount 1.
func (p *createPlan) putRefBlocks(out *regionWriter, l layout) {
	g := p.g
	left := l.total()
	at := (l.header + l.refTable) * g.clusterSize()
	full := make([]byte, g.clusterSize())
	for i := range min(left, g.refBlockEntries()) {
		setRefcount(full, g.refcountOrder, i, 1)
	}
	for ; left > 0; left -= g.refBlockEntries() {
		b := full
		if left < g.refBlockEntries() {
			b = make([]byte, refcountByte(g.refcountOrder, left-1)+max(int64(1)<<g.refcountOrder>>3, 1))
			for i := range left {
				setRefcount(b, g.refcountOrder, i, 1)
			}
		}
		out.put(b, at)
		at += g.clusterSize()
	}
}

// putMapping writes L1 and L2 tables that map the whole disk to the clusters
// behind them. Subclusters stay unallocated, so that a backing file shows.
func (p *createPlan) putMapping(out *regionWriter, l layout) {
	cs := p.g.clusterSize()
	l1At := (l.header + l.refTable + l.refBlocks) * cs
	l2At := l1At + (l.l1+l.luks)*cs
	l1 := make([]l1Entry, l.l2)
	for i := range l1 {
		l1[i] = newL1Entry(hostOffset(l2At + int64(i)*cs))
	}
	out.put(encodeL1(l1), l1At)
	p.putLUKS(out, l1At+l.l1*cs)
	host := l2At + l.l2*cs
	if p.g.external {
		host = 0
	}
	for i, left := int64(0), ceilDiv(p.size, cs); left > 0; i++ {
		n := min(left, p.g.l2Entries())
		t := p.g.newL2Table(int(n))
		for k := range n {
			t.entries[k] = newDataEntry(hostOffset(host))
			if p.crypt.method != cryptNone && p.version >= 3 && !p.g.extendedL2 {
				t.entries[k] |= l2Zero // a hole does not decrypt to zeros
			}
			host += cs
		}
		out.put(t.encode(), l2At+i*cs)
		left -= n
	}
}

// extendFile makes the file at least end bytes long. A new part that is
// preallocated reads as zeros.
func extendFile(ctx context.Context, w block.Writer, end int64, mode block.Preallocation) error {
	if w.Size() >= end {
		return nil
	}
	r, ok := block.As[block.Resizer](w)
	if !ok {
		return fmt.Errorf("its file cannot be extended to %d bytes: %w", end, block.ErrUnsupported)
	}
	return r.Resize(ctx, end, block.ResizeOptions{Prealloc: mode})
}

// regionWriter writes regions in ascending order, joining those that lie
// together. Errors are kept until finish.
type regionWriter struct {
	w      block.Writer
	cs     int64
	pad    bool // fill every cluster that is begun with zeros
	gather bool // everything in one request
	at     int64
	buf    []byte
	errs   []error
}

const regionBuffer = 1 << 20

func (r *regionWriter) put(p []byte, at int64) {
	if len(p) == 0 {
		return
	}
	end := r.at + int64(len(r.buf))
	if gap := at - end; len(r.buf) > 0 && (gap == 0 || r.gather || r.pad && gap < r.cs) && len(r.buf) < regionBuffer {
		r.buf = append(r.buf, make([]byte, gap)...)
	} else {
		r.flush()
		r.at = at
	}
	r.buf = append(r.buf, p...)
}

func (r *regionWriter) flush() {
	if len(r.buf) == 0 {
		return
	}
	if r.pad {
		end := (r.at + int64(len(r.buf)) + r.cs - 1) / r.cs * r.cs
		r.buf = append(r.buf, make([]byte, end-r.at-int64(len(r.buf)))...)
	}
	if _, err := r.w.WriteAt(r.buf, r.at); err != nil {
		r.errs = append(r.errs, err)
	}
	r.buf = r.buf[:0]
}

func (r *regionWriter) finish() error {
	r.flush()
	return errors.Join(r.errs...)
}
