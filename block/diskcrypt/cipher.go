package diskcrypt

import (
	"crypto/cipher"
	"encoding/binary"
	"sync"
)

// Cipher encrypts and decrypts sectors. It is safe for concurrent use.
type Cipher struct {
	mode       string
	data       cipher.Block
	tweak      cipher.Block // of XTS
	ivs        string       // plain, plain64 or essiv
	essiv      cipher.Block
	enc, dec   sync.Pool // of ivMode, for CBC
	sectorMask uint64    // of the sector number that goes into the IV
}

// newCipher returns the cipher for a key of p.keyBytes bytes.
func newCipher(p Params, key []byte) (*Cipher, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if len(key) != p.keyBytes() {
		return nil, unsupportedf("Cipher key length %d should be %d", len(key), p.keyBytes())
	}
	c := &Cipher{mode: p.CipherMode, ivs: p.IVGenAlg, sectorMask: 1<<64 - 1}
	if p.IVGenAlg == "plain" {
		c.sectorMask = 1<<32 - 1
	}
	n := cipherKeyBytes(p.CipherAlg)
	var err error
	if c.data, err = newBlock(p.CipherAlg, key[:n]); err != nil {
		return nil, err
	}
	if c.mode == "xts" {
		if c.tweak, err = newBlock(p.CipherAlg, key[n:]); err != nil {
			return nil, err
		}
	}
	if p.IVGenAlg == "essiv" {
		alg, err := p.essivCipher()
		if err != nil {
			return nil, err
		}
		h := newHash(p.IVGenHashAlg)()
		_, _ = h.Write(key) // a hash has no errors
		salt := h.Sum(nil)
		defer clear(salt)
		if c.essiv, err = newBlock(alg, salt); err != nil {
			return nil, err
		}
	}
	if c.mode == "cbc" {
		c.enc.New = func() any { return cipher.NewCBCEncrypter(c.data, make([]byte, c.data.BlockSize())) }
		c.dec.New = func() any { return cipher.NewCBCDecrypter(c.data, make([]byte, c.data.BlockSize())) }
	}
	return c, nil
}

// NewQcowAES returns the cipher of qcow2 images with crypt_method 1: AES-128 in
// CBC mode with the first 16 bytes of the passphrase, padded with zeros, as
// its key. It is weak and exists to read old images.
func NewQcowAES(passphrase []byte) (*Cipher, error) {
	var key [16]byte
	defer clear(key[:])
	copy(key[:], passphrase)
	return newCipher(Params{CipherAlg: "aes-128", CipherMode: "cbc", IVGenAlg: "plain64", HashAlg: "sha256"}, key[:])
}

// Encrypt encrypts src, whole sectors from number sector on, into dst, which
// is as long and is src itself or does not overlap it.
func (c *Cipher) Encrypt(dst, src []byte, sector uint64) { c.crypt(dst, src, sector, true) }

// Decrypt is the inverse of Encrypt.
func (c *Cipher) Decrypt(dst, src []byte, sector uint64) { c.crypt(dst, src, sector, false) }

// parallelBytes is from which length on a request is worth a second goroutine.
const parallelBytes = 128 << 10

func (c *Cipher) crypt(dst, src []byte, sector uint64, encrypt bool) {
	if len(src) < parallelBytes {
		c.sectors(dst, src, sector, encrypt)
		return
	}
	half := len(src) / 2 / SectorSize * SectorSize
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.sectors(dst[half:], src[half:], sector+uint64(half/SectorSize), encrypt)
	}()
	c.sectors(dst[:half], src[:half], sector, encrypt)
	<-done
}

// ivMode is a chaining mode whose IV can be set again.
type ivMode interface {
	cipher.BlockMode
	SetIV([]byte)
}

// sectors does the sectors one by one.
func (c *Cipher) sectors(dst, src []byte, sector uint64, encrypt bool) {
	var buf [16]byte
	iv := buf[:c.data.BlockSize()]
	var chain cipher.BlockMode
	if c.mode == "cbc" {
		pool := &c.dec
		if encrypt {
			pool = &c.enc
		}
		chain = pool.Get().(cipher.BlockMode)
		defer pool.Put(chain)
	}
	var tweaks *xtsTweaks
	if c.mode == "xts" {
		tweaks = xtsBuffers.Get().(*xtsTweaks)
		defer xtsBuffers.Put(tweaks)
	}
	for ; len(src) >= SectorSize; sector++ {
		c.iv(iv, sector)
		d, s := dst[:SectorSize:SectorSize], src[:SectorSize:SectorSize]
		switch c.mode {
		case "xts":
			tweaks.fill(c.tweak, iv)
			xtsSector(c.data, d, s, tweaks, encrypt)
		case "cbc":
			if m, ok := chain.(ivMode); ok {
				m.SetIV(iv)
			} else if encrypt {
				chain = cipher.NewCBCEncrypter(c.data, iv)
			} else {
				chain = cipher.NewCBCDecrypter(c.data, iv)
			}
			chain.CryptBlocks(d, s)
		case "ctr":
			cipher.NewCTR(c.data, iv).XORKeyStream(d, s)
		default:
			ecbSector(c.data, d, s, encrypt)
		}
		dst, src = dst[SectorSize:], src[SectorSize:]
	}
}

// iv makes the initialization vector of a sector.
func (c *Cipher) iv(iv []byte, sector uint64) {
	clear(iv)
	binary.LittleEndian.PutUint64(iv, sector&c.sectorMask)
	if c.essiv != nil {
		c.essiv.Encrypt(iv, iv)
	}
}

// ecbSector does whole blocks, each by itself.
func ecbSector(b cipher.Block, dst, src []byte, encrypt bool) {
	n := b.BlockSize()
	if encrypt {
		for ; len(src) >= n && len(dst) >= n; dst, src = dst[n:], src[n:] {
			b.Encrypt(dst[:n], src[:n])
		}
		return
	}
	for ; len(src) >= n && len(dst) >= n; dst, src = dst[n:], src[n:] {
		b.Decrypt(dst[:n], src[:n])
	}
}
