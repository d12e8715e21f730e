package qcow2

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// hostile makes an image with some data by the stock tool, damages it, and
// returns its name.
func hostile(t *testing.T, options string, patches ...patch) string {
	t.Helper()
	name := filepath.Join(memoryDir(t), "hostile.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", options, name, "1M")
	qemutest.IO(t, "qcow2", name, "write -P 5 0 64k")
	patchFile(t, name, patches...)
	return name
}

func patchFile(t *testing.T, name string, patches ...patch) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range patches {
		if _, err := f.WriteAt(p.data, p.off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestHugeSparseFile maps an image in a file whose size claims more clusters
// than anybody could look at one by one.
func TestHugeSparseFile(t *testing.T) {
	name := hostile(t, "cluster_size=512,refcount_bits=64")
	if err := os.Truncate(name, 1<<62); err != nil {
		t.Fatal(err)
	}
	img, err := openFile(name, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range img.Extents(0, img.Size()) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFileTooLarge: offsets in a file behind 2^62 could overflow.
func TestFileTooLarge(t *testing.T) {
	name := hostile(t, "cluster_size=64k")
	if err := os.Truncate(name, 1<<63-1); err != nil {
		t.Fatal(err)
	}
	if img, err := openFile(name, false); !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("opened: %v, %v", img, err)
	}
}

// TestSnapshotTableOutside checks an image whose snapshot table lies behind
// the end of the file, and refuses to open it.
func TestSnapshotTableOutside(t *testing.T) {
	name := hostile(t, "cluster_size=64k", be32(offSnapshotCount, 2), be64(offSnapshotCount+4, 1<<40))
	ours, stock := checkOurs(t, name, block.RepairNone), checkStock(t, name, block.RepairNone)
	if !slices.Equal(normal(ours.lines), normal(stock.lines)) || ours.res != stock.res {
		t.Errorf("ours %+v\nstock %+v", ours, stock)
	}
	if img, err := openFile(name, false); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("opened: %v, %v", img, err)
	}
}

// TestDirtyHuge opens a dirty image for writing whose file claims more
// clusters than can be looked at, and one that counts on clusters behind the
// end of its file.
func TestDirtyHuge(t *testing.T) {
	dirty := be64(offIncompatFeatures, incompatDirty)
	for _, options := range []string{"cluster_size=512,refcount_bits=64", "cluster_size=512,refcount_bits=1"} {
		name := hostile(t, options, dirty)
		a := dissect(t, name)
		// The last refcount of a block that nothing in the file needs.
		last := a.blocks[len(a.blocks)-1]
		patchFile(t, name, patch{last + 511, []byte{0x80}})
		size := int64(1 << 61)
		if options == "cluster_size=512,refcount_bits=1" {
			size = int64(len(a.content))
		}
		if err := os.Truncate(name, size); err != nil {
			t.Fatal(err)
		}
		img, err := openFile(name, true)
		if err != nil {
			t.Fatalf("%s: %v", options, err)
		}
		if n, err := img.refcount(int64(len(a.blocks))<<a.g.refBlockBits() - 1); n != 0 || err != nil {
			t.Errorf("%s: refcount behind the end of the file: %d, %v", options, n, err)
		}
		if _, err := img.WriteAt([]byte("x"), 512<<10); err != nil {
			t.Errorf("%s: %v", options, err)
		}
		if err := img.Close(); err != nil {
			t.Errorf("%s: %v", options, err)
		}
	}
}

// TestDirtyShared: a damaged image whose tables share one place is refused
// rather than walked as often as it says.
func TestDirtyShared(t *testing.T) {
	name := hostile(t, "cluster_size=64k", be64(offIncompatFeatures, incompatDirty))
	a := dissect(t, name)
	rt := int64(a.h.refTableOffset)
	var entries []byte
	for range 8192 {
		entries = binary.BigEndian.AppendUint64(entries, uint64(a.blocks[0]))
	}
	patchFile(t, name, patch{rt, entries})
	if img, err := openFile(name, true); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("opened: %v, %v", img, err)
	}
}
