package qcow2

import "encoding/binary"

// Bits of an L1 entry (spec "L1 table entry"):
//
//	0 -  8  reserved, 0
//	9 - 55  bits 9-55 of the host offset of the L2 table; 0 if there is none
//	56 - 62 reserved, 0
//	63      COPIED: the refcount of the L2 table is exactly 1
const (
	entryOffsetMask   = 0x00ff_ffff_ffff_fe00
	entryCopied       = 1 << 63
	l1ReservedMask    = 0x7f00_0000_0000_01ff
	refTableReserved  = 0x1ff
	refTableOffsetMax = 1<<63 - 1
)

// An l1Entry is an entry of the L1 table.
type l1Entry uint64

// l2Table returns the host offset of the L2 table, 0 if there is none.
func (e l1Entry) l2Table() hostOffset { return hostOffset(e & entryOffsetMask) }

// copied reports whether the L2 table may be changed in place.
func (e l1Entry) copied() bool { return e&entryCopied != 0 }

// check refuses reserved bits and a table that is not cluster aligned.
func (e l1Entry) check(g geometry) error {
	if e&l1ReservedMask != 0 {
		return corruptf("L1 entry %#016x has reserved bits set", uint64(e))
	}
	if g.inCluster(int64(e.l2Table())) != 0 {
		return damagef("L2 table offset %#x unaligned", int64(e.l2Table()))
	}
	return nil
}

// newL1Entry returns the entry for an L2 table that only this entry refers to.
func newL1Entry(table hostOffset) l1Entry { return l1Entry(table) | entryCopied }

// decodeL1 decodes a table of 8-byte entries. Active L1 tables and those of
// snapshots look alike.
func decodeL1(b []byte) []l1Entry {
	t := make([]l1Entry, len(b)/8)
	for i := range t {
		t[i] = l1Entry(binary.BigEndian.Uint64(b[i*8:]))
	}
	return t
}

// encodeL1 is the inverse of decodeL1.
func encodeL1(t []l1Entry) []byte {
	b := make([]byte, len(t)*8)
	for i, e := range t {
		binary.BigEndian.PutUint64(b[i*8:], uint64(e))
	}
	return b
}
