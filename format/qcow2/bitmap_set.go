package qcow2

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// Bounds of what bitmaps take in memory. Beside them there are the directory
// and, for each cluster of bits that was changed, a few words.
const (
	// recentBytes bounds the bits set lately, of all bitmaps together.
	recentBytes = 16 << 20
	// recentChunk is the unit in which they are kept.
	recentChunk = 4096
	// untrustedDirectory bounds the directory of an image from outside.
	untrustedDirectory = 8 << 20
	// checkedTables bounds how much of the tables is looked at when an image
	// is opened; what is beyond is looked at when it is used.
	checkedTables = 8 << 20
)

// bitmapSet is the image's persistent bitmaps.
//
// While the image is written, their entries in the file say that they are in
// use, so that whatever happens nobody trusts them; the bits set are kept in
// memory, over what the file has, and stored when the image is closed. New
// clusters hold new bits: what the directory in the file refers to is never
// written over.
type bitmapSet struct {
	mu   sync.Mutex // comes behind guest, before wbMu
	list []*dirtyBitmap

	ignored  bool          // the header has the extension, but not the bit that says it can be trusted
	header   bitmapsHeader // of the directory in the file; count 0 for none
	marked   bool          // the file says that they are in use
	changed  bool          // there is something to store
	removed  []bitmapTable // of removed bitmaps, given back once they are
	recent   int64         // bytes of the bits set lately
	tracking atomic.Bool   // writes must be recorded
}

// dirtyBitmap is one bitmap. It is guarded by bitmapSet.mu.
type dirtyBitmap struct {
	name    string
	shift   uint // granularity
	enabled bool
	broken  bool // inconsistent: it stays as the file has it
	flags   uint32

	bits  int64       // for the present size of the disk
	table bitmapTable // in the file; without entries for a new bitmap
	// valid is how many bits count of those in the file: what is behind was
	// cut off since.
	valid int64
	drop  bool // the file's bits are not used any more
	// pages holds the table entries that differ from the file's, by index.
	// The clusters that they refer to are ours: nothing in the file does.
	pages map[int64]bitmapEntry
	// recent holds bits set lately, by chunk; they come on top.
	recent map[int64][]byte
	dirty  bool // bits, size or place in the file are to be stored
}

// bitmapNamed returns a bitmap, or an error in stock's words.
func (s *bitmapSet) named(name string) (*dirtyBitmap, error) {
	for _, b := range s.list {
		if b.name == name {
			return b, nil
		}
	}
	return nil, &stockError{fmt.Sprintf("Dirty bitmap '%s' not found", name), block.ErrUnsupported}
}

// usable refuses inconsistent bitmaps.
func (b *dirtyBitmap) usable() error {
	if b.broken {
		return &format.InconsistentBitmapError{Name: b.name}
	}
	return nil
}

// openBitmaps reads the bitmap directory.
func (img *Image) openBitmaps(opts format.OpenOptions) error {
	s := &img.bitmaps
	data, ok := findExtension(img.exts, extBitmaps)
	if !ok {
		return nil
	}
	if len(data) != bitmapsExtLength {
		return corruptf("bitmaps_ext: Invalid extension length")
	}
	if img.hdr.autoclear&autoclearBitmaps == 0 || img.version < 3 {
		// Somebody wrote to the image who does not know bitmaps.
		s.ignored = true
		if opts.Warn != nil {
			text := "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"
			if img.version < 3 {
				text = "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent"
			}
			opts.Warn(text, "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.")
		}
		return nil
	}
	return img.readBitmaps(data, opts.Untrusted)
}

func (img *Image) readBitmaps(ext []byte, untrusted bool) error {
	s := &img.bitmaps
	h, err := decodeBitmaps(ext)
	if err != nil {
		return err
	}
	if err := h.check(img.g); err != nil {
		return err
	}
	switch {
	case h.directorySize == 0:
		return corruptf("Requested bitmap directory size is zero")
	case untrusted && h.directorySize > untrustedDirectory:
		return &stockError{fmt.Sprintf("the bitmap directory has %d bytes, in an image from outside it may have %d", h.directorySize, untrustedDirectory), block.ErrUntrusted}
	case int64(h.directoryOffset) > img.file.Size()-int64(h.directorySize):
		// A cluster that was cut off at the end of the file cannot hold it:
		// every entry ends with a name.
		if img.g.roundUp(img.file.Size()) < int64(h.directoryOffset)+int64(h.directorySize) {
			return corruptf("Failed to read bitmap directory: it lies at offset %#x, %d bytes, and the file has %d: the file is truncated", int64(h.directoryOffset), h.directorySize, img.file.Size())
		}
	}
	dir := make([]byte, h.directorySize)
	if err := readPadded(img.file, dir, int64(h.directoryOffset)); err != nil {
		return couldNotRead("bitmap directory", err)
	}
	entries, err := decodeBitmapDirectory(dir, h.count, img.g, img.Size())
	if err != nil {
		return err
	}
	s.header = h
	left := int64(checkedTables)
	for _, e := range entries {
		b := &dirtyBitmap{
			name: e.name, shift: uint(e.granularityBits), flags: e.flags, table: e.table,
			enabled: e.flags&bitmapAuto != 0, broken: e.flags&bitmapInUse != 0,
			bits: bitmapBits(img.Size(), uint(e.granularityBits)),
		}
		b.valid = b.bits
		s.list = append(s.list, b)
		if left > 0 && !b.broken {
			if err := img.checkBitmapTable(b); err != nil {
				return err
			}
			left -= b.table.bytes()
		}
	}
	return nil
}

// checkBitmapTable looks at a bitmap's whole table.
func (img *Image) checkBitmapTable(b *dirtyBitmap) error {
	if b.table.entries != img.g.bitmapEntries(b.bits) {
		return corruptf("Could not read bitmap '%s' from image: Invalid argument", b.name)
	}
	r := tableReader{img: img, table: b.table}
	for i := range b.table.entries {
		if _, err := r.entry(i); err != nil {
			return corruptf("Could not read bitmap_table table from image for bitmap '%s': Invalid argument", b.name)
		}
	}
	return nil
}

// tableReader reads the entries of a bitmap table in the file, a piece at a
// time.
type tableReader struct {
	img   *Image
	table bitmapTable
	start int64
	piece []byte
}

// entry returns an entry; what is behind the end of the table is 0.
func (r *tableReader) entry(i int64) (bitmapEntry, error) {
	if i >= r.table.entries {
		return 0, nil
	}
	if i < r.start || i >= r.start+int64(len(r.piece))/8 {
		r.start = i
		r.piece = make([]byte, min(bitmapTableReadChunk, (r.table.entries-i)*8))
		if err := readPadded(r.img.file, r.piece, int64(r.table.off)+i*8); err != nil {
			r.piece = nil
			return 0, couldNotRead("bitmap table", err)
		}
	}
	e := bitmapEntry(binary.BigEndian.Uint64(r.piece[(i-r.start)*8:]))
	if !e.valid(r.img.g) {
		return 0, corruptf("entry %d of the bitmap table at offset %#x is invalid: %#x", i, int64(r.table.off), uint64(e))
	}
	return e, nil
}

// tables returns a reader of the file's table of b, which is empty if its bits
// are not used any more.
func (img *Image) bitmapTableOf(b *dirtyBitmap) *tableReader {
	r := &tableReader{img: img, table: b.table}
	if b.drop {
		r.table = bitmapTable{}
	}
	return r
}

// readPage fills p, a cluster, with the bits of a bitmap that the table entry i
// stands for.
func (img *Image) readPage(b *dirtyBitmap, r *tableReader, i int64, p []byte) error {
	e, ours := b.pages[i]
	if !ours {
		var err error
		if e, err = r.entry(i); err != nil {
			return fmt.Errorf("bitmap '%s': %w", b.name, err)
		}
	}
	switch {
	case e.host() != 0:
		if err := readPadded(img.file, p, int64(e.host())); err != nil {
			return fmt.Errorf("bitmap '%s': read the cluster of bits at offset %#x: %w", b.name, int64(e.host()), err)
		}
	case e&bitmapTableAllOnes != 0:
		setBits(p, 0, int64(len(p))*8)
	default:
		clear(p)
	}
	first := i * img.g.pageBits()
	if !ours {
		clearFrom(p, max(b.valid-first, 0))
	}
	size := chunkBytes(img.g)
	for at := int64(0); at < int64(len(p)) && len(b.recent) > 0; at += size {
		if c := b.recent[(i*int64(len(p))+at)/size]; c != nil {
			for k := range c {
				p[at+int64(k)] |= c[k]
			}
		}
	}
	clearFrom(p, max(b.bits-first, 0))
	return nil
}

// chunkBytes returns the bytes of a chunk of recent bits: a part of a cluster.
func chunkBytes(g geometry) int64 { return min(recentChunk, g.clusterSize()) }

// dropIgnored has the extension removed that a program which does not know
// bitmaps has left behind.
func (s *bitmapSet) dropIgnored() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = s.changed || s.ignored
}

// retrack decides whether writes must be recorded.
func (s *bitmapSet) retrack() {
	on := false
	for _, b := range s.list {
		on = on || b.enabled && !b.broken
	}
	s.tracking.Store(on)
}
