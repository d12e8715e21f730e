package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

// snapshotTable is a snapshot table as it was read.
type snapshotTable struct {
	list  []snapshot
	bytes int64 // from its beginning to the end of the last entry
	// What a repair leaves out: snapshots at the end, and entries whose extra
	// data was cut.
	overhanging, cut int
}

// tooLarge is an error about a snapshot table that a repair can shorten. It
// has the number that stock has for it.
func tooLarge(format string, args ...any) error {
	return &errnoError{fmt.Sprintf(format, args...), block.ErrCorrupt, syscall.EFBIG}
}

// readSnapshotTable reads a table of count entries at off, whose length only
// the entries tell; what lies behind the end of the file reads as zeros, which
// are entries without anything. It takes no more memory than a table may have
// bytes, at most limit. With repair, what is too large is cut and reported to it; otherwise
// it is an error.
func readSnapshotTable(r io.ReaderAt, off int64, count int, limit int64, repair func(format string, args ...any)) (snapshotTable, error) {
	var t snapshotTable
	w := &fileWindow{r: r}
	pos, length := off, int64(0)
	for i := range count {
		start := pos
		pos, length = (pos+7)&^7, (length+7)&^7
		s, n, err := readSnapshot(w, pos)
		if err != nil {
			return t, &stockError{"Failed to read snapshot table: " + err.Error(), err}
		}
		if extra := s.extraSize; extra > maxSnapshotExtra {
			if repair == nil {
				return t, tooLarge("Too much extra metadata in snapshot table entry %d\nYou can force-remove this extra metadata with qemu-img check -r all", i)
			}
			repair("Discarding too much extra metadata in snapshot table entry %d (%d > %d)", i, extra, maxSnapshotExtra)
			t.cut++
		}
		pos += n
		length += n - (int64(s.extraSize) - int64(len(s.extra)))
		if length > limit || pos-off > math.MaxInt32 {
			if repair == nil {
				return t, tooLarge("Snapshot table is too big\nYou can force-remove all %d overhanging snapshots with qemu-img check -r all", count-i)
			}
			repair("Discarding %d overhanging snapshots (snapshot table is too big)", count-i)
			t.overhanging = count - i
			pos = start
			break
		}
		t.list = append(t.list, s.snapshot)
	}
	t.bytes = pos - off
	return t, nil
}

// storedSnapshot is an entry with the size of extra data that it claims.
type storedSnapshot struct {
	snapshot
	extraSize uint32
}

// readSnapshot reads the entry at pos and returns its length in the file.
func readSnapshot(w *fileWindow, pos int64) (s storedSnapshot, n int64, err error) {
	b, err := w.at(pos, snapshotFixed)
	if err != nil {
		return s, 0, err
	}
	be := binary.BigEndian
	s.snapshot = decodeSnapshot(b)
	s.extraSize = be.Uint32(b[36:])
	idLen, nameLen := int(be.Uint16(b[12:])), int(be.Uint16(b[14:]))
	n = snapshotFixed
	if b, err = w.at(pos+n, int(min(s.extraSize, maxSnapshotExtra))); err != nil {
		return s, 0, err
	}
	s.setExtra(b)
	n += int64(s.extraSize)
	if b, err = w.at(pos+n, idLen+nameLen); err != nil {
		return s, 0, err
	}
	// For stock QEMU a name ends at a zero byte, also when it writes it again.
	s.id, s.name = cString(string(b[:idLen])), cString(string(b[idLen:]))
	return s, n + int64(idLen+nameLen), nil
}

// fileWindow reads small pieces of a file by large requests.
type fileWindow struct {
	r     io.ReaderAt
	start int64
	b     []byte
}

// at returns n bytes at off, which are good until the next call.
func (w *fileWindow) at(off int64, n int) ([]byte, error) {
	if off < w.start || off+int64(n) > w.start+int64(len(w.b)) {
		if need := max(n, 64<<10); need > cap(w.b) {
			w.b = make([]byte, need)
		}
		w.b = w.b[:cap(w.b)]
		if err := readPadded(w.r, w.b, off); err != nil {
			w.b = w.b[:0]
			return nil, err
		}
		w.start = off
	}
	return w.b[off-w.start:][:n], nil
}

// readSnapshots reads the snapshot table, which must be whole. Of an image from
// outside it may have fewer bytes.
func (img *Image) readSnapshots(untrusted bool) error {
	img.snapshots, img.snapshotBytes = nil, 0
	if img.hdr.snapshotCount == 0 {
		return nil
	}
	if err := img.hdr.validateSnapshots(img.g); err != nil {
		return err
	}
	limit := int64(maxSnapshotBytes)
	if untrusted {
		limit = untrustedSnapshotBytes
	}
	t, err := readSnapshotTable(img.file, int64(img.hdr.snapshotsOffset), int(img.hdr.snapshotCount), limit, nil)
	if err != nil {
		return err
	}
	img.snapshots, img.snapshotBytes = t.list, t.bytes
	return nil
}
