package qcow2

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/file"
)

// TestUntrustedBounds opens images whose headers claim as much as the stock
// tool would take: as images from outside they are refused, or opened, with
// less than 64 MiB and in no time.
func TestUntrustedBounds(t *testing.T) {
	be32 := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	be64 := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	// An extension of a bitmap directory of 64 MiB with 65535 bitmaps.
	bitmaps := append(be32(extBitmaps), be32(24)...)
	bitmaps = append(append(append(append(bitmaps, be32(65535)...), be32(0)...), be64(64<<20)...), be64(1<<20)...)
	for _, c := range []struct {
		name    string
		patches []patch
		refused bool
	}{
		{"L1 table", []patch{{24, be64(1 << 50)}, {36, be32(4 << 20)}, {40, be64(1 << 30)}}, true},
		{"refcount table", []patch{{48, be64(1 << 30)}, {56, be32(8 << 20 >> 16)}}, false},
		{"snapshots", []patch{{60, be32(65536)}, {64, be64(1 << 30)}}, true},
		{"long snapshots", []patch{{60, be32(1000)}, {64, be64(1 << 30)}, {1<<30 + 36, be32(1 << 20)}}, true},
		{"bitmaps", []patch{{95, []byte{1}}, {112, bitmaps}}, true},
		{"backing file name", []patch{{8, be64(1 << 20)}, {16, be32(1023)}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := hostile(t, "cluster_size=65536", c.patches...)
			if err := os.Truncate(name, 4<<30); err != nil {
				t.Fatal(err)
			}
			f, err := file.Open(name, file.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			img, err := open(t.Context(), f, format.OpenOptions{Untrusted: true, Filename: name})
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if c.refused != errors.Is(err, block.ErrUntrusted) && !errors.Is(err, block.ErrCorrupt) {
				t.Errorf("%v", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 || took > 5*time.Second {
				t.Errorf("%d bytes were allocated in %v", n, took)
			}
			if err == nil {
				if err := img.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
