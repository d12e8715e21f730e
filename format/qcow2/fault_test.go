package qcow2

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// faultScript is a fixed sequence of changes that allocates, frees, copies and
// flushes. It stops at the first error, says what was flushed before it.
func faultScript(img *Image) (flushed int, err error) {
	p := make([]byte, 5000)
	for i := range p {
		p[i] = byte(i) | 1
	}
	steps := []func() error{
		func() error { _, err := img.WriteAt(p, 100); return err },
		func() error { return img.WriteCompressed(p[:4096], 8192) },
		func() error { return img.WriteCompressed(p[:4096], 12288) },
		img.Flush,
		func() error { _, err := img.WriteAt(p, 9000); return err },
		func() error { return img.Discard(0, 8192) },
		func() error { return img.WriteZeroes(12288, 4096, 0) },
		img.Flush,
		func() error { _, err := img.WriteAt(p, 0); return err },
		func() error { return img.Resize(context.Background(), 200<<10, block.ResizeOptions{}) },
		img.Flush,
		img.Close,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return flushed, fmt.Errorf("step %d: %w", i, err)
		}
		if i == 3 || i == 7 || i == 10 {
			flushed = i
		}
	}
	return flushed, nil
}

// TestFaults makes the n-th request of each kind fail, once or from then on:
// the error must come out, and what is on disk must hold together.
func TestFaults(t *testing.T) {
	base := memory.NewFile()
	err := (Driver{}).Create(context.Background(), base, 128<<10, format.CreateOptions{Values: map[string]string{"cluster_size": "4k"}})
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	for _, op := range []fault.Op{fault.Write, fault.Flush, fault.Read} {
		for _, times := range []int{1, 0} {
			for _, short := range []int64{0, 700} {
				for n := 0; ; n++ {
					disk := base.Clone()
					bad := fault.Wrap(disk)
					node, err := (Driver{}).Open(context.Background(), bad, format.OpenOptions{Writable: true})
					if err != nil {
						t.Fatal(err)
					}
					bad.Add(fault.Rule{Op: op, After: n, Times: times, Err: syscall.ENOSPC, Short: short})
					before := bad.Count(op)
					_, err = faultScript(node.(*Image))
					if bad.Count(op)-before <= n {
						break // the rule never struck
					}
					runs++
					where := fmt.Sprintf("%v %d, times %d, short %d", op, n, times, short)
					if err == nil {
						t.Fatalf("%s: no error", where)
					}
					if !errors.Is(err, syscall.ENOSPC) {
						t.Errorf("%s: %v does not wrap the cause", where, err)
					}
					_ = node.Close() // may fail for the same reason
					again, err := (Driver{}).Open(context.Background(), disk.Reopen(), format.OpenOptions{Writable: true})
					if err != nil {
						t.Fatalf("%s: open: %v", where, err)
					}
					if err := requireRefcounts(again.(*Image)); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
				}
			}
		}
	}
	if runs < 100 {
		t.Errorf("only %d faults struck", runs)
	}
}

// TestFaultGoesOn holds that a write that failed for want of space can be
// repeated, and that nothing is lost.
func TestFaultGoesOn(t *testing.T) {
	m := newModel(t, geometryCase{"goes-on", 1 << 20, map[string]string{"cluster_size": "4k"}, 0}, newSeed(t))
	if err := m.img.Close(); err != nil {
		t.Fatal(err)
	}
	m.file = m.file.Reopen()
	bad := fault.Wrap(m.file)
	node, err := (Driver{}).Open(context.Background(), bad, format.OpenOptions{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	m.img, m.fixed = node.(*Image), true
	p := make([]byte, 10000)
	for i := range 60 {
		fillRandom(m.r, p)
		off := m.r.Int64N(1<<20 - 10000)
		bad.Add(fault.Rule{Op: fault.Write, After: m.r.IntN(3), Times: 1, Err: syscall.ENOSPC})
		// Each fault strikes once, so some attempt succeeds.
		for {
			if _, err = m.img.WriteAt(p, off); err == nil {
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		copy(m.want[off:], p)
		for i%5 == 0 {
			if err = m.img.Flush(); err == nil {
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
	}
	bad.Heal()
	m.verify()
	m.verifyStockLeaks()
}
