package diskcrypt

import (
	"bytes"
	"crypto/aes"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/xts"
)

// TestXTS compares with another implementation, in place and not.
func TestXTS(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for _, alg := range []string{"aes-128", "aes-256"} {
		p := Params{CipherAlg: alg, CipherMode: "xts", IVGenAlg: "plain64", HashAlg: "sha256"}
		for range 50 {
			key := random(p.keyBytes())
			c, err := newCipher(p, key)
			if err != nil {
				t.Fatal(err)
			}
			other, err := xts.NewCipher(aes.NewCipher, key)
			if err != nil {
				t.Fatal(err)
			}
			sector := rnd.Uint64()
			plain := random((1 + rnd.IntN(5)) * SectorSize)
			want := make([]byte, len(plain))
			for i := 0; i < len(plain); i += SectorSize {
				other.Encrypt(want[i:i+SectorSize], plain[i:i+SectorSize], sector+uint64(i/SectorSize))
			}
			got := make([]byte, len(plain))
			c.Encrypt(got, plain, sector)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: encrypted, sector %d", alg, sector)
			}
			back := make([]byte, len(plain))
			c.Decrypt(back, got, sector)
			c.Decrypt(got, got, sector)
			if !bytes.Equal(back, plain) || !bytes.Equal(got, plain) {
				t.Fatalf("%s: decrypted, sector %d", alg, sector)
			}
			c.Encrypt(got, got, sector)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: encrypted in place, sector %d", alg, sector)
			}
		}
	}
}
