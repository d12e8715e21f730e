package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestCompareFirst holds that of many differences the first one is found,
// whichever request comes back first.
func TestCompareFirst(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.qcow2")
	data := make([]byte, 24<<20)
	for i := range data {
		data[i] = byte(i>>12) | 1
	}
	if err := os.WriteFile(a, data, 0o600); err != nil {
		t.Fatal(err)
	}
	qemutest.Img(t, "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", a, b)
	for i := len(data) - 700; i > 5<<20+1234; i -= 1 << 20 {
		data[i] ^= 0xff
		if err := os.WriteFile(a, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := image.Compare(t.Context(), a, b, image.CompareOptions{FormatA: "raw"})
		if want := int64(i / 512 * 512); err != nil || c.Kind != image.ContentDiffers || c.Offset != want {
			t.Fatalf("%+v, %v instead of a difference at %d", c, err, want)
		}
	}
	_, err := image.Compare(t.Context(), a, filepath.Join(dir, "nope"), image.CompareOptions{})
	var open *image.OpenError
	if !errors.As(err, &open) {
		t.Errorf("a file that is not there: %v", err)
	}
}
