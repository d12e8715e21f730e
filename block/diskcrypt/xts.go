package diskcrypt

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"sync"
)

// xtsTweaks are the tweaks of the blocks of one sector.
type xtsTweaks [SectorSize]byte

var xtsBuffers = sync.Pool{New: func() any { return new(xtsTweaks) }}

// fill makes the tweaks of the sector with the initialization vector iv.
func (t *xtsTweaks) fill(tweak cipher.Block, iv []byte) {
	le := binary.LittleEndian
	tweak.Encrypt(t[:16], iv)
	lo, hi := le.Uint64(t[:]), le.Uint64(t[8:])
	for next := t[16:]; len(next) >= 16; next = next[16:] {
		// The next tweak is this one times x in GF(2^128).
		carry := uint64(int64(hi)>>63) & 0x87
		hi, lo = hi<<1|lo>>63, lo<<1^carry
		le.PutUint64(next, lo)
		le.PutUint64(next[8:], hi)
	}
}

// xtsSector encrypts or decrypts one sector in XTS mode (IEEE 1619), whose
// tweaks are t. Each step does all of the sector before the next one begins:
// a block that is encrypted right after its halves were written waits for
// them, which takes as long as its encryption, and no two blocks overlap then.
func xtsSector(data cipher.Block, dst, src []byte, t *xtsTweaks, encrypt bool) {
	dst, src = dst[:SectorSize], src[:SectorSize]
	subtle.XORBytes(dst, src, t[:])
	ecbSector(data, dst, dst, encrypt)
	subtle.XORBytes(dst, dst, t[:])
}
