package xfs

import (
	"fmt"
	"io/fs"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
)

const (
	maxFolder = 32 << 20 // bytes of a folder that are read
	// leafOffset is where a folder's index begins; all entries lie before.
	leafOffset = 32 << 30
)

// Lookup implements [tree.FS].
func (f *FS) Lookup(dir tree.ID, name string) (tree.ID, error) {
	var found tree.ID
	err := f.List(dir, func(n string, id tree.ID) bool {
		if n == name {
			found = id
		}
		return found == 0
	})
	if err == nil && found == 0 {
		err = fs.ErrNotExist
	}
	return found, err
}

// List implements [tree.FS]. It reads the entries and leaves the index alone.
func (f *FS) List(dir tree.ID, visit func(string, tree.ID) bool) error {
	i, err := f.inode(dir)
	if err != nil {
		return err
	}
	if i.kind != fs.ModeDir {
		return fs.ErrNotExist
	}
	if i.form == formLocal {
		if i.size > int64(len(i.fork)) {
			return damaged("xfs: folder %d: %d bytes in its inode", dir, i.size)
		}
		return f.short(i.fork[:i.size], visit)
	}
	if i.size > min(maxFolder, leafOffset) {
		return fmt.Errorf("xfs: folder %d of %d bytes: %w", dir, i.size, tree.ErrUnsupported)
	}
	perFolderBlock := f.folderSize / f.blockSize
	for at := int64(0); at < i.size; at += f.folderSize {
		b, hole := make([]byte, 0, f.folderSize), false
		for n := range perFolderBlock {
			block, ok, err := f.mapBlock(i, uint64(at/f.blockSize+n))
			if err != nil {
				return fmt.Errorf("folder %d: %w", dir, err)
			}
			if hole = !ok; hole {
				break
			}
			part, err := f.readBlock(block)
			if err != nil {
				return fmt.Errorf("folder %d: %w", dir, err)
			}
			b = append(b, part...)
		}
		if hole {
			continue
		}
		if more, err := f.entries(b, visit); err != nil || !more {
			return err
		}
	}
	return nil
}

// short visits the entries of a folder that lies in its inode: their number,
// the number of those with long inode numbers, the parent; then each one's name
// length, place, name, type, inode number.
func (f *FS) short(b []byte, visit func(string, tree.ID) bool) error {
	if len(b) < 6 {
		return damaged("xfs: a short folder of %d bytes", len(b))
	}
	count, idLen := int(b[0]), 4
	if b[1] != 0 {
		idLen, count = 8, max(int(b[0]), int(b[1]))
	}
	b = b[min(2+idLen, len(b)):]
	for range count {
		if len(b) < 3 {
			return damaged("xfs: a short folder ends too early")
		}
		nameLen := int(b[0])
		typeLen := 0
		if f.fileType {
			typeLen = 1
		}
		n := 3 + nameLen + typeLen + idLen
		if nameLen == 0 || n > len(b) {
			return damaged("xfs: a short folder's name of %d bytes", nameLen)
		}
		var id uint64
		for _, c := range b[n-idLen : n] {
			id = id<<8 | uint64(c)
		}
		if !visit(string(b[3:3+nameLen]), tree.ID(id)) {
			return nil
		}
		b = b[n:]
	}
	return nil
}

// entries visits the entries in a folder's block. One that is the whole folder
// has the index, too, at its end: its length is in the last 8 bytes.
func (f *FS) entries(b []byte, visit func(string, tree.ID) bool) (more bool, err error) {
	header := 16
	var alone bool
	switch magic := string(b[:4]); {
	case magic == "XD2B" && !f.version5:
		alone = true
	case magic == "XDB3" && f.version5:
		alone, header = true, 64
	case magic == "XD2D" && !f.version5:
	case magic == "XDD3" && f.version5:
		header = 64
	default:
		return false, damaged("xfs: folder block: magic %q", magic)
	}
	end := int64(len(b))
	if alone {
		end -= 8 + 8*int64(be.Uint32(b[len(b)-8:]))
		if end < int64(header) {
			return false, damaged("xfs: folder block: the index is too long")
		}
	}
	for b = b[header:end]; len(b) >= 8; {
		if be.Uint16(b) == 0xffff { // free: its length, and a tag at its end
			n := int(be.Uint16(b[2:]))
			if n < 8 || n > len(b) || n&7 != 0 {
				return false, damaged("xfs: folder block: %d free bytes", n)
			}
			b = b[n:]
			continue
		}
		nameLen := 0
		if len(b) > 8 {
			nameLen = int(b[8])
		}
		n := 8 + 1 + nameLen + 2
		if f.fileType {
			n++
		}
		n = (n + 7) &^ 7
		if nameLen == 0 || n > len(b) {
			return false, damaged("xfs: folder block: a name of %d bytes", nameLen)
		}
		if name := string(b[9 : 9+nameLen]); name != "." && name != ".." && !visit(name, tree.ID(be.Uint64(b))) {
			return false, nil
		}
		b = b[n:]
	}
	return true, nil
}
