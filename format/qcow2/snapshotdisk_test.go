package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// snapshotCase is a kind of image with snapshots.
type snapshotCase struct {
	options string
	resize  bool // between snapshots, which version 2 cannot
}

// makeSnapshots has the stock tools make snapshots of d.qcow2, an overlay of
// base, with changes between them, and returns what the disk was at each.
func makeSnapshots(t *testing.T, dir string, c snapshotCase, r *rand.Rand) [][]byte {
	t.Helper()
	base, path, raw := filepath.Join(dir, "base"), filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "raw")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", base, "700k")
	qemutest.IO(t, "qcow2", base, "write -P 99 0 700k", "write -P 98 300k 5k")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", c.options, "-b", "base", "-F", "qcow2", path, "1M")
	var want [][]byte
	for i := range 4 {
		size := int64(1 << 20)
		if c.resize {
			size = []int64{1 << 20, 3 << 19, 400 << 10, 2 << 20}[i]
			qemutest.Img(t, "resize", "-q", "--shrink", path, fmt.Sprint(size))
		}
		var cmds []string
		if i == 0 && strings.Contains(c.options, "cluster_size=2M") {
			cmds = append(cmds, "write -c -P 50 0 1M")
		} else if i == 0 {
			cmds = append(cmds, "write -c -P 50 128k 256k", "write -c -P 51 768k 64k")
		}
		for k := range 6 {
			off, n := r.Int64N(size-60<<10), 1+r.Int64N(60<<10)
			cmds = append(cmds, fmt.Sprintf("write -P %d %d %d", 10*i+k+1, off, n))
		}
		cmds = append(cmds, fmt.Sprintf("discard %d 64k", r.Int64N(size>>16)<<16), fmt.Sprintf("write -z %d 64k", r.Int64N(size>>16)<<16))
		qemutest.IO(t, "qcow2", path, cmds...)
		qemutest.Img(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
		b, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, b)
		if i == 1 {
			qemutest.SaveVM(t, path, "s1")
		} else {
			qemutest.Img(t, "snapshot", "-c", fmt.Sprintf("s%d", i), path)
		}
	}
	qemutest.IO(t, "qcow2", path, "write -P 77 0 1M")
	return want
}

// TestSnapshotDisk reads the snapshots of stock images, also of disks that had
// another size since, and with VM state behind the disk.
func TestSnapshotDisk(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 9))
	for _, c := range []snapshotCase{
		{"cluster_size=512", true}, {"cluster_size=4k,compat=0.10", false}, {"cluster_size=4k,lazy_refcounts=on,refcount_bits=8", true},
		{"cluster_size=64k,compression_type=zstd", true}, {"cluster_size=2M,refcount_bits=64", true},
	} {
		t.Run(c.options, func(t *testing.T) {
			dir := t.TempDir()
			want := makeSnapshots(t, dir, c, r)
			before := readFile(t, filepath.Join(dir, "d.qcow2"))
			img := openLayers(t, dir, "d.qcow2", false)
			t.Cleanup(func() { _ = img.Close() }) // after the parallel tests
			var disks []block.Node
			for i := range want {
				d, err := img.OpenSnapshot(t.Context(), i)
				if err != nil {
					t.Fatal(err)
				}
				disks = append(disks, d)
			}
			for i, d := range disks {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					t.Parallel() // several at once, beside the image itself
					blocktest.RequireContent(t, d, want[i])
					blocktest.RequireExtents(t, d, 0, d.Size())
					if _, ok := block.As[block.Writer](d); ok {
						t.Error("the snapshot can be written")
					}
					if b, ok := block.As[block.Backed](d); !ok || b.Backing() != img.Backing() {
						t.Error("the snapshot has another backing file")
					}
				})
			}
			t.Cleanup(func() {
				if !bytes.Equal(before, readFile(t, filepath.Join(dir, "d.qcow2"))) {
					t.Error("reading changed the file")
				}
			})
		})
	}
}

// TestSnapshotDiskCloses holds that a closed snapshot leaves its image usable.
func TestSnapshotDiskCloses(t *testing.T) {
	dir := t.TempDir()
	want := makeSnapshots(t, dir, snapshotCase{options: "cluster_size=4k"}, rand.New(rand.NewPCG(1, 1)))
	img := openLayers(t, dir, "d.qcow2", false)
	d, err := img.OpenSnapshot(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, block.ErrClosed) {
		t.Errorf("read of a closed snapshot: %v", err)
	}
	if d, err = img.OpenSnapshot(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	blocktest.RequireContent(t, d, want[2])
	p := make([]byte, 1<<20)
	if _, err := img.ReadAt(p, 0); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{77}, 1<<20)) {
		t.Errorf("the image itself reads wrong, %v", err)
	}
	if err := errors.Join(d.Close(), img.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := img.OpenSnapshot(t.Context(), 0); !errors.Is(err, block.ErrClosed) {
		t.Errorf("snapshot of a closed image: %v", err)
	}
}

// TestSnapshotDiskRefused damages entries of the snapshot table.
func TestSnapshotDiskRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "8M")
	qemutest.IO(t, "qcow2", path, "write -P 5 1M 1M")
	qemutest.Img(t, "snapshot", "-c", "one", path)
	good := readFile(t, path)
	be := binary.BigEndian
	at := int(be.Uint64(good[64:]))
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		want   error
	}{
		{"outside the file", func(b []byte) { be.PutUint64(b[at:], 1<<40) }, block.ErrCorrupt},
		{"across the end of the file", func(b []byte) { be.PutUint64(b[at:], uint64((len(b)-1)&^4095)); be.PutUint32(b[at+8:], 1024) }, block.ErrCorrupt},
		{"table too small", func(b []byte) { be.PutUint32(b[at+8:], 3) }, block.ErrCorrupt},
		{"disk too large for the table", func(b []byte) { be.PutUint64(b[at+48:], 8<<20+1) }, block.ErrCorrupt},
		{"disk too large for any", func(b []byte) { be.PutUint64(b[at+48:], 1<<63+512) }, block.ErrCorrupt},
		{"reserved bits of an L1 entry", func(b []byte) { b[be.Uint64(b[at:])+7] |= 1 }, block.ErrCorrupt},
		{"L2 table outside the file", func(b []byte) { be.PutUint64(b[be.Uint64(b[at:]):], 1<<40) }, block.ErrCorrupt},
		{"the disk was smaller", func(b []byte) { be.PutUint64(b[at+48:], 2<<20) }, nil},
		{"no disk at all", func(b []byte) { be.PutUint64(b[at+48:], 0); be.PutUint32(b[at+8:], 0) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := slices.Clone(good)
			c.damage(b)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			img := openLayers(t, dir, "d.qcow2", false)
			defer func() { _ = img.Close() }()
			d, err := img.OpenSnapshot(t.Context(), 0)
			if err == nil {
				_, err = d.ReadAt(make([]byte, d.Size()), 0)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			// The present content is not what is damaged.
			if _, err := img.ReadAt(make([]byte, 8<<20), 0); err != nil {
				t.Error(err)
			}
		})
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	img := openLayers(t, dir, "d.qcow2", true)
	if _, err := img.OpenSnapshot(t.Context(), 0); !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("snapshot of an image open for writing: %v", err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	read := openLayers(t, dir, "d.qcow2", false)
	defer func() { _ = read.Close() }()
	for _, i := range []int{-1, 1} {
		if _, err := read.OpenSnapshot(t.Context(), i); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("snapshot %d: %v", i, err)
		}
	}
}

// TestSnapshotDiskOldEntry reads a snapshot whose entry is of the first kind,
// without the extra data that records the disk's size.
func TestSnapshotDiskOldEntry(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", path, "1M")
	qemutest.IO(t, "qcow2", path, "write -P 5 100k 200k")
	qemutest.Img(t, "snapshot", "-c", "one", path)
	qemutest.IO(t, "qcow2", path, "write -P 6 0 1M")
	b := readFile(t, path)
	e := b[binary.BigEndian.Uint64(b[64:]):]
	extra := binary.BigEndian.Uint32(e[36:])
	if extra < 16 {
		t.Fatalf("the stock tool wrote %d bytes of extra data", extra)
	}
	binary.BigEndian.PutUint32(e[36:], 0)
	copy(e[snapshotFixed:], "1one")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	img := openLayers(t, dir, "d.qcow2", false)
	defer func() { _ = img.Close() }()
	d, err := img.OpenSnapshot(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	copy(want[100<<10:], bytes.Repeat([]byte{5}, 200<<10))
	blocktest.RequireContent(t, d, want)
	raw := filepath.Join(dir, "raw")
	qemutest.Img(t, "convert", "-l", "one", "-O", "raw", path, raw)
	if !bytes.Equal(readFile(t, raw), want) {
		t.Error("the stock tool reads something else")
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
