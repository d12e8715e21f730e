package qcow2

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// smallDisk is a file on a file system with space for limit bytes of it.
type smallDisk struct {
	*memory.Disk
	limit int64
}

func (d *smallDisk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.limit {
		return 0, syscall.ENOSPC
	}
	return d.Disk.WriteAt(p, off)
}

func (d *smallDisk) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if off+n > d.limit {
		return syscall.ENOSPC
	}
	return d.Disk.WriteZeroes(off, n, flags)
}

func (d *smallDisk) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if size > d.limit {
		return syscall.ENOSPC
	}
	return d.Disk.Resize(ctx, size, opts)
}

// TestGrowNoSpace: a preallocation for which there is no space gives back what
// it took, and the image goes on.
func TestGrowNoSpace(t *testing.T) {
	const size = 1 << 20
	for _, mode := range []block.Preallocation{block.PreallocFull, block.PreallocFalloc, block.PreallocMetadata} {
		f := newFile(t, size, map[string]string{"cluster_size": "4096"})
		d := &smallDisk{f, 4 << 20}
		img := openMemory(t, d)
		want := bytes.Repeat([]byte{7}, size-512)
		if _, err := img.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		if err := img.Flush(); err != nil {
			t.Fatal(err)
		}
		before := f.Size()
		err := img.Resize(t.Context(), 64<<20, block.ResizeOptions{Prealloc: mode})
		if !errors.Is(err, syscall.ENOSPC) || img.Size() != size {
			t.Errorf("%s: %v, the disk has %d bytes", mode, err, img.Size())
		}
		// A larger L1 table is all that may remain.
		if after := f.Size(); after > before+16<<10 {
			t.Errorf("%s: the file had %d bytes, and keeps %d", mode, before, after)
		}
		if err := img.Resize(t.Context(), 2*size, block.ResizeOptions{Prealloc: mode}); err != nil {
			t.Errorf("%s: then growing to what there is space for: %v", mode, err)
		}
		if err := img.Flush(); err != nil {
			t.Fatal(err)
		}
		file := make([]byte, f.Size())
		if _, err := f.ReadAt(file, 0); err != nil {
			t.Fatal(err)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		img = openMemory(t, memory.NewBytes(file))
		res, err := img.Check(t.Context(), block.CheckOptions{})
		if err != nil || res.Leaks+res.Corruptions+res.CheckErrors > 0 {
			t.Errorf("%s: check finds %+v, %v", mode, res, err)
		}
		got := make([]byte, 2*size)
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got[:len(want)], want) || bytes.Count(got[len(want):], []byte{0}) != len(got)-len(want) {
			t.Errorf("%s: the disk has changed: %v", mode, err)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
