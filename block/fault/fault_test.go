package fault_test

import (
	"errors"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// TestConformance holds that without rules the wrapper changes nothing.
func TestConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer { return fault.Wrap(memory.New(size)) },
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			d := n.(*fault.Disk).Unwrap().(*memory.Disk)
			if readOnly {
				return fault.Wrap(d.ReadOnly())
			}
			return fault.Wrap(d.Reopen())
		},
		Zeroer: true, Discarder: true, Resizer: true,
	})
}

func TestRules(t *testing.T) {
	d := fault.Wrap(memory.New(4096), fault.Rule{Op: fault.Write, After: 1, Times: 2})
	p := []byte{1, 2, 3, 4}
	for i, want := range []error{nil, syscall.EIO, syscall.EIO, nil} {
		if _, err := d.WriteAt(p, 0); !errors.Is(err, want) {
			t.Errorf("write %d: %v, want %v", i, err, want)
		}
	}
	d.Add(fault.Rule{Op: fault.Write, Err: syscall.ENOSPC, Short: 2, Times: 1})
	if n, err := d.WriteAt(p, 100); n != 2 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("short write: %d, %v", n, err)
	}
	blocktest.RequireAt(t, d, 100, []byte{1, 2, 0, 0})
	d.Add(fault.Rule{Op: fault.Read, Where: func(off, _ int64) bool { return off == 512 }})
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Errorf("read elsewhere: %v", err)
	}
	if _, err := d.ReadAt(p, 512); !errors.Is(err, syscall.EIO) {
		t.Errorf("read there: %v", err)
	}
	if got := d.Count(fault.Write); got != 5 {
		t.Errorf("%d writes were counted, want 5", got)
	}
}

// TestEveryRequest holds that each kind can fail and is then not carried out.
func TestEveryRequest(t *testing.T) {
	want := make([]byte, 4096)
	blocktest.Pattern(want, 1)
	for _, op := range []fault.Op{fault.Read, fault.Write, fault.Zero, fault.Discard, fault.Flush, fault.Resize} {
		d := fault.Wrap(memory.NewBytes(want), fault.Rule{Op: op})
		errs := map[fault.Op]error{}
		_, errs[fault.Read] = d.ReadAt(make([]byte, 1), 0)
		_, errs[fault.Write] = d.WriteAt(want[:1], 0)
		errs[fault.Zero] = d.WriteZeroes(0, 0, 0)
		errs[fault.Discard] = d.Discard(0, 4096)
		errs[fault.Flush] = d.Flush()
		errs[fault.Resize] = d.Resize(t.Context(), 4096, block.ResizeOptions{})
		for o, err := range errs {
			if (err != nil) != (o == op) {
				t.Errorf("rule for %s: %s: %v", op, o, err)
			}
		}
		d.Heal()
		blocktest.RequireContent(t, d, want)
	}
}

// TestFlushStays holds that after one failed flush all fail.
func TestFlushStays(t *testing.T) {
	d := fault.Wrap(memory.New(512), fault.Rule{Op: fault.Flush, Times: 1})
	for range 3 {
		if err := d.Flush(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("flush: %v", err)
		}
	}
	d.Heal()
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
}
