package extfs

import (
	"fmt"
	"io/fs"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
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

// List implements [tree.FS]. An indexed folder (htree) is a plain one to who
// reads all of it: the index hides in entries without an inode.
func (f *FS) List(dir tree.ID, visit func(string, tree.ID) bool) error {
	i, err := f.inode(dir)
	if err != nil {
		return err
	}
	if i.kind() != fs.ModeDir {
		return fs.ErrNotExist
	}
	if i.flags()&flagInlineData != 0 {
		first, more, err := i.inline()
		if err != nil {
			return fmt.Errorf("folder %d: %w", dir, err)
		}
		// The first four bytes are the parent.
		if on, err := entries(first[4:], visit); err != nil || !on {
			return err
		}
		_, err = entries(more, visit)
		return err
	}
	n := (i.size() + f.blockSize - 1) / f.blockSize
	if n < 0 || n > maxFolder {
		return fmt.Errorf("ext: folder %d of %d blocks: %w", dir, n, tree.ErrUnsupported)
	}
	for logical := range n {
		physical, err := f.mapBlock(i, logical)
		if err != nil {
			return fmt.Errorf("folder %d: %w", dir, err)
		}
		if physical == 0 {
			continue
		}
		b, err := f.readBlock(physical)
		if err != nil {
			return fmt.Errorf("folder %d: %w", dir, err)
		}
		if on, err := entries(b, visit); err != nil || !on {
			return err
		}
	}
	return nil
}

// entries visits the entries in a block: inode, length of the entry, length of
// the name, type, name. It reports whether visit wants more.
func entries(b []byte, visit func(string, tree.ID) bool) (more bool, err error) {
	const header = 8
	whole := len(b)
	for len(b) >= header {
		id, n, name := le.Uint32(b), int(le.Uint16(b[4:])), int(b[6])
		if (n == 0xffff || n == 0) && whole > 0xffff {
			n = whole // of a block of 64 KiB
		}
		if n < header || n > len(b) || header+name > n {
			return false, damaged("ext: folder entry of %d bytes with a name of %d", n, name)
		}
		if s := string(b[header : header+name]); id != 0 && s != "." && s != ".." && s != "" && !visit(s, tree.ID(id)) {
			return false, nil
		}
		b = b[n:]
	}
	return true, nil
}
