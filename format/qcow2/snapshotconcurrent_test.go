package qcow2

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// TestSnapshotsWhileWriting makes and deletes snapshots while others write and
// read: nobody finds anything but what he wrote, and a snapshot holds of each
// writer one whole request after the other, none in half.
func TestSnapshotsWhileWriting(t *testing.T) {
	const writers, length, rounds = 4, 30000, 60
	disk := memory.NewFile()
	opts := format.CreateOptions{Values: map[string]string{"cluster_size": "4k"}}
	if err := (Driver{}).Create(t.Context(), disk, writers<<16, opts); err != nil {
		t.Fatal(err)
	}
	img := openWritable(t, disk)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			off := int64(w) << 16
			got := make([]byte, length)
			for k := range rounds {
				p := bytes.Repeat([]byte{byte(k + 1)}, length)
				if _, err := img.WriteAt(p, off); err != nil {
					t.Error(err)
				}
				if _, err := img.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
					t.Errorf("writer %d reads other than what it wrote (%v)", w, err)
				}
				if k%10 == w {
					if err := img.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for i := range 12 {
		if _, err := img.CreateSnapshot(t.Context(), "s", time.Time{}); err != nil {
			t.Fatal(err)
		}
		if i%3 == 2 {
			if err := img.DeleteSnapshot(t.Context(), i%2); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	disk = disk.Reopen()
	requireWhole(t, disk)
	err := snapshotContents(disk, nil, func(s format.Snapshot, data []byte) error {
		for w := range writers {
			part := data[w<<16:][:length]
			if !bytes.Equal(part, bytes.Repeat(part[:1], length)) {
				t.Errorf("snapshot %s holds a part of a request of writer %d", s.ID, w)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestApplyWithBitmaps holds that no snapshot is gone back to beside bitmaps,
// which do not know what changes then; that they can be made and deleted.
func TestApplyWithBitmaps(t *testing.T) {
	disk := memory.NewFile()
	if err := (Driver{}).Create(t.Context(), disk, 1<<20, format.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	img := openWritable(t, disk)
	if err := img.AddBitmap("b", format.BitmapOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := img.WriteAt(make([]byte, 100<<10), 5000); err != nil {
			t.Fatal(err)
		}
		if _, err := img.CreateSnapshot(t.Context(), "s", time.Time{}); err != nil {
			t.Fatal(err)
		}
		if err := img.StoreBitmaps(); err != nil {
			t.Fatal(err)
		}
	}
	if err := img.ApplySnapshot(t.Context(), 0); !errors.Is(err, format.ErrActiveBitmaps) {
		t.Errorf("error %v", err)
	}
	if err := img.DeleteSnapshot(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	requireWhole(t, disk.Reopen())
	dirty := int64(0)
	for r, err := range openWritable(t, disk.Reopen()).DirtyRuns("b", 0, 1<<20) {
		if err != nil {
			t.Fatal(err)
		}
		dirty += r.Length
	}
	if dirty != 128<<10 {
		t.Errorf("%d bytes are marked", dirty)
	}
}
