package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// openFile opens an image file with our driver.
func openFile(path string, writable bool) (*Image, error) {
	f, err := file.Open(path, file.Options{Writable: writable, Growable: writable})
	if err != nil {
		return nil, err
	}
	n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: writable, Filename: path})
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return n.(*Image), nil
}

// TestSnapshotsKept changes an image that has internal snapshots of the stock
// tool in every way, and lets the tool go back to them.
func TestSnapshotsKept(t *testing.T) {
	seed := newSeed(t)
	for _, o := range []string{"cluster_size=512", "cluster_size=4k,refcount_bits=8", "cluster_size=64k"} {
		t.Run(o, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk.qcow2")
			qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", o, path, "1M")
			qemutest.IO(t, "qcow2", path, "write -P 5 0 300k", "write -c -P 7 384k 64k", "write -z 512k 64k", "write -P 3 900k 100k")
			qemutest.Img(t, "snapshot", "-c", "one", path)
			qemutest.Img(t, "convert", "-f", "qcow2", "-O", "raw", path, filepath.Join(dir, "one.raw"))
			qemutest.IO(t, "qcow2", path, "write -P 9 100k 30k")
			qemutest.Img(t, "snapshot", "-c", "two", path)

			img, err := openFile(path, true)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 1<<20)
			if _, err := img.ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
			m := &model{t: t, r: rand.New(rand.NewPCG(seed, 2)), c: geometryCase{size: 1 << 20}, img: img, want: want, fixed: true}
			for range 300 {
				m.step()
			}
			m.verify()
			if info, err := img.ImageInfo(); err != nil || len(info.Snapshots) != 2 || info.Snapshots[0].Name != "one" {
				t.Errorf("info %+v, %v", info.Snapshots, err)
			}
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
			now := filepath.Join(dir, "now.raw")
			if err := os.WriteFile(now, m.want, 0o600); err != nil {
				t.Fatal(err)
			}
			qemutest.RequireClean(t, path)
			qemutest.RequireSame(t, "qcow2", path, "raw", now)
			qemutest.Img(t, "snapshot", "-d", "two", path)
			qemutest.RequireClean(t, path)
			qemutest.Img(t, "snapshot", "-a", "one", path)
			qemutest.RequireClean(t, path)
			qemutest.RequireSame(t, "qcow2", path, "raw", filepath.Join(dir, "one.raw"))
		})
	}
}

// TestAutoclear holds that the first change, and only a change, clears the
// autoclear bits that we do not know, and keeps that of the bitmaps.
func TestAutoclear(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", path, "1M")
	qemutest.Img(t, "bitmap", "--add", path, "b0")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before[offAutoclear] |= 0x80
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := openFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("opening and closing changed the image")
	}
	if img, err = openFile(path, true); err != nil {
		t.Fatal(err)
	}
	if _, err := img.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if v := binary.BigEndian.Uint64(after[offAutoclear:]); v != autoclearBitmaps {
		t.Errorf("autoclear features are %#x after a write", v)
	}
	if c := qemutest.CheckImage(t, "qcow2", path); c.Corruptions != 0 || c.CheckErrors != 0 {
		t.Errorf("stock check: %+v", c)
	}
}

// TestRefused holds that features which the driver does not have are refused
// by name, never misread.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	stock := func(name string, opts ...string) []byte {
		path := filepath.Join(dir, name)
		args := append([]string{"create", "-q", "-f", "qcow2"}, opts...)
		qemutest.Img(t, append(args, path, "1M")...)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	plain := stock("plain")
	patch := func(off int, p ...byte) []byte {
		b := append([]byte(nil), plain...)
		copy(b[off:], p)
		return b
	}
	small := patch(79, incompatExtendedL2)
	small[23] = 13           // cluster bits
	named := patch(79, 0x40) // an unknown bit, which the name table explains
	entry := 112 + 8 + 7*48
	copy(named[entry:], append([]byte{0, 6}, "time travel\x00"...))
	for _, c := range []struct {
		name     string
		image    []byte
		want     string
		sentinel error
	}{
		{"subcluster size", small, "Unsupported subcluster size: 256", block.ErrUnsupported},
		{"LUKS", patch(35, 2), "encrypted with LUKS, but has no LUKS header", block.ErrCorrupt},
		{"named", named, "Unsupported qcow2 feature(s): time travel", block.ErrUnsupported},
		{"unnamed", patch(78, 1), "Unsupported qcow2 feature(s): Unknown incompatible feature: 100", block.ErrUnsupported},
		{"version", patch(7, 4), "Unsupported qcow2 version 4", block.ErrUnsupported},
		{"cluster size", patch(23, 22), "Unsupported cluster size: 2^22", block.ErrUnsupported},
		{"refcount width", patch(99, 7), "Reference count entry width too large; may not exceed 64 bits", block.ErrUnsupported},
		{"L1 size", patch(36, 0x7f), "Active L1 table too large", block.ErrCorrupt},
		{"L1 offset", patch(47, 1), "Active L1 table offset invalid", block.ErrCorrupt},
		{"L1 short", patch(24, 0, 1), "L1 table is too small", block.ErrCorrupt},
		{"refcount table", patch(56, 1), "Reference count table too large", block.ErrCorrupt},
		{"compression", patch(104, 1), "Compression type incompatible feature bit must be set", block.ErrCorrupt},
		{"magic", patch(0, 'X'), "Image is not in qcow2 format", block.ErrNotFormat},
		{"truncated", plain[:80<<10], "does not lie in the file of 81920 bytes: the file is truncated", block.ErrCorrupt},
		{"corrupt bit", patch(79, 2), "Image is corrupt; cannot be opened read/write", block.ErrCorrupt},
	} {
		for _, writable := range []bool{true, false} {
			if c.name == "corrupt bit" && !writable {
				continue // may be read
			}
			_, err := (Driver{}).Open(context.Background(), memory.NewBytes(c.image), format.OpenOptions{Writable: writable})
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.sentinel) {
				t.Errorf("%s, writable %t: %v, want %q", c.name, writable, err, c.want)
			}
		}
	}
}

// TestMetadataGuarded holds that an image whose tables point guest data at
// metadata, or whose refcounts say that metadata is free, is not written.
func TestMetadataGuarded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", path, "1M")
	qemutest.IO(t, "qcow2", path, "write -P 5 0 64k")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l1 := binary.BigEndian.Uint64(good[40:])
	l2 := binary.BigEndian.Uint64(good[l1:]) & entryOffsetMask
	for name, damage := range map[string]func([]byte){
		"data on the L1 table": func(b []byte) { binary.BigEndian.PutUint64(b[l2:], l1|entryCopied) },
		"data on the header": func(b []byte) {
			binary.BigEndian.PutUint64(b[l2+8:], 1<<63)
			binary.BigEndian.PutUint64(b[l2:], l2|entryCopied)
		},
		"L2 table on the refcount block": func(b []byte) { binary.BigEndian.PutUint64(b[l1:], 0x20000|entryCopied) },
		"L2 table on the header's L1":    func(b []byte) { binary.BigEndian.PutUint64(b[l1:], l1|entryCopied) },
		"L1 table on the header":         func(b []byte) { binary.BigEndian.PutUint64(b[40:], 0) },
		"the L1 table is free":           func(b []byte) { b[0x20000+2*(l1>>16)+1] = 0 },
		"the L2 table is free":           func(b []byte) { b[0x20000+2*(l2>>16)+1] = 0 },
		"the refcounts are free":         func(b []byte) { clear(b[0x20000:0x20100]) },
	} {
		b := append([]byte(nil), good...)
		damage(b)
		f := memory.NewFile()
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: true})
		if err != nil {
			t.Fatal(err)
		}
		p := bytes.Repeat([]byte{9}, 256<<10)
		if _, err := n.(*Image).WriteAt(p, 0); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: write: %v", name, err)
		}
		if _, err := n.(*Image).WriteAt(p, 0); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: second write: %v", name, err)
		}
		if err := n.Close(); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: close: %v", name, err)
		}
		after := f.Bytes()
		if after[79]&incompatCorrupt == 0 {
			t.Errorf("%s: the corrupt bit is not set", name)
		}
		after[79] = b[79]
		if !bytes.Equal(after[l1:l1+16], b[l1:l1+16]) || !bytes.Equal(after[:4096], b[:4096]) || !bytes.Equal(after[l2:l2+4096], b[l2:l2+4096]) {
			t.Errorf("%s: metadata was overwritten", name)
		}
	}
}

// TestMetadataNotFreed: discarding guest data that a damaged table says lies on
// metadata does not free the metadata, which would punch a hole there.
func TestMetadataNotFreed(t *testing.T) {
	for _, op := range []struct {
		name string
		do   func(*Image) error
	}{
		{"discard", func(img *Image) error { return img.Discard(0, 64<<10) }},
		{"zero", func(img *Image) error { return img.WriteZeroes(0, 64<<10, block.ZeroMayUnmap) }},
		{"shrink", func(img *Image) error {
			return img.Resize(context.Background(), 512, block.ResizeOptions{AllowShrink: true})
		}},
	} {
		path := hostile(t, "cluster_size=4k")
		a := dissect(t, path)
		on := a.h.l1Offset
		patchFile(t, path, be64(a.l2[0]+8, on|entryCopied), be64(a.l2[0], on|entryCopied))
		img, err := openFile(path, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := op.do(img); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", op.name, err)
		}
		if err := img.Close(); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: close: %v", op.name, err)
		}
		after := dissect(t, path)
		if !slices.Equal(after.l2, a.l2) || !slices.Equal(after.blocks, a.blocks) {
			t.Errorf("%s: metadata was freed", op.name)
		}
	}
}

// TestFlagsMissing writes to an image whose COPIED flags a crash of another
// program left cleared though nothing is shared: every table and cluster is
// copied once, and the old ones can be used again.
func TestFlagsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
	qemutest.IO(t, "qcow2", path, "write -P 5 0 1M")
	a := dissect(t, path)
	var patches []patch
	for i, table := range a.l2 {
		at := int64(a.h.l1Offset) + int64(i)*8
		patches = append(patches, be64(at, a.at(at)&^entryCopied))
		for k := range a.g.l2Entries() {
			patches = append(patches, be64(table+k*8, a.at(table+k*8)&^entryCopied))
		}
	}
	patchFile(t, path, patches...)
	img, err := openFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	for pass := range byte(3) {
		for i := range want {
			want[i] = pass + byte(i>>9)
		}
		for off := 0; off < len(want); off += 64 << 10 {
			if _, err := img.WriteAt(want[off:off+64<<10], int64(off)); err != nil {
				t.Fatalf("pass %d, offset %d: %v", pass, off, err)
			}
			if err := img.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := img.Resize(t.Context(), 512<<10, block.ResizeOptions{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	qemutest.RequireClean(t, path)
	writeRaw(t, path+".raw", want[:512<<10])
	qemutest.RequireSame(t, "qcow2", path, "raw", path+".raw")
}

// TestTableNotRemembered: an L2 table that a shrink cut off with the end of the
// file is not what a new one in its place begins with.
func TestTableNotRemembered(t *testing.T) {
	const half = 512 << 20 // what one L2 table maps
	for _, copied := range []bool{true, false} {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		qemutest.Img(t, "create", "-q", "-f", "qcow2", path, "1G")
		qemutest.IO(t, "qcow2", path, "write -P 5 0 64k", "write -P 6 512M 64k")
		a := dissect(t, path)
		if at := int64(a.h.l1Offset) + 8; !copied {
			patchFile(t, path, be64(at, a.at(at)&^entryCopied))
		}
		img, err := openFile(path, true)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 64<<10)
		for _, step := range []func() error{
			func() error { return img.Discard(0, 64<<10) }, // room for data before the table
			func() error { return img.Resize(t.Context(), half, block.ResizeOptions{AllowShrink: true}) },
			func() error { return img.Resize(t.Context(), 2*half, block.ResizeOptions{}) },
			func() error { _, err := img.WriteAt([]byte("x"), half+40<<20); return err },
			func() error { _, err := img.ReadAt(want, half); return err },
		} {
			if err := step(); err != nil {
				t.Fatalf("COPIED %t: %v", copied, err)
			}
		}
		if !bytes.Equal(want, make([]byte, 64<<10)) {
			t.Errorf("COPIED %t: what was cut is back", copied)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		if now := dissect(t, path); !slices.Equal(now.l2, a.l2) {
			t.Errorf("the tables lie at %x instead of %x: the test tests nothing", now.l2, a.l2)
		}
		qemutest.RequireClean(t, path)
	}
}

// deviceFile is a file that keeps its length and cannot discard, as many a
// block device.
type deviceFile struct{ block.Writer }

func (deviceFile) Resize(context.Context, int64, block.ResizeOptions) error { return nil }

// TestShrinkOnDevice: what a shrink leaves behind the end of an image on a block
// device is old bytes, not zeros.
func TestShrinkOnDevice(t *testing.T) {
	const size = 1 << 20
	f := deviceFile{memory.New(4 * size)}
	if err := (Driver{}).Create(t.Context(), f, size, format.CreateOptions{Values: map[string]string{"cluster_size": "4096"}}); err != nil {
		t.Fatal(err)
	}
	n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	img := n.(*Image)
	want := make([]byte, size)
	for _, p := range [][]byte{bytes.Repeat([]byte{7}, 4096), {8}} {
		for off := int64(0); off < size; off += 8192 {
			copy(want[off:], p)
			if _, err := img.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, size)
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("old bytes of the device show: %v", err)
		}
		for _, size := range []int64{512, size} {
			if err := img.Resize(t.Context(), size, block.ResizeOptions{AllowShrink: true}); err != nil {
				t.Fatal(err)
			}
		}
		clear(want[512:])
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestGrowWithoutBacking: whether a backing file would show behind the old end
// is not known where it was not opened.
func TestGrowWithoutBacking(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	createFile(t, path, 1<<20, nil, "base", "raw")
	img, err := openFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Resize(t.Context(), 2<<20, block.ResizeOptions{}); !errors.Is(err, block.ErrUnsupported) || img.Size() != 1<<20 {
		t.Errorf("grown to %d: %v", img.Size(), err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
}
