package qcow2

import (
	"encoding/binary"
	"math/bits"
)

// Limits of persistent bitmaps, QEMU's own.
const (
	maxBitmaps         = 65535
	maxBitmapDirectory = maxBitmaps * 1024 // bytes
	maxBitmapName      = 1023
	maxBitmapBytes     = 512 << 20 // of one bitmap, as it is stored
	minGranularityBits = 9
	maxGranularityBits = 31
	bitmapsExtLength   = 24
)

// Flags of a bitmap directory entry.
const (
	bitmapInUse    = 1 << 0 // was not stored after the last change
	bitmapAuto     = 1 << 1 // records writes
	bitmapReserved = 0xfffffffc
)

// bitmapTypeDirty is the only type of bitmap that there is.
const bitmapTypeDirty = 1

// A bitmapTable says where the table of a bitmap lies.
type bitmapTable struct {
	off     hostOffset
	entries int64
}

// bytes returns the length of the table.
func (t bitmapTable) bytes() int64 { return t.entries * 8 }

// A bitmapEntry is an entry of a bitmap table (spec "Bitmap table"): bits 9-55
// are the host offset of a cluster of bits, or 0: then bit 0 says what all of
// them are.
type bitmapEntry uint64

func (e bitmapEntry) host() hostOffset { return hostOffset(e & bitmapTableOffset) }

// valid reports whether the entry keeps the specification.
func (e bitmapEntry) valid(g geometry) bool {
	host := int64(e.host())
	return e&bitmapTableReserved == 0 && g.inCluster(host) == 0 && (host == 0 || e&bitmapTableAllOnes == 0)
}

// bitmapDirEntry is an entry of the bitmap directory in the order of the file
// (spec "Bitmap directory"). Each begins at a multiple of 8 bytes, so offset
// and flags each lie in one sector.
type bitmapDirEntry struct {
	table           bitmapTable // offset 8 bytes, entries 4
	flags           uint32
	kind            uint8
	granularityBits uint8
	nameSize        uint16
	extraSize       uint32
	name            string // behind the extra data
}

// dirEntrySize returns the bytes of an entry without extra data.
func dirEntrySize(name string) int64 {
	return (bitmapDirEntryFixed + int64(len(name)) + 7) &^ 7
}

// check returns whether the entry keeps the specification and the limits, for
// a disk of size bytes.
func (e *bitmapDirEntry) check(g geometry, size int64) bool {
	t := e.table
	switch {
	case t.entries == 0, t.off <= 0, g.inCluster(int64(t.off)) != 0, t.off > bitmapTableOffset,
		t.entries > maxBitmapBytes>>g.clusterBits,
		e.granularityBits > maxGranularityBits, e.granularityBits < minGranularityBits,
		e.flags&bitmapReserved != 0, e.nameSize > maxBitmapName, e.kind != bitmapTypeDirty:
		return false
	case e.flags&bitmapInUse != 0:
		return true // whatever it was, it is not used
	}
	return size <= 0 || t.entries<<g.clusterBits > (size-1)>>e.granularityBits>>3
}

// decodeBitmapDirectory decodes a directory of count bitmaps.
func decodeBitmapDirectory(b []byte, count uint32, g geometry, size int64) ([]bitmapDirEntry, error) {
	be := binary.BigEndian
	var list []bitmapDirEntry
	for len(b) > 0 {
		if len(b) < bitmapDirEntryFixed {
			return nil, corruptf("Broken bitmap directory")
		}
		if uint32(len(list)) >= count {
			return nil, corruptf("More bitmaps found than specified in header extension")
		}
		e := bitmapDirEntry{
			table: bitmapTable{hostOffset(be.Uint64(b)), int64(be.Uint32(b[8:]))},
			flags: be.Uint32(b[12:]), kind: b[16], granularityBits: b[17],
			nameSize: be.Uint16(b[18:]), extraSize: be.Uint32(b[20:]),
		}
		n := (bitmapDirEntryFixed + int64(e.nameSize) + int64(e.extraSize) + 7) &^ 7
		if n > int64(len(b)) {
			return nil, corruptf("Broken bitmap directory")
		}
		if e.extraSize != 0 {
			return nil, corruptf("Bitmap extra data is not supported")
		}
		e.name = string(b[bitmapDirEntryFixed : bitmapDirEntryFixed+int(e.nameSize)])
		if !e.check(g, size) {
			return nil, corruptf("Bitmap '%s' doesn't satisfy the constraints", cString(e.name))
		}
		list = append(list, e)
		b = b[n:]
	}
	if uint32(len(list)) != count {
		return nil, corruptf("Less bitmaps found than specified in header extension")
	}
	return list, nil
}

// cString returns s up to its first zero byte.
func cString(s string) string {
	for i := range len(s) {
		if s[i] == 0 {
			return s[:i]
		}
	}
	return s
}

// encodeBitmapDirectory is the inverse of decodeBitmapDirectory.
func encodeBitmapDirectory(list []bitmapDirEntry) []byte {
	be := binary.BigEndian
	var b []byte
	for _, e := range list {
		b = be.AppendUint64(b, uint64(e.table.off))
		b = be.AppendUint32(b, uint32(e.table.entries))
		b = be.AppendUint32(b, e.flags)
		b = append(b, bitmapTypeDirty, e.granularityBits)
		b = be.AppendUint16(b, uint16(len(e.name)))
		b = be.AppendUint32(b, 0)
		b = append(b, e.name...)
		b = append(b, make([]byte, -len(b)&7)...)
	}
	return b
}

// check checks the bitmaps extension's fields as QEMU does.
func (h bitmapsHeader) check(g geometry) error {
	switch {
	case h.count > maxBitmaps:
		return corruptf("bitmaps_ext: Image has %d bitmaps, exceeding the QEMU supported maximum of %d", h.count, maxBitmaps)
	case h.count == 0:
		return corruptf("found bitmaps extension with zero bitmaps")
	case h.directoryOffset < 0 || g.inCluster(int64(h.directoryOffset)) != 0:
		return corruptf("bitmaps_ext: invalid bitmap directory offset")
	case h.directorySize > maxBitmapDirectory:
		return corruptf("bitmaps_ext: bitmap directory size (%d) exceeds the maximum supported size (%d)", h.directorySize, maxBitmapDirectory)
	}
	return nil
}

// encode returns the data of the bitmaps extension.
func (h bitmapsHeader) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, h.count)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, h.directorySize)
	return binary.BigEndian.AppendUint64(b, uint64(h.directoryOffset))
}

// bitmapBits returns how many bits a disk of size bytes needs.
func bitmapBits(size int64, granularityBits uint) int64 {
	if size <= 0 {
		return 0
	}
	return (size-1)>>granularityBits + 1
}

// bitmapEntries returns the entries of the table of a bitmap of n bits.
func (g geometry) bitmapEntries(n int64) int64 { return ceilDiv(ceilDiv(n, 8), g.clusterSize()) }

// pageBits returns the bits of one cluster of bitmap data.
func (g geometry) pageBits() int64 { return g.clusterSize() * 8 }

// Bits are numbered from the least significant one of each byte.

// setBits sets the bits [lo, hi) of p.
func setBits(p []byte, lo, hi int64) {
	for lo < hi && lo&7 != 0 {
		p[lo>>3] |= 1 << (lo & 7)
		lo++
	}
	for ; lo+8 <= hi; lo += 8 {
		p[lo>>3] = 0xff
	}
	for ; lo < hi; lo++ {
		p[lo>>3] |= 1 << (lo & 7)
	}
}

// clearFrom clears the bits of p from lo on.
func clearFrom(p []byte, lo int64) {
	if lo >= int64(len(p))*8 {
		return
	}
	if lo&7 != 0 {
		p[lo>>3] &= 1<<(lo&7) - 1
		lo = (lo + 7) &^ 7
	}
	clear(p[lo>>3:])
}

// nextBit returns the first bit of p at or behind i, below end, that is set, or
// with set false the first that is not; end if there is none.
func nextBit(p []byte, i, end int64, set bool) int64 {
	flip := byte(0)
	if !set {
		flip = 0xff
	}
	for i < end {
		b := (p[i>>3] ^ flip) >> (i & 7)
		if b != 0 {
			return min(i+int64(bits.TrailingZeros8(b)), end)
		}
		i = (i + 8) &^ 7
		for i+64 <= end {
			w := binary.LittleEndian.Uint64(p[i>>3:])
			if flip != 0 {
				w = ^w
			}
			if w != 0 {
				return i + int64(bits.TrailingZeros64(w))
			}
			i += 64
		}
	}
	return end
}
