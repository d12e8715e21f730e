package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// stockBitmaps returns a small image of the stock tool with three bitmaps.
func stockBitmaps(t testing.TB, options string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", options, path, "8M")
	qemutest.Img(t, "bitmap", "--add", "-g", "512", path, "fine")
	qemutest.Img(t, "bitmap", "--add", "--disable", "-g", "32k", path, "off")
	qemutest.Img(t, "bitmap", "--add", "-g", "2G", path, "coarse")
	qemutest.IO(t, "qcow2", path, "write -P 5 1000 3000", "write -z 20k 4k", "write 7M 1k")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// useBitmaps opens an image, whatever it is, and does everything with its
// bitmaps.
func useBitmaps(t testing.TB, image []byte) {
	t.Helper()
	d := memory.NewFile()
	if _, err := d.WriteAt(image, 0); err != nil {
		t.Fatal(err)
	}
	n, err := (Driver{}).Open(context.Background(), d, format.OpenOptions{Writable: true})
	if err != nil {
		if n != nil {
			t.Fatal("a node and an error")
		}
		return
	}
	img := n.(*Image)
	// What it comes to does not matter, only that it does.
	defer func() { _ = img.Close() }()
	if img.Size() == 0 || img.Size() > 1<<40 {
		return
	}
	for i, b := range img.Bitmaps() {
		runs := 0
		for r, err := range img.DirtyRuns(b.Name, 0, img.Size()) {
			if err == nil && (r.Length <= 0 || r.Start < 0 || r.Start+r.Length > img.Size()) {
				t.Fatalf("run %+v of a disk of %d bytes", r, img.Size())
			}
			if runs++; runs > 1000 {
				break
			}
		}
		switch i % 4 {
		case 0:
			_ = img.MarkDirty(b.Name, oneRun(4096, img.Size()))
		case 1:
			_ = img.ClearBitmap(b.Name)
		case 2:
			_ = img.RemoveBitmap(b.Name)
		}
		if i > 8 {
			break
		}
	}
	_, _ = img.WriteAt([]byte("x"), img.Size()/2)
	_ = img.AddBitmap("new", format.BitmapOptions{Granularity: 1 << 31})
	if img.Size() < 1<<30 {
		_ = img.Resize(context.Background(), img.Size()+512, block.ResizeOptions{})
	}
	_ = img.StoreBitmaps()
	_, _ = img.WriteAt([]byte("x"), 0)
}

// TestBitmapsDamaged changes each field of extension, directory and tables to
// values that tend to hurt.
func TestBitmapsDamaged(t *testing.T) {
	values := []uint64{0, 1, 2, 0x200, 0x10000, 1 << 31, 1<<32 - 1, 1 << 56, 1<<63 - 512, 1<<64 - 1, 0x00ff_ffff_ffff_fe00}
	for _, options := range []string{"cluster_size=512", "cluster_size=64k"} {
		good := append(stockBitmaps(t, options), make([]byte, 16)...)
		be := binary.BigEndian
		ext := int64(strings.Index(string(good), "\x23\x85\x28\x75")) + 8
		dir := int64(be.Uint64(good[ext+16:]))
		places := []int64{ext - 4, ext, ext + 4, ext + 8, ext + 16}
		for at := dir; at < dir+int64(be.Uint64(good[ext+8:])); at += 4 {
			places = append(places, at)
		}
		table := int64(be.Uint64(good[dir:]))
		places = append(places, table, table+8, table+16)
		for _, at := range places {
			for _, v := range values {
				for _, width := range []int{4, 8} {
					b := slices.Clone(good)
					if width == 8 {
						be.PutUint64(b[at:], v)
					} else {
						be.PutUint32(b[at:], uint32(v))
					}
					useBitmaps(t, b)
				}
			}
		}
	}
}

// TestBitmapsFarTooMany holds that an image in which 65535 bitmaps share one
// table opens, is changed and checked in a bounded time.
func TestBitmapsFarTooMany(t *testing.T) {
	disk, img := bitmapDisk(t, 64<<30, map[string]string{"cluster_size": "512"})
	if err := errors.Join(img.AddBitmap("b", format.BitmapOptions{Granularity: 512}), img.Close()); err != nil {
		t.Fatal(err)
	}
	disk = disk.Reopen()
	img = openDisk(t, disk)
	b := img.bitmaps.list[0]
	entry := bitmapDirEntry{table: b.table, granularityBits: uint8(b.shift), flags: bitmapAuto, name: "b"}
	dir := encodeBitmapDirectory(slices.Repeat([]bitmapDirEntry{entry}, maxBitmaps))
	at := img.g.roundUp(disk.Size() + 1<<20)
	ext, _ := img.extensionData(extBitmaps, bitmapsExtLength)
	h := bitmapsHeader{count: maxBitmaps, directorySize: uint64(len(dir)), directoryOffset: hostOffset(at)}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	disk = disk.Reopen()
	for off, p := range map[int64][]byte{at: dir, ext: h.encode()} {
		if _, err := disk.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	img = openDisk(t, disk)
	if _, err := img.WriteAt([]byte("x"), 1<<30); err != nil {
		t.Fatal(err)
	}
	if img.bitmaps.recent > recentBytes+recentChunk {
		t.Errorf("recent bits take %d bytes", img.bitmaps.recent)
	}
	if err := img.file.Close(); err != nil { // without storing them
		t.Fatal(err)
	}
	img = openDisk(t, disk.Reopen())
	res, err := img.Check(t.Context(), block.CheckOptions{})
	if err != nil || res.Corruptions == 0 {
		t.Errorf("check: %+v, %v", res, err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	start = time.Now()
	items, err := img.Usage(t.Context())
	i := slices.IndexFunc(items, func(u format.UsageItem) bool { return u.Key == "bitmaps" })
	if err != nil || i < 0 || items[i].Count != maxBitmaps {
		t.Errorf("usage: %+v, %v", items, err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("usage took %v", d)
	}
}

// TestBitmapTables holds the bound of what bits take in memory, over a disk of
// which scattered parts are written; and the flags for clusters of zeros and
// ones, with which a huge bitmap takes no space.
func TestBitmapTables(t *testing.T) {
	const size = 200 << 30
	disk, img := bitmapDisk(t, size, map[string]string{"cluster_size": "64k"})
	if err := img.AddBitmap("fine", format.BitmapOptions{Granularity: 512}); err != nil {
		t.Fatal(err)
	}
	most, count := int64(0), 0
	scattered := func(yield func(format.DirtyRun, error) bool) {
		for off := int64(0); off < size; off += 15 << 20 {
			count++
			most = max(most, img.bitmaps.recent)
			if !yield(format.DirtyRun{Start: off, Length: 1}, nil) {
				return
			}
		}
	}
	if err := img.MarkDirty("fine", scattered); err != nil {
		t.Fatal(err)
	}
	if most > recentBytes+recentChunk || most < recentBytes/2 {
		t.Errorf("recent bits took %d bytes", most)
	}
	if runs := dirtyRuns(t, img, "fine"); len(runs) != count || runs[7] != (format.DirtyRun{Start: 7 * 15 << 20, Length: 512}) {
		t.Errorf("%d runs, want %d", len(runs), count)
	}
	if err := errors.Join(img.AddBitmap("all", format.BitmapOptions{Granularity: 512}), img.MarkDirty("all", oneRun(0, size)), img.Close()); err != nil {
		t.Fatal(err)
	}
	disk = disk.Reopen()
	if n := disk.Size(); n > 66<<20 {
		t.Errorf("the file has %d bytes", n)
	}
	img = openDisk(t, disk)
	if runs := dirtyRuns(t, img, "fine"); len(runs) != count {
		t.Errorf("%d runs after opening, want %d", len(runs), count)
	}
	if runs := dirtyRuns(t, img, "all"); !slices.Equal(runs, []format.DirtyRun{{Start: 0, Length: size}}) {
		t.Errorf("runs of a bitmap of ones: %v", runs)
	}
	if res, err := img.Check(t.Context(), block.CheckOptions{}); err != nil || res.Corruptions+res.Leaks > 0 {
		t.Errorf("check: %+v, %v", res, err)
	}
	// A merge over a bitmap of ones, and with holes.
	if err := errors.Join(img.MarkDirty("fine", img.DirtyRuns("all", 1<<30, 100<<30)), img.RemoveBitmap("all"), img.Close()); err != nil {
		t.Fatal(err)
	}
	img = openDisk(t, disk.Reopen())
	defer func() { _ = img.Close() }()
	for r, err := range img.DirtyRuns("fine", 2<<30, 10<<30) {
		if err != nil || r != (format.DirtyRun{Start: 2 << 30, Length: 10 << 30}) {
			t.Errorf("run %+v, %v", r, err)
		}
	}
	if res, err := img.Check(t.Context(), block.CheckOptions{}); err != nil || res.Corruptions+res.Leaks > 0 {
		t.Errorf("check: %+v, %v", res, err)
	}
}

// TestBitmapLimits holds the limits, with stock's words.
func TestBitmapLimits(t *testing.T) {
	_, img := bitmapDisk(t, 8<<40, nil)
	defer func() { _ = img.Close() }()
	for _, c := range []struct {
		name        string
		granularity int64
		want        string
	}{
		{"", 0, "Bitmap name cannot be empty"},
		{"b", 256, "Granularity must be power of 2 and at least 512"},
		{"b", 1000, "Granularity must be power of 2 and at least 512"},
		{"b", 1 << 32, "Granularity must be power of 2 and at least 512"},
		{"b", 512, "Too much space will be occupied by the bitmap. Use larger granularity"},
		{strings.Repeat("n", 1024), 0, "Name length exceeds maximum (1023 characters)"},
		{strings.Repeat("n", 1023), 0, ""},
		{"b", 2048, ""},
		{"b", 0, "Bitmap already exists: b"},
	} {
		err := img.AddBitmap(c.name, format.BitmapOptions{Granularity: c.granularity})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.10q, %d: %v, want %q", c.name, c.granularity, err, c.want)
		}
	}
	_, old := bitmapDisk(t, 1<<20, map[string]string{"compat": "0.10"})
	if err := old.AddBitmap("b", format.BitmapOptions{}); err == nil || old.KeepsBitmaps() || !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("version 2: %v", err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if err := old.AddBitmap("b", format.BitmapOptions{}); !errors.Is(err, block.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// FuzzBitmaps holds of any bytes that using them as an image with bitmaps
// neither panics nor hangs, and yields only runs of the disk.
func FuzzBitmaps(f *testing.F) {
	for _, options := range []string{"cluster_size=512", "cluster_size=1k,lazy_refcounts=on"} {
		b := stockBitmaps(f, options)
		f.Add(b, uint32(0), uint64(0))
		for _, at := range []int{0x200, 0x210, 0x400, 0x600} {
			f.Add(b, uint32(at), uint64(1)<<40|0x400)
		}
	}
	f.Fuzz(func(t *testing.T, image []byte, off uint32, value uint64) {
		if len(image) > 128<<10 {
			return
		}
		image = slices.Clone(image)
		if value != 0 && int(off)+8 <= len(image) {
			binary.BigEndian.PutUint64(image[off:], value)
		}
		start := time.Now()
		useBitmaps(t, image)
		if d := time.Since(start); d > 20*time.Second {
			t.Fatalf("took %v", d)
		}
	})
}
