// Package extfs looks files up in an ext2, ext3 or ext4 file system, without a
// mount and without writing: superblock, group descriptors, inodes, extent
// trees and block maps, inline data, and folders, which are read entry by entry
// (an index over them need not be known for that).
//
// It is our own because the libraries at hand do not do for disks that nobody
// vouches for: they follow no symbolic links, know no inline data, take holes in
// a file for nothing, and allocate what a header asks for.
//
// The journal is not replayed: after a crash of the guest, a file that had just
// been changed is seen as it was before. [FS.Dirty] says so. Checksums are not
// looked at. Layout: the Linux kernel's Documentation/filesystems/ext4.
package extfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
)

var le = binary.LittleEndian

// The superblock.
const (
	superOffset = 1024
	superLen    = 1024
	superMagic  = 0xef53
)

// Features of which a reader must know (s_feature_incompat).
const (
	incompatFileType   = 0x0002
	incompatRecover    = 0x0004
	incompatMetaBG     = 0x0010
	incompatExtents    = 0x0040
	incompat64Bit      = 0x0080
	incompatMMP        = 0x0100
	incompatFlexBG     = 0x0200
	incompatEAInode    = 0x0400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000
	incompatEncrypt    = 0x10000 // only folders and files that are marked so
	incompatCaseFold   = 0x20000
	incompatKnown      = incompatFileType | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP |
		incompatFlexBG | incompatEAInode | incompatCsumSeed | incompatLargeDir | incompatInlineData | incompatEncrypt | incompatCaseFold
)

const (
	compatSparseSuper2  = 0x0200 // s_feature_compat
	roCompatSparseSuper = 0x0001 // s_feature_ro_compat
)

// Flags of an inode.
const (
	flagEncrypt    = 0x800
	flagExtents    = 0x80000
	flagInlineData = 0x10000000
)

const (
	rootInode     = 2
	iBlockOffset  = 0x28 // of the block map, extent root, link target or inline data
	iBlockLen     = 60
	goodInodeLen  = 128   // without the extra fields
	maxExtentTree = 5     // levels
	maxFolder     = 16384 // blocks of a folder that are read
)

// FS is an ext2, ext3 or ext4 file system. It is not safe for concurrent use.
type FS struct {
	r              io.ReaderAt
	blockSize      int64
	blocks         int64 // of the file system
	firstData      int64
	blocksPerGroup int64
	inodes         uint64
	inodesPerGroup uint64
	inodeSize      int64
	descSize       int64
	firstMetaBG    int64 // -1 without meta block groups
	sparse         func(group int64) bool
	dirty          bool
}

func damaged(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, tree.ErrDamaged)...)
}

// Open reads the superblock of a file system that fills r, of size bytes.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, superLen)
	if size < superOffset+superLen {
		return nil, damaged("ext: %d bytes hold no superblock", size)
	}
	if _, err := r.ReadAt(b, superOffset); err != nil {
		return nil, fmt.Errorf("ext superblock: %w", err)
	}
	if le.Uint16(b[0x38:]) != superMagic {
		return nil, damaged("ext superblock: magic %#x", le.Uint16(b[0x38:]))
	}
	f := &FS{r: r, firstMetaBG: -1, inodeSize: goodInodeLen, descSize: 32}
	compat, incompat, roCompat := le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	revision := le.Uint32(b[0x4c:])
	if revision == 0 {
		compat, incompat, roCompat = 0, 0, 0
	} else {
		f.inodeSize = int64(le.Uint16(b[0x58:]))
	}
	if unknown := incompat &^ incompatKnown; unknown != 0 {
		return nil, fmt.Errorf("ext: incompatible features %#x: %w", unknown, tree.ErrUnsupported)
	}
	logBlock := le.Uint32(b[0x18:])
	if logBlock > 6 { // 64 KiB
		return nil, damaged("ext superblock: block size of 2^(10+%d)", logBlock)
	}
	f.blockSize = 1024 << logBlock
	f.blocks = int64(le.Uint32(b[4:]))
	if incompat&incompat64Bit != 0 {
		f.descSize = int64(le.Uint16(b[0xfe:]))
		f.blocks |= int64(le.Uint32(b[0x150:])) << 32
	}
	f.firstData = int64(le.Uint32(b[0x14:]))
	f.blocksPerGroup = int64(le.Uint32(b[0x20:]))
	f.inodes, f.inodesPerGroup = uint64(le.Uint32(b[0:])), uint64(le.Uint32(b[0x28:]))
	switch {
	case f.blocks < 1 || f.blocks > 1<<48:
		return nil, damaged("ext superblock: %d blocks", f.blocks)
	case f.firstData > 1:
		return nil, damaged("ext superblock: first data block %d", f.firstData)
	case f.blocksPerGroup == 0:
		return nil, damaged("ext superblock: no blocks in a group")
	case f.inodesPerGroup == 0 || f.inodesPerGroup > uint64(8*f.blockSize):
		return nil, damaged("ext superblock: %d inodes in a group", f.inodesPerGroup)
	case f.inodeSize < goodInodeLen || f.inodeSize > f.blockSize || f.inodeSize&(f.inodeSize-1) != 0:
		return nil, damaged("ext superblock: inodes of %d bytes", f.inodeSize)
	case f.descSize < 32 || f.descSize > f.blockSize || f.descSize&(f.descSize-1) != 0:
		return nil, damaged("ext superblock: group descriptors of %d bytes", f.descSize)
	}
	if incompat&incompatMetaBG != 0 {
		f.firstMetaBG = int64(le.Uint32(b[0x104:]))
	}
	f.sparse = superblockGroups(b, compat, roCompat)
	const stateClean = 1
	f.dirty = incompat&incompatRecover != 0 || le.Uint16(b[0x3a:])&stateClean == 0
	return f, nil
}

// superblockGroups returns which groups begin with a copy of the superblock.
func superblockGroups(b []byte, compat, roCompat uint32) func(int64) bool {
	if compat&compatSparseSuper2 != 0 {
		one, two := int64(le.Uint32(b[0x24c:])), int64(le.Uint32(b[0x250:]))
		return func(g int64) bool { return g == 0 || g == one || g == two }
	}
	if roCompat&roCompatSparseSuper == 0 {
		return func(int64) bool { return true }
	}
	return func(g int64) bool {
		if g <= 1 {
			return true
		}
		for _, p := range []int64{3, 5, 7} {
			n := p
			for n < g {
				n *= p
			}
			if n == g {
				return true
			}
		}
		return false
	}
}

// Dirty says that the file system was not unmounted: the journal may hold
// changes that are not seen here.
func (f *FS) Dirty() bool { return f.dirty }

// Root implements [tree.FS].
func (f *FS) Root() tree.ID { return rootInode }

// readBlock reads a block of the file system.
func (f *FS) readBlock(n int64) ([]byte, error) {
	b := make([]byte, f.blockSize)
	return b, f.readAt(b, n, 0)
}

// readAt reads from offset off in block n on.
func (f *FS) readAt(b []byte, n, off int64) error {
	if n < 0 || n >= f.blocks || n*f.blockSize+off+int64(len(b)) > f.blocks*f.blockSize {
		return damaged("ext: block %d of %d", n, f.blocks)
	}
	if _, err := f.r.ReadAt(b, n*f.blockSize+off); err != nil {
		return fmt.Errorf("ext block %d: %w", n, err)
	}
	return nil
}

// inode is one inode's bytes.
type inode []byte

func (f *FS) inode(id tree.ID) (inode, error) {
	if id == 0 || uint64(id) > f.inodes {
		return nil, damaged("ext: inode %d of %d", id, f.inodes)
	}
	group := int64((uint64(id) - 1) / f.inodesPerGroup)
	index := int64((uint64(id) - 1) % f.inodesPerGroup)
	table, err := f.inodeTable(group)
	if err != nil {
		return nil, err
	}
	off := index * f.inodeSize
	b := make(inode, f.inodeSize)
	if err := f.readAt(b, table+off/f.blockSize, off%f.blockSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", id, err)
	}
	if b.flags()&flagEncrypt != 0 {
		return nil, fmt.Errorf("ext: inode %d is encrypted: %w", id, tree.ErrUnsupported)
	}
	return b, nil
}

// inodeTable returns the first block of a group's inode table.
func (f *FS) inodeTable(group int64) (int64, error) {
	perBlock := f.blockSize / f.descSize
	meta := group / perBlock
	super := f.firstData
	if f.blockSize == superOffset {
		super = 1 // also with bigalloc, where the first data block is 0
	}
	block := super + 1 + meta
	if f.firstMetaBG >= 0 && meta >= f.firstMetaBG {
		first := meta * perBlock
		block = f.firstData + first*f.blocksPerGroup
		if f.sparse(first) {
			block++
		}
		if first == 0 {
			block += super - f.firstData
		}
	}
	d := make([]byte, f.descSize)
	if err := f.readAt(d, block, group%perBlock*f.descSize); err != nil {
		return 0, fmt.Errorf("group descriptor %d: %w", group, err)
	}
	table := int64(le.Uint32(d[8:]))
	if f.descSize >= 64 {
		table |= int64(le.Uint32(d[0x28:])) << 32
	}
	return table, nil
}

func (i inode) flags() uint32 { return le.Uint32(i[0x20:]) }

// block is the 60 bytes that say where the content is, or are the content.
func (i inode) block() []byte { return i[iBlockOffset : iBlockOffset+iBlockLen] }

func (i inode) size() int64 {
	return int64(le.Uint32(i[4:])) | int64(le.Uint32(i[0x6c:]))<<32
}

// kind is the type by the mode's upper four bits.
func (i inode) kind() fs.FileMode {
	switch le.Uint16(i) & 0xf000 {
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
	if err != nil {
		return tree.Stat{}, err
	}
	if i.size() < 0 {
		return tree.Stat{}, damaged("ext: inode %d: size %d", id, i.size())
	}
	return tree.Stat{Type: i.kind(), Size: i.size()}, nil
}

// Read implements [tree.FS].
func (f *FS) Read(id tree.ID, max int) ([]byte, error) {
	i, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	n := min(i.size(), int64(max))
	switch {
	case n < 0:
		return nil, damaged("ext: inode %d: size %d", id, i.size())
	case i.flags()&flagInlineData != 0:
		first, more, err := i.inline()
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", id, err)
		}
		b := append(bytes.Clone(first), more...)
		return b[:min(n, int64(len(b)))], nil
	case i.kind() == fs.ModeSymlink && i.flags()&flagExtents == 0 && i.size() < iBlockLen:
		return bytes.Clone(i.block()[:n]), nil
	case i.kind()&fs.ModeIrregular != 0:
		return nil, nil // a device keeps its number there
	}
	b := make([]byte, 0, min(n, 64<<10))
	for logical := int64(0); int64(len(b)) < n; logical++ {
		physical, err := f.mapBlock(i, logical)
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", id, err)
		}
		part := make([]byte, min(f.blockSize, n-int64(len(b))))
		if physical != 0 { // else a hole
			if err := f.readAt(part, physical, 0); err != nil {
				return nil, fmt.Errorf("inode %d: %w", id, err)
			}
		}
		b = append(b, part...)
	}
	return b, nil
}
