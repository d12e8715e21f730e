package block

// DiskSizer is a node that knows how much space it takes where it is stored.
type DiskSizer interface {
	// DiskSize returns the allocated bytes ("disk size" of qemu-img info).
	DiskSize() (int64, error)
}

// RangeCopier is a writable node that can take bytes over from another one
// without moving them through this process, sharing the storage where the
// file system can.
type RangeCopier interface {
	// CopyFrom copies n bytes at srcOff of src to off. It fails with
	// ErrUnsupported, before anything is changed, where the two cannot do
	// that; the caller then reads and writes. On another error a part of
	// the range may have been copied.
	CopyFrom(src Node, srcOff, off, n int64) error
}

// ZeroIniter is a node that can say whether what was never written of it, or
// was added by [Resizer].Resize, reads as zeros. Of nodes that do not say it,
// it does.
type ZeroIniter interface {
	ZeroInit() bool
}
