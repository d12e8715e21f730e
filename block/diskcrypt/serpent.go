package diskcrypt

import (
	"crypto/cipher"
	"encoding/binary"
	"math/bits"
)

// serpent is the block cipher Serpent (Anderson, Biham, Knudsen: "Serpent: A
// Proposal for the Advanced Encryption Standard"), with keys of 16, 24 or 32
// bytes, in the byte order of the NESSIE vectors, which everybody uses. The
// words are in its "bitslice" form, so there are no tables that the time of
// an access could betray.
type serpent struct{ k [132]uint32 }

const (
	serpentBlock = 16
	serpentPhi   = 0x9e3779b9 // fraction of the golden ratio
)

// newSerpent expands a key, whose length the caller has checked.
func newSerpent(key []byte) cipher.Block {
	var padded [32]byte
	if copy(padded[:], key) < len(padded) {
		padded[len(key)] = 1
	}
	var w [140]uint32
	for i := range 8 {
		w[i] = binary.LittleEndian.Uint32(padded[i*4:])
	}
	for i := 8; i < len(w); i++ {
		w[i] = bits.RotateLeft32(w[i-8]^w[i-5]^w[i-3]^w[i-1]^serpentPhi^uint32(i-8), 11)
	}
	s := &serpent{}
	for i := range 33 {
		p, k := w[8+4*i:], s.k[4*i:]
		k[0], k[1], k[2], k[3] = serpentS((35-i)%8, p[0], p[1], p[2], p[3])
	}
	clear(padded[:])
	clear(w[:])
	return s
}

// BlockSize implements [cipher.Block].
func (s *serpent) BlockSize() int { return serpentBlock }

// Encrypt implements [cipher.Block].
func (s *serpent) Encrypt(dst, src []byte) {
	a, b, c, d := loadWords(src)
	for i := 0; i < 128; i += 4 {
		k := s.k[i : i+4 : i+4]
		a, b, c, d = serpentS(i/4%8, a^k[0], b^k[1], c^k[2], d^k[3])
		if i < 124 {
			a, b, c, d = serpentMix(a, b, c, d)
		}
	}
	k := s.k[128:132]
	storeWords(dst, a^k[0], b^k[1], c^k[2], d^k[3])
}

// Decrypt implements [cipher.Block].
func (s *serpent) Decrypt(dst, src []byte) {
	a, b, c, d := loadWords(src)
	k := s.k[128:132]
	a, b, c, d = a^k[0], b^k[1], c^k[2], d^k[3]
	for i := 124; i >= 0; i -= 4 {
		if i < 124 {
			a, b, c, d = serpentUnmix(a, b, c, d)
		}
		k := s.k[i : i+4 : i+4]
		a, b, c, d = serpentI(i/4%8, a, b, c, d)
		a, b, c, d = a^k[0], b^k[1], c^k[2], d^k[3]
	}
	storeWords(dst, a, b, c, d)
}

func loadWords(p []byte) (a, b, c, d uint32) {
	_ = p[15]
	le := binary.LittleEndian
	return le.Uint32(p), le.Uint32(p[4:]), le.Uint32(p[8:]), le.Uint32(p[12:])
}

func storeWords(p []byte, a, b, c, d uint32) {
	_ = p[15]
	le := binary.LittleEndian
	le.PutUint32(p, a)
	le.PutUint32(p[4:], b)
	le.PutUint32(p[8:], c)
	le.PutUint32(p[12:], d)
}

// serpentMix is the linear transformation between two rounds.
func serpentMix(a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	a = bits.RotateLeft32(a, 13)
	c = bits.RotateLeft32(c, 3)
	b = bits.RotateLeft32(b^a^c, 1)
	d = bits.RotateLeft32(d^c^a<<3, 7)
	a = bits.RotateLeft32(a^b^d, 5)
	c = bits.RotateLeft32(c^d^b<<7, 22)
	return a, b, c, d
}

// serpentUnmix is its inverse.
func serpentUnmix(a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	c = bits.RotateLeft32(c, -22) ^ d ^ b<<7
	a = bits.RotateLeft32(a, -5) ^ b ^ d
	d = bits.RotateLeft32(d, -7) ^ c ^ a<<3
	b = bits.RotateLeft32(b, -1) ^ a ^ c
	c = bits.RotateLeft32(c, -3)
	a = bits.RotateLeft32(a, -13)
	return a, b, c, d
}

// serpentS applies an S-box.
func serpentS(box int, a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	switch box {
	case 0:
		return serpentS0(a, b, c, d)
	case 1:
		return serpentS1(a, b, c, d)
	case 2:
		return serpentS2(a, b, c, d)
	case 3:
		return serpentS3(a, b, c, d)
	case 4:
		return serpentS4(a, b, c, d)
	case 5:
		return serpentS5(a, b, c, d)
	case 6:
		return serpentS6(a, b, c, d)
	}
	return serpentS7(a, b, c, d)
}

// serpentI applies the inverse of an S-box.
func serpentI(box int, a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	switch box {
	case 0:
		return serpentI0(a, b, c, d)
	case 1:
		return serpentI1(a, b, c, d)
	case 2:
		return serpentI2(a, b, c, d)
	case 3:
		return serpentI3(a, b, c, d)
	case 4:
		return serpentI4(a, b, c, d)
	case 5:
		return serpentI5(a, b, c, d)
	case 6:
		return serpentI6(a, b, c, d)
	}
	return serpentI7(a, b, c, d)
}
