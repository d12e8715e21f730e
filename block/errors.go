package block

import "errors"

// Sentinels for errors.Is. The errors that wrap them name the operation, the
// file and the values.
var (
	// ErrOutOfRange: a request does not lie inside the disk.
	ErrOutOfRange = errors.New("request is outside the disk")
	// ErrReadOnly: a change was asked of a node opened read-only.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrClosed: a node was used after Close.
	ErrClosed = errors.New("disk is closed")

	// ErrCorrupt: an image breaks its format's specification.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrUnsupported: an image, option or request needs something that this
	// node does not have; the wrapping error names it.
	ErrUnsupported = errors.New("not supported")
	// ErrInUse: another process holds a conflicting lock on the image.
	ErrInUse = errors.New("image is in use by another process")
	// ErrNotFormat: the file is not an image of the format asked for.
	ErrNotFormat = errors.New("image is not of this format")
	// ErrUnknownFormat: no driver of that name.
	ErrUnknownFormat = errors.New("unknown image format")
	// ErrBackingLoop: a backing chain contains a file twice.
	ErrBackingLoop = errors.New("backing chain loops")
	// ErrUnfinished: the program that filled the image was interrupted; what
	// it holds is not what it should.
	ErrUnfinished = errors.New("image is unfinished: the conversion that filled it was interrupted; run it again")
	// ErrUntrusted: an image that was opened as untrusted names another
	// file or claims more than an untrusted image may.
	ErrUntrusted = errors.New("untrusted image refused")
)
