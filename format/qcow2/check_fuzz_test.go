package qcow2

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// FuzzCheck holds of any bytes: a check neither panics nor hangs nor writes
// unasked, and a repair that says that all is well has made it so.
func FuzzCheck(f *testing.F) {
	for _, options := range []string{"cluster_size=512", "cluster_size=512,refcount_bits=1", "cluster_size=1024,compat=0.10"} {
		b, err := os.ReadFile(stockImage(f, options))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), 64<<10)], uint32(0), uint64(0))
		f.Add(b[:min(len(b), 64<<10)], uint32(offRefTableOffset), uint64(0x600))
		f.Add(b[:min(len(b), 64<<10)], uint32(0x600), uint64(1<<63|0x400))
		f.Add(b[:min(len(b), 64<<10)], uint32(0x400), uint64(0x401))
	}
	f.Fuzz(func(t *testing.T, image []byte, off uint32, value uint64) {
		if len(image) > 1<<20 {
			return
		}
		if int(off)+8 <= len(image) {
			copy(image[off:], be64(0, value).data)
		}
		d := memory.NewFile()
		if _, err := d.WriteAt(image, 0); err != nil {
			t.Fatal(err)
		}
		n, err := Driver{}.Open(t.Context(), d, format.OpenOptions{Writable: true, ForCheck: true})
		if err != nil {
			return
		}
		defer func() { _ = n.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		first, err := n.(block.Checker).Check(ctx, block.CheckOptions{})
		if errors.Is(err, context.DeadlineExceeded) {
			return // damage that repeats a table without end can be cancelled
		}
		if string(d.Bytes()) != string(image) {
			t.Fatal("a check without repair changed the image")
		}
		res, err := n.(block.Checker).Check(ctx, block.CheckOptions{Repair: block.RepairAll})
		if err != nil || res.Corruptions+res.Leaks+res.CheckErrors > 0 {
			return
		}
		again, err := n.(block.Checker).Check(ctx, block.CheckOptions{})
		if err == nil && again.Corruptions > first.Corruptions {
			t.Fatalf("first %+v, repair %+v, then %+v", first, res, again)
		}
	})
}
