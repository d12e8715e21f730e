package diskcrypt

import (
	"bytes"
	"context"
	stdpbkdf2 "crypto/pbkdf2"
	"testing"
)

func TestPBKDF2(t *testing.T) {
	for _, alg := range hashAlgs {
		if alg == "ripemd160" {
			continue // the standard library has none; stock's images hold it
		}
		for _, n := range []int{1, 16, 20, 64, 100} {
			want, err := stdpbkdf2.Key(newHash(alg), "pass word", []byte("salt"), 1000, n)
			if err != nil {
				t.Fatal(err)
			}
			got, err := pbkdf2(t.Context(), newHash(alg), []byte("pass word"), []byte("salt"), 1000, n)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: %x, %v, want %x", alg, n, got, err, want)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pbkdf2(ctx, newHash("sha256"), []byte("p"), []byte("s"), 1<<32-1, 32); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}

func BenchmarkPBKDF2(b *testing.B) {
	for b.Loop() {
		_, _ = pbkdf2(b.Context(), newHash("sha256"), []byte("p"), []byte("s"), 100000, 32)
	}
}
func BenchmarkStd(b *testing.B) {
	for b.Loop() {
		_, _ = stdpbkdf2.Key(newHash("sha256"), "p", []byte("s"), 100000, 32)
	}
}
