package qcow2

import (
	"errors"
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/block"
)

// damageError is an error about the image's own tables that nobody may write on
// with: stock sets the corrupt bit then. It matches block.ErrCorrupt.
type damageError struct{ text string }

func (e *damageError) Error() string        { return e.text }
func (e *damageError) Is(target error) bool { return target == block.ErrCorrupt }

// damagef returns a damageError, in stock's words.
func damagef(format string, args ...any) error {
	return &damageError{fmt.Sprintf(format, args...)}
}

// where adds to err, of whichever kind, where the damage is.
func where(err error, format string, args ...any) error {
	text := err.Error() + fmt.Sprintf(format, args...)
	if _, ok := err.(*damageError); ok {
		return &damageError{text}
	}
	return &stockError{text, block.ErrCorrupt}
}

// hexOf writes a number as C's "%#x" does: zero has no prefix.
func hexOf(n int64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", n)
}

// badEntry says where the L2 entry of guest offset pos lies, about which err is.
func (img *Image) badEntry(err error, pos int64) error {
	if _, ok := err.(*damageError); !ok {
		return corruptf("guest offset %#x: %v", pos, err)
	}
	table := img.l1[img.g.l1Index(guestOffset(pos))].l2Table()
	return where(err, " (L2 offset: %s, L2 index: %s)", hexOf(int64(table)), hexOf(int64(img.g.l2Index(guestOffset(pos)))))
}

// overlapError is for guest data that would be written to a cluster of the
// image's own tables.
func (img *Image) overlapError(cluster int64) error {
	img.mu.RLock()
	defer img.mu.RUnlock()
	g, h := img.g, &img.hdr
	in := func(off, n int64) bool {
		return n > 0 && cluster >= g.cluster(off) && cluster <= g.cluster(off+n-1)
	}
	what := "a table"
	switch {
	case cluster == 0:
		what = "qcow2_header"
	case in(int64(h.l1Offset), int64(len(img.l1))*8):
		what = "active L1 table"
	case slices.ContainsFunc(img.l1, func(e l1Entry) bool { return e.l2Table() != 0 && in(int64(e.l2Table()), 1) }):
		what = "active L2 table"
	case in(int64(h.refTableOffset), int64(len(img.refs.table))*8):
		what = "refcount table"
	case slices.ContainsFunc(img.refs.table, func(e refTableEntry) bool { return e.block() != 0 && in(int64(e.block()), 1) }):
		what = "refcount block"
	case h.snapshotCount > 0 && in(int64(h.snapshotsOffset), max(img.snapshotBytes, 1)):
		what = "snapshot table"
	case slices.ContainsFunc(img.snapshots, func(s snapshot) bool { return in(int64(s.l1Offset), int64(s.l1Size)*8) }):
		what = "inactive L1 table"
	}
	return damagef("Preventing invalid write on metadata (overlaps with %s)", what)
}

// damaged notes that err, if it says so, found the image's own tables damaged,
// and returns it. The first time it is reported, as stock does; an image that
// is open for writing takes no more changes, for each could make it worse.
func (img *Image) damaged(err error) error {
	var d *damageError
	if err == nil || !errors.As(err, &d) {
		return err
	}
	img.reportDamage(err)
	if img.wr != nil {
		return img.refuseWrites(err)
	}
	return err
}

// reportDamage reports the first damage that is found.
func (img *Image) reportDamage(err error) {
	if img.report == nil || img.reported.Swap(true) {
		return
	}
	if img.wr != nil {
		img.report(fmt.Sprintf("qcow2: Marking image as corrupt: %v; further corruption events will be suppressed", err))
		return
	}
	img.report(fmt.Sprintf("qcow2: Image is corrupt: %v; further non-fatal corruption events will be suppressed", err))
}

// failAccess is fail for what the guest asks: where the image turned out to be
// damaged, the corrupt bit is set at once, so that nobody writes to it before it
// is repaired. The caller holds no lock but on guest ranges.
func (img *Image) failAccess(op string, err error) error {
	if cause := img.refuse.Load(); cause != nil && errors.Is(*cause, block.ErrCorrupt) && !img.closed.Load() && !img.marked.Swap(true) {
		img.reportDamage(errors.Unwrap(*cause))
		_ = img.markCorrupt(*cause) // without the bit, this node still refuses
		if !img.unsafe {
			_ = img.wr.Flush()
		}
	}
	return img.fail(op, err)
}
