package inspect

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// tool runs one of the programs that make file systems.
func tool(t testing.TB, stdin, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run make deps", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// blank is an empty file of size bytes.
func blank(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// files are what a file system is made with: a name that ends in a slash is a
// folder, content that begins with "-> " a symbolic link.
type files map[string]string

func (f files) write(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range f {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// elfHeader is the beginning of a program for a machine.
func elfHeader(machine uint16) string {
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], 3)
	binary.LittleEndian.PutUint16(b[18:], machine)
	return string(b)
}

const debianRelease = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n"

// system is a system with merged folders, as today's are.
func system() files {
	return files{
		"usr/lib/os-release":      debianRelease,
		"etc/os-release":          "-> ../usr/lib/os-release",
		"bin":                     "-> usr/bin",
		"lib":                     "-> usr/lib",
		"sbin":                    "-> usr/sbin",
		"usr/bin/sh":              "-> dash",
		"usr/bin/dash":            elfHeader(62),
		"usr/bin/cloud-init":      "#!/usr/bin/python3\n",
		"usr/sbin/qemu-ga":        elfHeader(62),
		"etc/machine-id":          "",
		"etc/ssh/sshd_config":     "Port 22\n",
		"var/lib/dbus/machine-id": "-> /etc/machine-id",
		"etc/loop":                "-> loop",
		"home/":                   "",
	}
}

// ext makes an ext file system: kind is ext2, ext3 or ext4.
func ext(t testing.TB, size int64, kind string, f files, args ...string) []byte {
	t.Helper()
	path := blank(t, size)
	tool(t, "", "mke2fs", append(append([]string{"-q", "-F", "-t", kind, "-L", "rootfs", "-d", f.write(t)}, args...), path)...)
	return read(t, path)
}

// protofile describes a folder tree as mkfs.xfs -p wants it.
func protofile(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("/\n0 0\nd--755 0 0\n")
	var walk func(string)
	walk = func(dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch {
			case e.IsDir():
				b.WriteString(e.Name() + " d--755 0 0\n")
				walk(path)
			case e.Type()&os.ModeSymlink != 0:
				target, err := os.Readlink(path)
				if err != nil {
					t.Fatal(err)
				}
				b.WriteString(e.Name() + " l--777 0 0 " + target + "\n")
			default:
				b.WriteString(e.Name() + " ---644 0 0 " + path + "\n")
			}
		}
		b.WriteString("$\n")
	}
	walk(dir)
	proto := filepath.Join(t.TempDir(), "proto")
	if err := os.WriteFile(proto, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return proto
}

// xfsImage makes an XFS file system, of the smallest size that mkfs.xfs makes. It
// returns the path of the file, which is mostly a hole.
func xfsImage(t testing.TB, f files, args ...string) string {
	t.Helper()
	path := blank(t, 300*mib)
	tool(t, "", "mkfs.xfs", append(append([]string{"-q", "-f", "-L", "rootfs", "-p", protofile(t, f.write(t))}, args...), path)...)
	return path
}

// fatImage makes a FAT file system with files, whose folders it makes, too.
func fatImage(t testing.TB, size int64, bits string, f files) []byte {
	t.Helper()
	path := blank(t, size)
	tool(t, "", "mkfs.vfat", "-F", bits, "-n", "ESP", path)
	dir := f.write(t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		tool(t, "", "mcopy", "-s", "-i", path, filepath.Join(dir, e.Name()), "::")
	}
	return read(t, path)
}

// table makes a disk of size bytes with sfdisk's script.
func table(t testing.TB, size int64, script string) []byte {
	t.Helper()
	path := blank(t, size)
	tool(t, script, "sfdisk", "-q", path)
	return read(t, path)
}

func lookAt(t testing.TB, disk []byte) Result {
	t.Helper()
	res, err := Look(t.Context(), bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// lookIn looks into a raw image file.
func lookIn(t testing.TB, path string) Result {
	t.Helper()
	res, err := LookFile(t.Context(), path, "raw")
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// extFile is ext, as a file.
func extFile(t testing.TB, size int64, kind string, f files, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext")
	if err := os.WriteFile(path, ext(t, size, kind, f, args...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
