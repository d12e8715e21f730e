package qcow2

import (
	"encoding/binary"
	"syscall"

	"github.com/lamina-vm/lamina/block"
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

// decodeSnapshot decodes the fixed part of an entry.
func decodeSnapshot(b []byte) snapshot {
	be := binary.BigEndian
	return snapshot{
		l1Offset:    hostOffset(be.Uint64(b)),
		l1Size:      be.Uint32(b[8:]),
		dateSec:     be.Uint32(b[16:]),
		dateNsec:    be.Uint32(b[20:]),
		vmClockNsec: be.Uint64(b[24:]),
		vmStateSize: uint64(be.Uint32(b[32:])),
		icount:      1<<64 - 1,
	}
}

// setExtra takes over an entry's extra data.
func (s *snapshot) setExtra(b []byte) {
	be := binary.BigEndian
	s.extra = append([]byte(nil), b...)
	if len(b) >= 8 {
		s.vmStateSize = be.Uint64(b)
	}
	if len(b) >= 16 {
		s.diskSize = be.Uint64(b[8:])
	}
	if len(b) >= 24 {
		s.icount = be.Uint64(b[16:])
	}
}

// checkL1 refuses an L1 table that cannot be one. It is looked at when the
// table is needed: the others can be used nevertheless.
func (s snapshot) checkL1(g geometry) error {
	if s.l1Size > maxL1Bytes/8 {
		return &errnoError{"Snapshot L1 table too large", block.ErrCorrupt, syscall.EFBIG}
	}
	if s.l1Offset < 0 || s.l1Offset > 1<<62 || g.inCluster(int64(s.l1Offset)) != 0 {
		return &errnoError{"Snapshot L1 table offset invalid", block.ErrCorrupt, syscall.EINVAL}
	}
	return nil
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
