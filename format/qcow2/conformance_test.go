package qcow2

import (
	"context"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// TestConformance runs the suite of the block contract over a handful of
// kinds of image.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name   string
		unit   int64
		values map[string]string
	}{
		{"512", 4096, map[string]string{"cluster_size": "512", "refcount_bits": "64"}},
		{"4k-v2", 4096, map[string]string{"cluster_size": "4k", "compat": "0.10"}},
		{"64k", 64 << 10, nil},
		{"64k-lazy", 64 << 10, map[string]string{"lazy_refcounts": "on", "refcount_bits": "1"}},
		{"16k-extended", 16 << 10, map[string]string{"cluster_size": "16k", "extended_l2": "on"}},
		{"64k-extended-metadata", 64 << 10, map[string]string{"preallocation": "metadata", "extended_l2": "on"}},
		{"64k-metadata", 64 << 10, map[string]string{"preallocation": "metadata"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[block.Node]*memory.Disk{}
			open := func(t *testing.T, f *memory.Disk, writable bool) *Image {
				t.Helper()
				n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: writable, Filename: c.name})
				if err != nil {
					t.Fatal(err)
				}
				files[n] = f
				return n.(*Image)
			}
			blocktest.Run(t, blocktest.Suite{
				New: func(t *testing.T, size int64) block.Writer {
					f := memory.NewFile()
					if err := (Driver{}).Create(context.Background(), f, size, format.CreateOptions{Values: c.values}); err != nil {
						t.Fatal(err)
					}
					return open(t, f, true)
				},
				Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
					if err := n.Close(); err != nil {
						t.Fatal(err)
					}
					return open(t, files[n].Reopen(), !readOnly)
				},
				Check: func(t *testing.T, n block.Node) {
					img := n.(*Image)
					if err := requireRefcounts(img); img.wr != nil && !img.lazy && err != nil {
						t.Error(err)
					}
				},
				Zeroer: true, Discarder: true, Resizer: true,
				Unit: c.unit, Operations: 500,
			})
		})
	}
}
