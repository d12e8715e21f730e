package inspect

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/guest/inspect/fat"
	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
	"github.com/lamina-vm/lamina/internal/partition"
)

// GPT types of partitions, and the MBR types that mean the same.
const (
	typeESP      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeESPMBR   = "0xef"
	typeBIOSBoot = "21686148-6449-6E6F-744E-656564454649"
	typePReP     = "9E1A2D38-C612-4316-AA26-8B49521E5A8B"
	typePRePMBR  = "0x41"
)

const bootCodeLen = 440 // of the first sector, before the disk's number

// bootsByBIOS says whether firmware of the BIOS kind finds something to start:
// code in the first sector, and what that code then wants.
func bootsByBIOS(d *disk, t *partition.Table) bool {
	b := part{d, 0, d.size}.bytes(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa || len(bytes.Trim(b[:bootCodeLen], "\x00")) == 0 {
		return false
	}
	code := b[:bootCodeLen]
	// GRUB and LILO know the place of their next part by themselves.
	own := bytes.Contains(code, []byte("GRUB")) || bytes.Contains(code, []byte("LILO"))
	if t == nil {
		// A boot sector of a file system is code, too: most say that they start
		// nothing.
		loaders := [][]byte{[]byte("SYSLINUX"), []byte("EXTLINUX"), []byte("BOOTMGR"), []byte("NTLDR")}
		return own || slices.ContainsFunc(loaders, func(l []byte) bool { return bytes.Contains(b, l) })
	}
	return own || slices.ContainsFunc(t.Partitions, func(p partition.Partition) bool { return p.Bootable || p.Type == typeBIOSBoot })
}

// loaders are the names under which UEFI firmware looks for a loader on a disk
// that it knows nothing about, and the machine they are for.
var loaders = []struct{ name, arch string }{
	{"BOOTX64.EFI", "x86_64"}, {"BOOTIA32.EFI", "i686"}, {"BOOTAA64.EFI", "aarch64"}, {"BOOTARM.EFI", "armv7l"},
}

// wideLoaders are those that have no short name on FAT: eight characters at most.
// A folder lists them by the beginning of the name.
var wideLoaders = []struct{ start, arch string }{{"BOOTRI~", "riscv64"}, {"BOOTLO~", "loongarch64"}}

// findLoader looks for a UEFI loader on a FAT partition. arch is "" where there
// is none.
func findLoader(p part) (arch string, err error) {
	f, err := fat.Open(p, p.size)
	if err != nil {
		return "", err
	}
	t := tree.Tree{FS: f}
	for _, l := range loaders {
		ok, err := t.IsFile("EFI/BOOT/" + l.name)
		if err != nil {
			return "", err
		}
		if ok {
			return l.arch, nil
		}
	}
	names, err := t.Match("EFI/BOOT", "BOOT*.EFI")
	if err != nil {
		return "", err
	}
	for _, n := range names {
		for _, l := range wideLoaders {
			if strings.Contains(n, l.start) {
				return l.arch, nil
			}
		}
	}
	return "", nil
}

// discBoot reads the boot catalogue of a disc (El Torito): which kinds of
// firmware it has something for.
func discBoot(p part) (bios, uefi bool) {
	const sector = 2048
	record := p.bytes(17*sector, sector)
	if record == nil || !bytes.HasPrefix(record, []byte("\x00CD001\x01EL TORITO SPECIFICATION")) {
		return false, false
	}
	catalogue := p.bytes(int64(le.Uint32(record[71:]))*sector, sector)
	if catalogue == nil || catalogue[0] != 1 || catalogue[30] != 0x55 || catalogue[31] != 0xaa {
		return false, false
	}
	// The first two entries are the platform and its default; then, sections.
	const entry, bootable, platformUEFI = 32, 0x88, 0xef
	platform := catalogue[1]
	for at := entry; at+entry <= sector; at += entry {
		switch e := catalogue[at:]; {
		case at > entry && (e[0] == 0x90 || e[0] == 0x91): // a section begins
			platform = e[1]
		case e[0] == bootable && platform == platformUEFI:
			uefi = true
		case e[0] == bootable && platform == 0:
			bios = true
		}
	}
	return bios, uefi
}

// bootMode finds out how the image boots, and the architecture of its UEFI
// loader.
func (l *look) bootMode() (arch string) {
	bios := bootsByBIOS(l.d, l.table)
	uefi := false
	var bare []string
	for i, v := range l.info.Volumes {
		switch v.Type {
		case "iso9660":
			b, u := discBoot(l.part(v))
			bios, uefi = bios || b, uefi || u
		case "vfat":
			a, err := findLoader(l.part(v))
			switch {
			case a != "":
				uefi, arch = true, a
			case l.esp[i] && (err == nil || errors.Is(err, fs.ErrNotExist)):
				bare = append(bare, volumeName(v))
			case err != nil:
				l.note("%s cannot be read: %v", volumeName(v), err)
			}
		}
	}
	if !uefi {
		for _, name := range bare {
			l.note("%s is an EFI system partition without EFI/BOOT/BOOTX64.EFI, the loader that firmware looks for on a disk that it does not know", name)
		}
	}
	switch {
	case bios && uefi:
		l.info.BootMode = "bios+uefi"
	case bios:
		l.info.BootMode = "bios"
	case uefi:
		l.info.BootMode = "uefi"
	}
	return arch
}

// volumeType names what a partition is where its content does not say.
func volumeType(p partition.Partition) string {
	switch p.Type {
	case typeBIOSBoot:
		return "biosboot"
	case typePReP, typePRePMBR:
		return "prep"
	case "0x05", "0x0f", "0x85":
		return "extended"
	}
	return ""
}
