package qcow2

import (
	"context"
	"fmt"
	"iter"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.SnapshotOpener = (*Image)(nil)

// OpenSnapshot implements [format.SnapshotOpener]. The snapshot's L1 table is
// held to the rules of the active one, and everything behind it is read by the
// same code.
//
// The disk's size is the one that the snapshot records, not the image's: an
// image that shrank since would lose its end, and one that grew would show the
// VM state, which lies behind the disk, as data. An old entry that records no
// size is of an image that could not be resized.
func (img *Image) OpenSnapshot(ctx context.Context, index int) (block.Node, error) {
	switch {
	case img.closed.Load():
		return nil, img.fail("open a snapshot of", block.ErrClosed)
	case img.wr != nil:
		return nil, img.fail("open a snapshot of", fmt.Errorf("the image is open for writing: %w", block.ErrUnsupported))
	case index < 0 || index >= len(img.snapshots):
		return nil, img.fail("open a snapshot of", fmt.Errorf("snapshot %d of %d: %w", index, len(img.snapshots), block.ErrOutOfRange))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := img.snapshots[index]
	if err := img.checkSnapshotL1(s); err != nil {
		return nil, fmt.Errorf("%s: internal snapshot %q: %w", img.name, s.name, err)
	}
	b := make([]byte, int64(s.l1Size)*8)
	if err := readPadded(img.file, b, int64(s.l1Offset)); err != nil {
		return nil, fmt.Errorf("%s: internal snapshot %q: %w", img.name, s.name, couldNotRead("snapshot L1 table", err))
	}
	snap := &Image{
		file: img.file, name: fmt.Sprintf("%s, internal snapshot %q", img.name, s.name),
		g: img.g, version: img.version, hdr: img.hdr, crypt: img.crypt,
		backingFile: img.backingFile, backingFormat: img.backingFormat, backing: img.backing,
		openEnd: img.openEnd, fileEnd: img.fileEnd,
		l1: decodeL1(b), l2: newL2Cache(img.g),
	}
	snap.size.Store(s.info(img.Size()).DiskSize)
	return &snapshotDisk{snap}, nil
}

// checkSnapshotL1 refuses an L1 table that does not lie in the file or does
// not cover the snapshot's disk.
func (img *Image) checkSnapshotL1(s snapshot) error {
	if err := s.checkL1(img.g); err != nil {
		return err
	}
	size := s.info(img.Size()).DiskSize
	if s.diskSize > uint64(1<<63-1<<maxClusterBits) {
		return corruptf("a disk size of %d bytes is larger than any disk can be", s.diskSize)
	}
	if need := img.g.l1EntriesFor(size); int64(s.l1Size) < need {
		return corruptf("Snapshot L1 table is too small: %d entries, a disk of %d bytes needs %d", s.l1Size, size, need)
	}
	if int64(s.l1Offset)+int64(s.l1Size)*8 > img.openEnd {
		return corruptf("Snapshot L1 table at offset %#x, %d entries, does not lie in the file of %d bytes: the file is truncated", int64(s.l1Offset), s.l1Size, img.file.Size())
	}
	return nil
}

// snapshotDisk is the disk of an internal snapshot: an Image with the
// snapshot's tables that shares file and backing chain with the one that it
// was opened from, whose they stay, and that has no way to change anything.
type snapshotDisk struct{ img *Image }

// ReadAt implements [block.Node].
func (d *snapshotDisk) ReadAt(p []byte, off int64) (int, error) { return d.img.ReadAt(p, off) }

// Size implements [block.Node].
func (d *snapshotDisk) Size() int64 { return d.img.Size() }

// Extents implements [block.Node].
func (d *snapshotDisk) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return d.img.Extents(off, n)
}

// Backing implements [block.Backed].
func (d *snapshotDisk) Backing() block.Node { return d.img.Backing() }

// Close implements [block.Node]. The file and the backing chain stay open.
func (d *snapshotDisk) Close() error {
	d.img.closed.Store(true)
	return nil
}
