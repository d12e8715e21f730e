package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// openMemory opens an image in memory for writing, its backing file closed.
func openMemory(t *testing.T, file block.Node) *Image {
	t.Helper()
	img, err := tryOpenMemory(file)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func tryOpenMemory(file block.Node) (*Image, error) {
	n, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{Writable: true, Filename: "mem"})
	if err != nil {
		return nil, err
	}
	return n.(*Image), nil
}

func newFile(t *testing.T, size int64, values map[string]string) *memory.Disk {
	t.Helper()
	f := memory.NewFile()
	if err := (Driver{}).Create(t.Context(), f, size, format.CreateOptions{Values: values, Filename: "mem"}); err != nil {
		t.Fatal(err)
	}
	return f
}

// toDisk writes an image in memory to a file, for the stock tools.
func toDisk(t *testing.T, d *memory.Disk, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, b)
	return path
}

// eachCrash calls check for every prefix of the log and for several disks that
// a power loss after it may leave. It returns how many there were.
func eachCrash(t *testing.T, log record.Log, base *memory.Disk, seed uint64, check func(n int, d *memory.Disk) error) int {
	t.Helper()
	states := 0
	r := rand.New(rand.NewPCG(seed, 77))
	for n, disk := range log.Prefixes(base) {
		if err := check(n, disk); err != nil {
			t.Fatalf("after %d of %d events: %v", n, len(log), err)
		}
		for range 4 {
			if err := check(n, log.Crash(base, n, r)); err != nil {
				t.Fatalf("power loss after %d of %d events (seed %d): %v", n, len(log), seed, err)
			}
		}
		states += 5
	}
	return states
}

// eachFault runs a change over and over, on a fresh copy of base, with the n-th
// request of each kind failing once or for ever, until none strikes any more.
// check looks at what is left. It returns how many faults there were.
func eachFault(t *testing.T, base *memory.Disk, run func(file block.Node) error, check func(d *memory.Disk) error) int {
	t.Helper()
	runs := 0
	for _, op := range []fault.Op{fault.Write, fault.Flush, fault.Read, fault.Resize} {
		for _, times := range []int{1, 0} {
			for n := 0; ; n++ {
				d := base.Clone()
				bad := fault.Wrap(d, fault.Rule{Op: op, After: n, Times: times, Err: syscall.ENOSPC, Short: int64(n%2) * 700})
				err := run(bad)
				if bad.Count(op) <= n {
					break
				}
				runs++
				where := fmt.Sprintf("%v %d failed (times %d)", op, n, times)
				if err == nil || !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("%s: the error is %v", where, err)
				}
				if err := check(d.Reopen()); err != nil {
					t.Fatalf("%s: %v", where, err)
				}
			}
		}
	}
	return runs
}

// TestChangeBackingCrash changes the name of the backing file again and again
// and replays what a power loss may leave of each change: the old name or the
// new one, always with the extensions that nobody knows.
func TestChangeBackingCrash(t *testing.T) {
	seed := newSeed(t)
	states, detours := 0, 0
	for _, values := range []map[string]string{
		{"cluster_size": "512"}, {"cluster_size": "1024"}, {"cluster_size": "4k", "compat": "0.10"}, {"cluster_size": "64k"}, {"cluster_size": "64k", "compat": "0.10"},
	} {
		r := rand.New(rand.NewPCG(seed, uint64(len(values["cluster_size"]))))
		file := newFile(t, 1<<20, values)
		img := openMemory(t, file)
		unknown := extension{0x12345678, []byte("nobody knows")}
		if err := img.replaceHead(img.hdr, append(img.exts, unknown), ""); err != nil {
			t.Fatal(err)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		old := [2]string{}
		for range 12 {
			file = file.Reopen()
			base, rec := file.Clone(), record.Wrap(file)
			img := openMemory(t, rec)
			name := strings.Repeat(string(rune('a'+r.IntN(26))), []int{0, 5, 40, 200, 390, 700, 1023}[r.IntN(7)])
			next := [2]string{name, []string{"raw", "qcow2", "a-long-name-of-a-format"}[r.IntN(3)]}
			if name == "" {
				next[1] = ""
			}
			err := img.ChangeBacking(t.Context(), next[0], next[1])
			if errors.Is(err, format.ErrHeaderFull) {
				if img.g.clusterSize() >= 4096 {
					t.Fatal(err)
				}
				next = old
			} else if err != nil {
				t.Fatal(err)
			}
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
			log := rec.Log()
			if len(log) > 5 {
				detours++
			}
			states += eachCrash(t, log, base, seed, func(_ int, d *memory.Disk) error {
				img, err := tryOpenMemory(d)
				if err != nil {
					return err
				}
				if have := [2]string{img.backingFile, img.backingFormat}; have != old && have != next {
					return fmt.Errorf("backing file %q, neither %q nor %q", have, old, next)
				}
				if data, ok := findExtension(img.exts, unknown.kind); !ok || string(data) != string(unknown.data) {
					return fmt.Errorf("the unknown extension is lost")
				}
				return requireRefcounts(img)
			})
			img = openMemory(t, file.Reopen())
			if have := [2]string{img.backingFile, img.backingFormat}; have != next {
				t.Fatalf("backing file %q, want %q", have, next)
			}
			if _, ok := findExtension(img.exts, extDetour); ok {
				t.Fatal("the detour is still there")
			}
			old = next
		}
		// A crash may leave a detour; the next change takes it away.
	}
	t.Logf("%d states, %d detours", states, detours)
	if detours < 5 {
		t.Error("hardly any change took the detour")
	}
}

// TestChangeBackingInterop holds that the stock tool reads what was recorded,
// and also the state in the middle of a change.
func TestChangeBackingInterop(t *testing.T) {
	file := newFile(t, 1<<20, nil)
	img := openMemory(t, file)
	long := strings.Repeat("x", 900)
	for _, name := range []string{"first", long + "1", long + "2"} {
		if err := img.ChangeBacking(t.Context(), name, "raw"); err != nil {
			t.Fatal(err)
		}
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	file = file.Reopen()
	info := qemutest.Img(t, "info", toDisk(t, file, "a.qcow2"))
	if !strings.Contains(info, "backing file: "+long+"2") || !strings.Contains(info, "backing file format: raw") {
		t.Error(info)
	}
	base, rec := file.Clone(), record.Wrap(file)
	img = openMemory(t, rec)
	if err := img.ChangeBacking(t.Context(), long+"3", "qcow2"); err != nil {
		t.Fatal(err)
	}
	log := rec.Log()
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	middle := 0
	for n, disk := range log.Prefixes(base) {
		path := toDisk(t, disk, "b.qcow2")
		info := qemutest.Img(t, "info", path)
		old := strings.Contains(info, long+"2") && strings.Contains(info, "format: raw")
		if now := strings.Contains(info, long+"3") && strings.Contains(info, "file format: qcow2"); !old && !now {
			t.Errorf("after %d of %d events:\n%s", n, len(log), info)
		}
		img := openMemory(t, disk)
		if _, ok := findExtension(img.exts, extDetour); ok {
			middle++
			if err := img.ChangeBacking(t.Context(), "short", "raw"); err != nil {
				t.Error(err)
			}
			if img := openMemory(t, disk); img.backingFile != "short" || len(img.exts) != 2 {
				t.Errorf("after a crash in the middle: %q, %d extensions", img.backingFile, len(img.exts))
			}
		}
	}
	if middle == 0 {
		t.Error("there was no state in the middle")
	}
}

// TestChangeBackingRefused holds what is refused, and that nothing happens.
func TestChangeBackingRefused(t *testing.T) {
	file := newFile(t, 1<<20, map[string]string{"cluster_size": "512"})
	img := openMemory(t, file)
	before := file.Clone()
	for _, c := range []struct {
		name, format string
		want         error
	}{
		{strings.Repeat("x", 1024), "raw", block.ErrUnsupported}, {"a", "", block.ErrUnsupported}, {strings.Repeat("x", 400), "raw", format.ErrHeaderFull},
	} {
		if err := img.ChangeBacking(t.Context(), c.name, c.format); !errors.Is(err, c.want) {
			t.Errorf("%.10s %s: %v, want %v", c.name, c.format, err, c.want)
		}
	}
	requireSameDisk(t, file, before)
}

func requireSameDisk(t *testing.T, a, b *memory.Disk) {
	t.Helper()
	x, y := make([]byte, a.Size()), make([]byte, b.Size())
	_, errA := a.ReadAt(x, 0)
	_, errB := b.ReadAt(y, 0)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if string(x) != string(y) {
		t.Error("the file has changed")
	}
}

// requireNoLeaks fails if a check finds anything.
func requireNoLeaks(t *testing.T, d *memory.Disk) {
	t.Helper()
	res, err := openMemory(t, d.Clone()).Check(t.Context(), block.CheckOptions{Report: func(line string) { t.Log(line) }})
	if err != nil || res.Corruptions+res.Leaks+res.CheckErrors > 0 {
		t.Errorf("check: %+v, %v", res, err)
	}
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// emptyScript makes a disk with all kinds of clusters.
func emptyScript(t *testing.T, m *model) {
	t.Helper()
	for range 60 {
		m.step()
	}
	m.reopen()
}

// TestMakeEmpty empties random images, replays the crash states, and makes
// each operation of the file fail: the content is always, byte by byte, that
// of the image or that of the backing file.
func TestMakeEmpty(t *testing.T) {
	seed := newSeed(t)
	for _, c := range []geometryCase{
		{"512", 40 << 10, map[string]string{"cluster_size": "512"}, 30 << 10},
		{"4k-v2", 128 << 10, map[string]string{"cluster_size": "4k", "compat": "0.10"}, 128 << 10},
		{"512-lazy", 40 << 10, map[string]string{"cluster_size": "512", "lazy_refcounts": "on", "refcount_bits": "8"}, 60 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newModel(t, c, seed)
			emptyScript(t, m)
			if err := m.img.Close(); err != nil {
				t.Fatal(err)
			}
			full := m.file.Reopen()
			base, rec := full.Clone(), record.Wrap(full)
			open := func(f block.Node) (*Image, error) {
				n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: true, Filename: "empty", Opener: modelOpener{m.back}})
				if err != nil {
					return nil, err
				}
				return n.(*Image), nil
			}
			content := func(d *memory.Disk, done bool) error {
				img, err := open(d)
				if err != nil {
					return err
				}
				if err := requireRefcounts(img); err != nil {
					return err
				}
				got := make([]byte, img.Size())
				if _, err := img.ReadAt(got, 0); err != nil {
					return err
				}
				for i, b := range got {
					below := byte(0)
					if i < len(m.back) {
						below = m.back[i]
					}
					if b != below && (done || i >= len(m.want) || b != m.want[i]) {
						return fmt.Errorf("byte %d is %#x, neither the image's nor the backing file's", i, b)
					}
				}
				return nil
			}
			img, err := open(rec)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(img.MakeEmpty(t.Context()), img.Close()); err != nil {
				t.Fatal(err)
			}
			log := rec.Log()
			states := eachCrash(t, log, base, seed, func(_ int, d *memory.Disk) error { return content(d, false) })
			end := full.Reopen()
			if err := content(end, true); err != nil {
				t.Fatal(err)
			}
			if end.Size() > base.Size()/2 {
				t.Errorf("the file had %d bytes and has %d", base.Size(), end.Size())
			}
			requireNoLeaks(t, end)
			runs := eachFault(t, base, func(f block.Node) error {
				img, err := open(f)
				if err != nil {
					return err
				}
				return errors.Join(img.MakeEmpty(t.Context()), img.Close())
			}, func(d *memory.Disk) error { return content(d, false) })
			t.Logf("%d states, %d faults", states, runs)
		})
	}
}

// TestMakeEmptyShrinks empties images whose refcount structure is large: it
// becomes as small as that of a new image, at every moment a whole one.
func TestMakeEmptyShrinks(t *testing.T) {
	for _, values := range []map[string]string{
		{"cluster_size": "512"}, {"cluster_size": "512", "refcount_bits": "64", "lazy_refcounts": "on"}, {"cluster_size": "4k", "refcount_bits": "64"},
	} {
		file := newFile(t, 1<<20, values)
		img := openMemory(t, file)
		p := bytes.Repeat([]byte("full"), 1<<18)
		if _, err := img.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		file = file.Reopen()
		base, rec := file.Clone(), record.Wrap(file)
		img = openMemory(t, rec)
		if err := img.MakeEmpty(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := img.WriteAt([]byte("again"), 1000); err != nil {
			t.Fatal(err)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		log := rec.Log()
		r := rand.New(rand.NewPCG(1, 2))
		for n := range log {
			for range 3 {
				img, err := tryOpenMemory(log.Crash(base, n, r))
				if err == nil {
					err = requireRefcounts(img)
				}
				if err != nil {
					t.Fatalf("%v: power loss after %d of %d events: %v", values, n, len(log), err)
				}
			}
		}
		file = file.Reopen()
		if file.Size() > 64<<10 {
			t.Errorf("%v: the file had %d bytes and still has %d", values, base.Size(), file.Size())
		}
		requireNoLeaks(t, file)
		path := toDisk(t, file, "empty.qcow2")
		qemutest.Img(t, "check", path)
		qemutest.IO(t, "qcow2", path, "read -P 0 0 1000", "read -P 0 1005 800k")
	}
}
