package seed

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
)

// The image is written here rather than by a library: kdomanski/iso9660
// writes neither Rock Ridge nor Joliet, so that a guest would see USER_DAT,
// which no cloud-init looks for; go-diskfs brings some thirty packages to
// write three files and takes its times from the clock.

// file is one file in the root folder of the image.
type file struct {
	name string // as a guest sees it
	data []byte
}

const (
	sectorSize = 2048
	volumeID   = "cidata" // lower case, as cloud-init's documentation has it
)

// The fixed part of the layout, in sectors. File data follows in order, each
// file on a sector of its own. The root folders take one sector each, which
// is room for some ten names.
const (
	primarySector = 16 + iota
	jolietSector
	terminatorSector
	pathLSector
	pathMSector
	jolietPathLSector
	jolietPathMSector
	rootSector
	jolietRootSector
	dataSector
)

// minSectors is the least size of an image. busybox's blkid and findfs look
// for other file systems first, as far as some 300 KiB into the device, and
// give up on a read behind its end. The rest is a hole.
const minSectors = 384 << 10 / sectorSize

// buildISO makes an ISO 9660 image (ECMA-119) of the files, with the names
// once as Rock Ridge (RRIP 1.09) and once as Joliet. Names come in the order
// that both want: sorted, and still sorted when cut to eight characters.
func buildISO(volume string, files []file) ([]byte, error) {
	total := dataSector
	start := make([]int, len(files))
	for i, f := range files {
		start[i] = total
		total += (len(f.data) + sectorSize - 1) / sectorSize
	}
	total = max(total, minSectors)
	img := make([]byte, total*sectorSize)
	sector := func(n int) []byte { return img[n*sectorSize : (n+1)*sectorSize] }

	primary, err := rootFolder(files, start, rootSector, rockRidge)
	if err != nil {
		return nil, err
	}
	joliet, err := rootFolder(files, start, jolietRootSector, jolietNames)
	if err != nil {
		return nil, err
	}
	copy(sector(rootSector), primary)
	copy(sector(jolietRootSector), joliet)

	putDescriptor(sector(primarySector), volume, 1, total, rootSector, pathLSector)
	putDescriptor(sector(jolietSector), volume, 2, total, jolietRootSector, jolietPathLSector)
	copy(sector(terminatorSector), "\xffCD001\x01")

	putPathTable(sector(pathLSector), binary.LittleEndian, rootSector)
	putPathTable(sector(pathMSector), binary.BigEndian, rootSector)
	putPathTable(sector(jolietPathLSector), binary.LittleEndian, jolietRootSector)
	putPathTable(sector(jolietPathMSector), binary.BigEndian, jolietRootSector)

	for i, f := range files {
		copy(img[start[i]*sectorSize:], f.data)
	}
	return img, nil
}

// pathTableSize is that of a path table with the root alone.
const pathTableSize = 10

// putPathTable writes a path table (ECMA-119 9.4) that holds the root.
func putPathTable(b []byte, order binary.ByteOrder, root int) {
	b[0] = 1 // length of the name, a zero byte
	order.PutUint32(b[2:], uint32(root))
	order.PutUint16(b[6:], 1) // the root is its own parent
}

// putDescriptor writes a primary (kind 1, ECMA-119 8.4) or Joliet (kind 2,
// 8.5) volume descriptor.
func putDescriptor(b []byte, volume string, kind byte, total, root, pathL int) {
	text := func(off, n int, s string) { putText(b[off:off+n], s, kind == 2) }
	b[0] = kind
	copy(b[1:], "CD001\x01")
	text(8, 32, "")
	text(40, 32, volume)
	both32(b[80:], uint32(total))
	if kind == 2 {
		copy(b[88:], "%/E") // UCS-2 level 3
	}
	both16(b[120:], 1) // volumes in the set
	both16(b[124:], 1) // number of this one
	both16(b[128:], sectorSize)
	both32(b[132:], pathTableSize)
	binary.LittleEndian.PutUint32(b[140:], uint32(pathL))
	binary.BigEndian.PutUint32(b[148:], uint32(pathL+1))
	copy(b[156:], record([]byte{0}, root, sectorSize, true, nil))
	text(190, 128, "") // volume set
	text(318, 128, "") // publisher
	text(446, 128, "") // preparer
	text(574, 128, "LAMINA")
	text(702, 37, "")
	text(739, 37, "")
	text(776, 37, "")
	copy(b[813:], isoTime+"\x00") // created
	copy(b[830:], isoTime+"\x00") // modified
	copy(b[847:], "0000000000000000\x00")
	copy(b[864:], "0000000000000000\x00")
	b[881] = 1 // version of the folder structure
}

// Every time in the image is this one, so that equal seeds are equal files.
const isoTime = "2000010100000000"

var recordTime = []byte{100, 1, 1, 0, 0, 0, 0}

// putText fills a text field, padded with spaces.
func putText(b []byte, s string, ucs2 bool) {
	if !ucs2 {
		copy(b, s+strings.Repeat(" ", len(b)-len(s)))
		return
	}
	for i := 0; i+1 < len(b); i += 2 {
		c := byte(' ')
		if i/2 < len(s) {
			c = s[i/2]
		}
		b[i], b[i+1] = 0, c
	}
}

// both32 and both16 write a number in both byte orders, as ECMA-119 7.3.3 and
// 7.2.3 say.
func both32(b []byte, v uint32) {
	binary.LittleEndian.PutUint32(b, v)
	binary.BigEndian.PutUint32(b[4:], v)
}

func both16(b []byte, v uint16) {
	binary.LittleEndian.PutUint16(b, v)
	binary.BigEndian.PutUint16(b[2:], v)
}

// record makes a directory record (ECMA-119 9.1) with a system use area.
func record(name []byte, at, size int, dir bool, use []byte) []byte {
	n := 33 + len(name)
	n += n & 1
	b := make([]byte, n, n+len(use)+1)
	both32(b[2:], uint32(at))
	both32(b[10:], uint32(size))
	copy(b[18:], recordTime)
	if dir {
		b[25] = 2
	}
	both16(b[28:], 1)
	b[32] = byte(len(name))
	copy(b[33:], name)
	b = append(b, use...)
	if len(b)&1 == 1 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// naming says what a file's record carries: its name there, and the system
// use area; the area of the folder's own record when name is ".".
type naming func(name string) (id, use []byte)

func rootFolder(files []file, start []int, self int, as naming) ([]byte, error) {
	_, dot := as(".")
	_, dotdot := as("..")
	b := record([]byte{0}, self, sectorSize, true, dot)
	b = append(b, record([]byte{1}, self, sectorSize, true, dotdot)...)
	for i, f := range files {
		id, use := as(f.name)
		r := record(id, start[i], len(f.data), false, use)
		if len(r) > 255 || len(b)+len(r) > sectorSize {
			return nil, fmt.Errorf("seed: no room for the name %q in the image", f.name)
		}
		b = append(b, r...)
	}
	return b, nil
}

// jolietNames are UCS-2, big endian. They have no version number ";1", as
// genisoimage writes none: isoinfo would show it.
func jolietNames(name string) (id, use []byte) {
	if name == "." || name == ".." {
		return nil, nil
	}
	for _, c := range utf16.Encode([]rune(name)) {
		id = binary.BigEndian.AppendUint16(id, c)
	}
	return id, nil
}

// rockRidge gives a file an eight-character name of the few letters that
// ECMA-119 allows, and its real one in the system use area.
func rockRidge(name string) (id, use []byte) {
	switch name {
	case ".":
		// SP says that the extensions are used, ER which one.
		use = append(use, 'S', 'P', 7, 1, 0xbe, 0xef, 0)
		use = append(use, posixMode(0o040555, 2)...)
		const ext = "RRIP_1991A"
		use = append(use, 'E', 'R', byte(8+len(ext)), 1, byte(len(ext)), 0, 0, 1)
		return nil, append(use, ext...)
	case "..":
		return nil, posixMode(0o040555, 2)
	}
	use = posixMode(0o100444, 1)
	use = append(use, 'N', 'M', byte(5+len(name)), 1, 0)
	use = append(use, name...)
	return []byte(plainName(name)), use
}

// posixMode is the PX entry of RRIP 4.1.1.
func posixMode(mode, links uint32) []byte {
	b := make([]byte, 36)
	copy(b, "PX\x24\x01")
	both32(b[4:], mode)
	both32(b[12:], links)
	return b // user and group 0
}

func plainName(name string) string {
	up := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, name)
	return up[:min(8, len(up))] + ".;1"
}
