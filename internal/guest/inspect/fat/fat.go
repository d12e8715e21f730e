// Package fat looks files up in a FAT12, FAT16 or FAT32 file system by their
// short names, without a mount and without writing. Firmware finds its loaders
// by such names. Layout: Microsoft's "FAT: General Overview of On-Disk Format".
package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
)

var le = binary.LittleEndian

const (
	bootLen  = 512
	entryLen = 32 // of a folder
	// maxFolder bounds the entries of a folder that are read.
	maxFolder = 65536

	// A disk with fewer clusters is FAT12, FAT16.
	limit12 = 4085
	limit16 = 65525
)

// Attributes of a folder's entry.
const (
	attrVolume   = 0x08
	attrFolder   = 0x10
	attrLongName = 0x0f
)

// FS is a FAT file system. A file's ID is the offset of its folder entry. It is
// not safe for concurrent use.
type FS struct {
	r         io.ReaderAt
	size      int64
	bits      int   // of an entry of the table
	table     int64 // its offset, in bytes
	data      int64 // offset of cluster 2
	cluster   int64 // bytes
	clusters  int64
	rootAt    int64 // FAT12 and 16: the root folder lies before the clusters
	rootLen   int64
	rootFirst uint32 // FAT32: its first cluster
	bootLabel string
}

func damaged(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, tree.ErrDamaged)...)
}

// Open reads the boot sector of a file system that fills r, of size bytes.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	b := make([]byte, bootLen)
	if size < bootLen {
		return nil, damaged("fat: %d bytes hold no boot sector", size)
	}
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("fat boot sector: %w", err)
	}
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	total, tableLen := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	if tableLen == 0 {
		tableLen = int64(le.Uint32(b[36:]))
	}
	switch {
	case sector < 512 || sector > 4096 || sector&(sector-1) != 0:
		return nil, damaged("fat boot sector: sectors of %d bytes", sector)
	case perCluster == 0 || perCluster&(perCluster-1) != 0:
		return nil, damaged("fat boot sector: clusters of %d sectors", perCluster)
	case reserved == 0 || tables == 0 || tables > 4 || tableLen == 0:
		return nil, damaged("fat boot sector: %d tables of %d sectors behind %d", tables, tableLen, reserved)
	}
	rootLen := (rootEntries*entryLen + sector - 1) / sector * sector
	f := &FS{r: r, size: size, table: reserved * sector, cluster: sector * perCluster, rootLen: rootLen}
	f.rootAt = f.table + tables*tableLen*sector
	f.data = f.rootAt + rootLen
	f.clusters = (total*sector - f.data) / f.cluster
	switch {
	case total*sector <= f.data || f.clusters < 1:
		return nil, damaged("fat boot sector: %d sectors in all", total)
	case f.clusters < limit12:
		f.bits = 12
	case f.clusters < limit16:
		f.bits = 16
	default:
		f.bits = 32
	}
	label := b[43:54]
	if rootEntries == 0 { // FAT32, also with too few clusters
		f.bits, f.rootFirst, label = 32, le.Uint32(b[44:]), b[71:82]
	}
	f.bootLabel = strings.TrimRight(string(label), " \x00")
	return f, nil
}

// Label returns the volume's label: of the root folder, else of the boot
// sector.
func (f *FS) Label() string {
	label := f.bootLabel
	_ = f.each(f.Root(), func(_ int64, e []byte) bool {
		if e[11]&attrLongName != attrLongName && e[11]&attrVolume != 0 {
			label = strings.TrimRight(string(e[:11]), " \x00")
			return false
		}
		return true
	})
	if label == "NO NAME" {
		return ""
	}
	return label
}

// Root implements [tree.FS].
func (f *FS) Root() tree.ID { return 0 }

// entry reads a file's entry.
func (f *FS) entry(id tree.ID) ([]byte, error) {
	e := make([]byte, entryLen)
	if int64(id) < f.rootAt || int64(id) > f.size-entryLen {
		return nil, damaged("fat: folder entry at %d", id)
	}
	if _, err := f.r.ReadAt(e, int64(id)); err != nil {
		return nil, fmt.Errorf("fat folder entry at %d: %w", id, err)
	}
	return e, nil
}

// Stat implements [tree.FS].
func (f *FS) Stat(id tree.ID) (tree.Stat, error) {
	if id == f.Root() {
		return tree.Stat{Type: fs.ModeDir}, nil
	}
	e, err := f.entry(id)
	if err != nil {
		return tree.Stat{}, err
	}
	if e[11]&attrFolder != 0 {
		return tree.Stat{Type: fs.ModeDir}, nil
	}
	return tree.Stat{Size: int64(le.Uint32(e[28:]))}, nil
}

// firstCluster is where a file begins.
func (f *FS) firstCluster(e []byte) uint32 {
	n := uint32(le.Uint16(e[26:]))
	if f.bits == 32 {
		n |= uint32(le.Uint16(e[20:])) << 16
	}
	return n
}

// next returns the cluster that follows in a chain; 0 at its end.
func (f *FS) next(n uint32) (uint32, error) {
	width := int64(2)
	at := f.table + int64(n)*2
	switch f.bits {
	case 12:
		at = f.table + int64(n)*3/2
	case 32:
		at, width = f.table+int64(n)*4, 4
	}
	b := make([]byte, 4)
	if _, err := f.r.ReadAt(b[:width], at); err != nil {
		return 0, fmt.Errorf("fat: table entry %d: %w", n, err)
	}
	v := le.Uint32(b) & 0x0fffffff
	if f.bits == 12 {
		v = v >> (4 * (n & 1)) & 0xfff
	}
	if last := uint32(0x0ffffff8) & (1<<min(f.bits, 28) - 1); v >= last {
		return 0, nil
	}
	return v, nil
}

// runs calls visit with the offsets of the clusters of a chain, until it returns
// false. A chain of more than limit clusters is damaged: it may be a loop.
func (f *FS) runs(first uint32, limit int64, visit func(at int64) (bool, error)) error {
	for n := first; n != 0; limit-- {
		if n < 2 || int64(n)-2 >= f.clusters || limit == 0 {
			return damaged("fat: a chain of clusters leads to %d", n)
		}
		more, err := visit(f.data + int64(n-2)*f.cluster)
		if err != nil || !more {
			return err
		}
		if n, err = f.next(n); err != nil {
			return err
		}
	}
	return nil
}

// each calls visit with the used entries of a folder, and their offsets.
func (f *FS) each(dir tree.ID, visit func(at int64, e []byte) bool) error {
	in := func(at, n int64) (more bool, err error) {
		b := make([]byte, n)
		if _, err := f.r.ReadAt(b, at); err != nil {
			return false, fmt.Errorf("fat folder at %d: %w", at, err)
		}
		for i := int64(0); i+entryLen <= n; i += entryLen {
			switch e := b[i : i+entryLen]; e[0] {
			case 0: // no more
				return false, nil
			case 0xe5: // deleted
			default:
				if !visit(at+i, e) {
					return false, nil
				}
			}
		}
		return true, nil
	}
	first := f.rootFirst
	if dir != f.Root() {
		e, err := f.entry(dir)
		if err != nil {
			return err
		}
		if e[11]&attrFolder == 0 {
			return fs.ErrNotExist
		}
		first = f.firstCluster(e)
	} else if f.bits != 32 {
		_, err := in(f.rootAt, f.rootLen)
		return err
	}
	return f.runs(first, maxFolder*entryLen/f.cluster+1, func(at int64) (bool, error) { return in(at, f.cluster) })
}

// shortName is a name as its entry has it: 8.3, in upper case.
func shortName(e []byte) string {
	name := strings.TrimRight(string(e[:8]), " ")
	if ext := strings.TrimRight(string(e[8:11]), " "); ext != "" {
		name += "." + ext
	}
	return name
}

// Lookup implements [tree.FS]. Names are short ones, in any case.
func (f *FS) Lookup(dir tree.ID, name string) (found tree.ID, err error) {
	err = f.List(dir, func(n string, id tree.ID) bool {
		if strings.EqualFold(n, name) {
			found = id
		}
		return found == 0
	})
	if err == nil && found == 0 {
		err = fs.ErrNotExist
	}
	return found, err
}

// List implements [tree.FS]; names are short ones.
func (f *FS) List(dir tree.ID, visit func(string, tree.ID) bool) error {
	return f.each(dir, func(at int64, e []byte) bool {
		name := shortName(e)
		if e[11]&attrVolume != 0 || name == "." || name == ".." { // long names are marked so, too
			return true
		}
		return visit(name, tree.ID(at))
	})
}

// Read implements [tree.FS].
func (f *FS) Read(id tree.ID, max int) ([]byte, error) {
	e, err := f.entry(id)
	if err != nil {
		return nil, err
	}
	n := min(int64(le.Uint32(e[28:])), int64(max))
	var out bytes.Buffer
	err = f.runs(f.firstCluster(e), n/f.cluster+2, func(at int64) (bool, error) {
		b := make([]byte, min(f.cluster, n-int64(out.Len())))
		if _, err := f.r.ReadAt(b, at); err != nil {
			return false, fmt.Errorf("fat cluster at %d: %w", at, err)
		}
		out.Write(b)
		return int64(out.Len()) < n, nil
	})
	return out.Bytes(), err
}
