package blocktest

import (
	"errors"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

func testWriteZeroes(t *testing.T, s Suite) {
	size := 8*s.Unit + 512
	for _, flags := range []block.ZeroFlags{0, block.ZeroMayUnmap, block.ZeroNoFallback, block.ZeroMayUnmap | block.ZeroNoFallback} {
		n := s.open(t, size)
		want := make([]byte, size)
		Pattern(want, 30)
		write(t, n, want, 0)
		for _, r := range []struct{ off, len int64 }{
			{0, 1}, {511, 2}, {s.Unit, s.Unit}, {3*s.Unit - 7, s.Unit + 14}, {5*s.Unit + 512, 2 * s.Unit}, {size - 3, 3},
		} {
			err := n.(block.Zeroer).WriteZeroes(r.off, r.len, flags)
			if flags&block.ZeroNoFallback != 0 && errors.Is(err, block.ErrUnsupported) {
				continue // and then nothing has changed
			}
			if err != nil {
				t.Fatalf("zero %d+%d, flags %d: %v", r.off, r.len, flags, err)
			}
			clear(want[r.off : r.off+r.len])
		}
		RequireContent(t, n, want)
		RequireExtents(t, n, 0, size)
		// What was zeroed can be written again.
		p := make([]byte, s.Unit)
		Pattern(p, 31)
		write(t, n, p[:s.Unit-9], s.Unit+5)
		copy(want[s.Unit+5:], p[:s.Unit-9])
		s.finish(t, n)
		RequireContent(t, s.reopen(t, n, false), want)
	}
}

// testDiscard holds that the neighbours keep their bytes and that the range
// reads as zeros or as before.
func testDiscard(t *testing.T, s Suite) {
	size := 8 * s.Unit
	n := s.open(t, size)
	want := make([]byte, size)
	Pattern(want, 40)
	write(t, n, want, 0)
	for _, r := range []struct{ off, len int64 }{
		{0, 1}, {s.Unit, s.Unit}, {3*s.Unit - 5, s.Unit + 10}, {6*s.Unit + 1, s.Unit}, {size - 1, 1},
	} {
		if err := n.(block.Discarder).Discard(r.off, r.len); err != nil {
			t.Fatalf("discard %d+%d: %v", r.off, r.len, err)
		}
		got := make([]byte, r.len)
		if k, err := n.ReadAt(got, r.off); k != len(got) {
			t.Fatalf("read %d bytes at %d: %d, %v", len(got), r.off, k, err)
		}
		for i, b := range got {
			if at := r.off + int64(i); b != 0 && b != want[at] {
				t.Fatalf("byte %d is %#x after a discard, want 0 or %#x", at, b, want[at])
			}
		}
		copy(want[r.off:], got)
	}
	RequireContent(t, n, want)
	RequireExtents(t, n, 0, size)
	p := make([]byte, s.Unit)
	Pattern(p, 41)
	write(t, n, p, s.Unit+1)
	copy(want[s.Unit+1:], p)
	s.finish(t, n)
	RequireContent(t, s.reopen(t, n, false), want)
}

func resize(t *testing.T, n block.Node, size int64, opts block.ResizeOptions) {
	t.Helper()
	if err := n.(block.Resizer).Resize(t.Context(), size, opts); err != nil {
		t.Fatalf("resize to %d: %v", size, err)
	}
	if n.Size() != size {
		t.Fatalf("after the resize the disk has %d bytes, want %d", n.Size(), size)
	}
}

func testGrow(t *testing.T, s Suite) {
	n := s.open(t, s.Unit+512)
	want := make([]byte, s.Unit+512)
	Pattern(want, 50)
	write(t, n, want, 0)
	for _, size := range []int64{s.Unit + 512, s.Unit + 1024, 2 * s.Unit, 9*s.Unit + 512} {
		old := int64(len(want))
		resize(t, n, size, block.ResizeOptions{})
		want = append(want, make([]byte, size-old)...)
		RequireContent(t, n, want)
		RequireExtents(t, n, 0, size)
		Pattern(want[size-512:], uint64(size))
		write(t, n, want[size-512:], size-512)
	}
	s.finish(t, n)
	RequireContent(t, s.reopen(t, n, false), want)
}

// testShrink holds that nothing is cut unasked, and that what was cut does not
// come back.
func testShrink(t *testing.T, s Suite) {
	size := 6*s.Unit + 512
	n := s.open(t, size)
	want := make([]byte, size)
	Pattern(want, 60)
	write(t, n, want, 0)
	if err := n.(block.Resizer).Resize(t.Context(), s.Unit, block.ResizeOptions{}); err == nil {
		t.Fatal("the disk was made smaller without being allowed to")
	}
	RequireContent(t, n, want)
	if err := n.(block.Resizer).Resize(t.Context(), -1, block.ResizeOptions{AllowShrink: true}); err == nil {
		t.Fatal("the disk was made smaller than nothing")
	}
	for _, smaller := range []int64{6 * s.Unit, 4*s.Unit + 512, 512} {
		resize(t, n, smaller, block.ResizeOptions{AllowShrink: true})
		RequireContent(t, n, want[:smaller])
		resize(t, n, size, block.ResizeOptions{})
		clear(want[smaller:])
		RequireContent(t, n, want)
		RequireExtents(t, n, 0, size)
	}
	s.finish(t, n)
	RequireContent(t, s.reopen(t, n, false), want)
}
