package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// storedState is what an image held when its bitmaps were stored.
type storedState struct {
	names   []string
	bitmaps map[string]string // as text, with all runs
	content []byte
}

func describeBitmap(t testing.TB, img *Image, b format.Bitmap) string {
	t.Helper()
	return fmt.Sprint(b, dirtyRuns(t, img, b.Name))
}

func bitmapState(t testing.TB, img *Image) storedState {
	t.Helper()
	s := storedState{bitmaps: map[string]string{}, content: make([]byte, img.Size())}
	for _, b := range img.Bitmaps() {
		s.names = append(s.names, b.Name)
		s.bitmaps[b.Name] = describeBitmap(t, img, b)
	}
	if _, err := img.ReadAt(s.content, 0); err != nil {
		t.Fatal(err)
	}
	return s
}

// bitmapStep changes an image at random. stored says that its bitmaps are in
// the file then as they are.
func bitmapStep(t testing.TB, img *Image, r *rand.Rand, step int) (stored bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
	list := img.Bitmaps()
	pick := ""
	if len(list) > 0 {
		pick = list[r.IntN(len(list))].Name
	}
	size := img.Size()
	off := r.Int64N(size)
	n := min(1+r.Int64N(9000), size-off)
	switch k := r.IntN(16); {
	case k < 5:
		_, err := img.WriteAt(bytes.Repeat([]byte{byte(step) | 1}, int(n)), off)
		must(err)
	case k == 5:
		must(img.Discard(off, n))
	case k == 6 && len(list) < 4:
		must(img.AddBitmap(fmt.Sprintf("bitmap %d", step), format.BitmapOptions{Granularity: 512 << r.IntN(4), Disabled: r.IntN(4) == 0}))
	case k == 7 && pick != "":
		must(img.RemoveBitmap(pick))
	case k == 8 && pick != "":
		must(img.ClearBitmap(pick))
	case k == 9 && pick != "":
		must(img.SetBitmapEnabled(pick, r.IntN(2) == 0))
	case k == 10 && pick != "":
		must(img.MarkDirty(pick, oneRun(off, n)))
	case k == 11 && r.IntN(3) == 0:
		must(img.Resize(context.Background(), 60<<10+r.Int64N(100)*512, block.ResizeOptions{AllowShrink: true}))
	case k == 12:
		must(img.Flush())
	case k > 12:
		must(img.StoreBitmaps())
		return true
	}
	return false
}

// TestBitmapCrash replays what a power loss at any instant may leave of random
// changes of disk and bitmaps: the image holds together, and a bitmap that is
// not in use is one that was stored, of a disk that was not changed since.
func TestBitmapCrash(t *testing.T) {
	states := 0
	for _, options := range []map[string]string{
		{"cluster_size": "512"}, {"cluster_size": "4k"}, {"cluster_size": "64k"}, {"cluster_size": "1k", "lazy_refcounts": "on"},
	} {
		for seed := range uint64(3) {
			states += crashBitmaps(t, options, seed)
		}
	}
	t.Logf("%d states", states)
	if states < 3000 {
		t.Errorf("only %d states", states)
	}
}

func crashBitmaps(t *testing.T, options map[string]string, seed uint64) (states int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 5))
	disk := memory.NewFile()
	opts := format.CreateOptions{Values: options}
	if seed%2 == 1 && options["cluster_size"] != "512" {
		opts.BackingFile, opts.BackingFormat = fmt.Sprintf("%0*d.raw", 20+int(seed)*40, 7), "raw"
	}
	if err := (Driver{}).Create(context.Background(), disk, 100<<10, opts); err != nil {
		t.Fatal(err)
	}
	base := disk.Clone()
	rec := record.Wrap(disk)
	open := func(file block.Node) *Image {
		t.Helper()
		n, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{Writable: true, Opener: modelOpener{make([]byte, 1<<20)}})
		if err != nil {
			t.Fatal(err)
		}
		return n.(*Image)
	}
	img := open(rec)
	versions, at := []storedState{bitmapState(t, img)}, []int{0}
	for step := range 60 {
		if bitmapStep(t, img, r, step) {
			versions, at = append(versions, bitmapState(t, img)), append(at, rec.Len())
		}
	}
	last := bitmapState(t, img)
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	versions, at = append(versions, last), append(at, rec.Len())
	log := rec.Log()
	for n := range len(log) + 1 {
		for k := range 3 {
			var d *memory.Disk
			if k == 0 {
				d = log.Prefix(base, n)
			} else {
				d = log.Crash(base, n, r)
			}
			// The versions that may be there: the last one stored, and the one
			// that is being stored.
			v := 0
			for v+1 < len(at) && at[v+1] <= n {
				v++
			}
			where := fmt.Sprintf("%v, seed %d, event %d of %d, version %d", options, seed, n, len(log), v)
			requireBitmaps(t, where, d, versions[v:min(v+2, len(versions))], opts.BackingFile)
			states++
		}
		if t.Failed() {
			return states
		}
	}
	return states
}

// requireBitmaps checks an image in a state that a power loss may leave.
func requireBitmaps(t *testing.T, where string, d *memory.Disk, may []storedState, backing string) {
	t.Helper()
	n, err := (Driver{}).Open(context.Background(), d.ReadOnly(), format.OpenOptions{Opener: modelOpener{make([]byte, 1<<20)}})
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	img := n.(*Image)
	defer func() { _ = img.Close() }()
	if img.backingFile != backing {
		t.Errorf("%s: backing file %q", where, img.backingFile)
	}
	var lines []string
	dirty := img.hdr.incompat&incompatDirty != 0
	res, err := img.Check(context.Background(), block.CheckOptions{Report: func(s string) { lines = append(lines, s) }})
	if err != nil || (res.Corruptions > 0 && !dirty) || res.CheckErrors > 0 {
		t.Errorf("%s: check: %+v, %v\n%v", where, res, err, lines)
	}
	content := make([]byte, img.Size())
	if _, err := img.ReadAt(content, 0); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	list := img.Bitmaps()
	var names []string
	for _, b := range list {
		names = append(names, b.Name)
	}
	if !slices.ContainsFunc(may, func(s storedState) bool { return slices.Equal(s.names, names) }) {
		t.Errorf("%s: bitmaps %q, not those of any version", where, names)
	}
	for _, b := range list {
		if b.Inconsistent {
			continue
		}
		text := describeBitmap(t, img, b)
		if !slices.ContainsFunc(may, func(s storedState) bool { return s.bitmaps[b.Name] == text && bytes.Equal(s.content, content) }) {
			t.Errorf("%s: bitmap %q is not one that was stored of this content: %s", where, b.Name, text)
		}
	}
}

// TestBitmapFaults makes the n-th request of each kind fail, once or from then
// on. Whatever comes of it, the image holds together, and a bitmap that is not
// in use misses nothing that was written.
func TestBitmapFaults(t *testing.T) {
	base := memory.NewFile()
	err := (Driver{}).Create(context.Background(), base, 100<<10, format.CreateOptions{Values: map[string]string{"cluster_size": "1k"}})
	if err != nil {
		t.Fatal(err)
	}
	img := openDisk(t, base)
	for _, name := range []string{"one", "two"} {
		if err := img.AddBitmap(name, format.BitmapOptions{Granularity: 512}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(img.MarkDirty("one", oneRun(0, 3000)), img.Close()); err != nil {
		t.Fatal(err)
	}
	base = base.Reopen()
	runs := 0
	for _, op := range []fault.Op{fault.Write, fault.Flush, fault.Read} {
		for _, times := range []int{1, 0} {
			for n := 0; ; n++ {
				disk := base.Clone()
				bad := fault.Wrap(disk)
				node, err := (Driver{}).Open(context.Background(), bad, format.OpenOptions{Writable: true})
				if err != nil {
					t.Fatal(err)
				}
				bad.Add(fault.Rule{Op: op, After: n, Times: times, Err: syscall.EIO})
				before := bad.Count(op)
				written, err := faultyBitmaps(node.(*Image))
				if bad.Count(op)-before <= n {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				runs++
				where := fmt.Sprintf("%v %d, times %d: %v", op, n, times, err)
				requireWritten(t, where, disk.Reopen(), written)
			}
		}
	}
	if runs < 60 {
		t.Errorf("only %d faults", runs)
	}
}

// faultyBitmaps changes disk and bitmaps, whatever fails, and returns what was
// written, or may have been, since the bitmaps were clear.
func faultyBitmaps(img *Image) (written []format.DirtyRun, err error) {
	p := bytes.Repeat([]byte{7}, 2000)
	write := func(off int64) {
		_, e := img.WriteAt(p, off)
		err = errors.Join(err, e)
		if e == nil {
			written = append(written, format.DirtyRun{Start: off, Length: int64(len(p))})
		}
	}
	write(5000)
	err = errors.Join(err, img.StoreBitmaps())
	write(20000)
	err = errors.Join(err, img.RemoveBitmap("two"), img.AddBitmap("three", format.BitmapOptions{Granularity: 512, Disabled: true}))
	write(40000)
	err = errors.Join(err, img.Resize(context.Background(), 150<<10, block.ResizeOptions{}))
	write(140000)
	return written, errors.Join(err, img.Close())
}

func requireWritten(t *testing.T, where string, disk *memory.Disk, written []format.DirtyRun) {
	t.Helper()
	n, err := (Driver{}).Open(context.Background(), disk.ReadOnly(), format.OpenOptions{})
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	img := n.(*Image)
	defer func() { _ = img.Close() }()
	res, err := img.Check(context.Background(), block.CheckOptions{})
	if err != nil || res.Corruptions+res.CheckErrors > 0 {
		t.Errorf("%s: check: %+v, %v", where, res, err)
	}
	for _, b := range img.Bitmaps() {
		if b.Inconsistent || !b.Enabled {
			continue
		}
		runs := dirtyRuns(t, img, b.Name)
		for _, w := range written {
			p := make([]byte, min(w.Length, max(img.Size()-w.Start, 0)))
			if _, err := img.ReadAt(p, w.Start); err != nil {
				t.Fatal(err)
			}
			if bytes.Count(p, []byte{7}) == 0 {
				continue // it did not reach the file
			}
			if !slices.ContainsFunc(runs, func(r format.DirtyRun) bool {
				return r.Start <= w.Start && r.Start+r.Length >= w.Start+int64(len(p))
			}) {
				t.Errorf("%s: bitmap %s misses %v: %v", where, b.Name, w, runs)
			}
		}
	}
}
