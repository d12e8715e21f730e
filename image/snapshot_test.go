package image_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestConvertSnapshot copies snapshots of an image that was resized since:
// nothing of the disk is cut off, and nothing is added.
func TestConvertSnapshot(t *testing.T) {
	dir := t.TempDir()
	disk, target := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "copy")
	stock(t, "-f", "qcow2", disk, "1M")
	qemutest.IO(t, "qcow2", disk, "write -P 1 0 1M")
	qemutest.SaveVM(t, disk, "one")
	qemutest.Img(t, "resize", "-q", "--shrink", disk, "512k")
	qemutest.IO(t, "qcow2", disk, "write -P 2 0 512k")
	qemutest.Img(t, "snapshot", "-c", "1", disk) // its ID is 2
	qemutest.Img(t, "resize", "-q", disk, "64M")
	qemutest.IO(t, "qcow2", disk, "write -P 3 0 64M")
	one, two, three := "1", "2", "3"
	first, second := bytes.Repeat([]byte{1}, mib), bytes.Repeat([]byte{2}, 512*kib)
	for _, c := range []struct {
		ref  image.SnapshotRef
		want []byte // nil: there is none
	}{
		{image.SnapshotRef{IDOrName: "one"}, first},
		{image.SnapshotRef{IDOrName: "1"}, first}, // an ID goes before a name
		{image.SnapshotRef{IDOrName: "2"}, second},
		{image.SnapshotRef{Name: &one}, second},
		{image.SnapshotRef{ID: &two, Name: &one}, second},
		{image.SnapshotRef{ID: &one, Name: &one}, nil},
		{image.SnapshotRef{ID: &three}, nil},
		{image.SnapshotRef{}, nil},
	} {
		t.Run(c.ref.String(), func(t *testing.T) {
			err := image.Convert(t.Context(), []string{disk}, target, image.ConvertOptions{Snapshot: &c.ref, Format: "qcow2"})
			if c.want == nil {
				var snap *image.SnapshotError
				if !errors.Is(err, image.ErrNoSnapshot) || !errors.As(err, &snap) || snap.Image != disk {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := content(t, target, "qcow2"); !bytes.Equal(got, c.want) {
				t.Errorf("%d bytes, or others than the %d of the snapshot", len(got), len(c.want))
			}
			qemutest.RequireClean(t, target)
			if err := os.Remove(target); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestConvertSnapshotRefused holds that nothing is made where there can be no
// snapshot.
func TestConvertSnapshotRefused(t *testing.T) {
	dir := t.TempDir()
	raw, target := filepath.Join(dir, "raw"), filepath.Join(dir, "copy")
	stock(t, "-f", "raw", raw, "1M")
	ref := &image.SnapshotRef{IDOrName: "one"}
	err := image.Convert(t.Context(), []string{raw}, target, image.ConvertOptions{SourceFormat: "raw", Snapshot: ref})
	if !errors.Is(err, image.ErrSnapshotFormat) || !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("of a raw image: %v", err)
	}
	err = image.Convert(t.Context(), []string{raw, raw}, target, image.ConvertOptions{SourceFormat: "raw", Snapshot: ref})
	if !errors.Is(err, image.ErrManySnapshots) {
		t.Errorf("of two images: %v", err)
	}
	if _, err := os.Stat(target); !os.IsNotExist(err) {
		t.Errorf("the target is there: %v", err)
	}
}
