package extfs

// mapBlock returns the block of the file system that holds a file's block, 0
// for a hole.
func (f *FS) mapBlock(i inode, logical int64) (int64, error) {
	if i.flags()&flagExtents != 0 {
		return f.mapExtent(i.block(), logical)
	}
	return f.mapIndirect(i.block(), logical)
}

// The nodes of an extent tree: a header of 12 bytes, and entries of 12.
const (
	extentMagic   = 0xf30a
	extentLen     = 12
	extentWritten = 32768 // the longest extent; beyond are those without data
)

func (f *FS) mapExtent(node []byte, logical int64) (int64, error) {
	depth := maxExtentTree + 1
	for {
		if le.Uint16(node) != extentMagic {
			return 0, damaged("ext: extent tree: magic %#x", le.Uint16(node))
		}
		entries, level := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
		if level >= depth || extentLen*(entries+1) > len(node) {
			return 0, damaged("ext: extent tree: %d entries in level %d", entries, level)
		}
		depth = level
		// The last entry that does not begin behind the block.
		var e []byte
		for n := range entries {
			next := node[extentLen*(n+1) : extentLen*(n+2)]
			if int64(le.Uint32(next)) > logical {
				break
			}
			e = next
		}
		if e == nil {
			return 0, nil
		}
		if level == 0 {
			first, n := int64(le.Uint32(e)), int64(le.Uint16(e[4:]))
			if n > extentWritten || logical >= first+n {
				return 0, nil // not written yet, or a hole behind it
			}
			start := int64(le.Uint32(e[8:])) | int64(le.Uint16(e[6:]))<<32
			return start + logical - first, nil
		}
		var err error
		if node, err = f.readBlock(int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32); err != nil {
			return 0, err
		}
	}
}

// mapIndirect follows the block map of ext2 and ext3: 12 blocks, then one that
// lists blocks, one that lists such, and one that lists those.
func (f *FS) mapIndirect(root []byte, logical int64) (int64, error) {
	const direct = 12
	if logical < direct {
		return int64(le.Uint32(root[4*logical:])), nil
	}
	logical -= direct
	perBlock := f.blockSize / 4
	span := int64(1)
	for level := range int64(3) {
		span *= perBlock
		if logical >= span {
			logical -= span
			continue
		}
		block := int64(le.Uint32(root[4*(direct+level):]))
		for range level + 1 {
			if block == 0 {
				return 0, nil
			}
			span /= perBlock
			b := make([]byte, 4)
			if err := f.readAt(b, block, logical/span*4); err != nil {
				return 0, err
			}
			block, logical = int64(le.Uint32(b)), logical%span
		}
		return block, nil
	}
	return 0, damaged("ext: a file of more than %d blocks", span)
}

// The attributes behind an inode's fields.
const (
	xattrMagic     = 0xea020000
	xattrEntryLen  = 16
	xattrSystem    = 7 // the name's prefix "system."
	xattrInlineKey = "data"
)

// inline returns the content of a file that lies in its inode: what is in place
// of the block map, and the rest, in the attribute system.data.
func (i inode) inline() (first, more []byte, err error) {
	first = i.block()
	if len(i) <= goodInodeLen {
		return first, nil, nil
	}
	at := goodInodeLen + int(le.Uint16(i[goodInodeLen:]))
	if at+4 > len(i) || le.Uint32(i[at:]) != xattrMagic {
		return first, nil, nil
	}
	attrs := i[at+4:]
	for e := attrs; len(e) >= xattrEntryLen && le.Uint32(e) != 0; {
		nameLen := int(e[0])
		next := (xattrEntryLen + nameLen + 3) &^ 3
		if next > len(e) {
			return nil, nil, damaged("ext: attributes of an inode")
		}
		if e[1] == xattrSystem && string(e[xattrEntryLen:xattrEntryLen+nameLen]) == xattrInlineKey {
			off, n := int(le.Uint16(e[2:])), int(le.Uint32(e[8:]))
			if n > len(attrs) || off > len(attrs)-n {
				return nil, nil, damaged("ext: inline data: %d bytes at %d", n, off)
			}
			return first, attrs[off : off+n], nil
		}
		e = e[next:]
	}
	return first, nil, nil
}
