package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// fuzzFormats are the formats by the first argument of FuzzImage.
var fuzzFormats = []string{"raw", "qcow2", "luks", ""}

// fuzzSeeds are images that the stock tool makes, by -o, and what is done to
// them. %s is the image.
var fuzzSeeds = []struct {
	format int
	create []string
	after  [][]string
}{
	{0, []string{"64k"}, nil},
	{1, []string{"-o", "cluster_size=512", "64k"}, [][]string{{"snapshot", "-c", "one", "%s"}}},
	{1, []string{"-o", "cluster_size=512,compat=0.10", "64k"}, [][]string{{"snapshot", "-c", "one", "%s"}, {"snapshot", "-c", "two", "%s"}}},
	{1, []string{"-o", "cluster_size=512,refcount_bits=64", "64k"}, [][]string{{"bitmap", "--add", "--enable", "-g", "512", "%s", "b0"}, {"bitmap", "--add", "--disable", "%s", "b1"}}},
	{1, []string{"-o", "cluster_size=4k,compression_type=zstd", "64k"}, nil},
	{1, []string{"-o", "cluster_size=16k,extended_l2=on", "256k"}, nil},
	{1, []string{"-o", "cluster_size=4k,lazy_refcounts=on,refcount_bits=1", "64k"}, nil},
	{1, []string{"-o", "cluster_size=2k,preallocation=metadata", "64k"}, nil},
	{1, []string{"-u", "-b", "/nowhere", "-F", "raw", "-o", "cluster_size=1k", "64k"}, nil},
}

// FuzzImage opens, describes, maps, checks, repairs, reads and converts any
// bytes as an image of each format: a value or an error each time, in bounded
// time and memory, and no other file is touched.
func FuzzImage(f *testing.F) {
	dir := f.TempDir()
	for i, s := range fuzzSeeds {
		path := filepath.Join(dir, fmt.Sprint(i))
		name := fuzzFormats[s.format]
		args := append([]string{"create", "-q", "-f", name}, s.create[:len(s.create)-1]...)
		qemutest.Img(f, append(args, path, s.create[len(s.create)-1])...)
		if s.create[0] != "-u" {
			qemutest.IO(f, name, path, "write -P 5 1000 3000", "write -z 20k 4k", "discard 0 512")
			if name == "qcow2" && !strings.Contains(s.create[1], "preallocation") {
				qemutest.IO(f, name, path, "write -c -P 7 32k 16k")
			}
		}
		for _, args := range s.after {
			args = append([]string(nil), args...)
			for k, a := range args {
				if a == "%s" {
					args[k] = path
				}
			}
			qemutest.Img(f, args...)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(s.format), uint64(0))
		f.Add(b, uint8(s.format), uint64(0x40_0000_0001))
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8, patch uint64) {
		if len(b) > 4<<20 {
			return
		}
		// A patch sets one byte, so that a plain run of the seeds sees damage.
		if patch != 0 && len(b) > 0 {
			b = append([]byte(nil), b...)
			b[(patch>>32)%uint64(len(b))] = byte(patch)
		}
		name := fuzzFormats[int(kind)%len(fuzzFormats)]
		path := filepath.Join(tempDir(t), "image")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fuzzUse(t, path, name)
		runtime.ReadMemStats(&after)
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("took %v", d)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
			t.Errorf("allocated %d bytes for an image of %d", n, len(b))
		}
	})
}

// fuzzUse does with an image what the verbs do. Errors are fine.
func fuzzUse(t *testing.T, path, name string) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	opts := image.Options{Format: name, Untrusted: true, Secrets: secrets{}}
	size, ok := fuzzRead(t, ctx, path, opts)
	if !ok {
		return
	}
	_, _ = image.Inspect(ctx, path, image.InfoOptions{Format: name, Untrusted: true})
	if size <= 16<<20 {
		for _, to := range []string{"raw", "qcow2"} {
			_ = image.Convert(ctx, []string{path}, path+"."+to, image.ConvertOptions{
				SourceFormat: name, SourceUntrusted: true, Secrets: secrets{}, Format: to, Cache: image.CacheUnsafe,
			})
		}
	}
	// Who looks for damage opens what others refuse; nothing else is
	// opened, as only the untrusted are checked from here on.
	opts.Writable, opts.ForCheck = true, true
	im, err := image.Open(ctx, path, opts)
	if err != nil {
		return
	}
	defer func() { _ = im.Close() }()
	if c, ok := block.As[block.Checker](im.Node()); ok {
		_, _ = c.Check(ctx, block.CheckOptions{})
		_, _ = c.Check(ctx, block.CheckOptions{Repair: block.RepairAll})
	}
}

// fuzzRead opens an image, maps it and reads it, all of it if it is small.
func fuzzRead(t *testing.T, ctx context.Context, path string, opts image.Options) (size int64, ok bool) {
	im, err := image.Open(ctx, path, opts)
	if (im == nil) == (err == nil) {
		t.Fatalf("open gave %v and %v", im, err)
	}
	if err != nil {
		return 0, false
	}
	defer func() { _ = im.Close() }()
	n := im.Node()
	size = n.Size()
	runs, end := 0, int64(0)
	for e, err := range n.Extents(0, size) {
		if err != nil {
			break
		}
		if e.Start != end || e.Length <= 0 || e.End() > size {
			t.Fatalf("extent %+v behind %d in a disk of %d bytes", e, end, size)
		}
		end = e.End()
		if runs++; runs > 1<<16 {
			break
		}
	}
	p := make([]byte, 256<<10)
	for off := int64(0); off < min(size, 16<<20); off += int64(len(p)) {
		if k, err := n.ReadAt(p, off); err == nil && k < len(p) || err == io.EOF && off+int64(k) != size {
			t.Fatalf("read of %d bytes at %d of %d gave %d, %v", len(p), off, size, k, err)
		}
	}
	if inf, ok := block.As[format.Informer](n); ok {
		info, err := inf.ImageInfo()
		if err != nil && !errors.Is(err, block.ErrCorrupt) {
			t.Logf("info: %v", err)
		}
		for i := range min(len(info.Snapshots), 4) {
			if o, ok := block.As[format.SnapshotOpener](n); ok {
				if s, err := o.OpenSnapshot(ctx, i); err == nil {
					_, _ = s.ReadAt(p, 0)
					_ = s.Close()
				}
			}
		}
	}
	return size, true
}
