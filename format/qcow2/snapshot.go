package qcow2

import (
	"encoding/binary"

	"github.com/lamina-vm/lamina/format"
)

// snapshotFixed is the size of the fixed part of a snapshot table entry.
const snapshotFixed = 40

// snapshotExtra is the size of the extra data that is known: the size of the
// machine's state, the disk's size, and the instruction count.
const snapshotExtra = 24

// maxSnapshotExtra bounds the extra data of an entry, as QEMU does.
const maxSnapshotExtra = 1024

// snapshot is an entry of the snapshot table (spec "Snapshots").
type snapshot struct {
	l1Offset    hostOffset
	l1Size      uint32 // entries
	id, name    string
	dateSec     uint32
	dateNsec    uint32
	vmClockNsec uint64
	vmStateSize uint64
	diskSize    uint64 // 0 if not recorded
	icount      uint64 // all ones if not recorded
	extra       []byte // as stored, with fields that are not known
}

// decodeSnapshots decodes a snapshot table of count entries from b, which
// begins at the table and may reach beyond it. It returns the table's length.
func decodeSnapshots(b []byte, count int, g geometry) ([]snapshot, int, error) {
	var out []snapshot
	pos := 0
	for i := range count {
		s, n, err := decodeSnapshot(b[pos:], g)
		if err != nil {
			return nil, 0, corruptf("snapshot table entry %d of %d at byte %d: %v", i, count, pos, err)
		}
		out = append(out, s)
		pos += n
	}
	return out, pos, nil
}

func decodeSnapshot(b []byte, g geometry) (snapshot, int, error) {
	be := binary.BigEndian
	if len(b) < snapshotFixed {
		return snapshot{}, 0, corruptf("the table ends inside the entry")
	}
	s := snapshot{
		l1Offset:    hostOffset(be.Uint64(b)),
		l1Size:      be.Uint32(b[8:]),
		dateSec:     be.Uint32(b[16:]),
		dateNsec:    be.Uint32(b[20:]),
		vmClockNsec: be.Uint64(b[24:]),
		vmStateSize: uint64(be.Uint32(b[32:])),
		icount:      1<<64 - 1,
	}
	idLen, nameLen, extraLen := int(be.Uint16(b[12:])), int(be.Uint16(b[14:])), int64(be.Uint32(b[36:]))
	if extraLen > maxSnapshotExtra {
		return snapshot{}, 0, corruptf("Too much extra metadata in snapshot table entry: %d bytes", extraLen)
	}
	end := snapshotFixed + int(extraLen) + idLen + nameLen
	if end > len(b) {
		return snapshot{}, 0, corruptf("the table ends inside the entry")
	}
	if s.l1Size > maxL1Bytes/8 {
		return snapshot{}, 0, corruptf("Snapshot L1 table too large")
	}
	if s.l1Size > 0 && (s.l1Offset < 0 || s.l1Offset > 1<<62 || g.inCluster(int64(s.l1Offset)) != 0) {
		return snapshot{}, 0, corruptf("Snapshot L1 table offset invalid")
	}
	s.extra = append([]byte(nil), b[snapshotFixed:snapshotFixed+extraLen]...)
	if extraLen >= 8 {
		s.vmStateSize = be.Uint64(s.extra)
	}
	if extraLen >= 16 {
		s.diskSize = be.Uint64(s.extra[8:])
	}
	if extraLen >= 24 {
		s.icount = be.Uint64(s.extra[16:])
	}
	rest := b[snapshotFixed+extraLen:]
	s.id, s.name = string(rest[:idLen]), string(rest[idLen:idLen+nameLen])
	return s, min((end+7)&^7, len(b)), nil
}

// info returns the snapshot as format.Info lists it. size is the disk's size,
// which old entries do not record.
func (s snapshot) info(size int64) format.Snapshot {
	f := format.Snapshot{
		ID: s.id, Name: s.name, VMStateSize: int64(s.vmStateSize & (1<<63 - 1)),
		DateSec: s.dateSec, DateNsec: s.dateNsec, VMClockNsec: s.vmClockNsec,
		ICount: -1, DiskSize: int64(s.diskSize & (1<<63 - 1)),
	}
	if s.icount != 1<<64-1 {
		f.ICount = int64(s.icount & (1<<63 - 1))
	}
	if len(s.extra) < 16 {
		f.DiskSize = size
	}
	return f
}

// complete returns the snapshot with all extra data that is known, as stock
// QEMU completes every entry when it writes the table. size is the disk's,
// which old entries do not record.
func (s snapshot) complete(size int64) snapshot {
	if len(s.extra) < 16 {
		s.diskSize = uint64(size)
	}
	extra := make([]byte, max(len(s.extra), snapshotExtra))
	copy(extra, s.extra)
	be := binary.BigEndian
	be.PutUint64(extra, s.vmStateSize)
	be.PutUint64(extra[8:], s.diskSize)
	be.PutUint64(extra[16:], s.icount)
	s.extra = extra
	return s
}

// tableBytes returns the bytes of the entry, without what aligns the next one.
func (s snapshot) tableBytes() int64 {
	return int64(snapshotFixed + max(len(s.extra), snapshotExtra) + len(s.id) + len(s.name))
}

// snapshotTableSize returns the bytes of a table as encodeSnapshots writes it.
func snapshotTableSize(list []snapshot) int64 {
	n := int64(0)
	for _, s := range list {
		n = (n+7)&^7 + s.tableBytes()
	}
	return n
}

// encodeSnapshots returns the table of snapshots, all of which are complete.
func encodeSnapshots(list []snapshot) []byte {
	be := binary.BigEndian
	b := make([]byte, 0, snapshotTableSize(list)+8)
	for _, s := range list {
		b = append(b, make([]byte, -len(b)&7)...)
		b = be.AppendUint64(b, uint64(s.l1Offset))
		b = be.AppendUint32(b, s.l1Size)
		b = be.AppendUint16(b, uint16(len(s.id)))
		b = be.AppendUint16(b, uint16(len(s.name)))
		b = be.AppendUint32(b, s.dateSec)
		b = be.AppendUint32(b, s.dateNsec)
		b = be.AppendUint64(b, s.vmClockNsec)
		small := uint32(0) // one that does not fit is in the extra data only
		if s.vmStateSize < 1<<32 {
			small = uint32(s.vmStateSize)
		}
		b = be.AppendUint32(b, small)
		b = be.AppendUint32(b, uint32(len(s.extra)))
		b = append(append(append(b, s.extra...), s.id...), s.name...)
	}
	return b
}
