package format

import (
	"iter"

	"github.com/lamina-vm/lamina/block"
)

// Bitmap is a dirty bitmap that an image keeps: which parts of the disk were
// written since it was added or cleared.
type Bitmap struct {
	Name string
	// Granularity is the bytes that one bit stands for, a power of two.
	Granularity int64
	// Enabled bitmaps record what is written.
	Enabled bool
	// Inconsistent bitmaps were in use when their image was last written and
	// not closed: what they hold cannot be trusted. They can only be removed.
	Inconsistent bool
}

// BitmapOptions are the choices of [BitmapKeeper].AddBitmap.
type BitmapOptions struct {
	// Granularity is in bytes; 0 is the default of the format.
	Granularity int64
	Disabled    bool
}

// DirtyRun is a run of dirty bytes of the disk. It begins and ends at a
// multiple of the bitmap's granularity, or at the end of the disk.
type DirtyRun struct{ Start, Length int64 }

// BitmapKeeper is a node whose image can hold dirty bitmaps (qcow2: spec
// "Bitmaps extension").
//
// Changes are made in memory and stored by StoreBitmaps and by Close. What is
// written to the disk meanwhile is recorded in the enabled bitmaps; if the node
// is not closed properly then, the image's bitmaps are inconsistent, all others
// are as they were. Errors say what is wrong in QEMU's words; all methods are
// safe for concurrent use. Those that change something need a writable node.
type BitmapKeeper interface {
	// KeepsBitmaps reports whether this image can hold bitmaps: not every
	// version of a format can.
	KeepsBitmaps() bool
	// Bitmaps returns the bitmaps in the order in which the image has them.
	Bitmaps() []Bitmap
	// AddBitmap adds a bitmap without a dirty bit. The name is 1 to 1023
	// bytes long.
	AddBitmap(name string, opts BitmapOptions) error
	// RemoveBitmap removes a bitmap, also an inconsistent one.
	RemoveBitmap(name string) error
	// ClearBitmap makes the whole disk clean.
	ClearBitmap(name string) error
	// SetBitmapEnabled lets a bitmap record what is written, or not.
	SetBitmapEnabled(name string, enabled bool) error
	// DirtyRuns iterates over the dirty runs of [off, off+n), ascending and
	// as long as they can be. Runs are cut at the ends of the range. An error
	// ends it. It is no snapshot: writes meanwhile may show.
	DirtyRuns(name string, off, n int64) iter.Seq2[DirtyRun, error]
	// MarkDirty adds runs to a bitmap, whatever its state and granularity;
	// what is behind the end of the disk is left out. An error of runs ends
	// it, with a part of them added.
	MarkDirty(name string, runs iter.Seq2[DirtyRun, error]) error
	// StoreBitmaps makes the image hold the bitmaps as they are, durably.
	// Nobody may write to the disk meanwhile.
	StoreBitmaps() error
}

// ErrActiveBitmaps matches block.ErrUnsupported: a snapshot cannot be applied
// to an image with bitmaps.
var ErrActiveBitmaps error = activeBitmaps{}

type activeBitmaps struct{}

func (activeBitmaps) Error() string        { return "Device has active dirty bitmaps" }
func (activeBitmaps) Is(target error) bool { return target == block.ErrUnsupported }

// BitmapBytes returns what bitmaps need in a qcow2 image with clusters of
// clusterSize bytes and a disk of diskSize bytes, at most: every bit stored,
// the tables, and the directory ("bitmaps" of `qemu-img measure`).
func BitmapBytes(bitmaps []Bitmap, diskSize, clusterSize int64) int64 {
	if len(bitmaps) == 0 || clusterSize <= 0 {
		return 0
	}
	up := func(n, unit int64) int64 {
		if n <= 0 {
			return 0
		}
		return (n-1)/unit + 1
	}
	total, directory := int64(0), int64(0)
	for _, b := range bitmaps {
		clusters := up(up(up(diskSize, b.Granularity), 8), clusterSize)
		total += clusters*clusterSize + up(clusters*8, clusterSize)*clusterSize
		directory += up(24+int64(len(b.Name)), 8) * 8
	}
	return total + up(directory, clusterSize)*clusterSize
}

// InconsistentBitmapError is for a bitmap that was in use when its image was
// last written and not closed. It matches block.ErrCorrupt.
type InconsistentBitmapError struct{ Name string }

// Error names the bitmap.
func (e *InconsistentBitmapError) Error() string {
	return "Bitmap '" + e.Name + "' is inconsistent and cannot be used"
}

// Is makes the error match block.ErrCorrupt.
func (e *InconsistentBitmapError) Is(target error) bool { return target == block.ErrCorrupt }
