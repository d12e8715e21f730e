package qcow2

import (
	"bytes"
	"encoding/binary"
)

// How an unfinished image is marked, so that stock QEMU refuses it too. A
// version 3 image has an incompatible feature that nobody knows, with a name
// in the feature name table; one of version 2 has no features and gets a
// version that nobody knows.
const (
	incompatUnfinished = 1 << unfinishedBit
	unfinishedBit      = 62
	unfinishedName     = "unfinished (its writer was interrupted)"
	unfinishedVersion  = 0x6c616d32 // "lam2"
)

// unfinishedStandIn is the feature whose entry in the table of names carries
// the name of the mark meanwhile: no error is ever about a compatible feature,
// and the header keeps its length, so that marking and clearing are one sector.
var unfinishedStandIn = featureName{featureCompatible, 0, "lazy refcounts"}

// MarkUnfinished implements [format.Unfinished].
func (Driver) MarkUnfinished(head []byte) {
	if !isQcow2(head) || len(head) < headerLenV2 {
		return
	}
	switch binary.BigEndian.Uint32(head[4:]) {
	case 2:
		binary.BigEndian.PutUint32(head[4:], unfinishedVersion)
	case 3:
		if len(head) < headerLenV3Min {
			return
		}
		incompat := head[offIncompatFeatures:]
		binary.BigEndian.PutUint64(incompat, binary.BigEndian.Uint64(incompat)|incompatUnfinished)
		renameFeature(head, unfinishedStandIn, featureName{featureIncompatible, unfinishedBit, unfinishedName})
	}
}

// ClearUnfinished implements [format.Unfinished].
func (Driver) ClearUnfinished(head []byte) bool {
	if !isQcow2(head) || len(head) < headerLenV2 {
		return false
	}
	switch binary.BigEndian.Uint32(head[4:]) {
	case unfinishedVersion:
		binary.BigEndian.PutUint32(head[4:], 2)
		return true
	case 3:
		if len(head) < headerLenV3Min {
			return false
		}
		incompat := head[offIncompatFeatures:]
		features := binary.BigEndian.Uint64(incompat)
		if features&incompatUnfinished == 0 {
			return false
		}
		binary.BigEndian.PutUint64(incompat, features&^incompatUnfinished)
		renameFeature(head, featureName{featureIncompatible, unfinishedBit, unfinishedName}, unfinishedStandIn)
		return true
	}
	return false
}

// renameFeature puts to in the place of from in the table of feature names, as
// far as head holds it.
func renameFeature(head []byte, from, to featureName) {
	pos := int64(binary.BigEndian.Uint32(head[100:]))
	for pos+8 <= int64(len(head)) {
		kind := binary.BigEndian.Uint32(head[pos:])
		n := int64(binary.BigEndian.Uint32(head[pos+4:]))
		if kind == extEnd {
			return
		}
		pos += 8
		if kind == extFeatureNames {
			table := head[pos:min(pos+n, int64(len(head)))]
			old, new := encodeFeatureNames([]featureName{from}), encodeFeatureNames([]featureName{to})
			for ; len(table) >= featureNameSize; table = table[featureNameSize:] {
				if bytes.Equal(table[:featureNameSize], old) {
					copy(table, new)
					return
				}
			}
			return
		}
		pos += (n + 7) &^ 7
	}
}
