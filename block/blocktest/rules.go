package blocktest

import (
	"errors"
	"io"
	"math"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

func testAbilities(t *testing.T, s Suite) {
	n := s.open(t, 1<<20)
	_, zeroer := n.(block.Zeroer)
	_, discarder := n.(block.Discarder)
	_, resizer := n.(block.Resizer)
	if zeroer != s.Zeroer || discarder != s.Discarder || resizer != s.Resizer {
		t.Fatalf("%T: zeroer %v, discarder %v, resizer %v; want %v, %v, %v", n, zeroer, discarder, resizer, s.Zeroer, s.Discarder, s.Resizer)
	}
}

func testNew(t *testing.T, s Suite) {
	for _, size := range []int64{0, 512, s.Unit - 512, s.Unit, s.Unit + 512, 3*s.Unit + 1024} {
		n := s.open(t, size)
		RequireContent(t, n, make([]byte, size))
		RequireExtents(t, n, 0, size)
		s.finish(t, n)
	}
}

// testEnd holds what happens at the end of the disk.
func testEnd(t *testing.T, s Suite) {
	size := s.Unit + 512
	n := s.open(t, size)
	want := make([]byte, size)
	Pattern(want, 1)
	write(t, n, want, 0)
	for _, c := range []struct {
		off  int64
		len  int
		want int
		err  error
	}{
		{size - 1, 1, 1, nil},
		{size - 1, 2, 1, io.EOF},
		{size - 512, 1024, 512, io.EOF},
		{0, int(size) + 1, int(size), io.EOF},
		{size, 1, 0, io.EOF},
		{size + 1, 1, 0, io.EOF},
		{math.MaxInt64, 1, 0, io.EOF},
	} {
		p := make([]byte, c.len)
		k, err := n.ReadAt(p, c.off)
		// io.ReaderAt allows either for a read that ends exactly at the end.
		if k != c.want || (err != c.err && !(c.err == nil && err == io.EOF)) {
			t.Errorf("read %d bytes at %d of %d: %d, %v; want %d, %v", c.len, c.off, size, k, err, c.want, c.err)
			continue
		}
		if k > 0 && !slices.Equal(p[:k], want[c.off:c.off+int64(k)]) {
			t.Errorf("read %d bytes at %d: wrong content", c.len, c.off)
		}
	}
	if k, err := n.ReadAt(make([]byte, 1), -1); k != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read at -1: %d, %v; want an error", k, err)
	}
	s.finish(t, n)
}

func testZeroLength(t *testing.T, s Suite) {
	const size = 4096
	n := s.open(t, size)
	for _, off := range []int64{0, 1, size} {
		if k, err := n.ReadAt(nil, off); k != 0 || err != nil && err != io.EOF {
			t.Errorf("read 0 bytes at %d: %d, %v", off, k, err)
		}
		if k, err := n.WriteAt(nil, off); k != 0 || err != nil {
			t.Errorf("write 0 bytes at %d: %d, %v", off, k, err)
		}
		if z, ok := n.(block.Zeroer); ok {
			if err := z.WriteZeroes(off, 0, 0); err != nil {
				t.Errorf("zero 0 bytes at %d: %v", off, err)
			}
		}
		if d, ok := n.(block.Discarder); ok {
			if err := d.Discard(off, 0); err != nil {
				t.Errorf("discard 0 bytes at %d: %v", off, err)
			}
		}
		if e := Extents(t, n, off, 0); len(e) != 0 {
			t.Errorf("extents of 0 bytes at %d: %v", off, e)
		}
	}
	s.finish(t, n)
}

func testOutOfRange(t *testing.T, s Suite) {
	const size = 8192
	n := s.open(t, size)
	want := make([]byte, size)
	Pattern(want, 2)
	write(t, n, want, 0)
	for _, r := range []struct{ off, len int64 }{
		{-1, 1}, {-512, 1024}, {size, 1}, {size - 1, 2}, {size + 1, 0}, {0, size + 1}, {math.MaxInt64, 1}, {math.MaxInt64 - 1, 512}, {math.MinInt64, 1},
	} {
		k, err := n.WriteAt(make([]byte, r.len), r.off)
		requireError(t, "write outside", err, block.ErrOutOfRange)
		if k != 0 {
			t.Errorf("write of %d bytes at %d says that it wrote %d", r.len, r.off, k)
		}
	}
	for _, r := range []struct{ off, len int64 }{
		{-1, 1}, {0, -1}, {size, 1}, {size - 1, 2}, {size + 1, 0}, {1, math.MaxInt64}, {math.MaxInt64, math.MaxInt64},
	} {
		if z, ok := n.(block.Zeroer); ok {
			requireError(t, "zero outside", z.WriteZeroes(r.off, r.len, block.ZeroMayUnmap), block.ErrOutOfRange)
		}
		if d, ok := n.(block.Discarder); ok {
			requireError(t, "discard outside", d.Discard(r.off, r.len), block.ErrOutOfRange)
		}
		var last error
		for e, err := range n.Extents(r.off, r.len) {
			if last = err; err == nil {
				t.Errorf("extents of %d+%d yield %+v", r.off, r.len, e)
				break
			}
		}
		requireError(t, "extents outside", last, block.ErrOutOfRange)
	}
	RequireContent(t, n, want)
	s.finish(t, n)
}

// testUnaligned writes and reads around the borders of sectors and units.
func testUnaligned(t *testing.T, s Suite) {
	size := 4*s.Unit + 512
	n := s.open(t, size)
	want := make([]byte, size)
	seed := uint64(10)
	for _, border := range []int64{512, 4096, s.Unit, 2 * s.Unit, 4 * s.Unit} {
		for _, r := range []struct{ before, len int64 }{{1, 2}, {0, 1}, {1, 1}, {7, 513}, {511, 1024}, {100, s.Unit}, {0, s.Unit + 1}} {
			off := border - r.before
			p := make([]byte, max(0, min(r.len, size-off)))
			Pattern(p, seed)
			seed++
			write(t, n, p, off)
			copy(want[off:], p)
			for _, read := range []struct{ off, len int64 }{{off, r.len}, {off - 1, r.len + 2}, {off + 1, 3}} {
				from := max(0, read.off)
				to := min(size, read.off+read.len)
				if from < to {
					RequireAt(t, n, from, want[from:to])
				}
			}
		}
	}
	RequireContent(t, n, want)
	RequireExtents(t, n, 0, size)
	s.finish(t, n)
}

// testNotRetained changes the buffers after the calls.
func testNotRetained(t *testing.T, s Suite) {
	n := s.open(t, s.Unit)
	want := make([]byte, s.Unit)
	Pattern(want, 3)
	p := slices.Clone(want)
	write(t, n, p, 0)
	clear(p)
	RequireContent(t, n, want)
	got := make([]byte, s.Unit)
	if k, err := n.ReadAt(got, 0); k != len(got) {
		t.Fatalf("read: %d, %v", k, err)
	}
	clear(got)
	RequireContent(t, n, want)
	s.finish(t, n) // writes what was held back
	RequireContent(t, n, want)
}

func testExtents(t *testing.T, s Suite) {
	size := 16 * s.Unit
	n := s.open(t, size)
	p := make([]byte, 2*s.Unit)
	Pattern(p, 4)
	write(t, n, p, 4*s.Unit)
	write(t, n, p[:1], 9*s.Unit+1)
	write(t, n, p[:s.Unit], 15*s.Unit)
	if err := n.Flush(); err != nil { // a file system may decide late where data goes
		t.Fatal(err)
	}
	RequireExtents(t, n, 0, size)
	for _, e := range Extents(t, n, 4*s.Unit, 2*s.Unit) {
		if e.Kind != block.Data || e.IsZero() {
			t.Errorf("written range is %+v, want data", e)
		}
	}
	sparse := int64(0)
	for _, e := range Extents(t, n, 0, size) {
		if e.IsZero() {
			sparse += e.Length
		}
	}
	if sparse < size/2 && !s.Dense {
		t.Errorf("%d bytes of %d are known to be zero, want the unwritten ones", sparse, size)
	}
	s.finish(t, n)
}

// testExtentsRange asks for parts, and stops early.
func testExtentsRange(t *testing.T, s Suite) {
	size := 8 * s.Unit
	n := s.open(t, size)
	p := make([]byte, s.Unit)
	Pattern(p, 5)
	for i := int64(0); i < 8; i += 2 {
		write(t, n, p, i*s.Unit)
	}
	for _, r := range []struct{ off, len int64 }{
		{1, 1}, {s.Unit - 1, 2}, {s.Unit / 2, s.Unit}, {s.Unit + 1, 5 * s.Unit}, {size - 1, 1}, {0, size}, {3, size - 3},
	} {
		RequireExtents(t, n, r.off, r.len)
	}
	for e, err := range n.Extents(0, size) {
		if err != nil || e.Start != 0 {
			t.Fatalf("first extent: %+v, %v", e, err)
		}
		break
	}
	// The iteration holds no lock that a caller could run into.
	for e, err := range n.Extents(0, size) {
		if err != nil {
			t.Fatal(err)
		}
		write(t, n, p[:1], e.Start)
	}
	s.finish(t, n)
}

func testReopen(t *testing.T, s Suite) {
	size := 4*s.Unit + 512
	var n block.Node = s.open(t, size)
	want := make([]byte, size)
	for round := range uint64(4) {
		p := want[int64(round)*s.Unit+100 : int64(round)*s.Unit+s.Unit/2+100]
		Pattern(p, 20+round)
		w := n.(block.Writer)
		write(t, w, p, int64(round)*s.Unit+100)
		s.finish(t, w)
		n = s.reopen(t, n, false)
		RequireContent(t, n, want)
		RequireExtents(t, n, 0, size)
	}
}

func testReadOnly(t *testing.T, s Suite) {
	size := 2 * s.Unit
	n := s.open(t, size)
	want := make([]byte, size)
	Pattern(want, 6)
	write(t, n, want, 0)
	s.finish(t, n)
	ro := s.reopen(t, n, true)
	if w, ok := ro.(block.Writer); ok {
		k, err := w.WriteAt(make([]byte, 512), 0)
		requireError(t, "write to a read-only disk", err, block.ErrReadOnly)
		if k != 0 {
			t.Errorf("write to a read-only disk says %d bytes", k)
		}
	}
	if z, ok := ro.(block.Zeroer); ok {
		requireError(t, "zero on a read-only disk", z.WriteZeroes(0, 512, 0), block.ErrReadOnly)
	}
	if d, ok := ro.(block.Discarder); ok {
		requireError(t, "discard on a read-only disk", d.Discard(0, 512), block.ErrReadOnly)
	}
	if r, ok := ro.(block.Resizer); ok {
		requireError(t, "resize of a read-only disk", r.Resize(t.Context(), 2*size, block.ResizeOptions{}), block.ErrReadOnly)
	}
	RequireContent(t, ro, want)
	RequireExtents(t, ro, 0, size)
}

func testClosed(t *testing.T, s Suite) {
	n := s.open(t, 4096)
	write(t, n, []byte{1}, 0)
	for range 2 {
		if err := n.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	_, err := n.ReadAt(make([]byte, 1), 0)
	requireError(t, "read after close", err, block.ErrClosed)
	_, err = n.WriteAt(make([]byte, 1), 0)
	requireError(t, "write after close", err, block.ErrClosed)
	requireError(t, "flush after close", n.Flush(), block.ErrClosed)
	for _, err = range n.Extents(0, 1) {
		break
	}
	requireError(t, "extents after close", err, block.ErrClosed)
	if z, ok := n.(block.Zeroer); ok {
		requireError(t, "zero after close", z.WriteZeroes(0, 1, 0), block.ErrClosed)
	}
	if d, ok := n.(block.Discarder); ok {
		requireError(t, "discard after close", d.Discard(0, 1), block.ErrClosed)
	}
	if r, ok := n.(block.Resizer); ok {
		requireError(t, "resize after close", r.Resize(t.Context(), 8192, block.ResizeOptions{}), block.ErrClosed)
	}
}
