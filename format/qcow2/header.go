package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/lamina-vm/lamina/block"
)

// magic is "QFI\xfb", the first four bytes of every image.
const magic = 0x514649fb

// Lengths of the header by version (spec "Header"). Version 3 headers may be
// longer; everything behind the known fields is kept as it is.
const (
	headerLenV2    = 72
	headerLenV3Min = 104
	headerLenV3    = 112 // with compression_type and its padding
)

// Byte offsets of the header fields that are rewritten one by one.
const (
	offBackingOffset    = 8
	offSize             = 24
	offL1Size           = 36 // 4 bytes, followed by the L1 offset, 8 bytes
	offRefTableOffset   = 48 // 8 bytes, followed by the cluster count, 4 bytes
	offSnapshotCount    = 60 // 4 bytes, followed by the table's offset, 8 bytes
	offIncompatFeatures = 72
	offAutoclear        = 88
)

// Incompatible features: an implementation that does not know one must not
// open the image.
const (
	incompatDirty       = 1 << 0 // refcounts may be out of date
	incompatCorrupt     = 1 << 1 // any structure may be corrupt; no writing
	incompatDataFile    = 1 << 2 // guest clusters lie in another file
	incompatCompression = 1 << 3 // compression_type is not zlib
	incompatExtendedL2  = 1 << 4 // L2 entries of 128 bits, with subclusters

	// incompatHandled are the ones that this driver can work with.
	incompatHandled = incompatDirty | incompatCorrupt | incompatCompression | incompatDataFile | incompatExtendedL2
)

// compatLazyRefcounts: refcounts may be written late, under the dirty bit.
const compatLazyRefcounts = 1 << 0

// Autoclear features: whoever writes and does not know one clears it.
const (
	autoclearBitmaps = 1 << 0 // the bitmaps extension is consistent
	autoclearRawData = 1 << 1 // the external data file is a raw image

	// autoclearHandled are the ones that this driver keeps true.
	autoclearHandled = autoclearBitmaps | autoclearRawData
)

// Compression types.
const (
	compressionZlib = 0
	compressionZstd = 1
)

// header is the image header in the order of the file (spec "Header").
type header struct {
	version          uint32
	backingOffset    uint64 // host offset of the backing file name, 0 if none
	backingSize      uint32 // bytes of the name, without terminator
	clusterBits      uint32
	size             uint64 // virtual size in bytes
	cryptMethod      uint32 // 0 none, 1 AES, 2 LUKS
	l1Size           uint32 // entries
	l1Offset         uint64
	refTableOffset   uint64
	refTableClusters uint32
	snapshotCount    uint32
	snapshotsOffset  uint64
	// Version 3 only; version 2 has no features and 16-bit refcounts.
	incompat, compat, autoclear uint64
	refcountOrder               uint32
	headerLength                uint32
	compressionType             uint8
	// unknown holds the header's bytes behind headerLenV3.
	unknown []byte
}

// isQcow2 reports whether b begins with the magic and a version that there is.
func isQcow2(b []byte) bool {
	if len(b) < 8 || binary.BigEndian.Uint32(b) != magic {
		return false
	}
	return binary.BigEndian.Uint32(b[4:]) >= 2
}

// decodeHeader decodes the header from the image's first bytes, b, which hold
// as much of the first cluster as there is. It checks what can be known from
// the header alone; [header.validate] does the rest.
func decodeHeader(b []byte) (*header, error) {
	be := binary.BigEndian
	if len(b) < 8 || be.Uint32(b) != magic {
		return nil, &stockError{"Image is not in qcow2 format", block.ErrNotFormat}
	}
	h := &header{version: be.Uint32(b[4:])}
	if h.version == unfinishedVersion {
		return nil, block.ErrUnfinished
	}
	if h.version != 2 && h.version != 3 {
		return nil, unsupportedf("Unsupported qcow2 version %d", h.version)
	}
	if len(b) < headerLenV2 {
		return nil, corruptf("qcow2 header: file ends at byte %d, the header of version %d has at least %d", len(b), h.version, headerLenV2)
	}
	h.backingOffset = be.Uint64(b[8:])
	h.backingSize = be.Uint32(b[16:])
	h.clusterBits = be.Uint32(b[20:])
	h.size = be.Uint64(b[24:])
	h.cryptMethod = be.Uint32(b[32:])
	h.l1Size = be.Uint32(b[36:])
	h.l1Offset = be.Uint64(b[40:])
	h.refTableOffset = be.Uint64(b[48:])
	h.refTableClusters = be.Uint32(b[56:])
	h.snapshotCount = be.Uint32(b[60:])
	h.snapshotsOffset = be.Uint64(b[64:])
	h.refcountOrder = 4
	h.headerLength = headerLenV2
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return nil, unsupportedf("Unsupported cluster size: 2^%d", h.clusterBits)
	}
	if h.version == 2 {
		return h, nil
	}
	return h, h.decodeV3(b)
}

// decodeV3 decodes the fields that version 3 added.
func (h *header) decodeV3(b []byte) error {
	be := binary.BigEndian
	if len(b) < headerLenV3Min {
		return corruptf("qcow2 header: file ends at byte %d, the header of version 3 has at least %d", len(b), headerLenV3Min)
	}
	h.incompat = be.Uint64(b[72:])
	if h.incompat&incompatUnfinished != 0 {
		return block.ErrUnfinished // whatever else there is of it
	}
	h.compat = be.Uint64(b[80:])
	h.autoclear = be.Uint64(b[88:])
	h.refcountOrder = be.Uint32(b[96:])
	h.headerLength = be.Uint32(b[100:])
	if h.headerLength < headerLenV3Min {
		return corruptf("qcow2 header too short")
	}
	if int64(h.headerLength) > 1<<h.clusterBits {
		return corruptf("qcow2 header exceeds cluster size")
	}
	if int64(h.headerLength) > int64(len(b)) {
		return corruptf("qcow2 header: header_length is %d, the file ends at byte %d", h.headerLength, len(b))
	}
	if h.headerLength > headerLenV3Min {
		h.compressionType = b[104]
	}
	if h.headerLength > headerLenV3 {
		h.unknown = append([]byte(nil), b[headerLenV3:h.headerLength]...)
	}
	return nil
}

// geometry returns the sizes that follow from the header. Only for a header
// that validate accepted.
func (h *header) geometry() geometry {
	return geometry{
		clusterBits:   uint(h.clusterBits),
		refcountOrder: uint(h.refcountOrder),
		external:      h.incompat&incompatDataFile != 0,
		extendedL2:    h.incompat&incompatExtendedL2 != 0,
	}
}

// validate checks every field that sizes an allocation or points into the
// file. forCheck leaves out what a check reports as a finding itself: tables
// outside the file.
func (h *header) validate(fileSize int64, features []featureName, forCheck bool) error {
	if err := h.validateFeatures(features); err != nil {
		return err
	}
	if n := h.geometry().subclusterSize(); n < minSubclusterSize {
		return unsupportedf("Unsupported subcluster size: %d", n)
	}
	if h.refcountOrder > maxRefcountOrder {
		return unsupportedf("Reference count entry width too large; may not exceed 64 bits")
	}
	switch {
	case h.cryptMethod > 2:
		return unsupportedf("Unsupported encryption method %d", h.cryptMethod)
	}
	g := h.geometry()
	if h.size > uint64(1<<63-1<<maxClusterBits) {
		return unsupportedf("virtual size %d is larger than any disk can be", h.size)
	}
	if err := checkTable("Active L1 table", h.l1Offset, uint64(h.l1Size), 8, maxL1Bytes, g); err != nil {
		return err
	}
	if int64(h.l1Size) < g.l1EntriesFor(int64(h.size)) {
		return corruptf("L1 table is too small")
	}
	if h.refTableClusters == 0 && !forCheck {
		return corruptf("Image does not contain a reference count table")
	}
	rtBytes := uint64(h.refTableClusters) << h.clusterBits
	if err := checkTable("Reference count table", h.refTableOffset, rtBytes/8, 8, maxRefTableBytes, g); err != nil {
		return err
	}
	if !forCheck {
		if err := h.validateSnapshots(g); err != nil {
			return err
		}
	}
	if h.backingOffset != 0 {
		if h.backingSize > maxBackingName || uint64(h.backingSize) > uint64(g.clusterSize()) {
			return corruptf("Backing file name too long")
		}
		if h.backingOffset > uint64(g.clusterSize()) || h.backingOffset+uint64(h.backingSize) > uint64(g.clusterSize()) {
			return corruptf("Invalid backing file offset")
		}
	}
	if forCheck {
		return nil
	}
	return h.contained(fileSize, rtBytes)
}

// validateSnapshots checks the place of the snapshot table.
func (h *header) validateSnapshots(g geometry) error {
	switch {
	case h.snapshotCount > maxSnapshots:
		return corruptf("Snapshot table too large")
	case h.snapshotCount > 0 && h.snapshotsOffset == 0, h.snapshotsOffset > 1<<62, h.snapshotsOffset&uint64(g.clusterSize()-1) != 0:
		return corruptf("Snapshot table offset invalid")
	}
	return nil
}

// contained refuses tables that do not lie in the file. The last cluster of a
// file may be cut off behind the last byte that was written.
func (h *header) contained(fileSize int64, rtBytes uint64) error {
	end := uint64(h.geometry().roundUp(fileSize))
	if h.l1Offset+uint64(h.l1Size)*8 > end {
		return corruptf("Active L1 table at offset %#x, %d entries, does not lie in the file of %d bytes: the file is truncated", h.l1Offset, h.l1Size, fileSize)
	}
	if h.refTableOffset+rtBytes > end {
		return corruptf("Reference count table at offset %#x, %d clusters, does not lie in the file of %d bytes: the file is truncated", h.refTableOffset, h.refTableClusters, fileSize)
	}
	if h.snapshotCount > 0 && h.snapshotsOffset >= end {
		return corruptf("Snapshot table at offset %#x does not lie in the file of %d bytes: the file is truncated", h.snapshotsOffset, fileSize)
	}
	return nil
}

// validateFeatures refuses incompatible features that the driver cannot work
// with, by name.
func (h *header) validateFeatures(features []featureName) error {
	if unknown := h.incompat &^ incompatHandled; unknown != 0 {
		return unsupportedf("Unsupported qcow2 feature(s): %s", nameFeatures(unknown, features))
	}
	if h.version < 3 {
		return nil
	}
	if h.incompat&incompatCompression == 0 && h.compressionType != compressionZlib {
		return corruptf("Compression type incompatible feature bit must be set")
	}
	if h.incompat&incompatCompression != 0 && h.compressionType == compressionZlib {
		return corruptf("Compression type incompatible feature bit must not be set")
	}
	if h.compressionType > compressionZstd {
		return unsupportedf("Unknown compression type: %d", h.compressionType)
	}
	return nil
}

// nameFeatures lists the names of incompatible feature bits, from the image's
// own table where it has them.
func nameFeatures(mask uint64, features []featureName) string {
	var names []string
	for _, f := range features {
		if f.kind == featureIncompatible && f.bit < 64 && mask&(1<<f.bit) != 0 {
			names = append(names, f.name)
			mask &^= 1 << f.bit
		}
	}
	if mask != 0 {
		names = append(names, fmt.Sprintf("Unknown incompatible feature: %x", mask))
	}
	return strings.Join(names, ", ")
}

// checkTable checks offset and size of a table of the header: aligned, below
// its limit, and without overflow.
func checkTable(name string, off, entries, entrySize, limit uint64, g geometry) error {
	hi, size := bits.Mul64(entries, entrySize)
	if hi != 0 || size > limit {
		return corruptf("%s too large", name)
	}
	if off > 1<<62 || off&uint64(g.clusterSize()-1) != 0 {
		return corruptf("%s offset invalid", name)
	}
	return nil
}

// encode returns the header's bytes.
func (h *header) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, headerLenV2, headerLenV3+len(h.unknown))
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], h.version)
	be.PutUint64(b[8:], h.backingOffset)
	be.PutUint32(b[16:], h.backingSize)
	be.PutUint32(b[20:], h.clusterBits)
	be.PutUint64(b[24:], h.size)
	be.PutUint32(b[32:], h.cryptMethod)
	be.PutUint32(b[36:], h.l1Size)
	be.PutUint64(b[40:], h.l1Offset)
	be.PutUint64(b[48:], h.refTableOffset)
	be.PutUint32(b[56:], h.refTableClusters)
	be.PutUint32(b[60:], h.snapshotCount)
	be.PutUint64(b[64:], h.snapshotsOffset)
	if h.version < 3 {
		return b
	}
	b = b[:headerLenV3]
	be.PutUint64(b[72:], h.incompat)
	be.PutUint64(b[80:], h.compat)
	be.PutUint64(b[88:], h.autoclear)
	be.PutUint32(b[96:], h.refcountOrder)
	be.PutUint32(b[100:], uint32(headerLenV3+len(h.unknown)))
	b[104] = h.compressionType
	return append(b, h.unknown...)
}
