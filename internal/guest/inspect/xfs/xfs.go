// Package xfs looks files up in an XFS file system, version 4 or 5, without a
// mount and without writing: superblock, inodes, extent lists and trees, folders
// of every form, symbolic links.
//
// It is our own because the library at hand opens no symbolic links, which
// /etc/os-release is, reads the inode of every file of each folder on the way,
// and trusts counts from the disk.
//
// The log is not replayed: after a crash of the guest, a file that had just been
// changed is seen as it was before. Checksums are not looked at. Layout: "XFS
// Algorithms & Data Structures" and the kernel's fs/xfs/libxfs/xfs_format.h.
package xfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
)

var be = binary.BigEndian

const (
	superLen   = 512
	superMagic = "XFSB"
	inodeMagic = 0x494e // "IN"
)

// Features of which a reader must know.
const (
	dirV2Bit = 0x2000 // sb_versionnum of version 4

	features2FileType = 0x200 // sb_features2 of version 4: entries have a type

	// sb_features_incompat of version 5.
	incompatFileType   = 0x1
	incompatSparseIno  = 0x2
	incompatMetaUUID   = 0x4
	incompatBigTime    = 0x8
	incompatNeedsCheck = 0x10
	incompatManyExtent = 0x20
	incompatExchange   = 0x40
	incompatParent     = 0x80
	incompatMetaDir    = 0x100
	incompatKnown      = incompatFileType | incompatSparseIno | incompatMetaUUID | incompatBigTime | incompatNeedsCheck |
		incompatManyExtent | incompatExchange | incompatParent | incompatMetaDir
)

// FS is an XFS file system. It is not safe for concurrent use.
type FS struct {
	r          io.ReaderAt
	blockSize  int64
	blocks     int64
	groupSize  int64 // blocks of an allocation group
	groups     int64
	groupBits  uint // of a block number within its group
	inodeSize  int64
	perBlock   uint // bits of an inode number within its block
	folderSize int64
	root       tree.ID
	version5   bool
	fileType   bool
}

func damaged(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, tree.ErrDamaged)...)
}

// Open reads the superblock of a file system that fills r, of size bytes.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, superLen)
	if size < superLen {
		return nil, damaged("xfs: %d bytes hold no superblock", size)
	}
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("xfs superblock: %w", err)
	}
	if string(b[:4]) != superMagic {
		return nil, damaged("xfs superblock: magic %q", b[:4])
	}
	f := &FS{
		r: r, blockSize: int64(be.Uint32(b[4:])), blocks: int64(be.Uint64(b[8:])), root: tree.ID(be.Uint64(b[56:])),
		groupSize: int64(be.Uint32(b[84:])), groups: int64(be.Uint32(b[88:])), groupBits: uint(b[124]),
		inodeSize: int64(be.Uint16(b[104:])), perBlock: uint(b[123]),
	}
	folderBits := uint(b[192])
	switch {
	case f.blockSize < 512 || f.blockSize > 64<<10 || f.blockSize&(f.blockSize-1) != 0:
		return nil, damaged("xfs superblock: blocks of %d bytes", f.blockSize)
	case f.blocks < 1 || f.blocks > 1<<48:
		return nil, damaged("xfs superblock: %d blocks", f.blocks)
	case f.groupBits > 31 || f.groupSize < 1 || f.groupSize > 1<<f.groupBits:
		return nil, damaged("xfs superblock: allocation groups of %d blocks", f.groupSize)
	case f.groups < 1:
		return nil, damaged("xfs superblock: no allocation group")
	case f.inodeSize < 256 || f.inodeSize > 2048 || f.inodeSize&(f.inodeSize-1) != 0 || f.inodeSize<<f.perBlock != f.blockSize:
		return nil, damaged("xfs superblock: inodes of %d bytes", f.inodeSize)
	case folderBits > 7 || f.blockSize<<folderBits > 64<<10:
		return nil, damaged("xfs superblock: folder blocks of 2^%d blocks", folderBits)
	}
	f.folderSize = f.blockSize << folderBits
	version := be.Uint16(b[100:])
	switch version & 0xf {
	case 4:
		if version&dirV2Bit == 0 {
			return nil, fmt.Errorf("xfs: folders of version 1: %w", tree.ErrUnsupported)
		}
		f.fileType = be.Uint32(b[200:])&features2FileType != 0
	case 5:
		incompat := be.Uint32(b[216:])
		if unknown := incompat &^ incompatKnown; unknown != 0 {
			return nil, fmt.Errorf("xfs: incompatible features %#x: %w", unknown, tree.ErrUnsupported)
		}
		f.version5, f.fileType = true, incompat&incompatFileType != 0
	default:
		return nil, fmt.Errorf("xfs: version %d: %w", version&0xf, tree.ErrUnsupported)
	}
	return f, nil
}

// Root implements [tree.FS].
func (f *FS) Root() tree.ID { return f.root }

// read reads bytes from offset off in block n of group g on.
func (f *FS) read(b []byte, g, n, off int64) error {
	at := g*f.groupSize + n
	if g < 0 || g >= f.groups || g > f.blocks/f.groupSize || n < 0 || n >= f.groupSize || at >= f.blocks || at*f.blockSize+off+int64(len(b)) > f.blocks*f.blockSize {
		return damaged("xfs: block %d of group %d", n, g)
	}
	if _, err := f.r.ReadAt(b, at*f.blockSize+off); err != nil {
		return fmt.Errorf("xfs block %d: %w", at, err)
	}
	return nil
}

// readBlock reads a block by its number, whose upper bits are the group.
func (f *FS) readBlock(n uint64) ([]byte, error) {
	b := make([]byte, f.blockSize)
	return b, f.read(b, int64(n>>f.groupBits), int64(n&(1<<f.groupBits-1)), 0)
}

// The forms in which an inode holds its content.
const (
	formLocal   = 1 // in the inode itself
	formExtents = 2 // a list of extents
	formTree    = 3 // the root of a tree of extents
)

// Fields of flags of an inode.
const (
	flagRealtime    = 1 << 0 // di_flags: the data is on another disk
	flagManyExtents = 1 << 4 // di_flags2: wide counters
)

// inode is one inode; fork is the area of its content or extents.
type inode struct {
	kind    fs.FileMode
	size    int64
	form    byte
	extents uint64
	fork    []byte
}

func (f *FS) inode(id tree.ID) (inode, error) {
	n := uint64(id)
	b := make([]byte, f.inodeSize)
	block := n >> f.perBlock
	off := int64(n&(1<<f.perBlock-1)) * f.inodeSize
	if err := f.read(b, int64(block>>f.groupBits), int64(block&(1<<f.groupBits-1)), off); err != nil {
		return inode{}, fmt.Errorf("inode %d: %w", id, err)
	}
	if be.Uint16(b) != inodeMagic {
		return inode{}, damaged("xfs: inode %d: magic %#x", id, be.Uint16(b))
	}
	i := inode{size: int64(be.Uint64(b[56:])), form: b[5], extents: uint64(be.Uint32(b[76:])), kind: kind(be.Uint16(b[2:]))}
	core := 100
	if b[4] >= 3 {
		core = 176
		if be.Uint64(b[120:])&flagManyExtents != 0 {
			i.extents = be.Uint64(b[24:])
		}
	}
	i.fork = b[core:]
	if n := int(b[82]) * 8; n != 0 { // where the attributes begin
		if n > len(i.fork) {
			return inode{}, damaged("xfs: inode %d: attributes at %d", id, n)
		}
		i.fork = i.fork[:n]
	}
	if be.Uint16(b[90:])&flagRealtime != 0 && i.kind == 0 {
		return inode{}, fmt.Errorf("xfs: inode %d is in the real-time section: %w", id, tree.ErrUnsupported)
	}
	if i.size < 0 {
		return inode{}, damaged("xfs: inode %d: size %d", id, i.size)
	}
	return i, nil
}

func kind(mode uint16) fs.FileMode {
	switch mode & 0xf000 {
	case 0x8000:
		return 0
	case 0x4000:
		return fs.ModeDir
	case 0xa000:
		return fs.ModeSymlink
	}
	return fs.ModeIrregular
}

// Stat implements [tree.FS].
func (f *FS) Stat(id tree.ID) (tree.Stat, error) {
	i, err := f.inode(id)
	return tree.Stat{Type: i.kind, Size: i.size}, err
}

// Read implements [tree.FS].
func (f *FS) Read(id tree.ID, max int) ([]byte, error) {
	i, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	n := min(i.size, int64(max))
	if i.form == formLocal {
		if n > int64(len(i.fork)) {
			return nil, damaged("xfs: inode %d: %d bytes in itself", id, n)
		}
		return i.fork[:n], nil
	}
	if i.kind&fs.ModeIrregular != 0 {
		return nil, nil
	}
	// Each block of a link's target begins with a header, in version 5.
	const linkMagic, linkHeader = "XSLM", 56
	b := make([]byte, 0, min(n, 64<<10))
	for logical := int64(0); int64(len(b)) < n; logical++ {
		part, err := f.fileBlock(i, logical)
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", id, err)
		}
		if i.kind == fs.ModeSymlink && f.version5 {
			if string(part[:len(linkMagic)]) != linkMagic {
				return nil, damaged("xfs: inode %d: link target: magic %q", id, part[:len(linkMagic)])
			}
			part = part[linkHeader:]
		}
		b = append(b, part[:min(int64(len(part)), n-int64(len(b)))]...)
	}
	return b, nil
}

// fileBlock returns a block of a file, zeros for a hole.
func (f *FS) fileBlock(i inode, logical int64) ([]byte, error) {
	n, ok, err := f.mapBlock(i, uint64(logical))
	if err != nil {
		return nil, err
	}
	if !ok {
		return make([]byte, f.blockSize), nil
	}
	return f.readBlock(n)
}
