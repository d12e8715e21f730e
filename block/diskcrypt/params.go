package diskcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cast5"     //lint:ignore SA1019 volumes that exist have it
	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 volumes that exist have it
	"golang.org/x/crypto/twofish"   //lint:ignore SA1019 volumes that exist have it
)

// Params names the algorithms of an encryption, as QEMU does. The zero value
// of a field means QEMU's default.
type Params struct {
	CipherAlg  string // "aes-128", ..., "twofish-256"; default "aes-256"
	CipherMode string // "ecb", "cbc", "xts" or "ctr"; default "xts"
	IVGenAlg   string // "plain", "plain64" or "essiv"; default "plain64"
	// IVGenHashAlg is the hash of essiv, by default "sha256". With the other
	// generators it is recorded and has no effect.
	IVGenHashAlg string
	// HashAlg is the hash of PBKDF2 and of the anti-forensic splitter;
	// default "sha256".
	HashAlg string
}

// The names of QEMU's enumerations, in its order.
var (
	cipherAlgs  = []string{"aes-128", "aes-192", "aes-256", "des", "3des", "cast5-128", "serpent-128", "serpent-192", "serpent-256", "twofish-128", "twofish-192", "twofish-256"}
	cipherModes = []string{"ecb", "cbc", "xts", "ctr"}
	ivGenAlgs   = []string{"plain", "plain64", "essiv"}
	hashAlgs    = []string{"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"}
)

// withDefaults fills in what is not given.
func (p Params) withDefaults() Params {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&p.CipherAlg, "aes-256")
	def(&p.CipherMode, "xts")
	def(&p.IVGenAlg, "plain64")
	def(&p.HashAlg, "sha256")
	if p.IVGenAlg == "essiv" {
		def(&p.IVGenHashAlg, "sha256")
	}
	return p
}

// CheckNames refuses names that QEMU does not have; prefix stands before the
// names of the options in the texts.
func (p Params) CheckNames() error {
	for _, c := range []struct {
		name, value string
		of          []string
	}{
		{"cipher-alg", p.CipherAlg, cipherAlgs}, {"cipher-mode", p.CipherMode, cipherModes}, {"ivgen-alg", p.IVGenAlg, ivGenAlgs},
		{"ivgen-hash-alg", p.IVGenHashAlg, hashAlgs}, {"hash-alg", p.HashAlg, hashAlgs},
	} {
		if c.value != "" && !slices.Contains(c.of, c.value) {
			return unsupportedf("Parameter '%s' does not accept value '%s'", c.name, c.value)
		}
	}
	return nil
}

// cipherKeyBytes returns the length of the key of the block cipher itself.
func cipherKeyBytes(alg string) int {
	if alg == "cast5-128" {
		return 16
	}
	_, bits, _ := strings.Cut(alg, "-")
	n, err := strconv.Atoi(bits)
	if err != nil {
		return 0
	}
	return n / 8
}

// keyBytes returns the length of the whole key: XTS has two.
func (p Params) keyBytes() int {
	if p.CipherMode == "xts" {
		return 2 * cipherKeyBytes(p.CipherAlg)
	}
	return cipherKeyBytes(p.CipherAlg)
}

// check refuses combinations that cannot be; p has its defaults.
func (p Params) check() error {
	if p.CipherAlg == "des" || p.CipherAlg == "3des" {
		return unsupportedf("Algorithm '%s' not supported", p.CipherAlg)
	}
	if p.IVGenAlg == "essiv" {
		if _, err := p.essivCipher(); err != nil {
			return err
		}
	}
	if p.CipherMode == "xts" && p.CipherAlg == "cast5-128" {
		return unsupportedf("Unsupported cipher mode xts")
	}
	return nil
}

// essivCipher returns the cipher that encrypts the sector number: that of the
// data, with a key as long as the hash's digest.
func (p Params) essivCipher() (string, error) {
	family, _, _ := strings.Cut(p.CipherAlg, "-")
	n := newHash(p.IVGenHashAlg)().Size()
	if n == cipherKeyBytes(p.CipherAlg) && family != "cast5" {
		return p.CipherAlg, nil
	}
	titles := map[string]string{"aes": "AES", "serpent": "Serpent", "twofish": "Twofish"}
	title, ok := titles[family]
	switch {
	case !ok:
		return "", unsupportedf("Cipher %s not supported with essiv", p.CipherAlg)
	case n != 16 && n != 24 && n != 32:
		return "", unsupportedf("No %s cipher with key size %d available", title, n)
	}
	return family + "-" + strconv.Itoa(n*8), nil
}

// newHash returns the constructor of a hash of [hashAlgs].
func newHash(alg string) func() hash.Hash {
	switch alg {
	case "md5":
		return md5.New
	case "sha1":
		return sha1.New
	case "sha224":
		return sha256.New224
	case "sha384":
		return sha512.New384
	case "sha512":
		return sha512.New
	case "ripemd160":
		return ripemd160.New
	}
	return sha256.New
}

// newBlock returns the block cipher of an algorithm that check accepted.
func newBlock(alg string, key []byte) (cipher.Block, error) {
	family, _, _ := strings.Cut(alg, "-")
	if len(key) != cipherKeyBytes(alg) {
		return nil, unsupportedf("Cipher key length %d should be %d", len(key), cipherKeyBytes(alg))
	}
	switch family {
	case "aes":
		return aes.NewCipher(key)
	case "cast5":
		return cast5.NewCipher(key)
	case "twofish":
		return twofish.NewCipher(key)
	case "serpent":
		return newSerpent(key), nil
	}
	return nil, unsupportedf("Algorithm '%s' not supported", alg)
}
