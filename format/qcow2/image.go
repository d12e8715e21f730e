package qcow2

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
)

// Image is an open qcow2 image: the disk that the guest sees.
//
// Locks, in the order in which they are taken when more than one is held:
//
//  1. guest, a lock on ranges of guest clusters. Reads, and writes into
//     clusters that are already allocated, share a range; whatever changes
//     the mapping (allocating writes, zeroing, discarding) holds it alone. So
//     nobody ever looks at a cluster that is being replaced, and a freed host
//     cluster has no reader left.
//  2. bitmaps.mu, over the dirty bitmaps in memory and in the file.
//  3. wbMu: one writeback at a time. Everything that writes metadata to the
//     file holds it.
//  4. mu: the tables in memory. It is never held during guest data I/O,
//     compression or barriers; it is held while a table is read from the file.
type Image struct {
	file   block.Node
	wr     block.Writer // nil if opened read-only
	name   string       // for messages
	g      geometry
	unsafe bool // skip barriers
	rt     runtimeOptions

	version       uint32
	exts          []extension
	data          dataFile
	crypt         *crypt // nil if the image is not encrypted
	backingFile   string
	backingFormat string
	backing       block.Node // nil if none or not opened
	snapshots     []snapshot
	snapshotBytes int64 // of the snapshot table
	openEnd       int64 // size of the file at open, rounded up to clusters
	overlap       error // two tables lie at one place; nothing may be changed

	size   atomic.Int64 // virtual size
	closed atomic.Bool
	begun  atomic.Bool           // the header is prepared for changes
	refuse atomic.Pointer[error] // set where writing has become impossible

	report   func(line string) // is told of the first damage; may be nil
	reported atomic.Bool
	marked   atomic.Bool // the corrupt bit was set, or was to be

	guest rangeLock

	bitmaps bitmapSet // has its own lock

	wbMu sync.Mutex

	mu      sync.RWMutex // guards everything down to inflated
	hdr     header
	l1      []l1Entry
	l1Dirty span // indexes of entries that differ from the file
	l2      l2Cache
	refs    refcounts
	meta    clusterSet  // clusters that hold metadata; only if writable
	freed   []freedRun  // unlinked in memory, given back after the next barrier
	freeing discardKind // why what is released is
	fileEnd int64       // what lies behind was never in use and reads as zeros
	pack    packCursor
	lazy    bool // refcounts on disk are not kept true; the dirty bit says so

	inflated inflatedCache // has its own lock, a leaf
	chain    chainCache    // lock-free
	prealloc preallocProbe // has its own lock, taken before mu
}

// A span is a half-open interval of indexes; the zero value is empty.
type span struct{ lo, hi int64 }

func (s span) empty() bool { return s.hi <= s.lo }

func (s *span) add(lo, hi int64) {
	if s.empty() {
		*s = span{lo, hi}
		return
	}
	s.lo, s.hi = min(s.lo, lo), max(s.hi, hi)
}

// Size implements [block.Node].
func (img *Image) Size() int64 { return img.size.Load() }

// Backing implements [block.Backed].
func (img *Image) Backing() block.Node { return img.backing }

// ClusterSize implements [block.CompressedWriter].
func (img *Image) ClusterSize() int64 { return img.g.clusterSize() }

// fail puts the operation and the image's name before err.
func (img *Image) fail(op string, err error) error {
	return fmt.Errorf("%s %s: %w", op, img.name, err)
}

// checkChange refuses a change of [off, off+n) that cannot be made.
func (img *Image) checkChange(off, n int64) error {
	switch {
	case img.closed.Load():
		return block.ErrClosed
	case img.wr == nil:
		return block.ErrReadOnly
	}
	if err := img.refuse.Load(); err != nil {
		return *err
	}
	return block.CheckRange(off, n, img.Size())
}

// refuseWrites makes every later change and flush fail because of err, which
// it returns. The first reason stays.
func (img *Image) refuseWrites(err error) error {
	e := fmt.Errorf("no further writes after an earlier error: %w", err)
	img.refuse.CompareAndSwap(nil, &e)
	return err
}
