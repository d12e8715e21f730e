package diskcrypt

import (
	"crypto/rand"
	"encoding/binary"
	"hash"
)

// afSplit spreads a key over stripes pieces of its length, all of which are
// needed to get it back (LUKS specification, section 2.4), so that destroying
// any one of them destroys the key.
func afSplit(newHash func() hash.Hash, key []byte, stripes int) ([]byte, error) {
	n := len(key)
	out := make([]byte, n*stripes)
	if _, err := rand.Read(out[:n*(stripes-1)]); err != nil {
		return nil, err
	}
	sum := make([]byte, n)
	for i := range stripes - 1 {
		xor(sum, out[i*n:])
		diffuse(newHash, sum)
	}
	last := out[n*(stripes-1):]
	copy(last, key)
	xor(last, sum)
	clear(sum)
	return out, nil
}

// afMerge is the inverse of afSplit for a key of n bytes.
func afMerge(newHash func() hash.Hash, split []byte, n int) []byte {
	key := make([]byte, n)
	for ; len(split) > n; split = split[n:] {
		xor(key, split)
		diffuse(newHash, key)
	}
	xor(key, split)
	return key
}

func xor(p, q []byte) {
	for i := range p {
		p[i] ^= q[i]
	}
}

// diffuse replaces each piece of b, of a digest's length, by the hash of its
// number and itself.
func diffuse(newHash func() hash.Hash, b []byte) {
	h := newHash()
	var digest [64]byte
	for i := uint32(0); len(b) > 0; i++ {
		n := min(len(b), h.Size())
		h.Reset()
		// A hash has no errors.
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, i))
		_, _ = h.Write(b[:n])
		copy(b[:n], h.Sum(digest[:0]))
		b = b[n:]
	}
}
