package format

import (
	"context"
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// Measurement is the size of the file that an image takes, in bytes.
type Measurement struct {
	// Required is the size that the content needs.
	Required uint64
	// FullyAllocated is the size once every byte of the disk was written.
	FullyAllocated uint64
	// Bitmaps is what the persistent dirty bitmaps of the source take
	// beyond that; HasBitmaps says that source and target can have any.
	Bitmaps    uint64
	HasBitmaps bool
}

// MeasureOptions are the choices of [Measurer].Measure.
type MeasureOptions struct {
	CreateOptions
	// Size is the size of the disk in bytes, where there is no Source.
	Size int64
	// Source is the disk that is to be converted; nil measures an empty one.
	Source block.Node
	// Bitmaps is the image that the source is in, where it can hold
	// bitmaps, and BitmapsSize the size of its disk.
	Bitmaps     BitmapKeeper
	BitmapsSize int64
}

// Measurer is a driver that can say how large an image would be. Nothing is
// written; only the metadata of the source is read.
type Measurer interface {
	Measure(ctx context.Context, opts MeasureOptions) (Measurement, error)
}

// MeasureError says where it could not be found out what a source stores.
type MeasureError struct {
	Offset int64 // guest offset in bytes
	Err    error
}

// Error names the offset and the cause.
func (e *MeasureError) Error() string {
	return fmt.Sprintf("map the source at guest offset %#x: %v", e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *MeasureError) Unwrap() error { return e.Err }
