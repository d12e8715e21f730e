package qcow2

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// stockSeeds returns small images that the stock tool made.
func stockSeeds(f *testing.F) [][]byte {
	f.Helper()
	dir := f.TempDir()
	var out [][]byte
	for i, o := range []string{
		"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=512,refcount_bits=64",
		"cluster_size=4k,compression_type=zstd", "cluster_size=4k,lazy_refcounts=on,refcount_bits=1",
		"cluster_size=16k,extended_l2=on", "cluster_size=16k,extended_l2=on,preallocation=metadata",
	} {
		path := filepath.Join(dir, "seed"+string(rune('0'+i)))
		qemutest.Img(f, "create", "-q", "-f", "qcow2", "-o", o, path, "64k")
		pack := "write -c -P 7 32k 4k"
		switch {
		case strings.Contains(o, "preallocation"):
			pack = "write -P 7 32k 4k"
		case strings.Contains(o, "16k"):
			pack = "write -c -P 7 32k 16k"
		}
		qemutest.IO(f, "qcow2", path, "write -P 5 1000 3000", pack, "write -z 20k 4k", "discard 0 512")
		if i < 3 {
			qemutest.Img(f, "snapshot", "-c", "one", path)
			qemutest.IO(f, "qcow2", path, "write -P 9 0 2000")
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
		if strings.Contains(o, "extended_l2") {
			out = append(out, hostileBitmaps(b)...)
		}
	}
	return out
}

// hostileBitmaps returns copies of an image with subclusters whose bitmaps say
// what they cannot: allocated and zero at once, allocated without a cluster,
// anything at all of a compressed cluster.
func hostileBitmaps(image []byte) [][]byte {
	be := binary.BigEndian
	l2 := be.Uint64(image[be.Uint64(image[40:]):]) & entryOffsetMask
	var out [][]byte
	for _, bitmap := range []uint64{1<<64 - 1, 1<<32 - 1, 1<<63 | 1, 0x0000_0001_0000_0001} {
		b := slices.Clone(image)
		for i := range uint64(4) {
			be.PutUint64(b[l2+i*16+8:], bitmap>>(i*8))
		}
		out = append(out, b)
	}
	return out
}

// FuzzOpen opens, reads, maps and changes any bytes: a value or an error, in
// bounded time and memory.
func FuzzOpen(f *testing.F) {
	for _, b := range stockSeeds(f) {
		f.Add(b, uint32(0))
		f.Add(b, uint32(0x1234_5678))
	}
	f.Fuzz(func(t *testing.T, b []byte, noise uint32) {
		if len(b) > 1<<20 {
			return
		}
		// Noise flips one bit, so that a plain run of the seeds already
		// sees damage.
		if noise != 0 && len(b) > 0 {
			b = append([]byte(nil), b...)
			b[int(noise)%len(b)] ^= 1 << (noise >> 29)
		}
		start := time.Now()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		useImage(t, b)
		runtime.ReadMemStats(&after)
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("took %v", d)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
			t.Errorf("allocated %d bytes for an image of %d", n, len(b))
		}
	})
}

// useImage does with an image what a reader and a writer do. Errors are fine.
func useImage(t *testing.T, b []byte) {
	for _, writable := range []bool{false, true} {
		file := memory.NewFile()
		if _, err := file.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		n, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{Writable: writable, Filename: "fuzz"})
		if (n == nil) == (err == nil) {
			t.Fatalf("open gave %v and %v", n, err)
		}
		if err != nil {
			continue
		}
		img := n.(*Image)
		size := img.Size()
		p := make([]byte, min(size, 256<<10))
		for _, off := range []int64{0, size / 2, size - int64(len(p))} {
			_, _ = img.ReadAt(p, off)
			for _, err := range img.Extents(off, min(size-off, int64(len(p)))) {
				if err != nil {
					break
				}
			}
		}
		if _, err := img.ImageInfo(); err != nil {
			t.Error(err)
		}
		readSnapshots(img)
		if writable {
			_, _ = img.WriteAt(p[:min(len(p), 9000)], size/3)
			_ = img.Discard(0, min(size, 64<<10))
			_ = img.WriteZeroes(size/2, min(size/2, 64<<10), 0)
			_ = img.Flush()
			changeSnapshots(img)
		}
		_ = img.Close()
	}
}

// changeSnapshots makes snapshots, goes back to some and gives them up.
func changeSnapshots(img *Image) {
	ctx := context.Background()
	_, _ = img.CreateSnapshot(ctx, "fuzz", time.Time{})
	for range min(len(img.snapshots), 3) {
		_ = img.ApplySnapshot(ctx, 0)
		_, _ = img.WriteAt(make([]byte, min(img.Size(), 3000)), 0)
		_ = img.DeleteSnapshot(ctx, 0)
	}
}

// readSnapshots reads the beginning and the end of every snapshot's disk.
func readSnapshots(img *Image) {
	for i := range min(len(img.snapshots), 4) {
		d, err := img.OpenSnapshot(context.Background(), i)
		if err != nil {
			continue
		}
		size := d.Size()
		p := make([]byte, min(size, 64<<10))
		for _, off := range []int64{0, size - int64(len(p))} {
			_, _ = d.ReadAt(p, off)
			for _, err := range d.Extents(off, int64(len(p))) {
				if err != nil {
					break
				}
			}
		}
		_ = d.Close()
	}
}

// FuzzHeader decodes any bytes as the first cluster of an image.
func FuzzHeader(f *testing.F) {
	for _, b := range stockSeeds(f) {
		f.Add(b[:512])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil {
			if h != nil && h.version == 2 {
				t.Error("a value and an error")
			}
			return
		}
		exts, err := decodeExtensions(b, int(h.headerLength))
		if err != nil {
			return
		}
		names, _ := findExtension(exts, extFeatureNames)
		if h.validate(int64(len(b)), decodeFeatureNames(names), false) != nil {
			return
		}
		// What is accepted survives encoding.
		again, err := decodeHeader(h.encode())
		if err != nil || again.size != h.size || again.l1Offset != h.l1Offset || again.incompat != h.incompat || again.refcountOrder != h.refcountOrder {
			t.Errorf("header %+v came back as %+v, %v", h, again, err)
		}
	})
}
