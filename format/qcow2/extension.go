package qcow2

import (
	"bytes"
	"encoding/binary"
)

// Header extension types (spec "Header extensions").
const (
	extEnd           = 0x00000000
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extEncryption    = 0x0537be77
	extDataFile      = 0x44415441
)

// extension is one header extension with its data as it is stored. Types that
// the driver does not know are kept, in their place, when the header is
// written again.
type extension struct {
	kind uint32
	data []byte
}

// Kinds of features in the feature name table.
const (
	featureIncompatible = 0
	featureCompatible   = 1
	featureAutoclear    = 2
)

// featureNameSize is the size of one entry of the feature name table: type,
// bit number, and a name padded with zeros.
const featureNameSize = 48

// featureName is an entry of the feature name table.
type featureName struct {
	kind, bit uint8
	name      string
}

// knownFeatures is the table that stock QEMU writes into new images.
var knownFeatures = []featureName{
	{featureIncompatible, 0, "dirty bit"},
	{featureIncompatible, 1, "corrupt bit"},
	{featureIncompatible, 2, "external data file"},
	{featureIncompatible, 3, "compression type"},
	{featureIncompatible, 4, "extended L2 entries"},
	{featureCompatible, 0, "lazy refcounts"},
	{featureAutoclear, 0, "bitmaps"},
	{featureAutoclear, 1, "raw external data"},
}

// bitmapsHeader is the data of the bitmaps extension.
type bitmapsHeader struct {
	count           uint32
	directorySize   uint64 // bytes
	directoryOffset hostOffset
}

// decodeExtensions decodes the extensions in b, the image's bytes from the end
// of the header to the backing file name or the end of the first cluster.
// Version 2 images may have them too.
func decodeExtensions(b []byte, start int) ([]extension, error) {
	var exts []extension
	for pos := start; pos+8 <= len(b); {
		kind := binary.BigEndian.Uint32(b[pos:])
		n := int64(binary.BigEndian.Uint32(b[pos+4:]))
		if kind == extEnd {
			return exts, nil
		}
		pos += 8
		if n > int64(len(b)-pos) {
			return nil, corruptf("Header extension too large")
		}
		exts = append(exts, extension{kind, append([]byte(nil), b[pos:pos+int(n)]...)})
		pos += (int(n) + 7) &^ 7
	}
	return exts, nil
}

// encodeExtensions returns the extensions with their end mark.
func encodeExtensions(exts []extension) []byte {
	var b []byte
	for _, e := range append(exts[:len(exts):len(exts)], extension{kind: extEnd}) {
		b = binary.BigEndian.AppendUint32(b, e.kind)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.data)))
		b = append(b, e.data...)
		b = append(b, make([]byte, -len(b)&7)...)
	}
	return b
}

// findExtension returns the data of the first extension of a type.
func findExtension(exts []extension, kind uint32) ([]byte, bool) {
	for _, e := range exts {
		if e.kind == kind {
			return e.data, true
		}
	}
	return nil, false
}

// decodeFeatureNames decodes a feature name table; a cut-off last entry is
// left out.
func decodeFeatureNames(b []byte) []featureName {
	var names []featureName
	for ; len(b) >= featureNameSize; b = b[featureNameSize:] {
		name, _, _ := bytes.Cut(b[2:featureNameSize], []byte{0})
		names = append(names, featureName{b[0], b[1], string(name)})
	}
	return names
}

// encodeFeatureNames is the inverse of decodeFeatureNames.
func encodeFeatureNames(names []featureName) []byte {
	b := make([]byte, len(names)*featureNameSize)
	for i, f := range names {
		e := b[i*featureNameSize:]
		e[0], e[1] = f.kind, f.bit
		copy(e[2:featureNameSize], f.name)
	}
	return b
}

// decodeBitmaps decodes the bitmaps extension. Its values were checked when the
// image was opened.
func decodeBitmaps(b []byte) (bitmapsHeader, error) {
	if len(b) != 24 {
		return bitmapsHeader{}, corruptf("bitmaps_ext: Invalid extension length")
	}
	h := bitmapsHeader{
		count:           binary.BigEndian.Uint32(b),
		directorySize:   binary.BigEndian.Uint64(b[8:]),
		directoryOffset: hostOffset(binary.BigEndian.Uint64(b[16:])),
	}
	if binary.BigEndian.Uint32(b[4:]) != 0 {
		return bitmapsHeader{}, corruptf("bitmaps_ext: Reserved field is not zero")
	}
	return h, nil
}

// encodeHead returns the first bytes of an image: header, extensions and
// backing file name, with the header's own fields about the name set.
func encodeHead(h *header, exts []extension, backing string) ([]byte, error) {
	head := h.encode()
	ext := encodeExtensions(exts)
	h.backingOffset, h.backingSize = 0, 0
	if backing != "" {
		h.backingOffset = uint64(len(head) + len(ext))
		h.backingSize = uint32(len(backing))
	}
	b := append(append(h.encode(), ext...), backing...)
	if int64(len(b)) > h.geometry().clusterSize() {
		return nil, corruptf("header, extensions and backing file name take %d bytes, a cluster has %d: use a larger cluster size or a shorter name", len(b), h.geometry().clusterSize())
	}
	return b, nil
}
