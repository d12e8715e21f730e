package osinfo

import (
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// find returns where a file lies that is wholly inside of the image.
func (d Disc) find(r io.ReaderAt, size int64, path string) (extent, error) {
	pieces := strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
	if len(pieces) == 0 || len(pieces) > maxPathPieces {
		return extent{}, fmt.Errorf("%q: %w", path, fs.ErrNotExist)
	}
	at := d.root
	for i, piece := range pieces {
		if !at.dir {
			return extent{}, fmt.Errorf("%q: %w", path, fs.ErrNotExist)
		}
		next, err := d.entry(r, size, at, piece)
		if err != nil {
			return extent{}, fmt.Errorf("%q: %w", strings.Join(pieces[:i+1], "/"), err)
		}
		at = next
	}
	switch {
	case at.dir:
		return extent{}, fmt.Errorf("%q: is a folder: %w", path, fs.ErrNotExist)
	case at.off < 0 || at.size < 0 || at.off > size || at.size > size-at.off:
		return extent{}, fmt.Errorf("%q: %d bytes at offset %d, outside of the image's %d", path, at.size, at.off, size)
	}
	return at, nil
}

// entry finds a name in a folder.
func (d Disc) entry(r io.ReaderAt, size int64, dir extent, name string) (extent, error) {
	if dir.off < 0 || dir.size <= 0 || dir.off > size || dir.size > size-dir.off {
		return extent{}, fmt.Errorf("folder of %d bytes at offset %d, outside of the image's %d", dir.size, dir.off, size)
	}
	if dir.size > maxDirectory {
		return extent{}, fmt.Errorf("folder of %d bytes, more than the limit of %d", dir.size, maxDirectory)
	}
	buf := make([]byte, dir.size)
	if n, err := r.ReadAt(buf, dir.off); n < len(buf) {
		return extent{}, fmt.Errorf("folder at offset %d: %w", dir.off, err)
	}
	for pos := 0; pos < len(buf); {
		length := int(buf[pos])
		if length == 0 {
			// Records do not cross sectors; the rest of this one is empty.
			pos = (pos/sector + 1) * sector
			continue
		}
		if length < 34 || pos+length > len(buf) || 33+int(buf[pos+32]) > length {
			return extent{}, fmt.Errorf("folder at offset %d: directory record of %d bytes at %d is damaged", dir.off, length, pos)
		}
		rec := buf[pos : pos+length]
		if strings.EqualFold(recordName(rec), name) || strings.EqualFold(plainName(rec), name) {
			return d.record(rec), nil
		}
		pos += length
	}
	return extent{}, fs.ErrNotExist
}

// plainName is the name by ISO 9660 alone: without the version, and the dot
// of an empty extension.
func plainName(rec []byte) string {
	name, _, _ := strings.Cut(string(rec[33:33+int(rec[32])]), ";")
	return strings.TrimSuffix(name, ".")
}

// recordName is the Rock Ridge name (RRIP 4.1.4) where there is a whole one,
// else the plain name.
func recordName(rec []byte) string {
	use := 33 + int(rec[32])
	if use%2 != 0 {
		use++ // padded to an even offset
	}
	var name strings.Builder
	for use+4 <= len(rec) {
		length := int(rec[use+2])
		if length < 4 || use+length > len(rec) {
			break
		}
		if string(rec[use:use+2]) == "NM" && length > 5 {
			name.Write(rec[use+5 : use+length])
		}
		use += length
	}
	if name.Len() == 0 {
		return plainName(rec)
	}
	return name.String()
}
