package memory_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

func TestConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer { return memory.New(size) },
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			d := n.(*memory.Disk)
			if readOnly {
				ro := d.ReadOnly()
				return ro
			}
			return d.Reopen()
		},
		Zeroer: true, Discarder: true, Resizer: true,
	})
}

// TestFileGrows holds that only a disk of NewFile grows by writes.
func TestFileGrows(t *testing.T) {
	f := memory.NewFile()
	if _, err := f.WriteAt([]byte("end"), 100_000); err != nil {
		t.Fatal(err)
	}
	want := append(make([]byte, 100_000), "end"...)
	blocktest.RequireContent(t, f, want)
	if err := f.WriteZeroes(100_003, 7, block.ZeroMayUnmap); err != nil || f.Size() != 100_010 {
		t.Fatalf("zero past the end: %v, size %d", err, f.Size())
	}
	if _, err := f.WriteAt([]byte{1}, 1<<63-1); !errors.Is(err, block.ErrOutOfRange) {
		t.Fatalf("write at the largest offset: %v", err)
	}
	if _, err := memory.New(10).WriteAt([]byte{1}, 10); !errors.Is(err, block.ErrOutOfRange) {
		t.Fatalf("a disk grew: %v", err)
	}
}

// TestCloneIsIndependent holds that changes to either do not reach the other.
func TestCloneIsIndependent(t *testing.T) {
	d := memory.NewBytes(bytes.Repeat([]byte{7}, 100))
	c := d.Clone()
	if _, err := d.WriteAt([]byte{8}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteAt([]byte{9}, 1); err != nil {
		t.Fatal(err)
	}
	if d.Bytes()[1] != 7 || c.Bytes()[0] != 7 || d.ReadOnly().Bytes()[0] != 8 {
		t.Fatal("the copies share memory")
	}
}
