package qcow2

import (
	"encoding/binary"
	"math/bits"
)

// A refTableEntry is an entry of the refcount table: the host offset of a
// refcount block, whose bits 0-8 are reserved, or 0 if every refcount of the
// block is 0 (spec "Host cluster management").
type refTableEntry uint64

// block returns the host offset of the refcount block, 0 if there is none.
func (e refTableEntry) block() hostOffset { return hostOffset(e &^ refTableReserved) }

// check refuses reserved bits and an unaligned block.
func (e refTableEntry) check(g geometry) error {
	if e&refTableReserved != 0 {
		return corruptf("refcount table entry %#016x has reserved bits set", uint64(e))
	}
	if e > refTableOffsetMax || g.inCluster(int64(e)) != 0 {
		return damagef("Refblock offset %#x unaligned", uint64(e))
	}
	return nil
}

// decodeRefTable decodes a refcount table.
func decodeRefTable(b []byte) []refTableEntry {
	t := make([]refTableEntry, len(b)/8)
	for i := range t {
		t[i] = refTableEntry(binary.BigEndian.Uint64(b[i*8:]))
	}
	return t
}

// encodeRefTable is the inverse of decodeRefTable.
func encodeRefTable(t []refTableEntry) []byte {
	b := make([]byte, len(t)*8)
	for i, e := range t {
		binary.BigEndian.PutUint64(b[i*8:], uint64(e))
	}
	return b
}

// getRefcount returns the i-th refcount of a refcount block with refcounts of
// 1<<order bits. Widths below a byte count from the least significant bit.
func getRefcount(b []byte, order uint, i int64) uint64 {
	switch order {
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(b[i*8:])
	}
	perByte := uint(3) - order // log2 of the refcounts in a byte
	shift := uint(i) & (1<<perByte - 1) << order
	return uint64(b[i>>perByte]>>shift) & (1<<(1<<order) - 1)
}

// setRefcount is the inverse of getRefcount. v fits the width.
func setRefcount(b []byte, order uint, i int64, v uint64) {
	switch order {
	case 3:
		b[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(b[i*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[i*4:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(b[i*8:], v)
	default:
		perByte := uint(3) - order
		shift := uint(i) & (1<<perByte - 1) << order
		mask := byte(1<<(1<<order)-1) << shift
		b[i>>perByte] = b[i>>perByte]&^mask | byte(v)<<shift
	}
}

// refcountByte returns the byte of a block that holds the i-th refcount.
func refcountByte(order uint, i int64) int64 { return i << order >> 3 }

// countFree returns how many refcounts of a block are 0. Most of a block is
// all zeros or none, so it looks at eight bytes at a time.
func countFree(b []byte, order uint) int64 {
	free := int64(0)
	perWord := int64(64) >> order
	for i := 0; i < len(b); i += 8 {
		word := binary.BigEndian.Uint64(b[i:])
		switch {
		case word == 0:
			free += perWord
		case order == 0:
			free += perWord - int64(bits.OnesCount64(word))
		default:
			first := int64(i) * 8 >> order
			for k := range perWord {
				if getRefcount(b, order, first+k) == 0 {
					free++
				}
			}
		}
	}
	return free
}
