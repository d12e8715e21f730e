package diskcrypt

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// TestSerpentVectors holds the published NESSIE test vectors.
func TestSerpentVectors(t *testing.T) {
	for _, v := range []struct{ key, plain, cipher string }{
		{"80000000000000000000000000000000", "00000000000000000000000000000000", "264e5481eff42a4606abda06c0bfda3d"},
		{"800000000000000000000000000000000000000000000000", "00000000000000000000000000000000", "9e274ead9b737bb21efcfca548602689"},
		{"8000000000000000000000000000000000000000000000000000000000000000", "00000000000000000000000000000000", "a223aa1288463c0e2be38ebd825616c0"},
	} {
		key, _ := hex.DecodeString(v.key)
		plain, _ := hex.DecodeString(v.plain)
		want, _ := hex.DecodeString(v.cipher)
		b := newSerpent(key)
		got := make([]byte, 16)
		b.Encrypt(got, plain)
		if !bytes.Equal(got, want) {
			t.Errorf("key %s: %x, want %s", v.key, got, v.cipher)
		}
		b.Decrypt(got, got)
		if !bytes.Equal(got, plain) {
			t.Errorf("key %s: decrypts to %x", v.key, got)
		}
	}
}

func BenchmarkSerpent(b *testing.B) {
	c := newSerpent(make([]byte, 32))
	p := make([]byte, 16)
	b.SetBytes(16)
	for b.Loop() {
		c.Encrypt(p, p)
	}
}
