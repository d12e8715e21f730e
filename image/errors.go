package image

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/partition"
)

// unsupported is a sentinel that matches [block.ErrUnsupported]. Being a plain
// string, it costs nothing when a program starts.
type unsupported string

func (e unsupported) Error() string        { return string(e) + ": not supported" }
func (e unsupported) Is(target error) bool { return target == block.ErrUnsupported }

// OpenError says which image could not be opened.
type OpenError struct {
	Name string // as the user gave it
	Err  error
}

// Error names the image and the cause.
func (e *OpenError) Error() string { return fmt.Sprintf("open image %s: %v", e.Name, e.Err) }

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Err }

// BackingError says which backing file of an image could not be opened.
type BackingError struct {
	Overlay string // the file that names it
	Name    string // as the overlay names it
	Err     error
}

// Error names the file and the cause.
func (e *BackingError) Error() string {
	return fmt.Sprintf("backing file %q of %s: %v", e.Name, e.Overlay, e.Err)
}

// Unwrap returns the cause.
func (e *BackingError) Unwrap() error { return e.Err }

// SharedDataError is for an image whose external data file is another file of
// the chain, or itself. It matches [block.ErrBackingLoop].
type SharedDataError struct {
	Image, Data string // paths
	Other       string // the layer whose file it is, too
}

// Error names the files.
func (e *SharedDataError) Error() string {
	return fmt.Sprintf("the data file %s of %s is a file of %s, which is in the same chain", e.Data, e.Image, e.Other)
}

// Is makes the error match [block.ErrBackingLoop].
func (e *SharedDataError) Is(target error) bool { return target == block.ErrBackingLoop }

// UnknownFormatError is for a format that there is no driver for. It matches
// [block.ErrUnknownFormat].
type UnknownFormatError struct{ Format string }

// Error names the format.
func (e *UnknownFormatError) Error() string {
	return fmt.Sprintf("unknown image format %q: raw and qcow2 are supported", e.Format)
}

// Is makes the error match [block.ErrUnknownFormat].
func (e *UnknownFormatError) Is(target error) bool { return target == block.ErrUnknownFormat }

// NotFormatError is for a file that is not an image of the format that it was
// to be opened as. It matches [block.ErrNotFormat].
type NotFormatError struct{ Name, Format string }

// Error names file and format.
func (e *NotFormatError) Error() string {
	return fmt.Sprintf("%s is not in %s format", e.Name, e.Format)
}

// Is makes the error match [block.ErrNotFormat].
func (e *NotFormatError) Is(target error) bool { return target == block.ErrNotFormat }

// ProtocolError is for a name of a protocol other than file. It matches
// [block.ErrUnsupported].
type ProtocolError struct{ Name, Protocol string }

// Error names the protocol and how to name a file with a colon.
func (e *ProtocolError) Error() string {
	return fmt.Sprintf("%s: protocol %q is not supported; write ./%s if this is a file", e.Name, e.Protocol, e.Name)
}

// Is makes the error match [block.ErrUnsupported].
func (e *ProtocolError) Is(target error) bool { return target == block.ErrUnsupported }

// CutError is for a resize that would cut off a partition.
type CutError struct {
	Name      string
	Size      int64 // that was asked for, in bytes
	Scheme    partition.Scheme
	Partition partition.Partition
}

// Error names the partition, its end, and the remedy.
func (e *CutError) Error() string {
	return fmt.Sprintf("%s: a size of %d bytes would cut partition %d of its %s partition table, which ends at %d: make the partition smaller first, or force it",
		e.Name, e.Size, e.Partition.Number, e.Scheme, e.Partition.End())
}

// guardedRaw keeps a raw image, whose format was only guessed, from turning
// into one of another format: a guest that could write a header there would
// have the next probe open any file of the host as its backing file.
type guardedRaw struct {
	block.Node
	name string
}
