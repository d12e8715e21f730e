// Package partition reads the partition table of a disk: the MBR with its
// chain of extended boot records, or the GPT with its backup.
//
// It answers which bytes of a disk are spoken for, so that a resize does not
// cut them off. It trusts nothing: tables are bounded, a GPT counts only
// when its checksums are right, and a chain of extended boot records must
// move forward.
package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// Scheme is the kind of partition table.
type Scheme string

// The kinds that Read knows.
const (
	MBR Scheme = "mbr"
	GPT Scheme = "gpt"
)

// Bounds of what is read from a table, whatever it claims.
const (
	maxLogical  = 128     // extended boot records followed
	maxEntries  = 1024    // GPT entries; the specification's minimum is 128
	maxTableLen = 1 << 20 // bytes of a GPT entry array
)

// sectorSizes are the logical sector sizes that a table may count in. An MBR
// does not say which; disk images use 512.
var sectorSizes = [...]int64{512, 4096}

// Partition is one entry of the table.
type Partition struct {
	// Number is the partition's number as Linux counts: 1 to 4 are an MBR's
	// primary ones, 5 and up logical; a GPT's is the place in the array.
	Number int
	// Start and Length are in bytes. They may reach past the end of the disk.
	Start, Length int64
	// Type is the MBR type ("0x83") or the GPT type GUID in upper case.
	Type string
	// Name is the GPT name, "" for MBR.
	Name string
	// Bootable says that BIOS boot code is to start this one: an MBR's active
	// flag, a GPT's attribute "legacy BIOS bootable".
	Bootable bool
}

// End returns the offset behind the partition, in bytes.
func (p Partition) End() int64 { return p.Start + p.Length }

// Table is the partition table of a disk.
type Table struct {
	Scheme     Scheme
	SectorSize int64
	// Backup says that a GPT's primary header was damaged and its backup,
	// at the end of the disk, was read.
	Backup bool
	// BackupOffset is where a GPT's header says that the other copy of the
	// header is, in bytes; 0 for an MBR.
	BackupOffset int64
	Partitions   []Partition
	// Hidden is a GPT beside an MBR that has partitions and none that
	// protects it: no system takes such a GPT for the table, and it may be
	// left over from an earlier one. nil without.
	Hidden *Table
}

// End returns the offset behind the last partition, 0 where there is none.
func (t *Table) End() int64 {
	var end int64
	for _, p := range t.Partitions {
		end = max(end, p.End())
	}
	return end
}

// ErrNone is returned for a disk without a partition table that can be read.
var ErrNone = errors.New("no partition table")

// Read returns the partition table of a disk of size bytes. It returns an
// error that matches ErrNone where there is no (valid) table, and that of the
// disk where it cannot be read. It reads at most some 2 MiB.
func Read(disk io.ReaderAt, size int64) (*Table, error) {
	gpt, err := readAnyGPT(disk, size)
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	mbr, err := readMBR(disk, size)
	switch {
	case gpt != nil && (mbr == nil && errors.Is(err, ErrNone) || mbr != nil && mbr.protects()):
		return gpt, nil
	case err != nil:
		return nil, err
	}
	mbr.Hidden = gpt
	return mbr, nil
}

// protects says whether an MBR has a partition that stands for a GPT.
func (t *Table) protects() bool {
	for _, p := range t.Partitions {
		if p.Type == typeProtectText {
			return true
		}
	}
	return false
}

// readAnyGPT reads the first of a GPT's copies that is whole.
func readAnyGPT(disk io.ReaderAt, size int64) (*Table, error) {
	for _, sector := range sectorSizes {
		t, err := readGPT(disk, size, sector, sector, false)
		if errors.Is(err, ErrNone) && size >= 2*sector {
			t, err = readGPT(disk, size, sector, size/sector*sector-sector, true)
		}
		if !errors.Is(err, ErrNone) {
			return t, err
		}
	}
	return nil, ErrNone
}

// readAt reads a whole structure; one that does not lie in the disk is none.
func readAt(disk io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off < 0 || off > size-n {
		return nil, fmt.Errorf("%d bytes at offset %d lie outside the disk of %d bytes: %w", n, off, size, ErrNone)
	}
	b := make([]byte, n)
	if _, err := disk.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("partition table at offset %d: %w", off, err)
	}
	return b, nil
}

// The MBR: four entries of 16 bytes at 446 and a signature. Fields of an
// entry: boot flag, CHS begin (3), type, CHS end (3), first LBA, sectors.
const (
	mbrEntries  = 446
	mbrEntryLen = 16
	mbrTypeOff  = 4
	mbrStartOff = 8
	mbrCountOff = 12
	typeProtect = 0xee
	// typeProtectText is the Type of a Partition of that kind.
	typeProtectText = "0xee"
	mbrSectorLen    = 512
)

type mbrEntry struct {
	active       bool
	kind         byte
	start, count int64 // sectors
}

func mbrTable(b []byte) (e [4]mbrEntry, ok bool) {
	if b[510] != 0x55 || b[511] != 0xaa {
		return e, false
	}
	for i := range e {
		p := b[mbrEntries+i*mbrEntryLen:]
		// A boot flag that is neither 0 nor 0x80 means that these bytes are
		// something else, for example the code of a FAT boot sector.
		if p[0]&0x7f != 0 {
			return e, false
		}
		e[i] = mbrEntry{p[0] != 0, p[mbrTypeOff], int64(binary.LittleEndian.Uint32(p[mbrStartOff:])), int64(binary.LittleEndian.Uint32(p[mbrCountOff:]))}
	}
	return e, true
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

func readMBR(disk io.ReaderAt, size int64) (*Table, error) {
	const sector = mbrSectorLen
	b, err := readAt(disk, size, 0, mbrSectorLen)
	if err != nil {
		return nil, err
	}
	entries, ok := mbrTable(b)
	if !ok {
		return nil, ErrNone
	}
	t := &Table{Scheme: MBR, SectorSize: sector}
	for i, e := range entries {
		if e.kind == 0 || e.count == 0 {
			continue
		}
		t.Partitions = append(t.Partitions, Partition{Number: i + 1, Start: e.start * sector, Length: e.count * sector, Type: fmt.Sprintf("0x%02x", e.kind), Bootable: e.active})
		if isExtended(e.kind) {
			if err := t.readLogical(disk, size, e.start); err != nil {
				return nil, err
			}
		}
	}
	if len(t.Partitions) == 0 {
		return nil, ErrNone
	}
	return t, nil
}

// readLogical follows the chain of extended boot records that begins at
// sector base. In each record, the first entry is a logical partition, counted
// from the record; the second is the next record, counted from base. A chain
// that leaves the disk, goes back or is not a record ends it: the extended
// partition itself, which is in the table already, covers what it holds.
func (t *Table) readLogical(disk io.ReaderAt, size, base int64) error {
	const sector = mbrSectorLen
	number := 5
	for _, p := range t.Partitions {
		number = max(number, p.Number+1)
	}
	at := base
	for range maxLogical {
		b, err := readAt(disk, size, at*sector, mbrSectorLen)
		if errors.Is(err, ErrNone) {
			return nil
		} else if err != nil {
			return err
		}
		entries, ok := mbrTable(b)
		if !ok {
			return nil
		}
		if e := entries[0]; e.kind != 0 && e.count != 0 {
			t.Partitions = append(t.Partitions, Partition{Number: number, Start: (at + e.start) * sector, Length: e.count * sector, Type: fmt.Sprintf("0x%02x", e.kind), Bootable: e.active})
			number++
		}
		next := entries[1]
		if !isExtended(next.kind) || next.start == 0 || base+next.start <= at {
			return nil
		}
		at = base + next.start
	}
	return nil
}

// The GPT header (UEFI specification, section 5.3.2).
const (
	gptHeaderMin   = 92
	gptMinEntryLen = 128
	gptLegacyBoot  = 1 << 2 // of an entry's attributes
)

var gptMagic = []byte("EFI PART")

// readGPT reads the header at offset at and its entry array. Only a table
// whose two checksums are right, and that says of itself that it is where it
// was found, is one.
func readGPT(disk io.ReaderAt, size, sector, at int64, backup bool) (*Table, error) {
	h, err := readAt(disk, size, at, sector)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	headerLen := int64(le.Uint32(h[12:]))
	if !bytes.Equal(h[:8], gptMagic) || headerLen < gptHeaderMin || headerLen > sector {
		return nil, ErrNone
	}
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	if crc32.ChecksumIEEE(h[:headerLen]) != sum || le.Uint64(h[24:]) != uint64(at/sector) {
		return nil, ErrNone
	}
	count, entryLen := int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	tableAt := le.Uint64(h[72:])
	if entryLen < gptMinEntryLen || entryLen > maxTableLen || count > maxEntries || count*entryLen > maxTableLen || tableAt > uint64(size/sector) {
		return nil, ErrNone
	}
	array, err := readAt(disk, size, int64(tableAt)*sector, count*entryLen)
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(array) != le.Uint32(h[88:]) {
		return nil, ErrNone
	}
	t := &Table{Scheme: GPT, SectorSize: sector, Backup: backup}
	if other := le.Uint64(h[32:]); other <= uint64(1<<62/sector) {
		t.BackupOffset = int64(other) * sector
	}
	for i := range int(count) {
		if p, ok := gptEntry(array[int64(i)*entryLen:], i+1, sector); ok {
			t.Partitions = append(t.Partitions, p)
		}
	}
	return t, nil
}

// gptEntry reads one entry: type GUID, unique GUID, first and last LBA
// (inclusive), attributes, name in UTF-16.
func gptEntry(b []byte, number int, sector int64) (Partition, bool) {
	le := binary.LittleEndian
	var unused [16]byte
	first, last := le.Uint64(b[32:]), le.Uint64(b[40:])
	if bytes.Equal(b[:16], unused[:]) || last < first || last >= uint64(1<<62/sector) {
		return Partition{}, false
	}
	guid := fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
	var name []uint16
	for i := 56; i < gptMinEntryLen; i += 2 {
		c := le.Uint16(b[i:])
		if c == 0 {
			break
		}
		name = append(name, c)
	}
	return Partition{Number: number, Start: int64(first) * sector, Length: int64(last-first+1) * sector, Type: guid, Name: string(utf16.Decode(name)), Bootable: le.Uint64(b[48:])&gptLegacyBoot != 0}, true
}
