package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ErrNoRoom says that a copy of a GPT would lie over a partition.
var ErrNoRoom = errors.New("no room for a copy of the partition table")

// A Patch is bytes to be written to a disk. Patches are written in order, with
// a flush behind each one, so that one whole table is there at every instant.
type Patch struct {
	Offset int64 // in bytes
	Data   []byte
}

// MoveBackup returns what must be written so that the backup of the GPT of a
// disk of size bytes lies at the end of one of newSize bytes, and the table
// covers that disk (UEFI specification, section 5.3.2). A GPT counts where the
// MBR says that there is one: what an earlier use of the disk left of a table
// may lie in somebody's data. The disk has both sizes' bytes when the patches
// are written: a disk that is to grow has grown, one that is to shrink has not
// shrunk yet. Nothing needs to be written where the table fits already. It
// returns an error that matches ErrNone where there is no GPT, and one that
// matches ErrNoRoom where a partition is in the way.
func MoveBackup(disk io.ReaderAt, size, newSize int64) ([]Patch, error) {
	if mbr, err := readMBR(disk, size); err != nil {
		return nil, err
	} else if !mbr.protects() {
		return nil, ErrNone
	}
	for _, sector := range sectorSizes {
		for _, at := range []int64{sector, size/sector*sector - sector} {
			if at < sector {
				continue
			}
			h, array, err := rawGPT(disk, size, sector, at)
			if errors.Is(err, ErrNone) {
				continue
			} else if err != nil {
				return nil, err
			}
			return moveGPT(disk, sector, newSize, h, array, at != sector)
		}
	}
	return nil, ErrNone
}

// rawGPT returns the header sector at offset at and its entries, if they are
// whole.
func rawGPT(disk io.ReaderAt, size, sector, at int64) (h, array []byte, err error) {
	if _, err := readGPT(disk, size, sector, at, at != sector); err != nil {
		return nil, nil, err
	}
	if h, err = readAt(disk, size, at, sector); err != nil {
		return nil, nil, err
	}
	le := binary.LittleEndian
	n := int64(le.Uint32(h[80:])) * int64(le.Uint32(h[84:]))
	array, err = readAt(disk, size, int64(le.Uint64(h[72:]))*sector, n)
	return h, array, err
}

// moveGPT makes the patches from the header h, which fromBackup says is the
// second one, and its entries.
func moveGPT(disk io.ReaderAt, sector, newSize int64, h, array []byte, fromBackup bool) ([]Patch, error) {
	le := binary.LittleEndian
	tableSectors := (int64(len(array)) + sector - 1) / sector
	last := newSize/sector - 1                  // of the disk: the backup header
	backupTable := last - tableSectors          // the backup's entries
	primaryTable := int64(le.Uint64(h[72:]))    // the first copy's entries
	lastUsable := uint64(max(backupTable-1, 0)) // for partitions
	if fromBackup {
		primaryTable = 2 // where the specification puts it
	}
	if backupTable <= primaryTable+tableSectors {
		return nil, fmt.Errorf("a disk of %d bytes: %w", newSize, ErrNoRoom)
	}
	for i := int64(0); i+gptMinEntryLen <= int64(len(array)); i += int64(le.Uint32(h[84:])) {
		p, ok := gptEntry(array[i:], int(i)+1, sector)
		switch {
		case !ok:
		case p.End() > int64(lastUsable+1)*sector:
			return nil, fmt.Errorf("a partition ends at %d, the backup table would begin at %d: %w", p.End(), backupTable*sector, ErrNoRoom)
		case fromBackup && p.Start < (primaryTable+tableSectors)*sector:
			return nil, fmt.Errorf("the first copy of the table is damaged, and a partition begins at %d, in its place up to %d: %w", p.Start, (primaryTable+tableSectors)*sector, ErrNoRoom)
		}
	}
	header := func(own, other, table int64) []byte {
		b := bytes.Clone(h)
		le.PutUint64(b[24:], uint64(own))
		le.PutUint64(b[32:], uint64(other))
		le.PutUint64(b[48:], lastUsable)
		le.PutUint64(b[72:], uint64(table))
		clear(b[16:20])
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:le.Uint32(b[12:])]))
		return b
	}
	padded := make([]byte, tableSectors*sector)
	copy(padded, array)
	wanted := []Patch{
		{backupTable * sector, padded},
		{last * sector, header(last, 1, backupTable)},
	}
	if fromBackup {
		wanted = append(wanted, Patch{primaryTable * sector, padded})
	}
	wanted = append(wanted, Patch{sector, header(1, last, primaryTable)})
	if p, ok, err := protectiveMBR(disk, sector, newSize); err != nil {
		return nil, err
	} else if ok {
		wanted = append(wanted, p)
	}
	return differing(disk, wanted)
}

// protectiveMBR returns the MBR with its one partition, which keeps tools that
// do not know GPTs away, made as long as the disk. It is left alone where it
// holds anything else.
func protectiveMBR(disk io.ReaderAt, sector, newSize int64) (Patch, bool, error) {
	b, err := readAt(disk, newSize, 0, mbrSectorLen)
	if err != nil {
		return Patch{}, false, err
	}
	e, ok := mbrTable(b)
	if !ok || e[0].kind != typeProtect || e[1].kind != 0 || e[2].kind != 0 || e[3].kind != 0 {
		return Patch{}, false, nil
	}
	binary.LittleEndian.PutUint32(b[mbrEntries+mbrCountOff:], uint32(min(newSize/sector-1, 1<<32-1)))
	return Patch{0, b}, true, nil
}

// differing returns the patches that change something.
func differing(disk io.ReaderAt, wanted []Patch) ([]Patch, error) {
	var out []Patch
	for _, p := range wanted {
		now := make([]byte, len(p.Data))
		if _, err := disk.ReadAt(now, p.Offset); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("partition table at offset %d: %w", p.Offset, err)
		}
		if !bytes.Equal(now, p.Data) {
			out = append(out, p)
		}
	}
	return out, nil
}
