package inflate

import (
	"bytes"
	stock "compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// pack compresses with the standard library.
func pack(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stock.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are inputs of different kinds.
func samples() [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	var out [][]byte
	for _, n := range []int{0, 1, 3, 300, 65536, 1 << 20} {
		noise, text, runs, skewed := make([]byte, n), make([]byte, n), make([]byte, n), make([]byte, n)
		for i := range n {
			noise[i] = byte(r.Uint32())
			text[i] = "the quick brown fox "[(i*i>>4+i)%20]
			runs[i] = byte(i >> 9)
			skewed[i] = byte(min(r.ExpFloat64()*4, 255)) // long codes
		}
		out = append(out, noise, text, runs, skewed, make([]byte, n))
	}
	return out
}

func TestDecode(t *testing.T) {
	for i, want := range samples() {
		for level := -2; level <= 9; level++ {
			packed := pack(t, want, level)
			got := make([]byte, len(want))
			// What follows the stream must not matter.
			n, err := Decode(got, append(packed[:len(packed):len(packed)], 0xff, 1, 2, 3))
			if err != nil || n != len(want) || !bytes.Equal(got, want) {
				t.Fatalf("sample %d, level %d: %d of %d bytes, %v", i, level, n, len(want), err)
			}
			if half := got[:len(want)/2]; len(half) > 0 {
				clear(half)
				if n, err := Decode(half, packed); err != nil || n != len(half) || !bytes.Equal(half, want[:n]) {
					t.Fatalf("sample %d, level %d, first half: %d bytes, %v", i, level, n, err)
				}
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	want := samples()[9]
	packed := pack(t, want, 6)
	got := make([]byte, len(want)+1)
	for n := range len(packed) - 1 {
		if _, err := Decode(got, packed[:n]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: %v", n, len(packed), err)
		}
	}
}

// FuzzDecode compares with the standard library, which is as strict or
// stricter about codes that are not complete, but for blocks without an end,
// where we keep to zlib.
func FuzzDecode(f *testing.F) {
	for _, s := range samples() {
		if len(s) <= 65536 {
			f.Add(pack(f, s, 6))
			f.Add(pack(f, s, 1))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := make([]byte, 1<<17)
		n, err := Decode(got, b)
		want := make([]byte, 1<<17)
		m, stockErr := io.ReadFull(stock.NewReader(bytes.NewReader(b)), want)
		if stockErr == nil || stockErr == io.EOF || stockErr == io.ErrUnexpectedEOF && err == nil {
			if err == nil && (n != m || !bytes.Equal(got[:n], want[:m])) {
				t.Fatalf("%d bytes, the standard library %d (%v)", n, m, stockErr)
			}
			if stockErr == nil && err != nil && !errors.Is(err, ErrNoEnd) {
				t.Fatalf("%v, the standard library decodes it", err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, k := range []struct {
		name string
		i    int
	}{{"text", 21}, {"skewed", 23}} {
		want := samples()[k.i]
		packed := pack(b, want, 6)
		got := make([]byte, len(want))
		b.Run(k.name, func(b *testing.B) {
			b.SetBytes(int64(len(want)))
			for b.Loop() {
				if _, err := Decode(got, packed); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(k.name+"-stream", func(b *testing.B) {
			b.SetBytes(int64(len(want)))
			for b.Loop() {
				r := stock.NewReader(bytes.NewReader(packed))
				if _, err := io.ReadFull(r, got); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
