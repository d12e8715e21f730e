package blocktest_test

import (
	"context"
	"io"
	"iter"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// A fault is a way to break the contract.
type broken struct {
	*memory.Disk
	fault string
	kept  []byte
}

// faults are the ways, each with the subtest that has to find it.
var faults = map[string]string{
	"reads past the end":     "End",
	"writes outside":         "OutOfRange",
	"keeps the buffer":       "NotRetained",
	"extents not merged":     "Extents",
	"extents with a gap":     "ExtentsRange",
	"extents lie":            "WriteZeroes",
	"loses writes at reopen": "Reopen",
	"read-only is written":   "ReadOnly",
	"reads after close":      "Closed",
	"mixes writers":          "Disjoint",
	"zeroes too much":        "WriteZeroes",
	"discards a neighbour":   "Discard",
	"old data after growing": "Shrink",
	"shrinks unasked":        "Shrink",
}

func (b *broken) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Disk.ReadAt(p, off)
	switch {
	case b.fault == "reads past the end" && err == io.EOF && n > 0:
		return len(p), nil
	case b.fault == "reads after close" && err != nil && err != io.EOF:
		return len(p), nil
	}
	return n, err
}

func (b *broken) WriteAt(p []byte, off int64) (int, error) {
	if b.fault == "keeps the buffer" {
		if b.kept != nil {
			_, _ = b.Disk.WriteAt(b.kept, 0)
		}
		b.kept = p
	}
	if b.fault == "mixes writers" && len(p) == 1021 {
		p = append(p[:1020:1020], 0)
	}
	n, err := b.Disk.WriteAt(p, off)
	if b.fault == "writes outside" && err != nil {
		return len(p), nil
	}
	return n, err
}

func (b *broken) Flush() error {
	if b.kept != nil {
		_, _ = b.Disk.WriteAt(b.kept, 0)
	}
	return b.Disk.Flush()
}

func (b *broken) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if b.fault == "zeroes too much" && n > 0 && off+n < b.Size() {
		n++
	}
	return b.Disk.WriteZeroes(off, n, flags)
}

func (b *broken) Discard(off, n int64) error {
	if b.fault == "discards a neighbour" && off > 0 && n > 0 {
		return b.Disk.WriteZeroes(off-1, n, 0)
	}
	return b.Disk.Discard(off, n)
}

func (b *broken) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	switch {
	case b.fault == "shrinks unasked":
		opts.AllowShrink = true
	case b.fault == "old data after growing" && size > b.Size():
		old := b.Size()
		if err := b.Disk.Resize(ctx, size, opts); err != nil {
			return err
		}
		_, err := b.Disk.WriteAt([]byte{7}, old)
		return err
	}
	return b.Disk.Resize(ctx, size, opts)
}

func (b *broken) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		first := true
		for e, err := range b.Disk.Extents(off, n) {
			switch {
			case err != nil:
			case b.fault == "extents lie":
				e.Kind = block.Zero
			case b.fault == "extents with a gap" && first && e.Length > 1:
				e.Length--
			case b.fault == "extents not merged" && e.Length > 1:
				half := e
				half.Length = 1
				if !yield(half, nil) {
					return
				}
				e.Start, e.HostOffset, e.Length = e.Start+1, e.HostOffset+1, e.Length-1
			}
			first = false
			if !yield(e, err) {
				return
			}
		}
	}
}

// TestBrokenChild runs the suite on a broken disk, in a process of its own.
func TestBrokenChild(t *testing.T) {
	fault := os.Getenv("BLOCKTEST_FAULT")
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer {
			return &broken{Disk: memory.New(size), fault: fault}
		},
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			d := n.(*broken).Disk
			switch {
			case fault == "loses writes at reopen":
				d = memory.New(d.Size())
			case readOnly && fault != "read-only is written":
				d = d.ReadOnly()
			default:
				d = d.Reopen()
			}
			return &broken{Disk: d, fault: fault}
		},
		Zeroer: true, Discarder: true, Resizer: true, Operations: 50,
	})
}

// TestSuiteFinds holds that the suite finds every way to break the contract.
func TestSuiteFinds(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fault, where := range faults {
		cmd := exec.Command(exe, "-test.run", "^TestBrokenChild$/^"+where+"$")
		cmd.Env = append(os.Environ(), "BLOCKTEST_FAULT="+fault)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: TestBrokenChild/"+where) {
			t.Errorf("a disk that %q passes %s: %v\n%s", fault, where, err, out)
		}
	}
}
