package qcow2

import (
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
