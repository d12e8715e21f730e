package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// verify has sgdisk judge a disk.
func verify(t *testing.T, disk []byte) {
	t.Helper()
	tool, err := exec.LookPath("sgdisk")
	if err != nil {
		t.Fatal("sgdisk is not installed: run make deps")
	}
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "-v", name).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk -v: %v\n%s", err, out)
	}
}

// resized is disk with another length.
func resized(disk []byte, size int) []byte {
	b := make([]byte, size)
	copy(b, disk)
	return b
}

// moveStepwise applies the patches one by one and looks at every state.
func moveStepwise(t *testing.T, disk []byte, newSize int64) {
	t.Helper()
	patches, err := MoveBackup(bytes.NewReader(disk), int64(len(disk)), newSize)
	if err != nil {
		t.Fatal(err)
	}
	if len(patches) == 0 {
		t.Fatal("nothing to do")
	}
	for i, p := range patches {
		// Power may fail in the middle of a patch.
		copy(disk[p.Offset:], p.Data[:len(p.Data)/2])
		for range 2 {
			table, err := Read(bytes.NewReader(disk), int64(len(disk)))
			if err != nil || table.Scheme != GPT || len(table.Partitions) != 2 {
				t.Fatalf("in patch %d: %v %+v", i, err, table)
			}
			copy(disk[p.Offset:], p.Data)
		}
	}
}

func TestMoveBackupGrows(t *testing.T) {
	for _, size := range []int{65 * mib, 200*mib + 512} {
		disk := resized(sfdisk(t, 64*mib, gptScript), size)
		moveStepwise(t, disk, int64(size))
		verify(t, disk)
		if patches, err := MoveBackup(bytes.NewReader(disk), int64(size), int64(size)); err != nil || len(patches) != 0 {
			t.Errorf("a second time: %d patches, %v", len(patches), err)
		}
	}
}

func TestMoveBackupShrinks(t *testing.T) {
	const end = 50 * mib // of the last partition
	for _, size := range []int64{60 * mib, end + 33*512} {
		disk := sfdisk(t, 64*mib, gptScript)
		moveStepwise(t, disk, size)
		verify(t, disk[:size])
	}
	disk := sfdisk(t, 64*mib, gptScript)
	for _, size := range []int64{end + 32*512, end, 10 * mib, 4096, 0} {
		if _, err := MoveBackup(bytes.NewReader(disk), int64(len(disk)), size); !errors.Is(err, ErrNoRoom) {
			t.Errorf("to %d bytes: %v", size, err)
		}
	}
}

// The primary copy is damaged: it is made anew from the backup.
func TestMoveBackupRestoresPrimary(t *testing.T) {
	disk := sfdisk(t, 64*mib, gptScript)
	clear(disk[512 : 34*512])
	patches, err := MoveBackup(bytes.NewReader(disk), int64(len(disk)), int64(len(disk)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range patches {
		copy(disk[p.Offset:], p.Data)
	}
	verify(t, disk)
}

func TestMoveBackupNone(t *testing.T) {
	for _, disk := range [][]byte{nil, make([]byte, mib), sfdisk(t, 8*mib, "label: dos\nstart=2048, size=1M, type=83\n")} {
		if _, err := MoveBackup(bytes.NewReader(disk), int64(len(disk)), 64*mib); !errors.Is(err, ErrNone) {
			t.Errorf("%d bytes: %v", len(disk), err)
		}
	}
}

// A disk that had a GPT and got an MBR: the GPT that is left over is not put
// back over what lies there now, and a cut looks at both.
func TestStaleGPT(t *testing.T) {
	disk := sfdisk(t, 64*mib, gptScript)
	mbr := sfdisk(t, 64*mib, "label: dos\nstart=64, size=62M, type=83\n")
	copy(disk[:512], mbr[:512])
	for _, primary := range []bool{true, false} {
		if !primary {
			clear(disk[512 : 34*512]) // only the backup is left
		}
		if p, err := MoveBackup(bytes.NewReader(disk), int64(len(disk)), 64*mib); !errors.Is(err, ErrNone) {
			t.Errorf("primary %v: %d patches, %v", primary, len(p), err)
		}
		table, err := Read(bytes.NewReader(disk), int64(len(disk)))
		if err != nil || table.Scheme != MBR || table.End() != 62*mib || table.Hidden == nil || table.Hidden.End() != 50*mib {
			t.Errorf("primary %v: %+v, %v", primary, table, err)
		}
	}
}

// The first copy of a GPT is damaged, and its usual place is taken.
func TestMoveBackupNoRoomForPrimary(t *testing.T) {
	disk := sfdisk(t, 64*mib, gptScript)
	le := binary.LittleEndian
	last := int64(len(disk)) - 512
	table := disk[last-32*512 : last]
	le.PutUint64(table[32:], 20) // the first partition begins there now
	le.PutUint32(disk[last+88:], crc32.ChecksumIEEE(table))
	clear(disk[last+16 : last+20])
	le.PutUint32(disk[last+16:], crc32.ChecksumIEEE(disk[last:last+92]))
	clear(disk[512 : 34*512])
	if p, err := MoveBackup(bytes.NewReader(disk), int64(len(disk)), 80*mib); !errors.Is(err, ErrNoRoom) {
		t.Errorf("%d patches, %v", len(p), err)
	}
}

// Whatever a table says, if only its checksums are right: what is written lies
// in the disk, and over no partition.
func TestMoveBackupHostile(t *testing.T) {
	orig := sfdisk(t, 4*mib, "label: gpt\nstart=2048, size=1M\nstart=6144, size=512K\n")
	le := binary.LittleEndian
	rnd := rand.New(rand.NewPCG(3, 14))
	odd := []uint64{0, 1, 2, 3, 33, 34, 100, 2048, 4095, 8158, 8159, 8190, 8191, 8192, 1 << 31, 1<<32 - 1, 1 << 53, 1 << 62, 1<<64 - 1}
	pick := func() uint64 { return odd[rnd.IntN(len(odd))] }
	done, refused := 0, 0
	room := resized(orig, 9*mib)
	disk, last := room[:len(orig)], len(orig)-512
	for range 400 {
		copy(disk[:34*512], orig)
		copy(disk[last-32*512:], orig[last-32*512:])
		for _, at := range []int{512, last} {
			h := disk[at : at+512]
			table := int(le.Uint64(h[72:])) * 512
			if rnd.IntN(3) == 0 { // a partition
				le.PutUint64(disk[table+rnd.IntN(2)*128+32+rnd.IntN(2)*8:], pick())
			}
			switch rnd.IntN(6) {
			case 0:
				le.PutUint64(h[[]int{32, 40, 48, 72}[rnd.IntN(4)]:], pick())
			case 1:
				le.PutUint32(h[[]int{12, 80, 84}[rnd.IntN(3)]:], uint32(pick()))
			}
			from, n := le.Uint64(h[72:]), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
			if from < 8192 && from*512+n <= uint64(len(disk)) {
				le.PutUint32(h[88:], crc32.ChecksumIEEE(disk[from*512:from*512+n]))
			}
			clear(h[16:20])
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:min(max(le.Uint32(h[12:]), 92), 512)]))
			if at == 512 && rnd.IntN(3) == 0 {
				h[16]++ // only the backup is whole
			}
		}
		size := []int64{4 * mib, 4*mib + 512, 9 * mib, 3*mib + 100, 2 * mib, 700, 0}[rnd.IntN(7)]
		held := room[:max(len(disk), int(size))]
		before, err := readAnyGPT(bytes.NewReader(held), int64(len(held)))
		patches, merr := MoveBackup(bytes.NewReader(held), int64(len(held)), size)
		if merr != nil {
			refused++
			continue
		}
		if err != nil {
			t.Fatalf("%d patches without a table: %v", len(patches), err)
		}
		done++
		for _, p := range patches {
			end := p.Offset + int64(len(p.Data))
			if p.Offset < 0 || end > size {
				t.Fatalf("%d bytes at %d of a disk of %d", len(p.Data), p.Offset, size)
			}
			for _, q := range before.Partitions {
				if p.Offset > 512 && p.Offset < q.End() && end > q.Start {
					t.Fatalf("bytes %d to %d lie in %+v", p.Offset, end, q)
				}
			}
		}
	}
	if done < 50 || refused < 50 {
		t.Errorf("%d moved, %d refused", done, refused)
	}
}
