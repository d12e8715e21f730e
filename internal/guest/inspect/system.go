package inspect

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"io/fs"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/inspect/extfs"
	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
	"github.com/lamina-vm/lamina/internal/guest/inspect/xfs"
)

// opaque are the types that may well hold a system but are only named.
var opaque = map[string]bool{
	"btrfs": true, "lvm2": true, "luks": true, "linux_raid": true, "zfs_member": true, "f2fs": true, "bcachefs": true, "bcache": true,
	"ntfs": true, "bitlocker": true, "squashfs": true, "erofs": true, "reiserfs": true, "jfs": true, "nilfs2": true, "ufs": true, "apfs": true,
}

// errNoSystem says that a file system is readable and holds no system.
var errNoSystem = errors.New("no system")

// openTree opens the file systems that we read; the error matches
// [errors.ErrUnsupported] for the others.
func (l *look) openTree(v api.ImagePart) (t tree.Tree, dirty bool, err error) {
	p := l.part(v)
	switch v.Type {
	case "ext2", "ext3", "ext4":
		f, err := extfs.Open(p, p.size)
		if err != nil {
			return t, false, err
		}
		return tree.Tree{FS: f}, f.Dirty(), nil
	case "xfs":
		f, err := xfs.Open(p, p.size)
		if err != nil {
			return t, false, err
		}
		return tree.Tree{FS: f}, false, nil
	}
	return t, false, errors.ErrUnsupported
}

// findSystem looks for the system's partition, and returns its files; nil where
// there is none.
func (l *look) findSystem() (*tree.Tree, release) {
	var root *tree.Tree
	var rel release
	for i := range l.info.Volumes {
		v := &l.info.Volumes[i]
		t, dirty, err := l.openTree(*v)
		var r release
		if err == nil {
			r, err = readRelease(t)
		}
		switch {
		case errors.Is(err, errors.ErrUnsupported):
		case errors.Is(err, errNoSystem):
			// A link to what lies on another partition.
			if st, err := t.Lstat("etc/os-release"); err == nil && st.Type == fs.ModeSymlink {
				l.note("the /etc of a system is on %s, and its os-release is not: perhaps it has a /usr of its own", volumeName(*v))
			}
		case err != nil:
			l.note("%s cannot be read: %v", volumeName(*v), err)
		case root != nil:
			l.note("there is another system on %s: %s", volumeName(*v), r.name())
		default:
			v.Root = true
			root, rel = &t, r
			if dirty {
				l.note("%s was not unmounted: what only its journal holds is not seen", volumeName(*v))
			}
		}
	}
	if root == nil {
		for _, v := range l.info.Volumes {
			if opaque[v.Type] {
				l.note("%s is %s, into which this does not look", volumeName(v), v.Type)
			}
			l.bootMenu(v)
		}
	}
	return root, rel
}

// bootMenu says what a boot partition calls the system that cannot be seen: the
// titles of its entries, in the form of the Boot Loader Specification.
func (l *look) bootMenu(v api.ImagePart) {
	t, _, err := l.openTree(v)
	if err != nil {
		return
	}
	for _, dir := range []string{"loader/entries", "boot/loader/entries"} {
		entries, err := t.Match(dir, "*.conf")
		if err != nil {
			return // that it cannot be read has been said
		}
		for _, name := range entries {
			for line := range strings.Lines(text(t, name, maxReleaseLen)) {
				if title, ok := strings.CutPrefix(line, "title "); ok && clean([]byte(title)) != "" {
					l.note("%s boots %q", volumeName(v), clean([]byte(title)))
				}
			}
		}
	}
}

// maxReleaseLen bounds os-release, in bytes.
const maxReleaseLen = 64 << 10

// readRelease reads what the system on a file system says of itself.
func readRelease(t tree.Tree) (release, error) {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := t.ReadFile(name, maxReleaseLen)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if r := parseRelease(b); r["ID"] != "" || r["NAME"] != "" || r["PRETTY_NAME"] != "" {
			return r, nil
		}
	}
	b, err := t.ReadFile("etc/redhat-release", maxReleaseLen)
	if err == nil {
		if r := parseRedHat(b); r != nil {
			return r, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, errNoSystem
}

// programs are files of which every system has at least one.
var programs = []string{
	"bin/sh", "bin/busybox", "usr/bin/env", "usr/lib/systemd/systemd", "sbin/init",
	"lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1", "lib/ld-musl-x86_64.so.1",
}

// architecture is what the system's programs are for; "" where that is unknown.
func architecture(t tree.Tree) (string, error) {
	for _, name := range programs {
		b, err := t.ReadFile(name, 64)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if a := elfArch(b); a != "" {
			return a, nil
		}
	}
	return "", nil
}

// elfArch reads the header of an ELF file.
func elfArch(b []byte) string {
	if len(b) < 20 || string(b[:4]) != elf.ELFMAG {
		return ""
	}
	big := elf.Data(b[elf.EI_DATA]) == elf.ELFDATA2MSB
	machine := elf.Machine(le.Uint16(b[18:]))
	if big {
		machine = elf.Machine(binary.BigEndian.Uint16(b[18:]))
	}
	switch machine {
	case elf.EM_X86_64:
		return "x86_64"
	case elf.EM_386:
		return "i686"
	case elf.EM_AARCH64:
		return "aarch64"
	case elf.EM_ARM:
		return "armv7l"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_PPC64:
		if big {
			return "ppc64"
		}
		return "ppc64le"
	case elf.EM_S390:
		return "s390x"
	case elf.EM_LOONGARCH:
		return "loongarch64"
	}
	return ""
}

// anyFile says whether one of the files is there.
func anyFile(t tree.Tree, names ...string) (bool, error) {
	for _, n := range names {
		if ok, err := t.IsFile(n); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}
