package image

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// TestZeroRuns: whatever the runs, they cover the buffer in order, those
// called zero are zero and long enough, and no long enough run of whole zero
// grains hides in the others.
func TestZeroRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := make([]byte, rapid.IntRange(0, 12*zeroGrain).Draw(t, "length"))
		for i := 0; i < len(p); {
			n := min(rapid.IntRange(1, 3*zeroGrain).Draw(t, "run"), len(p)-i)
			if rapid.Bool().Draw(t, "data") {
				copy(p[i:], bytes.Repeat([]byte{1}, n))
			}
			i += n
		}
		off := int64(rapid.IntRange(0, 4).Draw(t, "offset")) * 512
		sparse := int64(rapid.IntRange(1, 32).Draw(t, "sparse")) * 512
		end, before := 0, false
		err := zeroRuns(p, off, sparse, func(from, to int, zero bool) error {
			if from != end || to <= from || from > 0 && zero == before {
				t.Fatalf("run %d-%d after %d", from, to, end)
			}
			if zero {
				if !isZero(p[from:to]) {
					t.Fatalf("%d-%d is not zero", from, to)
				}
				if int64(to-from) < sparse && (from > 0 || to < len(p)) {
					t.Fatalf("%d-%d is short", from, to)
				}
			} else {
				checkNoHole(t, p[from:to], off+int64(from), sparse)
			}
			end, before = to, zero
			return nil
		})
		if err != nil || end != len(p) {
			t.Fatalf("ended at %d of %d: %v", end, len(p), err)
		}
	})
}

func checkNoHole(t *rapid.T, p []byte, off, sparse int64) {
	run := int64(0)
	at := int((zeroGrain - off%zeroGrain) % zeroGrain)
	for ; at+zeroGrain <= len(p); at += zeroGrain {
		if run += zeroGrain; !isZero(p[at : at+zeroGrain]) {
			run = 0
		}
		if run >= sparse {
			t.Fatalf("%d zero bytes up to %d were left in data", run, at+zeroGrain)
		}
	}
}

func TestIsZero(t *testing.T) {
	p := make([]byte, 3*zeroGrain+7)
	if !isZero(p) || !isZero(nil) {
		t.Error("zeros are not zero")
	}
	for i := range p {
		p[i] = 1
		if isZero(p) {
			t.Fatalf("byte %d was not seen", i)
		}
		p[i] = 0
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, chunkSize)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if !isZero(p) {
			b.Fatal()
		}
	}
}

// FuzzParseName: names come from images; none may crash, and a path that was
// found is not empty unless the name is.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"", "a", "file:a", "nbd:x", "./a:b", `json:{"driver":"qcow2","file":{"driver":"file","filename":"x"}}`, `json:{"a":{"a":{"a":{"a":{"a":{"a":{"a":1}}}}}}}`, "json:"} {
		f.Add(s, "d/overlay")
	}
	f.Fuzz(func(t *testing.T, name, overlay string) {
		loc, err := parseName(combine(overlay, name))
		if err == nil && loc.path == "" && name != "" && name != "file:" {
			t.Errorf("%q: empty path", name)
		}
	})
}

func TestCombine(t *testing.T) {
	for _, c := range [][3]string{
		{"over", "base", "base"}, {"d/over", "base", "d/base"}, {"/a/over", "../base", "/a/../base"}, {"d/over", "/base", "/base"},
		{"file:d/over", "base", "d/base"}, {"d/over", "file:base", "file:base"}, {"d/over", "nbd:x", "nbd:x"}, {"d/over", "./a:b", "d/./a:b"},
	} {
		if got := combine(c[0], c[1]); got != c[2] {
			t.Errorf("%s from %s: %s, want %s", c[1], c[0], got, c[2])
		}
	}
}
