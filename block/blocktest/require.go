package blocktest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

// window is how much of a disk the helpers hold in memory at a time.
const window = 4 << 20

// RequireContent fails the test unless the disk reads exactly as want.
func RequireContent(t testing.TB, n block.Node, want []byte) {
	t.Helper()
	if n.Size() != int64(len(want)) {
		t.Fatalf("disk has %d bytes, want %d", n.Size(), len(want))
	}
	RequireAt(t, n, 0, want)
}

// RequireAt fails the test unless the disk reads as want at off.
func RequireAt(t testing.TB, n block.Node, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	k, err := n.ReadAt(got, off)
	if err != nil && !(errors.Is(err, io.EOF) && k == len(got)) {
		t.Fatalf("read %d bytes at %d: %d, %v", len(want), off, k, err)
	}
	if i := difference(got, want); i >= 0 {
		t.Fatalf("byte %d (%d bytes at %d were read) is %#x, want %#x", off+int64(i), len(want), off, got[i], want[i])
	}
}

// RequireSame fails the test unless both disks have the same size and content.
func RequireSame(t testing.TB, a, b block.Node) {
	t.Helper()
	if a.Size() != b.Size() {
		t.Fatalf("sizes differ: %d and %d bytes", a.Size(), b.Size())
	}
	p := make([]byte, min(window, a.Size()))
	for off := int64(0); off < a.Size(); off += int64(len(p)) {
		p = p[:min(int64(len(p)), a.Size()-off)]
		if k, err := b.ReadAt(p, off); k != len(p) {
			t.Fatalf("read %d bytes at %d: %d, %v", len(p), off, k, err)
		}
		RequireAt(t, a, off, p)
	}
}

// difference returns the index of the first byte that differs, -1 for none.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// Extents collects the extents of a range.
func Extents(t testing.TB, n block.Node, off, length int64) []block.Extent {
	t.Helper()
	var all []block.Extent
	for e, err := range n.Extents(off, length) {
		if err != nil {
			t.Fatalf("extents of %d+%d: %v", off, length, err)
		}
		all = append(all, e)
	}
	return all
}

// RequireExtents fails the test unless the extents of [off, off+length) cover
// exactly the range, are merged, and agree with the content. It returns them.
func RequireExtents(t testing.TB, n block.Node, off, length int64) []block.Extent {
	t.Helper()
	all := Extents(t, n, off, length)
	at := off
	for i, e := range all {
		if e.Start != at || e.Length < 1 {
			t.Fatalf("extent %d is %+v, want one that starts at %d", i, e, at)
		}
		if i > 0 && e.Follows(all[i-1]) {
			t.Fatalf("extents %d and %d are not merged: %+v %+v", i-1, i, all[i-1], e)
		}
		if e.HostOffset != block.NoHostOffset && e.HostOffset < 0 || e.Kind == block.Compressed && e.HostOffset != block.NoHostOffset {
			t.Fatalf("extent %d has a wrong host offset: %+v", i, e)
		}
		if e.Kind > block.Compressed || e.Depth < 0 {
			t.Fatalf("extent %d: %+v", i, e)
		}
		at = e.End()
		if e.IsZero() {
			requireZero(t, n, e)
		}
	}
	if at != off+length {
		t.Fatalf("extents of %d+%d end at %d, want %d", off, length, at, off+length)
	}
	return all
}

// requireZero reads an extent that is said to be zero.
func requireZero(t testing.TB, n block.Node, e block.Extent) {
	t.Helper()
	p := make([]byte, min(window, e.Length))
	for off := e.Start; off < e.End(); off += int64(len(p)) {
		p = p[:min(int64(len(p)), e.End()-off)]
		if k, err := n.ReadAt(p, off); k != len(p) {
			t.Fatalf("read %d bytes at %d: %d, %v", len(p), off, k, err)
		}
		for i, b := range p {
			if b != 0 {
				t.Fatalf("byte %d is %#x in an extent that reads as zeros: %+v", off+int64(i), b, e)
			}
		}
	}
}

// requireError fails the test unless err matches want.
func requireError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error %v, want one that matches %q", what, err, want)
	}
}

// write writes all of p or fails the test.
func write(t testing.TB, n block.Writer, p []byte, off int64) {
	t.Helper()
	if k, err := n.WriteAt(p, off); k != len(p) || err != nil {
		t.Fatalf("write %d bytes at %d: %d, %v", len(p), off, k, err)
	}
}
