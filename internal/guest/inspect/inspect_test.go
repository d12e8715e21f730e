package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guestimage"
)

// wantSystem holds what every image of system() is.
func wantSystem(t *testing.T, kind string, res Result) {
	t.Helper()
	want := api.ImageInfo{OS: "debian12", Name: "Debian GNU/Linux 12 (bookworm)", Arch: "x86_64", Table: "none", CloudInit: true, Agent: true}
	got := res.Info
	got.Volumes = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if v := res.Info.Volumes; len(v) != 1 || v[0].Type != kind || v[0].Label != "rootfs" || !v[0].Root || v[0].Number != 0 {
		t.Errorf("volumes %+v", v)
	}
	if !res.Traces.Read || len(res.Traces.Left()) > 0 {
		t.Errorf("traces %+v", res.Traces)
	}
}

// Each feature changes where things lie. e2fsprogs makes them all.
func TestExt(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		args       []string
	}{
		{"ext2", "ext2", nil},
		{"ext2 without types", "ext2", []string{"-O", "none", "-b", "1024", "-r", "0"}},
		{"ext3", "ext3", nil},
		{"ext4", "ext4", nil},
		{"1 KiB blocks", "ext4", []string{"-b", "1024"}},
		{"64 KiB blocks", "ext4", []string{"-b", "65536"}},
		{"without 64bit", "ext4", []string{"-O", "^64bit,^metadata_csum,^flex_bg"}},
		{"meta_bg", "ext4", []string{"-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode"}},
		{"sparse_super2", "ext4", []string{"-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,sparse_super2"}},
		{"inline data", "ext4", []string{"-O", "inline_data", "-I", "512"}},
		{"bigalloc", "ext4", []string{"-O", "bigalloc", "-C", "16384"}},
		{"casefold", "ext4", []string{"-O", "casefold,large_dir,ea_inode,mmp"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantSystem(t, c.kind, lookAt(t, ext(t, 16*mib, c.kind, system(), c.args...)))
		})
	}
}

func TestXFS(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"version 5", nil},
		{"version 4", []string{"-m", "crc=0", "-n", "ftype=0"}},
		{"version 4 with types", []string{"-m", "crc=0", "-n", "ftype=1"}},
		{"1 KiB blocks", []string{"-b", "size=1024"}},
		{"8 KiB folder blocks", []string{"-n", "size=8192"}},
		{"all features", []string{"-m", "reflink=1,rmapbt=1,bigtime=1,inobtcount=1", "-i", "sparse=1,nrext64=1"}},
		{"large inodes", []string{"-i", "size=2048"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantSystem(t, "xfs", lookIn(t, xfsImage(t, system(), c.args...)))
		})
	}
}

// many is a system with what does not fit in an inode: a folder of n entries,
// which is indexed, and, where long is set, the target of a link.
func many(n int, long bool) files {
	f := system()
	for i := range n {
		f[fmt.Sprintf("etc/%s-%d", strings.Repeat("z", 40+i%100), i)] = ""
	}
	if long {
		f["etc/os-release"] = "-> ../usr/lib/" + strings.Repeat("../../usr/lib/", 24) + "os-release"
	}
	return f
}

func TestLargeFolders(t *testing.T) {
	for name, disk := range map[string]string{
		"ext4":   extFile(t, 16*mib, "ext4", many(700, true), "-b", "1024"),
		"ext2":   extFile(t, 16*mib, "ext2", many(700, true), "-b", "1024"),
		"xfs":    withLinkHeader(t, xfsImage(t, many(700, true))),
		"xfs-v4": xfsImage(t, many(700, true), "-m", "crc=0", "-b", "size=1024"),
	} {
		t.Run(name, func(t *testing.T) { wantSystem(t, strings.TrimSuffix(name, "-v4"), lookIn(t, disk)) })
	}
}

// withLinkHeader puts the header before the target of a long link that version 5
// of XFS has there, and that mkfs.xfs 6.1 does not write.
func withLinkHeader(t *testing.T, path string) string {
	t.Helper()
	const block, header = 4096, 56
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b, start := make([]byte, 4*mib), int64(0)
	at := -1
	for ; at < 0; start += int64(len(b)) {
		if _, err := f.ReadAt(b, start); err != nil {
			t.Fatalf("the target of the link: %v", err)
		}
		at = bytes.Index(b, []byte("../usr/lib/../../usr/lib/"))
	}
	if at%block != 0 {
		t.Fatalf("the target of the link lies at %d", at)
	}
	target := bytes.TrimRight(b[at:at+block], "\x00")
	out := make([]byte, block)
	copy(out, "XSLM")
	binary.BigEndian.PutUint32(out[8:], uint32(len(target)))
	copy(out[header:], target)
	if _, err := f.WriteAt(out, start-int64(len(b)-at)); err != nil {
		t.Fatal(err)
	}
	return path
}

// gptScript is a disk as cloud images are: BIOS boot, ESP, root.
const gptScript = "label: gpt\n" +
	"start=2048, size=1M, type=21686148-6449-6E6F-744E-656564454649\n" +
	"start=2M, size=34M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n" +
	"start=40M, size=16M, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n"

// grub puts something into the boot sector that is as GRUB's.
func grub(disk []byte) {
	copy(disk, "\xeb\x63\x90")
	copy(disk[0x180:], "GRUB \x00Geom\x00Hard Disk\x00Read\x00 Error")
	disk[510], disk[511] = 0x55, 0xaa
}

func TestGPT(t *testing.T) {
	disk := table(t, 64*mib, gptScript)
	copy(disk[2*mib:], fatImage(t, 34*mib, "32", files{"EFI/BOOT/BOOTX64.EFI": "MZ", "EFI/debian/grub.cfg": ""}))
	copy(disk[40*mib:], ext(t, 16*mib, "ext4", system()))
	grub(disk)
	res := lookAt(t, disk)
	want := []api.ImagePart{
		{Number: 1, Offset: mib, Size: mib, Type: "biosboot"},
		{Number: 2, Offset: 2 * mib, Size: 34 * mib, Type: "vfat", Label: "ESP"},
		{Number: 3, Offset: 40 * mib, Size: 16 * mib, Type: "ext4", Label: "rootfs", Root: true},
	}
	if i := res.Info; !reflect.DeepEqual(i.Volumes, want) || i.Table != "gpt" || i.BootMode != "bios+uefi" || i.OS != "debian12" || i.Note != "" {
		t.Errorf("%+v", i)
	}
	// Each way to boot alone, and neither.
	clear(disk[:440])
	if m := lookAt(t, disk).Info.BootMode; m != "uefi" {
		t.Errorf("without boot code: %q", m)
	}
	grub(disk)
	copy(disk[2*mib:], fatImage(t, 34*mib, "32", files{"EFI/debian/grub.cfg": ""}))
	if i := lookAt(t, disk).Info; i.BootMode != "bios" || !strings.Contains(i.Note, "partition 2 is an EFI system partition without") {
		t.Errorf("without a loader: %+v", i)
	}
	clear(disk[:440])
	if m := lookAt(t, disk).Info.BootMode; m != "" {
		t.Errorf("without both: %q", m)
	}
	// The first copy of the table is damaged.
	disk[512+60]++
	if i := lookAt(t, disk).Info; i.OS != "debian12" || !strings.Contains(i.Note, "partition table is damaged") {
		t.Errorf("%+v", i)
	}
}

func TestMBR(t *testing.T) {
	disk := table(t, 128*mib, "label: dos\nstart=2048, size=20M, type=ef\nstart=24M, size=90M, type=5\nstart=25M, size=20M, type=83\nstart=50M, size=20M, type=83, bootable\n")
	copy(disk[mib:], fatImage(t, 20*mib, "16", files{"EFI/BOOT/BOOTAA64.EFI": "MZ"}))
	other := system()
	other["usr/lib/os-release"] = "ID=alpine\nVERSION_ID=3.19.1\nPRETTY_NAME=\"Alpine\x1b[2J Linux v3.19\"\n"
	delete(other, "usr/bin/dash") // nothing to tell the architecture by
	delete(other, "usr/sbin/qemu-ga")
	copy(disk[25*mib:], ext(t, 16*mib, "ext4", other))
	copy(disk[50*mib:], ext(t, 16*mib, "ext4", system()))
	copy(disk, "\xfa\xb8\x00\x10")
	i := lookAt(t, disk).Info
	if i.Table != "mbr" || i.BootMode != "bios+uefi" || i.OS != "alpinelinux3.19" || i.Name != "Alpine[2J Linux v3.19" || i.Arch != "aarch64" || i.Agent ||
		i.Note != "there is another system on partition 6: Debian GNU/Linux 12 (bookworm)" {
		t.Errorf("%+v", i)
	}
	var kinds []string
	for _, v := range i.Volumes {
		kinds = append(kinds, v.Type)
	}
	if got := strings.Join(kinds, " "); got != "vfat extended ext4 ext4" {
		t.Errorf("%s", got)
	}
}

// File systems that are only named, with their labels.
func TestNamed(t *testing.T) {
	for _, c := range []struct {
		kind, label string
		size        int64
		argv        string // the disk goes at its end
	}{
		{"btrfs", "rootfs", 128 * mib, "mkfs.btrfs -q -L rootfs"},
		{"f2fs", "flash", 64 * mib, "mkfs.f2fs -q -l flash"},
		{"ntfs", "", 8 * mib, "mkntfs -q -F -f -L win"},
		{"swap", "swp", 2 * mib, "mkswap -q -L swp"},
		{"luks", "crypt", 32 * mib, "cryptsetup luksFormat -q --type luks2 --label crypt --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file /dev/stdin"},
		{"vfat", "DATA", 4 * mib, "mkfs.vfat -n DATA"},
		{"vfat", "BIG", 64 * mib, "mkfs.vfat -F 32 -n BIG"},
		{"", "", 4 * mib, "true"},
	} {
		t.Run(c.kind+c.label, func(t *testing.T) {
			path := blank(t, c.size)
			argv := append(strings.Fields(c.argv), path)
			tool(t, "password", argv[0], argv[1:]...)
			i := lookAt(t, read(t, path)).Info
			if i.Table != "none" || len(i.Volumes) != 1 || i.Volumes[0].Type != c.kind || i.Volumes[0].Label != c.label || i.OS != "" || i.BootMode != "" {
				t.Errorf("%+v", i)
			}
			if opaque[c.kind] && i.Note != "the disk is "+c.kind+", into which this does not look" {
				t.Errorf("note %q", i.Note)
			}
		})
	}
	dir := files{"a": "b"}.write(t)
	squash := filepath.Join(t.TempDir(), "squash")
	tool(t, "", "mksquashfs", dir, squash, "-quiet", "-no-progress")
	if i := lookAt(t, read(t, squash)).Info; i.Volumes[0].Type != "squashfs" {
		t.Errorf("%+v", i)
	}
	// pvcreate wants a block device: the label as the LVM2 sources describe it.
	lvm := make([]byte, mib)
	copy(lvm[512:], "LABELONE\x01\x00\x00\x00\x00\x00\x00\x00")
	copy(lvm[512+24:], "LVM2 001")
	if i := lookAt(t, lvm).Info; i.Volumes[0].Type != "lvm2" {
		t.Errorf("%+v", i)
	}
}

// A system in a file system that is not read: its boot partition has its name. And
// one that was not unmounted.
func TestBootMenuAndDirty(t *testing.T) {
	disk := table(t, 160*mib, "label: gpt\nstart=1M, size=20M\nstart=24M, size=128M\n")
	boot := files{"loader/entries/x-6.5.6-300.fc39.x86_64.conf": "title Fedora Linux (6.5.6-300.fc39.x86_64) 39\x07 (Cloud Edition)\nversion 6.5.6\n", "loader/entries/a.txt": "title no"}
	copy(disk[mib:], ext(t, 16*mib, "ext4", boot))
	btrfs := blank(t, 128*mib)
	tool(t, "", "mkfs.btrfs", "-q", btrfs)
	copy(disk[24*mib:], read(t, btrfs))
	want := `partition 1 boots "Fedora Linux (6.5.6-300.fc39.x86_64) 39 (Cloud Edition)"; partition 2 is btrfs, into which this does not look`
	if i := lookAt(t, disk).Info; i.Note != want || i.OS != "" {
		t.Errorf("%+v", i)
	}
	apart := system()
	delete(apart, "usr/lib/os-release")
	if i := lookAt(t, ext(t, 16*mib, "ext4", apart)).Info; i.OS != "" || !strings.Contains(i.Note, "a /usr of its own") {
		t.Errorf("%+v", i)
	}
	path := extFile(t, 16*mib, "ext4", system())
	tool(t, "", "debugfs", "-w", "-R", "ssv state 0", path)
	if i := lookIn(t, path).Info; i.OS != "debian12" || i.Note != "the disk was not unmounted: what only its journal holds is not seen" {
		t.Errorf("%+v", i)
	}
}

func TestDisc(t *testing.T) {
	dir := files{"boot.img": strings.Repeat("x", 2048), "efi.img": strings.Repeat("y", 4096)}.write(t)
	iso := filepath.Join(t.TempDir(), "iso")
	tool(t, "", "xorriso", "-report_about", "SORRY", "-as", "mkisofs", "-V", "Debian 11.1.0 amd64 n", "-o", iso,
		"-b", "boot.img", "-no-emul-boot", "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot", dir)
	i := lookAt(t, read(t, iso)).Info
	if i.BootMode != "bios+uefi" || i.OS != "debian11" || i.Arch != "x86_64" || i.Volumes[0].Type != "iso9660" || i.Volumes[0].Label != "Debian 11.1.0 amd64 n" {
		t.Errorf("%+v", i)
	}
}

func TestTraces(t *testing.T) {
	f := system()
	maps.Copy(f, files{
		"etc/machine-id":                           "0123456789abcdef0123456789abcdef\n",
		"etc/ssh/ssh_host_rsa_key":                 "secret",
		"etc/ssh/ssh_host_rsa_key.pub":             "public",
		"etc/ssh/ssh_host_ed25519_key":             "", // emptied
		"etc/dropbear/dropbear_rsa_host_key":       "secret",
		"var/lib/cloud/instances/i-1/x":            "",
		"var/lib/cloud/instance":                   "-> instances/i-1",
		"var/lib/systemd/random-seed":              "random",
		"var/lib/dhcp/dhclient.eth0.leases":        "lease",
		"etc/udev/rules.d/70-persistent-net.rules": "rule",
	})
	for name, disk := range map[string]string{"ext4": extFile(t, 16*mib, "ext4", f), "xfs": xfsImage(t, f)} {
		res := lookIn(t, disk)
		want := Traces{
			Read: true, MachineID: "0123456789abcdef0123456789abcdef", CloudInit: true,
			HostKeys:    []string{"/etc/ssh/ssh_host_rsa_key", "/etc/dropbear/dropbear_rsa_host_key"},
			RandomSeeds: []string{"/var/lib/systemd/random-seed"}, Leases: []string{"/var/lib/dhcp/dhclient.eth0.leases"},
			Rules: []string{"/etc/udev/rules.d/70-persistent-net.rules"},
		}
		if !reflect.DeepEqual(res.Traces, want) || len(res.Traces.Left()) != 6 {
			t.Errorf("%s: %+v", name, res.Traces)
		}
		if !strings.Contains(res.Info.Note, "SSH host keys (/etc/ssh/ssh_host_rsa_key, ") || !strings.Contains(res.Info.Note, "the machine-id 0123456789abcdef0123456789abcdef") {
			t.Errorf("%s: note %q", name, res.Info.Note)
		}
	}
	f = system()
	delete(f, "etc/machine-id")
	f["var/lib/dbus/machine-id"] = "0123456789abcdef0123456789abcdef\n"
	if id := lookAt(t, ext(t, 16*mib, "ext4", f)).Traces.MachineID; id == "" {
		t.Error("D-Bus's machine-id is not seen")
	}
	path := extFile(t, 16*mib, "ext4", f)
	if err := CheckGeneral(t.Context(), path, "raw"); !errors.Is(err, ErrNotGeneral) || !strings.Contains(err.Error(), path) {
		t.Error(err)
	}
	if err := CheckGeneral(t.Context(), extFile(t, 16*mib, "ext4", system()), "raw"); err != nil {
		t.Error(err)
	}
	if tr := lookAt(t, make([]byte, mib)).Traces; tr.Read || tr.Why == "" {
		t.Errorf("an empty disk: %+v", tr)
	}
}

// The test guests, from their caches: the real thing, and its time.
func TestGuests(t *testing.T) {
	for _, c := range []struct {
		path, id  string
		cloudInit bool
	}{{guestimage.Debian(t), "debian12", true}, {guestimage.Small(t), "", false}} {
		counted := time.Now()
		i, err := File(t.Context(), c.path, "qcow2")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %v", filepath.Base(c.path), time.Since(counted))
		if i.OS != c.id || i.Name == "" || i.Arch != "x86_64" || i.BootMode != "bios" || i.Table != "mbr" || i.CloudInit != c.cloudInit || i.Agent != c.cloudInit ||
			len(i.Volumes) != 2 || i.Volumes[0].Type != "vfat" || i.Volumes[1].Label != "lamina-root" || !i.Volumes[1].Root || i.Note != "" {
			t.Errorf("%s: %+v", c.path, i)
		}
	}
}

// What is read of the Debian guest, which bounds the time.
func TestReadsLittle(t *testing.T) {
	f, err := os.Open(strings.TrimSuffix(guestimage.Debian(t), "qcow2") + "raw")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c := &counter{ReaderAt: f}
	if _, err := Image(t.Context(), c, st.Size()); err != nil {
		t.Fatal(err)
	}
	if c.bytes > 8*mib {
		t.Errorf("%d bytes read", c.bytes)
	}
}

type counter struct {
	io.ReaderAt
	bytes int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.bytes += int64(n)
	return n, err
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestErrors(t *testing.T) {
	broken := errors.New("broken disk")
	if i, err := Image(t.Context(), failing{broken}, mib); !errors.Is(err, broken) || i.Table != "" {
		t.Errorf("%+v, %v", i, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if _, err := Image(ctx, bytes.NewReader(make([]byte, mib)), mib); !errors.Is(err, broken) {
		t.Error(err)
	}
	name := filepath.Join(t.TempDir(), "missing")
	if _, err := File(t.Context(), name, "qcow2"); err == nil || !strings.Contains(err.Error(), name) {
		t.Error(err)
	}
	for _, n := range []int64{0, 1, 511, 1024, 2047, 4096} {
		if i, err := Image(t.Context(), bytes.NewReader(make([]byte, n)), n); err != nil || i.Table != "none" {
			t.Errorf("%d bytes: %+v, %v", n, i, err)
		}
	}
}
