package qcow2

import (
	"errors"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/format"
)

// TestBitmapConcurrent has writers, readers of the runs and changes of other
// bitmaps at once; what was written is in the bitmap that nobody cleared.
func TestBitmapConcurrent(t *testing.T) {
	const size = 4 << 20
	disk, img := bitmapDisk(t, size, map[string]string{"cluster_size": "4k"})
	if err := errors.Join(img.AddBitmap("all", format.BitmapOptions{Granularity: 512}), img.AddBitmap("other", format.BitmapOptions{})); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for k := range int64(4) {
		wg.Go(func() {
			for i := range int64(100) {
				if _, err := img.WriteAt([]byte{1}, (i*4+k)*4096); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 30 {
				for _, err := range img.DirtyRuns("all", 0, size) {
					if err != nil {
						t.Error(err)
					}
				}
				if err := errors.Join(img.ClearBitmap("other"), img.MarkDirty("other", oneRun(0, size/2)), img.Flush()); err != nil {
					t.Error(err)
				}
				_, _ = img.ImageInfo()
			}
		})
	}
	wg.Wait()
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	img = openDisk(t, disk.Reopen())
	defer func() { _ = img.Close() }()
	if runs := dirtyRuns(t, img, "all"); len(runs) != 400 || runs[399] != (format.DirtyRun{Start: 399 * 4096, Length: 512}) {
		t.Errorf("%d runs", len(runs))
	}
}
