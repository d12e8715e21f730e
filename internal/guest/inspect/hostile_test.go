package inspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
)

// patched is an image, some bytes of which are others.
type patched struct {
	io.ReaderAt
	size  int64
	used  []int64 // offsets of the sectors that are not all zero
	bytes map[int64]byte
	read  int64
}

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	p.read += int64(n)
	for at, v := range p.bytes {
		if at >= off && at < off+int64(n) {
			b[at-off] = v
		}
	}
	return n, err
}

// base reads an image and finds where it holds anything.
func base(t testing.TB, path string) *patched {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p := &patched{ReaderAt: f, size: st.Size(), bytes: map[int64]byte{}}
	zero := make([]byte, 512)
	b := make([]byte, mib)
	for at := int64(0); ; at += int64(len(b)) {
		// What the file has as a hole is not worth a look.
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		at = data / 512 * 512
		n, err := f.ReadAt(b, at)
		if err != nil && n == 0 {
			t.Fatal(err)
		}
		for i := 0; i+512 <= n; i += 512 {
			if !bytes.Equal(b[i:i+512], zero) {
				p.used = append(p.used, at+int64(i))
			}
		}
	}
	return p
}

// bases are images of each kind that is read.
func bases(t testing.TB) []*patched {
	t.Helper()
	disk := table(t, 24*mib, "label: gpt\nstart=2048, size=20M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=22M, size=1M\n")
	copy(disk[mib:], fatImage(t, 20*mib, "16", files{"EFI/BOOT/BOOTX64.EFI": "MZ"}))
	path := blank(t, 0)
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	f := many(40, false)
	return []*patched{
		base(t, extFile(t, 2*mib, "ext4", f, "-b", "1024", "-O", "^has_journal")),
		base(t, extFile(t, 2*mib, "ext4", f, "-b", "1024", "-I", "512", "-O", "^has_journal,inline_data")),
		base(t, extFile(t, 2*mib, "ext2", f, "-b", "1024")),
		base(t, xfsImage(t, f)),
		base(t, xfsImage(t, many(700, false), "-m", "crc=0", "-b", "size=1024")),
		base(t, path),
	}
}

// survives looks into a damaged image: whatever it holds, the answer comes soon,
// from bounded reading, and can be shown.
func survives(t testing.TB, p *patched) {
	t.Helper()
	p.read = 0
	start := time.Now()
	res, err := Look(t.Context(), p, p.size)
	if err != nil {
		t.Fatal(err)
	}
	// Twice Timeout: the machine may be busy.
	if d := time.Since(start); d > 2*Timeout {
		t.Errorf("%v", d)
	}
	if p.read > maxReading+pageSize {
		t.Errorf("%d bytes read", p.read)
	}
	texts := []string{res.Info.Name, res.Info.Note}
	for _, v := range res.Info.Volumes {
		texts = append(texts, v.Label)
	}
	for _, s := range append(texts, res.Traces.Left()...) {
		for _, r := range s {
			if r < ' ' || r == 0x7f || r == 0xfffd {
				t.Errorf("%q", s)
			}
		}
		if len(s) > maxNotes*420 {
			t.Errorf("a text of %d bytes", len(s))
		}
	}
}

func TestDamaged(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 7))
	odd := []byte{0, 1, 2, 0x7f, 0x80, 0xfe, 0xff}
	for n, p := range bases(t) {
		clean := false
		if res, err := Look(t.Context(), p, p.size); err == nil {
			clean = res.Info.OS == "debian12" || res.Info.BootMode == "uefi"
		}
		if !clean {
			t.Fatalf("base %d is not read before it is damaged", n)
		}
		for range 120 {
			clear(p.bytes)
			for range 1 + rnd.IntN(40) {
				at := p.used[rnd.IntN(len(p.used))] + rnd.Int64N(512)
				p.bytes[at] = odd[rnd.IntN(len(odd))]
				if rnd.IntN(2) == 0 {
					p.bytes[at] = byte(rnd.IntN(256))
				}
			}
			survives(t, p)
		}
		clear(p.bytes)
		whole := p.size
		for range 30 {
			p.size = rnd.Int64N(whole)
			survives(t, p)
		}
	}
}

// FuzzLook patches the images: a byte for which one, then a place of two bytes
// and an offset of two, and a value, for each patch.
func FuzzLook(f *testing.F) {
	all := bases(f)
	for i := range all {
		f.Add([]byte{byte(i), 0, 1, 0, 0, 0xff})
		f.Add([]byte{byte(i), 0, 2, 0, 0x18, 7, 0, 3, 1, 1, 0})
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		b := all[int(data[0])%len(all)]
		p := &patched{ReaderAt: b.ReaderAt, size: b.size, bytes: map[int64]byte{}}
		for d := data[1:]; len(d) >= 5 && len(p.bytes) < 64; d = d[5:] {
			at := b.used[int(binary.BigEndian.Uint16(d))%len(b.used)] + int64(binary.BigEndian.Uint16(d[2:])%512)
			p.bytes[at] = d[4]
		}
		survives(t, p)
	})
}

// An extent tree that leads into itself, and a chain of clusters that does.
func TestCircles(t *testing.T) {
	disk := ext(t, 2*mib, "ext4", system(), "-b", "1024", "-O", "^has_journal,^metadata_csum")
	le := binary.LittleEndian
	// The root folder's inode: the second of the table of group 0.
	descriptor := disk[2*1024:]
	inodes := int(le.Uint32(descriptor[8:])) * 1024
	size := int(le.Uint16(disk[1024+0x58:]))
	root := disk[inodes+size : inodes+2*size]
	const block = 1500 // of the disk, free
	node := func(b []byte, level uint16) {
		le.PutUint16(b, 0xf30a)
		le.PutUint16(b[2:], 1)
		le.PutUint16(b[4:], 4)
		le.PutUint16(b[6:], level)
		clear(b[12:24])
		le.PutUint32(b[16:], block)
	}
	for _, level := range []uint16{1, 5, 0xffff} {
		node(root[0x28:], level)
		node(disk[block*1024:], level)
		res := lookAt(t, disk)
		if res.Info.OS != "" || res.Info.Note == "" || res.Traces.Read {
			t.Errorf("level %d: %+v", level, res)
		}
	}

	esp := fatImage(t, 20*mib, "16", files{"EFI/BOOT/BOOTX64.EFI": "MZ"})
	at := bytes.Index(esp, []byte("EFI        \x10"))
	cluster := int(le.Uint16(esp[at+26:]))
	table := int(le.Uint16(esp[14:])) * int(le.Uint16(esp[11:]))
	le.PutUint16(esp[table+2*cluster:], uint16(cluster))
	// All of its entries are used, so that the end is not seen.
	data := bytes.Index(esp, []byte("BOOT       \x10"))
	folder := data / 2048 * 2048
	for i := folder; i < folder+2048; i += 32 {
		copy(esp[i:], "FULL       \x20")
	}
	start := time.Now()
	i := lookAt(t, esp).Info
	if i.BootMode != "" || !strings.Contains(i.Note, "chain of clusters") || time.Since(start) > Timeout {
		t.Errorf("%+v after %v", i, time.Since(start))
	}
}

// What a file holds, of every size, against what was written.
func TestContents(t *testing.T) {
	f := files{}
	rnd := rand.New(rand.NewPCG(1, 4))
	for name, n := range map[string]int{"empty": 0, "one": 1, "tiny": 59, "inline": 150, "block": 1024, "more": 13 * 1024, "indirect": 300 * 1024, "large": 700*1024 + 3} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f[name] = string(b)
	}
	dir := f.write(t)
	// A hole in the middle, which stays one.
	hole, err := os.OpenFile(dir+"/hole", os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hole.WriteAt([]byte("end"), 200*1024); err != nil {
		t.Fatal(err)
	}
	if err := hole.Close(); err != nil {
		t.Fatal(err)
	}
	f["hole"] = string(make([]byte, 200*1024)) + "end"
	images := map[string]string{"xfs": blank(t, 300*mib), "xfs4": blank(t, 300*mib)}
	proto := protofile(t, dir)
	tool(t, "", "mkfs.xfs", "-q", "-f", "-p", proto, images["xfs"])
	tool(t, "", "mkfs.xfs", "-q", "-f", "-m", "crc=0", "-b", "size=1024", "-p", proto, images["xfs4"])
	for name, args := range map[string][]string{"ext4": {"-t", "ext4"}, "inline": {"-t", "ext4", "-O", "inline_data", "-I", "512"}, "ext2": {"-t", "ext2", "-b", "1024"}} {
		images[name] = blank(t, 8*mib)
		tool(t, "", "mke2fs", append(append([]string{"-q", "-F", "-d", dir}, args...), images[name])...)
	}
	for name, path := range images {
		b := base(t, path)
		l := newLook(t.Context(), b, b.size)
		l.volumes()
		tr, _, err := l.openTree(l.info.Volumes[0])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkContents(t, name, tr, f)
	}
}

func checkContents(t *testing.T, kind string, tr tree.Tree, f files) {
	t.Helper()
	for name, want := range f {
		got, err := tr.ReadFile(name, 1<<30)
		if err != nil || string(got) != want {
			t.Errorf("%s: %s: %d bytes, want %d; %v", kind, name, len(got), len(want), err)
		}
		got, err = tr.ReadFile("/"+name, 10)
		if err != nil || string(got) != want[:min(10, len(want))] {
			t.Errorf("%s: the first bytes of %s: %q, %v", kind, name, got, err)
		}
	}
	listed, err := tr.Match("/", "*")
	if err != nil {
		t.Error(err)
	}
	listed = slices.DeleteFunc(listed, func(s string) bool { return s == "/lost+found" })
	if len(listed) != len(f) {
		t.Errorf("%s: listed %v", kind, listed)
	}
}
