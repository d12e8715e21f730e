package qcow2

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// Of the bitmap directory and the bitmap tables (spec "Bitmaps").
const (
	bitmapDirEntryFixed  = 24
	bitmapTableOffset    = 0x00ff_ffff_ffff_fe00
	bitmapTableReserved  = 0xff00_0000_0000_01fe
	bitmapTableMaxBytes  = 8 << 27 // a bitmap of 2^27 clusters, as stock bounds it
	bitmapTableAllOnes   = 1 << 0
	bitmapTableReadChunk = 64 << 10
)

// maxSharedEntries is how many entries are looked at before tables that lie
// where another does are passed over: an image may claim one table 65535 times.
const maxSharedEntries = 16 << 20

// countBitmaps counts the persistent dirty bitmaps, if the image says that
// they are consistent; otherwise whoever wrote the image let go of them.
func (c *checker) countBitmaps() error {
	ext, ok := findExtension(c.img.exts, extBitmaps)
	if !ok || c.img.hdr.autoclear&autoclearBitmaps == 0 {
		return nil
	}
	h, err := decodeBitmaps(ext)
	if err != nil {
		c.res.Corruptions++
		return fmt.Errorf("bitmaps: %w", err)
	}
	if h.count == 0 {
		return nil
	}
	c.count(int64(h.directoryOffset), int64(h.directorySize))
	dir := make([]byte, min(int64(h.directorySize), max(0, c.fileLen)))
	if err := c.read(dir, int64(h.directoryOffset)); err != nil {
		c.res.CheckErrors++
		return fmt.Errorf("bitmap directory: %w", err)
	}
	for i := range h.count {
		if len(dir) < bitmapDirEntryFixed {
			c.res.Corruptions++
			return fmt.Errorf("bitmap directory ends inside entry %d of %d: %w", i, h.count, syscall.EINVAL)
		}
		off := int64(binary.BigEndian.Uint64(dir))
		entries := int64(binary.BigEndian.Uint32(dir[8:]))
		size := int64(bitmapDirEntryFixed) + int64(binary.BigEndian.Uint16(dir[18:])) + int64(binary.BigEndian.Uint32(dir[20:]))
		size = (size + 7) &^ 7
		if size > int64(len(dir)) || off < 0 || off > bitmapTableOffset || c.g.inCluster(off) != 0 || entries == 0 || entries*8 > bitmapTableMaxBytes {
			c.res.Corruptions++
			return fmt.Errorf("bitmap directory entry %d: table of %d entries at offset %#x: %w", i, entries, off, syscall.EINVAL)
		}
		dir = dir[size:]
		if err := c.countBitmapTable(off, entries); err != nil {
			return err
		}
	}
	return nil
}

// countBitmapTable counts the table of one bitmap and its clusters.
func (c *checker) countBitmapTable(off, entries int64) error {
	c.count(off, entries*8)
	if c.bitmapEntries += entries; c.bitmapEntries > maxSharedEntries && c.refs.get(off>>c.g.clusterBits) > 1 {
		return nil // the same table again; enough was reported
	}
	b := make([]byte, min(bitmapTableReadChunk, entries*8))
	for at := int64(0); at < entries*8 && off+at < c.fileLen; at += int64(len(b)) {
		b = b[:min(int64(len(b)), entries*8-at)]
		if err := c.read(b, off+at); err != nil {
			c.res.CheckErrors++
			return fmt.Errorf("bitmap table at offset %#x: %w", off, err)
		}
		for i := 0; i < len(b); i += 8 {
			e := binary.BigEndian.Uint64(b[i:])
			host := int64(e & bitmapTableOffset)
			switch {
			case !bitmapEntry(e).valid(c.g):
				c.res.Corruptions++
				return fmt.Errorf("entry %d of the bitmap table at offset %#x: %w", (at+int64(i))/8, off, syscall.EINVAL)
			case host != 0:
				c.count(host, c.g.clusterSize())
			}
		}
	}
	return nil
}
