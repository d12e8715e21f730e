package xfs

const extentLen = 16

// extent is a run of blocks of a file: 1 bit (not written yet), 54 bits of the
// place in the file, 52 of the block, 21 of the length.
type extent struct {
	unwritten           bool
	first, block, count uint64
}

func parseExtent(b []byte) extent {
	hi, lo := be.Uint64(b), be.Uint64(b[8:])
	return extent{hi>>63 != 0, hi >> 9 & (1<<54 - 1), hi&(1<<9-1)<<43 | lo>>21, lo & (1<<21 - 1)}
}

// mapBlock returns the block that holds a file's block; ok is false for a hole.
func (f *FS) mapBlock(i inode, logical uint64) (block uint64, ok bool, err error) {
	switch i.form {
	case formExtents:
		if i.extents > uint64(len(i.fork)/extentLen) {
			return 0, false, damaged("xfs: %d extents in an inode", i.extents)
		}
		block, ok = find(i.fork[:i.extents*extentLen], logical)
		return block, ok, nil
	case formTree:
		return f.mapTree(i.fork, logical)
	}
	return 0, false, damaged("xfs: an inode of form %d", i.form)
}

func find(list []byte, logical uint64) (uint64, bool) {
	for ; len(list) >= extentLen; list = list[extentLen:] {
		if e := parseExtent(list); logical >= e.first && logical-e.first < e.count {
			return e.block + logical - e.first, !e.unwritten
		}
	}
	return 0, false
}

// The trees of extents: the root in the inode has a header of 4 bytes (level,
// number of records), a block one of 24 or, in version 5, 72.
const (
	rootHeader   = 4
	treeMagic    = "BMAP"
	treeMagic5   = "BMA3"
	treeHeader   = 24
	treeHeader5  = 72
	maxTreeLevel = 10
	treeKeyLen   = 8 // and the pointers, behind all keys that there is room for
)

func (f *FS) mapTree(root []byte, logical uint64) (uint64, bool, error) {
	if len(root) < rootHeader {
		return 0, false, damaged("xfs: no room for a tree in an inode")
	}
	level, records, node := int(be.Uint16(root)), int(be.Uint16(root[2:])), root[rootHeader:]
	if level == 0 || level > maxTreeLevel {
		return 0, false, damaged("xfs: a tree of %d levels", level)
	}
	header, magic := treeHeader, treeMagic
	if f.version5 {
		header, magic = treeHeader5, treeMagic5
	}
	for {
		room := len(node) / (2 * treeKeyLen)
		if records > room {
			return 0, false, damaged("xfs: %d records in a tree's block", records)
		}
		if level == 0 {
			block, ok := find(node[:records*extentLen], logical)
			return block, ok, nil
		}
		at := -1
		for n := range records {
			if be.Uint64(node[n*treeKeyLen:]) > logical {
				break
			}
			at = n
		}
		if at < 0 {
			return 0, false, nil
		}
		b, err := f.readBlock(be.Uint64(node[(room+at)*treeKeyLen:]))
		if err != nil {
			return 0, false, err
		}
		level--
		if string(b[:4]) != magic || int(be.Uint16(b[4:])) != level {
			return 0, false, damaged("xfs: tree block: magic %q, level %d", b[:4], be.Uint16(b[4:]))
		}
		records, node = int(be.Uint16(b[6:])), b[header:]
	}
}
