package qcow2

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestDirtyStock opens images that a killed stock tool left dirty: reading
// works at once, opening for writing repairs the refcounts first.
func TestDirtyStock(t *testing.T) {
	for _, o := range []string{"lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512,refcount_bits=64"} {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", o, path, "4M")
		// The abort is what is wanted; the check below sees that it came late.
		_ = exec.Command(qemutest.Path(t, "qemu-io"), "-f", "qcow2", "-c", "write -P 5 10k 3M", "-c", "flush", "-c", "abort", path).Run()
		if c := qemutest.CheckImage(t, "qcow2", path); c.Corruptions == 0 {
			t.Fatalf("%s: the stock tool left no wrong refcount: %+v", o, c)
		}
		want := bytes.Repeat([]byte{5}, 3<<20)
		for _, writable := range []bool{false, true} {
			img, err := openFile(path, writable)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := img.ImageInfo(); err != nil || info.Dirty == writable {
				t.Errorf("%s: writable %t, dirty %t, %v", o, writable, info.Dirty, err)
			}
			got := make([]byte, len(want))
			if _, err := img.ReadAt(got, 10<<10); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: wrong data, %v", o, err)
			}
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
		}
		qemutest.RequireClean(t, path)
	}
}
