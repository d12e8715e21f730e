package seed

import (
	"crypto/sha512"
	"errors"
	"fmt"
)

// Bounds of a password: the hash costs time with its length.
const maxPassword = 256

const (
	cryptAlphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	cryptSaltLen  = 16
	cryptRounds   = 5000 // the scheme's default, which needs no rounds= in the string
)

var errLongPassword = errors.New("longer than 256 bytes")

// sha512Crypt hashes a password the way that crypt(3) does for "$6$", which
// every Linux guest understands. The salt is 1 to 16 characters of the crypt
// alphabet. The scheme is Ulrich Drepper's "Unix crypt using SHA-256 and
// SHA-512", version 0.6; the step numbers are its.
//
// Written here because the packages that do it are unmaintained, and it is
// one screen of code with vectors from two other implementations.
func sha512Crypt(password, salt string) (string, error) {
	if len(password) > maxPassword {
		return "", errLongPassword
	}
	if salt == "" || len(salt) > cryptSaltLen {
		return "", fmt.Errorf("salt of %d characters", len(salt))
	}
	p, s := []byte(password), []byte(salt)

	// Steps 4-8: digest B.
	b := digest(p, s, p)

	// Steps 1-3, 9-12: digest A.
	h := sha512.New()
	h.Write(p)
	h.Write(s)
	h.Write(repeatTo(b, len(p)))
	for n := len(p); n > 0; n >>= 1 {
		if n&1 == 1 {
			h.Write(b)
		} else {
			h.Write(p)
		}
	}
	a := h.Sum(nil)

	// Steps 13-16: P, as long as the password.
	h.Reset()
	for range p {
		h.Write(p)
	}
	pp := repeatTo(h.Sum(nil), len(p))

	// Steps 17-20: S, as long as the salt.
	h.Reset()
	for range 16 + int(a[0]) {
		h.Write(s)
	}
	ss := repeatTo(h.Sum(nil), len(s))

	// Step 21: the rounds.
	c := a
	for i := range cryptRounds {
		h.Reset()
		if i&1 == 1 {
			h.Write(pp)
		} else {
			h.Write(c)
		}
		if i%3 != 0 {
			h.Write(ss)
		}
		if i%7 != 0 {
			h.Write(pp)
		}
		if i&1 == 1 {
			h.Write(c)
		} else {
			h.Write(pp)
		}
		c = h.Sum(c[:0])
	}
	return "$6$" + salt + "$" + cryptEncode(c), nil
}

func digest(parts ...[]byte) []byte {
	h := sha512.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// repeatTo returns b over and over, n bytes in all.
func repeatTo(b []byte, n int) []byte {
	out := make([]byte, 0, n+len(b))
	for len(out) < n {
		out = append(out, b...)
	}
	return out[:n]
}

// cryptEncode is step 22: three bytes give four characters, lowest bits
// first. The bytes of a triple lie 21 apart and rotate by one each time.
func cryptEncode(d []byte) string {
	out := make([]byte, 0, 86)
	put := func(v uint, n int) {
		for range n {
			out = append(out, cryptAlphabet[v&63])
			v >>= 6
		}
	}
	i, j, k := 0, 21, 42
	for range 21 {
		put(uint(d[i])<<16|uint(d[j])<<8|uint(d[k]), 4)
		i, j, k = j+1, k+1, i+1
	}
	put(uint(d[63]), 2)
	return string(out)
}

// saltOf makes a salt that is the same for the same machine, so that a seed
// can be made again, and differs between machines, as a salt must. It says
// nothing about the password.
func saltOf(parts ...string) string {
	h := sha512.New()
	for _, p := range parts {
		// The length keeps ("ab","c") and ("a","bc") apart.
		_, _ = fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	sum := h.Sum(nil)
	out := make([]byte, cryptSaltLen)
	for i := range out {
		out[i] = cryptAlphabet[sum[i]&63]
	}
	return string(out)
}
