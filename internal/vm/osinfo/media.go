package osinfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrNotISO is wrapped by what ReadDisc returns for what is no ISO 9660 image.
var ErrNotISO = errors.New("not an ISO 9660 image")

// Disc is what an ISO 9660 image says of itself, as far as systems are
// recognised by it (ECMA-119, 8.4).
type Disc struct {
	VolumeID, SystemID         string // without the spaces at their ends
	PublisherID, ApplicationID string
	// VolumeSize is the size in bytes that the volume descriptor gives: not
	// that of the file, which may be longer.
	VolumeSize int64
	// ElTorito says that the boot record of a PC follows the primary volume
	// descriptor.
	ElTorito bool
	// PPCBoot says that there is /ppc/bootinfo.txt, which starts Power
	// machines.
	PPCBoot bool

	blockSize int64
	root      extent
}

// Bootable reports whether a machine can start from the disc.
func (d Disc) Bootable() bool { return d.ElTorito || d.PPCBoot }

const (
	sector        = 2048
	pvdOffset     = 16 * sector
	maxDirectory  = 1 << 20 // bytes of one folder that are searched
	boot9660      = "EL TORITO SPECIFICATION"
	maxPathPieces = 32
)

// extent is where a file or folder of the disc lies, in bytes.
type extent struct {
	off, size int64
	dir       bool
}

// ReadDisc reads the descriptors of an ISO 9660 image of size bytes. It reads
// 4 KiB, and the folders on the way to /ppc/bootinfo.txt where there is no El
// Torito record.
func ReadDisc(r io.ReaderAt, size int64) (Disc, error) {
	if size < pvdOffset+sector {
		return Disc{}, fmt.Errorf("%w: %d bytes are too few for a volume descriptor", ErrNotISO, size)
	}
	var buf [2 * sector]byte
	n, err := r.ReadAt(buf[:min(int64(len(buf)), size-pvdOffset)], pvdOffset)
	if err != nil && (err != io.EOF || n < sector) {
		return Disc{}, fmt.Errorf("primary volume descriptor at offset %d: %w", pvdOffset, err)
	}
	pvd := buf[:sector]
	if pvd[0] != 1 || string(pvd[1:6]) != "CD001" {
		return Disc{}, fmt.Errorf("%w: no primary volume descriptor at offset %d", ErrNotISO, pvdOffset)
	}
	d := Disc{
		SystemID: idField(pvd[8:40]), VolumeID: idField(pvd[40:72]),
		PublisherID: idField(pvd[318:446]), ApplicationID: idField(pvd[574:702]),
		blockSize: int64(binary.LittleEndian.Uint16(pvd[128:])),
	}
	d.VolumeSize = int64(binary.LittleEndian.Uint32(pvd[80:])) * d.blockSize
	if d.VolumeID == "" {
		return Disc{}, fmt.Errorf("%w: the primary volume descriptor at offset %d has no volume id", ErrNotISO, pvdOffset)
	}
	d.root = d.record(pvd[156:190])
	d.root.dir = true
	boot := buf[sector:]
	d.ElTorito = n == len(buf) && boot[0] == 0 && string(boot[1:6]) == "CD001" && idField(boot[7:39]) == boot9660
	if !d.ElTorito {
		_, err := d.find(r, size, "ppc/bootinfo.txt")
		d.PPCBoot = err == nil
	}
	return d, nil
}

// idField reads a text field: up to a zero byte, without trailing space.
func idField(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.ToValidUTF8(strings.TrimRight(string(b), " \t\n\v\f\r"), "\ufffd")
}

// record reads the extent of a directory record of at least 33 bytes.
func (d Disc) record(b []byte) extent {
	return extent{
		off:  int64(binary.LittleEndian.Uint32(b[2:])) * d.blockSize,
		size: int64(binary.LittleEndian.Uint32(b[10:])),
		dir:  b[25]&2 != 0,
	}
}

// File returns a reader of one of the disc's files, such as a media's kernel
// ("casper/vmlinuz"), and its size. r and size are those that the disc was
// read from. Names are compared without regard to case, with Rock Ridge's names
// where the disc has them. The error wraps fs.ErrNotExist where there is no
// such file.
func (d Disc) File(r io.ReaderAt, size int64, path string) (*io.SectionReader, error) {
	e, err := d.find(r, size, path)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(r, e.off, e.size), nil
}
