package qcow2

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// bitmapDisk makes an image in memory and opens it.
func bitmapDisk(t *testing.T, size int64, options map[string]string) (*memory.Disk, *Image) {
	t.Helper()
	disk := memory.NewFile()
	if err := (Driver{}).Create(context.Background(), disk, size, format.CreateOptions{Values: options}); err != nil {
		t.Fatal(err)
	}
	return disk, openDisk(t, disk)
}

func openDisk(t *testing.T, disk block.Node) *Image {
	t.Helper()
	n, err := (Driver{}).Open(context.Background(), disk, format.OpenOptions{Writable: true, Filename: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return n.(*Image)
}

// stockFile writes a disk to a file, for the stock tools.
func stockFile(t *testing.T, disk *memory.Disk) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "a.qcow2")
	b := make([]byte, disk.Size())
	if _, err := disk.ReadAt(b, 0); err != nil && len(b) > 0 {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func oneRun(off, n int64) iter.Seq2[format.DirtyRun, error] {
	return func(yield func(format.DirtyRun, error) bool) { yield(format.DirtyRun{Start: off, Length: n}, nil) }
}

// dirtyRuns collects the runs of a whole bitmap.
func dirtyRuns(t testing.TB, img *Image, name string) []format.DirtyRun {
	t.Helper()
	var list []format.DirtyRun
	for r, err := range img.DirtyRuns(name, 0, img.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// bitModel is what a bitmap must hold.
type bitModel struct {
	granularity int64
	enabled     bool
	bits        []bool
}

func newBitModel(size, granularity int64) *bitModel {
	return &bitModel{granularity: granularity, enabled: true, bits: make([]bool, ceilDiv(size, granularity))}
}

func (m *bitModel) set(off, n int64) {
	for i := off / m.granularity; n > 0 && i <= (off+n-1)/m.granularity && i < int64(len(m.bits)); i++ {
		m.bits[i] = true
	}
}

// runs returns what DirtyRuns must yield.
func (m *bitModel) runs(size int64) []format.DirtyRun {
	var list []format.DirtyRun
	for i, set := range m.bits {
		if !set {
			continue
		}
		lo, hi := int64(i)*m.granularity, min(int64(i+1)*m.granularity, size)
		if k := len(list) - 1; k >= 0 && list[k].Start+list[k].Length == lo {
			list[k].Length += hi - lo
			continue
		}
		list = append(list, format.DirtyRun{Start: lo, Length: hi - lo})
	}
	return list
}

// TestBitmapModel runs random changes against a model of each bitmap, with
// the image closed and opened, and checked, in between.
func TestBitmapModel(t *testing.T) {
	for _, options := range []map[string]string{
		{"cluster_size": "512"}, {"cluster_size": "4k"}, {"cluster_size": "64k", "lazy_refcounts": "on"}, {"cluster_size": "2M"},
	} {
		t.Run(fmt.Sprint(options), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(3) {
				modelBitmaps(t, options, seed)
			}
		})
	}
}

func modelBitmaps(t *testing.T, options map[string]string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 77))
	size := int64(6<<20) + r.Int64N(2000)*512
	disk, img := bitmapDisk(t, size, options)
	models := map[string]*bitModel{}
	names := func() []string {
		var list []string
		for _, b := range img.Bitmaps() {
			list = append(list, b.Name)
		}
		return list
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	note := func(off, n int64) {
		for _, m := range models {
			if m.enabled {
				m.set(off, n)
			}
		}
	}
	for step := range 150 {
		all := names()
		pick := ""
		if len(all) > 0 {
			pick = all[r.IntN(len(all))]
		}
		off := r.Int64N(size)
		n := min(r.Int64N(1<<uint(r.IntN(22))+1), size-off)
		switch k := r.IntN(20); {
		case k < 6:
			_, err := img.WriteAt(make([]byte, n), off)
			must(err)
			note(off, n)
		case k == 6:
			must(img.WriteZeroes(off, n, block.ZeroMayUnmap))
			note(off, n)
		case k == 7:
			must(img.Discard(off, n))
			if first, last := img.wholeSubclusters(off, n); last > first {
				note(off, n)
			}
		case k == 8 && len(all) < 5:
			name := fmt.Sprintf("bitmap-%d", step)
			g := int64(512) << r.IntN(10)
			must(img.AddBitmap(name, format.BitmapOptions{Granularity: g}))
			models[name] = newBitModel(size, g)
		case k == 9 && pick != "" && r.IntN(3) == 0:
			must(img.RemoveBitmap(pick))
			delete(models, pick)
		case k == 10 && pick != "" && r.IntN(3) == 0:
			must(img.ClearBitmap(pick))
			clear(models[pick].bits)
		case k == 11 && pick != "":
			on := r.IntN(3) > 0
			must(img.SetBitmapEnabled(pick, on))
			models[pick].enabled = on
		case k == 12 && pick != "":
			to := all[r.IntN(len(all))]
			must(img.MarkDirty(to, img.DirtyRuns(pick, 0, size)))
			for _, run := range models[pick].runs(size) {
				models[to].set(run.Start, run.Length)
			}
		case k == 13 && pick != "":
			must(img.MarkDirty(pick, oneRun(off, n)))
			models[pick].set(off, n)
		case k == 14 && r.IntN(3) == 0:
			size = int64(2<<20) + r.Int64N(14000)*512
			must(img.Resize(context.Background(), size, block.ResizeOptions{AllowShrink: true}))
			for _, m := range models {
				bits := make([]bool, ceilDiv(size, m.granularity))
				copy(bits, m.bits)
				m.bits = bits
			}
		case k == 15:
			res, err := img.Check(context.Background(), block.CheckOptions{})
			must(err)
			if res.Corruptions+res.Leaks+res.CheckErrors > 0 {
				t.Fatalf("seed %d, step %d: check: %+v", seed, step, res)
			}
		case k >= 18:
			must(img.Close())
			disk = disk.Reopen()
			img = openDisk(t, disk)
			compareBitmaps(t, img, models, size)
		}
	}
	must(img.Close())
	disk = disk.Reopen()
	img = openDisk(t, disk)
	compareBitmaps(t, img, models, size)
	must(img.Close())
	if seed == 0 {
		qemutest.RequireClean(t, stockFile(t, disk.Reopen()))
	}
}

func compareBitmaps(t *testing.T, img *Image, models map[string]*bitModel, size int64) {
	t.Helper()
	list := img.Bitmaps()
	if len(list) != len(models) {
		t.Fatalf("bitmaps %+v, want %d", list, len(models))
	}
	for _, b := range list {
		m := models[b.Name]
		if m == nil || b.Granularity != m.granularity || b.Enabled != m.enabled || b.Inconsistent {
			t.Fatalf("bitmap %+v, want %+v", b, m)
		}
		if got, want := dirtyRuns(t, img, b.Name), m.runs(size); !slices.Equal(got, want) {
			t.Fatalf("bitmap %s, granularity %d: runs\n%v\nwant\n%v", b.Name, b.Granularity, got, want)
		}
	}
}
