package inspect

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/lamina-vm/lamina/internal/guest/inspect/fat"
)

var le = binary.LittleEndian

// content is what a partition holds: a type in blkid's words, and a label.
type content struct{ kind, label string }

// A signature is bytes at a place that tell what a partition holds.
type signature struct {
	kind     string
	at       int64 // negative: from the end
	magic    string
	labelAt  int64 // 0 without
	labelLen int64
}

// signatures in their order: what encloses others first, as its payload may
// begin like another one. Sources: the formats' own descriptions.
var signatures = []signature{
	{"luks", 0, "LUKS\xba\xbe", 0, 0},
	{"bitlocker", 3, "-FVE-FS-", 0, 0},
	{"lvm2", 512 + 24, "LVM2 001", 0, 0}, // the label may lie in any of four sectors
	{"lvm2", 24, "LVM2 001", 0, 0},
	{"lvm2", 1024 + 24, "LVM2 001", 0, 0},
	{"lvm2", 1536 + 24, "LVM2 001", 0, 0},
	{"linux_raid", 4096, "\xfc\x4e\x2b\xa9", 4096 + 32, 32}, // version 1.2
	{"linux_raid", 0, "\xfc\x4e\x2b\xa9", 32, 32},           // 1.1
	{"linux_raid", -65536, "\xfc\x4e\x2b\xa9", 0, 0},        // 0.90
	{"bcache", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", 4096 + 72, 32},
	{"bcachefs", 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", 4096 + 72, 32},
	{"zfs_member", 128<<10 + 0, "\x0c\xb1\xba\x00", 0, 0},
	{"xfs", 0, "XFSB", 108, 12},
	{"btrfs", 65536 + 64, "_BHRfS_M", 65536 + 299, 256},
	{"f2fs", 1024, "\x10\x20\xf5\xf2", 0, 0},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0", 1024 + 64, 16},
	{"squashfs", 0, "hsqs", 0, 0},
	{"ntfs", 3, "NTFS    ", 0, 0},
	{"exfat", 3, "EXFAT   ", 0, 0},
	{"apfs", 32, "NXSB", 0, 0},
	{"hfsplus", 1024, "H+\x00\x04", 0, 0},
	{"hfsplus", 1024, "HX\x00\x05", 0, 0},
	{"reiserfs", 65536 + 52, "ReIsEr", 65536 + 100, 16},
	{"jfs", 32768, "JFS1", 32768 + 152, 16},
	{"nilfs2", 1024 + 6, "\x34\x34", 1024 + 152, 80},
	{"ufs", 65536 + 1372, "\x19\x01\x54\x19", 65536 + 680, 32},
	{"ufs", 8192 + 1372, "\x54\x19\x01\x00", 0, 0},
	{"cramfs", 0, "\x45\x3d\xcd\x28", 48, 16},
	{"vmfs", 1 << 20, "\x0d\xd0\x01\xc0", 0, 0},
	{"iso9660", 32768 + 1, "CD001", 32768 + 40, 32},
	{"udf", 32768 + 1, "BEA01", 0, 0},
}

// identify says what a partition holds; a zero content where that is unknown.
func identify(p part) content {
	if c := identifyExt(p); c.kind != "" {
		return c
	}
	for _, s := range signatures {
		at := s.at
		if at < 0 {
			at += p.size / 65536 * 65536
		}
		if at < 0 || !bytes.Equal(p.bytes(at, int64(len(s.magic))), []byte(s.magic)) {
			continue
		}
		c := content{kind: s.kind}
		if s.labelLen > 0 {
			c.label = clean(p.bytes(s.labelAt, s.labelLen))
		}
		switch s.kind {
		case "luks":
			if b := p.bytes(6, 66); b != nil && b[0] == 0 && b[1] == 2 {
				c.label = clean(b[18:66])
			}
		case "f2fs":
			c.label = cleanWide(p.bytes(1024+0x7c, 1024))
		}
		return c
	}
	if c := identifySwap(p); c.kind != "" {
		return c
	}
	return identifyFAT(p)
}

// identifyExt tells ext2, ext3 and ext4 apart as blkid does: by the features
// that the older ones do not have.
func identifyExt(p part) content {
	b := p.bytes(1024, 256)
	// The magic number has two bytes, which may be there by chance.
	if b == nil || le.Uint16(b[0x38:]) != 0xef53 || le.Uint32(b) == 0 || le.Uint32(b[0x18:]) > 6 || le.Uint32(b[0x4c:]) > 1 {
		return content{}
	}
	compat, incompat, roCompat := le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	const (
		journal       = 0x4
		journalDevice = 0x8
		ext3Incompat  = 0x2 | 0x4 | 0x10 // file types, recovery, meta block groups
		ext3RoCompat  = 0x7              // sparse superblocks, large files, B-tree folders
	)
	c := content{"ext2", clean(b[0x78:0x88])}
	switch {
	case incompat&journalDevice != 0:
		c.kind = "jbd"
	case incompat&^ext3Incompat != 0 || roCompat&^ext3RoCompat != 0:
		c.kind = "ext4"
	case compat&journal != 0:
		c.kind = "ext3"
	}
	return c
}

func identifySwap(p part) content {
	for _, page := range []int64{4096, 8192, 16384, 65536} {
		switch string(p.bytes(page-10, 10)) {
		case "SWAPSPACE2":
			return content{"swap", clean(p.bytes(1024+28, 16))}
		case "SWAP-SPACE":
			return content{kind: "swap"}
		case "S1SUSPEND\x00", "S2SUSPEND\x00", "ULSUSPEND\x00", "LINHIB0001":
			return content{kind: "swsuspend"}
		}
	}
	return content{}
}

// identifyFAT takes a boot sector for FAT's when its signature, its jump, its
// media byte and its sizes are right: it has no magic number.
func identifyFAT(p part) content {
	b := p.bytes(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 || b[21] < 0xf8 && b[21] != 0xf0 {
		return content{}
	}
	f, err := fat.Open(p, p.size)
	if err != nil {
		return content{}
	}
	return content{"vfat", clean([]byte(f.Label()))}
}

// maxText bounds the texts that are taken from an image, in bytes.
const maxText = 128

// clean makes a text from an image fit to be shown: up to the first zero byte,
// valid, printable, not too long.
func clean(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	s := strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case !unicode.IsPrint(r) || r == utf8.RuneError:
			return -1
		}
		return r
	}, string(b))
	s = strings.TrimSpace(s)
	for len(s) > maxText {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// cleanWide is clean for UTF-16.
func cleanWide(b []byte) string {
	var wide []uint16
	for ; len(b) >= 2 && le.Uint16(b) != 0; b = b[2:] {
		wide = append(wide, le.Uint16(b))
	}
	return clean([]byte(string(utf16.Decode(wide))))
}
