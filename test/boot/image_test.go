package boot_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// base is a kind of image at the bottom of a chain.
type base struct {
	name     string
	format   string
	values   map[string]string // creation options; those of the overlays too, where they are compat
	compress bool
}

var bases = []base{
	{name: "raw", format: "raw"},
	{name: "v2", format: "qcow2", values: map[string]string{"compat": "0.10"}},
	{name: "v2-zlib", format: "qcow2", values: map[string]string{"compat": "0.10"}, compress: true},
	{name: "v3", format: "qcow2", values: map[string]string{"compat": "1.1"}},
	{name: "v3-zstd", format: "qcow2", values: map[string]string{"compat": "1.1", "compression_type": "zstd"}, compress: true},
}

func (b base) path(dir string) string { return filepath.Join(dir, b.name+"."+b.format) }

// make converts the guest into this kind of image.
func (b base) make(t *testing.T, dir, guest string) {
	t.Helper()
	err := image.Convert(t.Context(), []string{guest}, b.path(dir), image.ConvertOptions{
		SourceFormat: "raw", Format: b.format, Values: b.values, Compress: b.compress, Cache: image.CacheUnsafe,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.path(dir), 0o444); err != nil {
		t.Fatal(err)
	}
}

// chain puts depth overlays on the base and returns the uppermost. Each layer
// but that one holds its share of the guest's data, so that a boot reads from
// all of them.
func (b base) chain(t *testing.T, dir string, depth int) string {
	t.Helper()
	values := map[string]string{}
	if c, ok := b.values["compat"]; ok {
		values["compat"] = c
	}
	layers := t.TempDir()
	path, format := b.path(dir), b.format
	for i := 1; i < depth; i++ {
		path = overlay(t, layers, path, format, values)
		format = "qcow2"
		rewrite(t, path, i, depth)
	}
	return overlay(t, layers, path, format, values)
}

// overlay makes a new overlay in dir, with its base's absolute name.
func overlay(t *testing.T, dir, base, format string, values map[string]string) string {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(dir, "overlay-*"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fmt.Sprintf("overlay-%d.qcow2", len(old)+1))
	err = image.Create(t.Context(), path, image.CreateOptions{
		Format: "qcow2", SizeFromBacking: true, Values: values, BackingFile: base, BackingFormat: format, NoFlush: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// rewrite writes every depth-th piece of the disk, from the i-th on, into the
// overlay as it is, where it is not all zeros. Pieces are not whole clusters, so
// that clusters are copied from below.
func rewrite(t *testing.T, path string, i, depth int) {
	t.Helper()
	im, err := image.Open(t.Context(), path, image.Options{Format: "qcow2", Writable: true, Cache: image.CacheUnsafe})
	if err != nil {
		t.Fatal(err)
	}
	node := im.Node().(block.Writer)
	const piece = 200 << 10
	buf, zero := make([]byte, piece), make([]byte, piece)
	for off := int64(i) * piece; off+piece <= node.Size(); off += int64(depth) * piece {
		if _, err := node.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(buf, zero) {
			continue
		}
		if _, err := node.WriteAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}
