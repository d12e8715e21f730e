// Package block is the contract that every virtual disk keeps.
//
// A [Node] is a disk of a fixed number of bytes that can be read at any
// offset. What else a node can do (write, discard, resize, be checked, ...)
// it says by implementing the small optional interfaces of this package;
// callers ask with a type assertion or, through wrappers, with [As].
//
// Protocol nodes (bytes of a file, of an NBD export) and format nodes (the
// disk inside a qcow2 image) are both Nodes: a format driver is handed the
// node with the image file's bytes and returns the node that the guest sees.
// A format node that has a backing file includes it: reading what the overlay
// does not hold reads the backing chain.
//
// # Rules for every implementation
//
//   - ReadAt and WriteAt may be called concurrently, from any goroutine, and
//     concurrently with Extents, Flush, WriteZeroes and Discard. Overlapping
//     concurrent writes leave either one's bytes, never others.
//   - They transfer the whole buffer or return an error; they never retain it.
//   - A read that begins at or past the end returns 0, [io.EOF]; one that
//     reaches past the end returns the bytes up to it and [io.EOF].
//   - A write, zero or discard outside [0, Size()) fails with [ErrOutOfRange]
//     and changes nothing. A zero length is always allowed in [0, Size()].
//   - A method that changes the disk fails with [ErrReadOnly] on a node that
//     was opened read-only.
//   - After Close every method but Close fails with [ErrClosed]; a second
//     Close returns nil.
//   - No input, however damaged, makes a method panic, hang, or allocate
//     memory out of proportion to the request; damage is an error that
//     matches [ErrCorrupt] and names file, structure, offset and expectation.
package block

import (
	"context"
	"io"
	"iter"
)

// SectorSize is the unit of bytes in which disks have always been addressed.
// Sizes that users give are rounded up to it, as qemu-img does.
const SectorSize = 512

// Node is a virtual disk, or the bytes of a file that holds one.
// Every method but Close is safe for concurrent use.
type Node interface {
	// ReadAt reads len(p) bytes at guest offset off. See the package
	// comment for what happens at the end of the disk.
	io.ReaderAt

	// Size returns the size in bytes that the guest sees. It changes only
	// by [Resizer].Resize.
	Size() int64

	// Extents iterates over [off, off+n) in ascending order as runs of one
	// kind. The runs are contiguous, non-empty, cover exactly the request,
	// and neighbours that could be one run are one. It reads metadata only.
	// An error ends the iteration; it is yielded with a zero Extent.
	// A range outside the disk yields ErrOutOfRange.
	Extents(off, n int64) iter.Seq2[Extent, error]

	// Close releases the node and what it opened itself. It does not imply
	// Flush on a node with its own caches being safe to skip: a writable
	// node flushes what it holds, and Close returns the first error of that.
	Close() error
}

// Writer is a node that can be changed.
type Writer interface {
	Node

	// WriteAt writes len(p) bytes at guest offset off.
	io.WriterAt

	// Flush returns only when everything acknowledged before the call
	// survives power loss. After a failed Flush nothing acknowledged since
	// the last good one may be assumed safe, and every later Flush fails
	// too (the kernel drops dirty pages after a failed fsync).
	Flush() error
}

// ZeroFlags modify WriteZeroes.
type ZeroFlags uint

const (
	// ZeroMayUnmap lets the node give the space back (a hole, an
	// unallocated cluster) as long as the range then reads as zeros.
	ZeroMayUnmap ZeroFlags = 1 << iota
	// ZeroNoFallback makes WriteZeroes fail with ErrUnsupported rather
	// than write a buffer of zeros.
	ZeroNoFallback
	// ZeroExplicit makes a node with a backing file hold the zeros itself,
	// also where the backing file reads as zeros now, so that they stay when
	// it is exchanged or changed.
	ZeroExplicit
)

// Zeroer is a writable node that can make a range read as zeros faster than
// writing zeros to it.
type Zeroer interface {
	// WriteZeroes makes [off, off+n) read as zeros.
	WriteZeroes(off, n int64, flags ZeroFlags) error
}

// Discarder is a writable node that can give space back.
type Discarder interface {
	// Discard says that the content of [off, off+n) is no longer needed.
	// What the range reads as afterwards is up to the node, but never data
	// of an earlier time or of a neighbour that the guest did not own.
	Discard(off, n int64) error
}

// CompressedWriter is a format node that can store whole clusters compressed.
type CompressedWriter interface {
	// ClusterSize returns the unit of WriteCompressed in bytes.
	ClusterSize() int64
	// WriteCompressed stores p, which begins on a cluster boundary and is
	// one whole cluster, or reaches exactly the end of the disk. The range
	// must not be allocated in this image yet. Incompressible data is
	// stored as an ordinary cluster. Calls may run concurrently; the
	// compression runs outside the image's locks.
	WriteCompressed(p []byte, off int64) error
}

// Preallocation is how much of an image exists on disk before it is written.
type Preallocation string

// The modes that qemu-img knows.
const (
	PreallocOff      Preallocation = "off"      // nothing
	PreallocMetadata Preallocation = "metadata" // tables that map every cluster; the data is a hole
	PreallocFalloc   Preallocation = "falloc"   // posix_fallocate: blocks reserved, read as zeros
	PreallocFull     Preallocation = "full"     // zeros written to every block
)

// ResizeOptions are the choices of [Resizer].Resize. The zero value grows
// without preallocation and refuses to shrink.
type ResizeOptions struct {
	// Prealloc applies to the grown area. Empty means PreallocOff.
	Prealloc Preallocation
	// AllowShrink must be set to make the disk smaller. DANGER: data
	// behind the new end is lost.
	AllowShrink bool
	// Exact asks for this size and no other: storage of a fixed size, which
	// may take a smaller one as it does not matter there, refuses both.
	Exact bool
}

// Resizer is a writable node whose size can change. Resize must not run
// concurrently with other calls on the node. Grown space reads as zeros, also
// over a longer backing file.
type Resizer interface {
	Resize(ctx context.Context, size int64, opts ResizeOptions) error
}

// Backed is a format node that may have a backing file.
type Backed interface {
	// Backing returns the node below, nil where there is none or where it
	// was not opened.
	Backing() Node
}

// Wrapper is a node that adds one behaviour to another (throttling, fault
// injection, recording) and leaves the rest to it.
type Wrapper interface {
	Unwrap() Node
}

// As returns the ability T of n, or of the first node below it through
// [Wrapper] that has it. A wrapper that must not be passed by for an ability
// implements that ability itself.
func As[T any](n Node) (T, bool) {
	for n != nil {
		if a, ok := n.(T); ok {
			return a, true
		}
		w, ok := n.(Wrapper)
		if !ok {
			break
		}
		n = w.Unwrap()
	}
	var none T
	return none, false
}
