package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// layerOpener opens backing files beside the image.
type layerOpener struct{ dir string }

func (o layerOpener) OpenBacking(ctx context.Context, name, _ string) (block.Node, error) {
	path := filepath.Join(o.dir, name)
	f, err := file.Open(path, file.Options{})
	if err != nil {
		return nil, err
	}
	n, err := (Driver{}).Open(ctx, f, format.OpenOptions{Filename: path, Opener: o})
	if err != nil {
		_ = f.Close()
	}
	return n, err
}

// openLayers opens an image of dir with its backing chain.
func openLayers(t testing.TB, dir, name string, writable bool) *Image {
	t.Helper()
	f, err := file.Open(filepath.Join(dir, name), file.Options{Writable: writable, Growable: writable})
	if err != nil {
		t.Fatal(err)
	}
	n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: writable, Filename: name, Opener: layerOpener{dir}})
	if err != nil {
		t.Fatal(err)
	}
	return n.(*Image)
}

// makeLayers makes depth+1 images l0, l1, ..., each but the first an overlay,
// with data of every layer, and returns what the last one reads as.
func makeLayers(t testing.TB, dir string, depth int, size int64, seed uint64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	want := make([]byte, size)
	for i := range depth + 1 {
		name, backing, backingFormat := fmt.Sprintf("l%d", i), "", ""
		if i > 0 {
			backing, backingFormat = fmt.Sprintf("l%d", i-1), "qcow2"
		}
		cluster := []string{"512", "4k", "64k"}[i%3]
		createFile(t, filepath.Join(dir, name), size, map[string]string{"cluster_size": cluster}, backing, backingFormat)
		img := openLayers(t, dir, name, true)
		for range 6 {
			off := r.Int64N(size - 20000)
			p := want[off : off+1+r.Int64N(20000)]
			if r.IntN(4) == 0 {
				clear(p)
				if err := img.WriteZeroes(off, int64(len(p)), 0); err != nil {
					t.Fatal(err)
				}
				continue
			}
			fillRandom(r, p)
			if _, err := img.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// TestChain reads through a deep chain, twice, so that the second time what is
// remembered of it answers, and writes into it.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	want := makeLayers(t, dir, 12, 1<<20, newSeed(t))
	img := openLayers(t, dir, "l12", true)
	for range 2 {
		for off := 0; off < len(want); off += 3000 {
			p := make([]byte, min(5000, len(want)-off))
			if _, err := img.ReadAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, want[off:off+len(p)]) {
				t.Fatalf("differs in [%d, %d)", off, off+len(p))
			}
		}
	}
	deepest, at := 0, int64(0)
	for e, err := range img.Extents(0, img.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != at {
			t.Fatalf("extent %+v begins not at %d", e, at)
		}
		at = e.End()
		deepest = max(deepest, e.Depth)
		if e.IsZero() && len(bytes.Trim(want[e.Start:e.End()], "\x00")) > 0 {
			t.Errorf("extent %+v is not zeros", e)
		}
	}
	if deepest != 12 || at != img.Size() {
		t.Errorf("extents reach depth %d, offset %d", deepest, at)
	}
	copy(want[77777:], "written into the chain")
	if _, err := img.WriteAt([]byte("written into the chain"), 77777); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after a write: %v, equal %t", err, bytes.Equal(got, want))
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 13 {
		qemutest.RequireClean(t, filepath.Join(dir, fmt.Sprintf("l%d", i)))
	}
}

// BenchmarkChain reads 4 KiB at a time from the bottom of chains.
func BenchmarkChain(b *testing.B) {
	for _, depth := range []int{0, 1, 8, 64} {
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			dir := b.TempDir()
			const size = 16 << 20
			for i := range depth + 1 {
				backing, backingFormat := "", ""
				if i > 0 {
					backing, backingFormat = fmt.Sprintf("l%d", i-1), "qcow2"
				}
				createFile(b, filepath.Join(dir, fmt.Sprintf("l%d", i)), size, nil, backing, backingFormat)
				if i == 0 {
					img := openLayers(b, dir, "l0", true)
					if _, err := img.WriteAt(bytes.Repeat([]byte{7}, size), 0); err != nil {
						b.Fatal(err)
					}
					if err := img.Close(); err != nil {
						b.Fatal(err)
					}
				}
			}
			img := openLayers(b, dir, fmt.Sprintf("l%d", depth), false)
			defer func() { _ = img.Close() }()
			p := make([]byte, 4096)
			i := int64(0)
			for b.Loop() {
				i = (i*1103515245 + 12345) & (size/4096 - 1)
				if _, err := img.ReadAt(p, i*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func (o layerOpener) OpenData(context.Context, string, bool) (block.Node, error) { return nil, nil }
