package raw

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// TestWindow runs the suite of the block contract over a part of a file, and
// holds that nothing beside it changes.
func TestWindow(t *testing.T) {
	const before, behind = 1 << 16, 3 << 10
	for _, fixed := range []bool{false, true} {
		t.Run(fmt.Sprintf("fixed %v", fixed), func(t *testing.T) {
			files := map[block.Node]*memory.Disk{}
			values := map[string]string{"offset": fmt.Sprint(before)}
			open := func(t *testing.T, f *memory.Disk, writable bool) block.Node {
				t.Helper()
				n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: writable, Values: values})
				if err != nil {
					t.Fatal(err)
				}
				files[n] = f
				return n
			}
			if fixed {
				// The suite resizes what can be resized; here it is refused.
				fixedWindow(t, before, behind)
				return
			}
			blocktest.Run(t, blocktest.Suite{
				New: func(t *testing.T, size int64) block.Writer {
					f := memory.NewFile()
					if _, err := f.WriteAt(bytes.Repeat([]byte{9}, before), 0); err != nil {
						t.Fatal(err)
					}
					if err := f.Resize(t.Context(), before+size, block.ResizeOptions{}); err != nil {
						t.Fatal(err)
					}
					return open(t, f, true).(block.Writer)
				},
				Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
					if err := n.Close(); err != nil {
						t.Fatal(err)
					}
					return open(t, files[n].Reopen(), !readOnly)
				},
				Check: func(t *testing.T, n block.Node) {
					if b := files[n].Clone().Bytes(); !bytes.Equal(b[:before], bytes.Repeat([]byte{9}, before)) {
						t.Error("what lies before the window changed")
					}
				},
				Zeroer: true, Discarder: true, Resizer: true,
				Operations: 300,
			})
		})
	}
}

func fixedWindow(t *testing.T, before, behind int64) {
	f := memory.NewFile()
	if _, err := f.WriteAt(bytes.Repeat([]byte{9}, int(before+4096+behind)), 0); err != nil {
		t.Fatal(err)
	}
	n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{Writable: true, Values: map[string]string{"offset": fmt.Sprint(before), "size": "4k"}})
	if err != nil {
		t.Fatal(err)
	}
	d := n.(*Disk)
	if d.Size() != 4096 {
		t.Errorf("size %d", d.Size())
	}
	if err := d.WriteZeroes(0, 4096, 0); err != nil {
		t.Error(err)
	}
	if _, err := d.WriteAt([]byte{1}, 4096); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("write behind the window: %v", err)
	}
	if err := d.Resize(t.Context(), 8192, block.ResizeOptions{}); err == nil || err.Error() != "Cannot resize fixed-size raw disks" {
		t.Errorf("resize: %v", err)
	}
	want := append(append(bytes.Repeat([]byte{9}, int(before)), make([]byte, 4096)...), bytes.Repeat([]byte{9}, int(behind))...)
	if !bytes.Equal(f.Bytes(), want) {
		t.Error("what lies beside the window changed")
	}
}
