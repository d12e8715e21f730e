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
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// writeExternal puts the data file where the stock tool finds it, and holds
// that it is as long as the disk and, if it is raw, what the disk reads as.
func (m *model) writeExternal(image, want string) {
	m.t.Helper()
	ext := image + ".data"
	b := m.ext.Bytes()
	if err := os.WriteFile(ext, b, 0o600); err != nil {
		m.t.Fatal(err)
	}
	if len(b) != len(m.want) {
		m.t.Fatalf("after %d operations the data file has %d bytes, the disk %d", m.ops, len(b), len(m.want))
	}
	if m.c.values["data_file_raw"] == "on" && m.img.rawData() && m.img.crypt == nil {
		qemutest.RequireSame(m.t, "raw", ext, "raw", want)
	}
	// The recorded name is relative to the working directory.
	if err := os.WriteFile(image, renameData(m.file.Bytes(), ext), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// renameData makes an image with another data file name.
func renameData(image []byte, name string) []byte {
	b := append([]byte(nil), image...)
	h, err := decodeHeader(b)
	if err != nil {
		panic(err)
	}
	exts, err := decodeExtensions(b[:h.geometry().clusterSize()], int(h.headerLength))
	if err != nil {
		panic(err)
	}
	backing := string(b[h.backingOffset : h.backingOffset+uint64(h.backingSize)])
	var kept []extension
	for _, e := range exts {
		if e.kind != extFeatureNames { // room for the name in a small cluster
			kept = append(kept, e)
		}
	}
	head, err := encodeHead(h, withExtension(kept, extDataFile, []byte(name)), backing)
	if err != nil {
		panic(err)
	}
	copy(b, head)
	return b
}

// tinyFile says that it takes no space, as an image does whose clusters were
// only mapped.
type tinyFile struct{ *memory.Disk }

func (tinyFile) DiskSize() (int64, error) { return 0, nil }

// TestDataFileConformance runs the suite of the block contract.
func TestDataFileConformance(t *testing.T) {
	for _, raw := range []string{"off", "on"} {
		t.Run("raw "+raw, func(t *testing.T) {
			sizer, unit := false, int64(4096)
			if raw == "on" { // every cluster is mapped: only holes tell of zeros
				sizer, unit = true, 64<<10
			}
			type pair struct{ file, ext *memory.Disk }
			pairs := map[block.Node]pair{}
			open := func(t *testing.T, p pair, writable bool) *Image {
				t.Helper()
				var file block.Node = p.file
				if sizer {
					file = tinyFile{p.file}
				}
				n, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{Writable: writable, Opener: dataOpener{ext: p.ext}})
				if err != nil {
					t.Fatal(err)
				}
				pairs[n] = p
				return n.(*Image)
			}
			blocktest.Run(t, blocktest.Suite{
				New: func(t *testing.T, size int64) block.Writer {
					p := pair{memory.NewFile(), memory.NewFile()}
					opts := format.CreateOptions{Values: map[string]string{"cluster_size": fmt.Sprint(unit), "data_file": "x", "data_file_raw": raw}, Data: p.ext}
					if err := (Driver{}).Create(context.Background(), p.file, size, opts); err != nil {
						t.Fatal(err)
					}
					return open(t, p, true)
				},
				Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
					if err := n.Close(); err != nil {
						t.Fatal(err)
					}
					p := pairs[n]
					return open(t, pair{p.file.Reopen(), p.ext.Reopen()}, !readOnly)
				},
				Check: func(t *testing.T, n block.Node) {
					if img := n.(*Image); img.wr != nil {
						if err := requireRefcounts(img); err != nil {
							t.Error(err)
						}
					}
				},
				Zeroer: true, Discarder: true, Resizer: true,
				Unit: unit, Operations: 500,
			})
		})
	}
}

// instants notes, after every event on one of two recorded disks, how many
// there were on both.
type instants struct{ list [][2]int }

// clocked is a recorded disk that tells when something happened.
type clocked struct {
	*record.Disk
	tick func()
}

func (c clocked) WriteAt(p []byte, off int64) (int, error) {
	defer c.tick()
	return c.Disk.WriteAt(p, off)
}

func (c clocked) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	defer c.tick()
	return c.Disk.WriteZeroes(off, n, flags)
}

func (c clocked) Discard(off, n int64) error {
	defer c.tick()
	return c.Disk.Discard(off, n)
}

func (c clocked) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	defer c.tick()
	return c.Disk.Resize(ctx, size, opts)
}

func (c clocked) Flush() error {
	defer c.tick()
	return c.Disk.Flush()
}

// TestDataFileCrash replays power loss at every instant, for both files: what
// each disk keeps of what no barrier covers is its own choice.
func TestDataFileCrash(t *testing.T) {
	seed := newSeed(t)
	for _, c := range []geometryCase{
		{"512-data", 40<<10 + 512, map[string]string{"cluster_size": "512", "data_file": "x"}, 0},
		{"512-data-backing", 40 << 10, map[string]string{"cluster_size": "512", "data_file": "x"}, 60 << 10},
		{"4k-data-raw", 128<<10 + 512, map[string]string{"cluster_size": "4k", "data_file": "x", "data_file_raw": "on"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			states := 0
			for k := range uint64(2) {
				states += crashTwoFiles(t, c, seed+k)
			}
			t.Logf("%d states", states)
		})
	}
}

func crashTwoFiles(t *testing.T, c geometryCase, seed uint64) int {
	m := newModel(t, c, seed)
	if err := m.img.Close(); err != nil {
		t.Fatal(err)
	}
	m.file, m.ext, m.fixed = m.file.Reopen(), m.ext.Reopen(), true
	baseFile, baseExt := m.file.Clone(), m.ext.Clone()
	recFile, recExt := record.Wrap(m.file), record.Wrap(m.ext)
	var at instants
	tick := func() { at.list = append(at.list, [2]int{recFile.Len(), recExt.Len()}) }
	open := func(file, ext block.Node) (*Image, error) {
		n, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{Writable: true, Filename: "crash", Opener: dataOpener{modelOpener{m.back}, ext}})
		if err != nil {
			return nil, err
		}
		return n.(*Image), nil
	}
	var err error
	if m.img, err = open(clocked{recFile, tick}, clocked{recExt, tick}); err != nil {
		t.Fatal(err)
	}
	tick()
	// versions holds the disk after each operation, with the instant then.
	type version struct {
		content []byte
		instant int
		flushed bool
	}
	var versions []version
	note := func(flushed bool) {
		versions = append(versions, version{bytes.Clone(m.want), len(at.list), flushed})
	}
	note(true)
	for range crashOps {
		size := len(m.want)
		m.step()
		flushed := len(m.want) != size // a change of the size is durable
		if m.r.IntN(6) == 0 {
			if err := m.img.Flush(); err != nil {
				t.Fatal(err)
			}
			flushed = true
		}
		note(flushed)
	}
	if err := m.img.Close(); err != nil {
		t.Fatal(err)
	}
	note(false)
	check := func(n int, file, ext *memory.Disk) error {
		rawSize := ext.Size()
		rawBytes := ext.Clone().Bytes()
		img, err := open(file, ext)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		if err := requireRefcounts(img); err != nil {
			return err
		}
		first, last := 0, len(versions)-1
		for i, v := range versions {
			if v.instant <= n && v.flushed {
				first = i
			}
			if v.instant >= n {
				last = i
				break
			}
		}
		got := make([]byte, img.Size())
		if _, err := img.ReadAt(got, 0); err != nil {
			return err
		}
		if c.values["data_file_raw"] == "on" {
			// Each byte of the raw file, too, is an allowed one.
			if int64(len(got)) > rawSize {
				rawBytes = append(rawBytes, make([]byte, int64(len(got))-rawSize)...)
			}
			if err := allowed(rawBytes[:len(got)], versions[first:last+1], func(v version) []byte { return v.content }); err != nil {
				return fmt.Errorf("raw data file: %w", err)
			}
		}
		return allowed(got, versions[first:last+1], func(v version) []byte { return v.content })
	}
	r := rand.New(rand.NewPCG(seed, 77))
	fileLog, extLog := recFile.Log(), recExt.Log()
	states := 0
	for i, n := range at.list {
		// The first i+1 events have been asked for.
		if err := check(i+1, fileLog.Prefix(baseFile, n[0]), extLog.Prefix(baseExt, n[1])); err != nil {
			t.Fatalf("after %d of %d events: %v", i, len(at.list), err)
		}
		if err := check(i+1, fileLog.Crash(baseFile, n[0], r), extLog.Crash(baseExt, n[1], r)); err != nil {
			t.Fatalf("power loss after %d of %d events: %v", i, len(at.list), err)
		}
		states += 2
	}
	return states
}

// allowed fails if a byte is in none of the versions.
func allowed[V any](got []byte, versions []V, content func(V) []byte) error {
	for i, b := range got {
		ok := false
		for _, v := range versions {
			// What a shrink cuts off may be anything until it is done.
			if c := content(v); i >= len(c) || c[i] == b {
				ok = true
				break
			}
		}
		if !ok {
			return fmt.Errorf("byte %d is %#x, neither flushed nor written since", i, b)
		}
	}
	return nil
}

// TestDataFileFaults makes the n-th request to the data file fail.
func TestDataFileFaults(t *testing.T) {
	for _, raw := range []string{"off", "on"} {
		base, ext := memory.NewFile(), memory.NewFile()
		opts := format.CreateOptions{Values: map[string]string{"cluster_size": "4k", "data_file": "x", "data_file_raw": raw}, Data: ext}
		if err := (Driver{}).Create(context.Background(), base, 128<<10, opts); err != nil {
			t.Fatal(err)
		}
		script := func(img *Image) error {
			p := bytes.Repeat([]byte{7}, 5000)
			for i, step := range []func() error{
				func() error { _, err := img.WriteAt(p, 100); return err },
				img.Flush,
				func() error { _, err := img.WriteAt(p, 9000); return err },
				func() error { _, err := img.ReadAt(make([]byte, 20000), 0); return err },
				func() error { return img.WriteZeroes(12288, 4096, 0) },
				img.Flush,
				func() error { return img.Resize(context.Background(), 200<<10, block.ResizeOptions{}) },
				func() error { _, err := img.WriteAt(p, 150<<10); return err },
				img.Flush,
				img.Close,
			} {
				if err := step(); err != nil {
					return fmt.Errorf("step %d: %w", i, err)
				}
			}
			return nil
		}
		runs := 0
		for _, op := range []fault.Op{fault.Write, fault.Flush, fault.Read} {
			for n := 0; ; n++ {
				file, data := base.Clone(), ext.Clone()
				bad := fault.Wrap(data)
				bad.Add(fault.Rule{Op: op, After: n, Times: 1, Err: syscall.ENOSPC})
				node, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{Writable: true, Opener: dataOpener{ext: bad}})
				if err != nil {
					t.Fatal(err)
				}
				err = script(node.(*Image))
				if bad.Count(op) <= n {
					break // the rule never struck
				}
				runs++
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("raw %s, %v %d: %v", raw, op, n, err)
				}
				if op == fault.Flush {
					if _, err := node.(*Image).WriteAt([]byte{1}, 0); err == nil {
						t.Errorf("raw %s: a write after a failed flush is accepted", raw)
					}
				}
				_ = node.Close() // may fail for the same reason
				again, err := (Driver{}).Open(context.Background(), file.Reopen(), format.OpenOptions{Writable: true, Opener: dataOpener{ext: data.Reopen()}})
				if err != nil {
					t.Fatal(err)
				}
				if err := requireRefcounts(again.(*Image)); err != nil {
					t.Fatalf("raw %s, %v %d: %v", raw, op, n, err)
				}
			}
		}
		if runs < 6 {
			t.Errorf("raw %s: only %d faults struck", raw, runs)
		}
	}
}

// TestDataFileDamage holds that entries which cannot be are errors, that names
// are refused of untrusted images, and what is opened when.
func TestDataFileDamage(t *testing.T) {
	file, ext := memory.NewFile(), memory.NewFile()
	opts := format.CreateOptions{Values: map[string]string{"data_file": "x", "preallocation": "metadata"}, Data: ext}
	if err := (Driver{}).Create(context.Background(), file, 1<<20, opts); err != nil {
		t.Fatal(err)
	}
	open := func(b []byte, o format.OpenOptions) (*Image, error) {
		n, err := (Driver{}).Open(context.Background(), memory.NewBytes(b), o)
		if err != nil {
			return nil, err
		}
		return n.(*Image), nil
	}
	good := file.Bytes()
	l2 := int64(4 << 16)
	patched := func(off int64, p ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[off:], p)
		return b
	}
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"another offset": {patched(l2+8+5, 7), "does not match guest cluster offset: 0x10000"},
		"compressed":     {patched(l2+8, 0x40), "Compressed cluster entry found in image with external data file"},
	} {
		img, err := open(c.image, format.OpenOptions{Opener: dataOpener{ext: ext.Clone()}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := img.ReadAt(make([]byte, 100), 1<<16); !errors.Is(err, block.ErrCorrupt) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := open(good, format.OpenOptions{Untrusted: true, Opener: dataOpener{ext: ext.Clone()}}); !errors.Is(err, block.ErrUntrusted) {
		t.Errorf("untrusted: %v", err)
	}
	if _, err := open(good, format.OpenOptions{Writable: true}); err == nil || err.Error() != "'data-file' is required for this image" {
		t.Errorf("writable without the file: %v", err)
	}
	img, err := open(good, format.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.ReadAt(make([]byte, 1), 0); !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("read without the file: %v", err)
	}
	for e, err := range img.Extents(0, img.Size()) {
		if err != nil || e.Kind != block.Data || e.Length != 1<<20 {
			t.Errorf("extent %+v, %v", e, err)
		}
	}
	noBit := patched(offAutoclear+7, 2)
	noBit[offIncompatFeatures+7] = 0
	if _, err := open(noBit, format.OpenOptions{}); err == nil || err.Error() != "data-file-raw requires a data file" {
		t.Errorf("raw without a data file: %v", err)
	}
}

// TestDataFileShort holds that what the data file lacks reads as zeros, and
// that a longer one shows nothing of its end when the disk grows.
func TestDataFileShort(t *testing.T) {
	dir := t.TempDir()
	image, ext := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+ext+",data_file_raw=on", image, "1M")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	short := memory.NewBytes(bytes.Repeat([]byte{3}, 100))
	n, err := (Driver{}).Open(t.Context(), memory.NewBytes(b), format.OpenOptions{Opener: dataOpener{ext: short.ReadOnly()}})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20)
	if _, err := n.ReadAt(got, 0); err != nil || got[99] != 3 || len(bytes.Trim(got[100:], "\x00")) > 0 {
		t.Errorf("short data file: %v", err)
	}
	long := memory.NewFile()
	if _, err := long.WriteAt(bytes.Repeat([]byte{5}, 3<<20), 0); err != nil {
		t.Fatal(err)
	}
	file := memory.NewFile()
	if _, err := file.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	n, err = (Driver{}).Open(t.Context(), file, format.OpenOptions{Writable: true, Opener: dataOpener{ext: long}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.(*Image).Resize(t.Context(), 2<<20, block.ResizeOptions{}); err != nil {
		t.Fatal(err)
	}
	got = make([]byte, 2<<20)
	if _, err := n.ReadAt(got, 0); err != nil || got[1<<20-1] != 5 || len(bytes.Trim(got[1<<20:], "\x00")) > 0 {
		t.Errorf("grown disk shows the end of a longer data file: %v", err)
	}
	if size := long.Size(); size != 2<<20 {
		t.Errorf("the data file has %d bytes", size)
	}
}
