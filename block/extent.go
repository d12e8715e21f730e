package block

import "fmt"

// Kind says where the bytes of an [Extent] come from.
type Kind uint8

const (
	// Unallocated: no layer of the chain holds the range; it reads as zeros.
	Unallocated Kind = iota
	// Zero: a layer says that the range reads as zeros, without storing them.
	Zero
	// Data: a layer stores the bytes as they are.
	Data
	// Compressed: a layer stores the bytes compressed.
	Compressed
)

// String returns the name used in messages.
func (k Kind) String() string {
	switch k {
	case Unallocated:
		return "unallocated"
	case Zero:
		return "zero"
	case Data:
		return "data"
	case Compressed:
		return "compressed"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// NoHostOffset is the HostOffset of an extent that has none.
const NoHostOffset int64 = -1

// Extent is a run of bytes of one kind.
type Extent struct {
	// Start is the guest offset of the first byte, Length the number of
	// bytes, at least 1.
	Start, Length int64
	Kind          Kind
	// Depth is the layer of the backing chain that decides the content: 0
	// is the node asked, 1 its backing file, and so on. For Unallocated it
	// is the depth of the last layer that was looked at and reached the
	// offset (as qemu-img map reports it).
	Depth int
	// HostOffset is the offset of Start in the file of that layer, or
	// NoHostOffset. Data always has one in an image whose bytes lie in a
	// file as they are; Zero has one where space is preallocated behind it,
	// and where it is a hole of a plain file, Unallocated where the last
	// layer has space for it; Compressed has none.
	HostOffset int64
	// ReadsZero says of Data that the layer's own file has a hole there, so
	// that it reads as zeros all the same (metadata preallocation).
	ReadsZero bool
	// File is the node whose bytes HostOffset counts in: nil means the
	// layer's own image file (a qcow2 external data file is not).
	File Node
}

// End returns the guest offset behind the extent.
func (e Extent) End() int64 { return e.Start + e.Length }

// IsZero reports whether the extent is known to read as zeros.
func (e Extent) IsZero() bool {
	return e.Kind == Unallocated || e.Kind == Zero || e.ReadsZero
}

// Follows reports whether e can be joined to the end of p: same kind, layer,
// flags and file, and contiguous both in the disk and in the file.
func (e Extent) Follows(p Extent) bool {
	if e.Start != p.End() || e.Kind != p.Kind || e.Depth != p.Depth || e.ReadsZero != p.ReadsZero || e.File != p.File {
		return false
	}
	if p.HostOffset == NoHostOffset || e.HostOffset == NoHostOffset {
		return p.HostOffset == e.HostOffset
	}
	return e.HostOffset == p.HostOffset+p.Length
}
