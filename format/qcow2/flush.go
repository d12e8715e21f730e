package qcow2

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/block"
)

// maxFreedRuns bounds the runs of clusters that wait to be given back.
const maxFreedRuns = 1 << 17

// Flush implements [block.Writer]. However much was written, it costs at most
// five barriers; one if no cluster was allocated.
func (img *Image) Flush() error {
	if img.closed.Load() {
		return img.fail("flush", block.ErrClosed)
	}
	if img.wr == nil {
		return img.fail("flush", block.ErrReadOnly)
	}
	if err := img.writeback(false); err != nil {
		return img.fail("flush", err)
	}
	return nil
}

// Close implements [block.Node]: what is in memory is written, in order.
func (img *Image) Close() error {
	if img.closed.Swap(true) {
		return nil
	}
	var err error
	if img.wr != nil {
		err = img.finish()
	}
	if img.backing != nil {
		if e := img.backing.Close(); err == nil {
			err = e
		}
	}
	if e := img.data.close(); err == nil {
		err = e
	}
	if e := img.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return img.fail("close", err)
	}
	return nil
}

// finish writes what is in memory and ends the state "dirty" of an image with
// lazy refcounts.
func (img *Image) finish() error {
	if err := img.refuse.Load(); err != nil {
		return img.markCorrupt(*err)
	}
	if !img.clean() {
		if err := img.writeback(true); err != nil {
			return err
		}
	}
	if err := img.storeBitmaps(); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	defer img.mu.Unlock()
	if !img.lazy {
		return nil
	}
	if err := img.barrier(); err != nil {
		return err
	}
	img.hdr.incompat &^= incompatDirty
	return img.writeMeta(img.hdr.fields(), 0)
}

// markCorrupt sets the corrupt bit if that is why writing was refused, so that
// nobody else writes to the image before it is repaired. It returns cause.
func (img *Image) markCorrupt(cause error) error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	defer img.mu.Unlock()
	if errors.Is(cause, block.ErrCorrupt) && img.version >= 3 && img.hdr.incompat&incompatCorrupt == 0 {
		img.hdr.incompat |= incompatCorrupt
		return errors.Join(cause, img.writeMeta(img.hdr.fields(), 0))
	}
	return cause
}

// clean reports whether there is nothing to write.
func (img *Image) clean() bool {
	img.mu.RLock()
	defer img.mu.RUnlock()
	if img.lazy || img.l2.dirty > 0 || !img.l1Dirty.empty() || len(img.freed) > 0 || !img.refs.tableDirty.empty() {
		return false
	}
	for _, b := range img.refs.blocks {
		if b.isDirty() {
			return false
		}
	}
	return true
}

// begin runs before every change. The first time it clears the autoclear
// features, which say that something is consistent which we do not maintain,
// says of the bitmaps that they are in use, and sets the dirty bit of an image
// with lazy refcounts, under which the refcounts on disk need not be true.
func (img *Image) begin() error {
	if img.begun.Load() {
		return nil
	}
	img.bitmaps.mu.Lock()
	defer img.bitmaps.mu.Unlock()
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	if img.begun.Load() {
		return nil
	}
	if img.overlap != nil {
		return img.refuseWrites(img.overlap)
	}
	marked := img.bitmaps.marked
	if err := img.markBitmaps(); err != nil {
		return err
	}
	img.mu.Lock()
	h := img.hdr
	lazy := img.lazyRefcounts(h)
	if lazy {
		h.incompat |= incompatDirty
	}
	h.autoclear &= autoclearHandled
	changed := h.incompat != img.hdr.incompat || h.autoclear != img.hdr.autoclear
	img.mu.Unlock()
	if changed {
		if err := img.writeMeta(h.fields(), 0); err != nil {
			return err
		}
	}
	if changed || marked != img.bitmaps.marked {
		if err := img.barrier(); err != nil {
			return err
		}
	}
	img.mu.Lock()
	img.hdr.incompat, img.hdr.autoclear, img.lazy = h.incompat, h.autoclear, lazy
	img.mu.Unlock()
	img.bitmaps.retrack()
	img.begun.Store(true)
	return nil
}

// fields returns the header's fields as they are written over those in the
// file: within one sector, and no longer than the header there is.
func (h *header) fields() []byte {
	b := h.encode()
	if h.version >= 3 {
		b = b[:headerLenV3Min]
		binary.BigEndian.PutUint32(b[100:], h.headerLength)
	}
	return b
}

// relieve writes metadata back when so much is waiting that the caches would
// grow beyond their bounds.
func (img *Image) relieve() error {
	img.mu.RLock()
	full := img.l2.dirty > img.l2.limit/2 || len(img.freed) > maxFreedRuns
	blocks := len(img.refs.blocks) > 2*img.refs.limit
	img.mu.RUnlock()
	if !full && !blocks {
		return nil
	}
	return img.writeback(blocks)
}

// barrier makes everything written so far durable. A failed one is final: what
// it covered may be lost, and the kernel does not say so twice.
func (img *Image) barrier() error {
	if img.unsafe {
		return nil
	}
	// Data first: the metadata in the other file may refer to it.
	if err := img.data.flush(); err != nil {
		return img.refuseWrites(err)
	}
	if err := img.wr.Flush(); err != nil {
		return img.refuseWrites(err)
	}
	return nil
}

// writeMeta writes metadata.
func (img *Image) writeMeta(p []byte, off int64) error {
	_, err := img.wr.WriteAt(p, off)
	return err
}

// A pendingWrite is a piece of a table as it was when the writeback began.
type pendingWrite struct {
	off  int64
	data []byte
}

// pendingSlice and pendingBlock also remember which generation they hold.
type pendingSlice struct {
	pendingWrite
	slice *l2Slice
	gen   uint64
}

type pendingBlock struct {
	pendingWrite
	block *refBlock
	gen   uint64
	dirty span
}

// writebackSet is everything that one writeback writes, taken at one moment.
type writebackSet struct {
	blocks []pendingBlock
	table  pendingWrite
	tabled span
	slices []pendingSlice
	l1     pendingWrite
	l1ed   span
	freed  []freedRun
	lazy   bool
}

// writeback writes the changed metadata in the order of the package comment.
// all also writes refcounts that an image with lazy refcounts would leave.
func (img *Image) writeback(all bool) error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	if err := img.refuse.Load(); err != nil {
		return *err
	}
	set := img.takeChanges(all)
	if err := img.writeChanges(set); err != nil {
		img.putBack(set)
		return err
	}
	img.settle(set)
	if len(set.freed) == 0 {
		return nil
	}
	// Nothing on disk refers to these any more.
	if err := img.giveBack(set.freed); err != nil {
		return img.refuseWrites(err)
	}
	if set.lazy {
		return nil
	}
	img.mu.Lock()
	blocks := img.snapshotRefBlocks()
	img.mu.Unlock()
	err := img.writeRefBlocks(blocks)
	img.mu.Lock()
	img.settleRefBlocks(blocks, err)
	img.mu.Unlock()
	return err
}

// takeChanges copies what has changed.
func (img *Image) takeChanges(all bool) *writebackSet {
	img.mu.Lock()
	defer img.mu.Unlock()
	s := &writebackSet{lazy: img.lazy && !all}
	if !s.lazy {
		s.blocks = img.snapshotRefBlocks()
	}
	if t := img.refs.tableDirty; !t.empty() && !s.lazy {
		s.tabled, img.refs.tableDirty = t, span{}
		s.table = pendingWrite{int64(img.hdr.refTableOffset) + t.lo*8, encodeRefTable(img.refs.table[t.lo:t.hi])}
	}
	if img.l2.dirty > 0 {
		for _, slice := range img.l2.slices {
			if slice.dirty() {
				b := slice.encode()
				s.slices = append(s.slices, pendingSlice{pendingWrite{int64(slice.host), b}, slice, slice.gen})
			}
		}
	}
	if d := img.l1Dirty; !d.empty() {
		s.l1ed, img.l1Dirty = d, span{}
		s.l1 = pendingWrite{int64(img.hdr.l1Offset) + d.lo*8, encodeL1(img.l1[d.lo:d.hi])}
	}
	s.freed, img.freed = img.freed, nil
	return s
}

// snapshotRefBlocks copies what has changed of the refcount blocks. The caller
// holds mu.
func (img *Image) snapshotRefBlocks() []pendingBlock {
	var out []pendingBlock
	for _, b := range img.refs.blocks {
		if !b.isDirty() {
			continue
		}
		data := append([]byte(nil), b.data[b.dirty.lo:b.dirty.hi]...)
		out = append(out, pendingBlock{pendingWrite{int64(b.host) + b.dirty.lo, data}, b, b.gen, b.dirty})
		b.dirty = span{}
	}
	return out
}

func (img *Image) writeRefBlocks(blocks []pendingBlock) error {
	for _, b := range blocks {
		if err := img.writeMeta(b.data, b.off); err != nil {
			return err
		}
	}
	return nil
}

// errNotWritten stands for the error of a writeback that ended early.
var errNotWritten = errors.New("not written")

// settleRefBlocks notes which blocks the file now holds, or, after an error,
// that it may hold none of them. The caller holds mu.
func (img *Image) settleRefBlocks(blocks []pendingBlock, err error) {
	for _, b := range blocks {
		if err != nil {
			b.block.dirty.add(b.dirty.lo, b.dirty.hi)
		} else {
			b.block.written = b.gen
		}
	}
}

// writeChanges does the writing: a barrier before every step that refers to
// what the step before wrote, and one at the end.
func (img *Image) writeChanges(s *writebackSet) error {
	if err := img.writeRefBlocks(s.blocks); err != nil {
		return fmt.Errorf("write refcount block: %w", err)
	}
	if len(s.table.data) > 0 {
		if err := img.barrier(); err != nil {
			return err
		}
		if err := img.writeMeta(s.table.data, s.table.off); err != nil {
			return fmt.Errorf("write refcount table: %w", err)
		}
	}
	if len(s.slices) > 0 {
		if err := img.barrier(); err != nil {
			return err
		}
		if err := img.writeSlices(s.slices); err != nil {
			return fmt.Errorf("write L2 table: %w", err)
		}
	}
	if len(s.l1.data) > 0 {
		if err := img.barrier(); err != nil {
			return err
		}
		if err := img.writeMeta(s.l1.data, s.l1.off); err != nil {
			return fmt.Errorf("write L1 table: %w", err)
		}
	}
	return img.barrier()
}

// writeSlices writes slices, those that lie together by one request.
func (img *Image) writeSlices(s []pendingSlice) error {
	slices.SortFunc(s, func(a, b pendingSlice) int { return cmp.Compare(a.off, b.off) })
	var buf []byte
	for i := 0; i < len(s); {
		start := s[i].off
		buf = append(buf[:0], s[i].data...)
		for i++; i < len(s) && s[i].off == start+int64(len(buf)) && len(buf) < regionBuffer; i++ {
			buf = append(buf, s[i].data...)
		}
		if err := img.writeMeta(buf, start); err != nil {
			return err
		}
	}
	return nil
}

// settle notes what the file now holds.
func (img *Image) settle(s *writebackSet) {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.settleRefBlocks(s.blocks, nil)
	for _, p := range s.slices {
		if !p.slice.dirty() {
			continue // dropped meanwhile
		}
		p.slice.written = p.gen
		if !p.slice.dirty() {
			img.l2.dirty--
		}
	}
}

// putBack makes everything count as changed again after a failed writeback.
func (img *Image) putBack(s *writebackSet) {
	img.mu.Lock()
	defer img.mu.Unlock()
	img.settleRefBlocks(s.blocks, errNotWritten)
	if !s.tabled.empty() {
		img.refs.tableDirty.add(s.tabled.lo, s.tabled.hi)
	}
	if !s.l1ed.empty() {
		img.l1Dirty.add(s.l1ed.lo, s.l1ed.hi)
	}
	img.freed = append(s.freed, img.freed...)
}
