package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sfdisk makes a disk of size bytes with util-linux's partitioner.
func sfdisk(t *testing.T, size int64, script string) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	tool, err := exec.LookPath("sfdisk")
	if err != nil {
		t.Fatal("sfdisk is not installed: run make deps")
	}
	cmd := exec.Command(tool, "-q", name)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const mib = 1 << 20

func TestMBRWithLogical(t *testing.T) {
	disk := sfdisk(t, 64*mib, "label: dos\nstart=2048, size=8M, type=83, bootable\nstart=10M, size=40M, type=5\nstart=11M, size=4M, type=83\nstart=20M, size=5M, type=82\nstart=30M, size=6M, type=83\n")
	table, err := Read(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	want := []Partition{
		{1, mib, 8 * mib, "0x83", "", true},
		{2, 10 * mib, 40 * mib, "0x05", "", false},
		{5, 11 * mib, 4 * mib, "0x83", "", false},
		{6, 20 * mib, 5 * mib, "0x82", "", false},
		{7, 30 * mib, 6 * mib, "0x83", "", false},
	}
	if table.Scheme != MBR || len(table.Partitions) != len(want) {
		t.Fatalf("%+v", table)
	}
	for i, p := range table.Partitions {
		if p != want[i] {
			t.Errorf("got %+v, want %+v", p, want[i])
		}
	}
	if table.End() != 50*mib {
		t.Errorf("end %d", table.End())
	}
}

const gptScript = "label: gpt\nstart=2048, size=8M, name=boot, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=20M, size=30M, name=root, attrs=LegacyBIOSBootable\n"

func TestGPT(t *testing.T) {
	disk := sfdisk(t, 64*mib, gptScript)
	check := func(backup bool) {
		t.Helper()
		table, err := Read(bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			t.Fatal(err)
		}
		p := table.Partitions
		if table.Scheme != GPT || table.Backup != backup || len(p) != 2 || p[0].Name != "boot" || p[1].Name != "root" ||
			p[0].Type != "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" || p[1].Start != 20*mib || p[0].Bootable || !p[1].Bootable || table.End() != 50*mib {
			t.Fatalf("%+v", table)
		}
		if !backup && table.BackupOffset != 64*mib-512 {
			t.Fatalf("backup header at %d", table.BackupOffset)
		}
	}
	check(false)
	disk[512+40]++ // the primary header's checksum is wrong now
	check(true)
	disk[len(disk)-512+40]++
	table, err := Read(bytes.NewReader(disk), int64(len(disk)))
	if err != nil || table.Scheme != MBR || table.Partitions[0].Type != "0xee" {
		t.Fatalf("with both headers damaged: %+v, %v", table, err)
	}
}

func TestNone(t *testing.T) {
	for name, disk := range map[string][]byte{
		"empty":  nil,
		"short":  make([]byte, 511),
		"zeros":  make([]byte, mib),
		"fatvbr": append(append(bytes.Repeat([]byte{0x31}, 510), 0x55, 0xaa), make([]byte, mib)...),
	} {
		if table, err := Read(bytes.NewReader(disk), int64(len(disk))); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %+v, %v", name, table, err)
		}
	}
}

// TestLoop holds that a chain of extended boot records that points back ends.
func TestLoop(t *testing.T) {
	disk := make([]byte, mib)
	entry := func(at, slot int, kind byte, start, count uint32) {
		b := disk[at+mbrEntries+slot*mbrEntryLen:]
		b[mbrTypeOff] = kind
		binary.LittleEndian.PutUint32(b[mbrStartOff:], start)
		binary.LittleEndian.PutUint32(b[mbrCountOff:], count)
		disk[at+510], disk[at+511] = 0x55, 0xaa
	}
	entry(0, 0, 5, 10, 1000)
	entry(10*512, 0, 0x83, 1, 10)
	entry(10*512, 1, 5, 20, 10)
	entry(30*512, 0, 0x83, 1, 10)
	entry(30*512, 1, 5, 20, 10) // itself
	table, err := Read(bytes.NewReader(disk), mib)
	if err != nil || len(table.Partitions) != 3 {
		t.Fatalf("%+v, %v", table, err)
	}
}

func TestReadError(t *testing.T) {
	if _, err := Read(failing{}, mib); err == nil || errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, os.ErrPermission }

// FuzzRead: no disk makes Read panic, and what it finds is in bounds.
func FuzzRead(f *testing.F) {
	f.Add(make([]byte, 2048))
	mbr := make([]byte, 8192)
	mbr[510], mbr[511], mbr[mbrEntries+mbrTypeOff], mbr[mbrEntries+mbrCountOff] = 0x55, 0xaa, 5, 9
	f.Add(mbr)
	gpt := append(append(make([]byte, 512), gptMagic...), make([]byte, 4096)...)
	f.Add(gpt)
	f.Fuzz(func(t *testing.T, disk []byte) {
		table, err := Read(bytes.NewReader(disk), int64(len(disk)))
		if (table == nil) == (err == nil) {
			t.Fatal("neither or both of table and error")
		}
		if err != nil {
			return
		}
		if len(table.Partitions) > maxEntries+maxLogical+4 {
			t.Fatalf("%d partitions", len(table.Partitions))
		}
		for _, p := range table.Partitions {
			if p.Start < 0 || p.Length <= 0 || p.End() < p.Start {
				t.Fatalf("%+v", p)
			}
		}
	})
}
