// Package inflate decodes raw deflate streams (RFC 1951) from one buffer into
// another at once.
//
// A streaming decoder keeps a window, copies through it and can stop between
// any two bytes; a compressed cluster needs none of that, and without it the
// inner loop is about twice as fast.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// Errors of Decode.
var (
	// ErrTruncated: the stream ends before its last block does.
	ErrTruncated = errors.New("deflate stream is cut off")
	// ErrInvalid: the stream is not deflate.
	ErrInvalid = errors.New("deflate stream is invalid")
	// ErrNoEnd: a block has no code for its end. zlib refuses it as well,
	// other decoders go on until they have enough. It matches ErrInvalid.
	ErrNoEnd = fmt.Errorf("%w: a block has no code for its end", ErrInvalid)
)

// Sizes of the code tables: an index by the next bits of the stream and,
// behind it, the second-level tables of longer codes. The counts suffice for
// every complete code; others that need more are refused.
const (
	litBits, litSize   = 10, 1400
	distBits, distSize = 8, 512
	maxCodeLen         = 15
	maxLitSymbols      = 288
	maxDistSymbols     = 32
)

// An entry of a code table is
//
//	bits 0-3    bits of the code that this entry consumes; 0: no such code
//	bits 4-7    number of extra bits, or of index bits of the second level
//	bits 8-9    kind
//	bits 16-31  literal byte, base of the length or distance, or start of the
//	            second-level table
const (
	kindLiteral = iota << 8
	kindBase
	kindEnd
	kindSecond
	kindMask = 3 << 8
)

type decoder struct {
	lit    [litSize]uint32
	dist   [distSize]uint32
	lens   [maxLitSymbols + maxDistSymbols]uint8
	sorted [maxLitSymbols]uint16

	src  []byte
	pos  int
	bits uint64
	n    uint // valid bits
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

// Decode decodes src into dst until the stream ends or dst is full, and
// returns how many bytes it wrote. What follows the stream in src is ignored.
// Distances may reach back to the start of dst. It is safe for concurrent use.
func Decode(dst, src []byte) (int, error) {
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	d.src, d.pos, d.bits, d.n = src, 0, 0, 0
	defer func() { d.src = nil }()
	out := 0
	for {
		d.refill()
		if d.n < 3 {
			return out, ErrTruncated
		}
		final, kind := d.bits&1, d.bits>>1&3
		d.skip(3)
		var err error
		switch kind {
		case 0:
			out, err = d.stored(dst, out)
		case 1:
			if err = d.fixed(); err == nil {
				out, err = d.block(dst, out)
			}
		case 2:
			if err = d.dynamic(); err == nil {
				out, err = d.block(dst, out)
			}
		default:
			err = ErrInvalid
		}
		if err != nil || final == 1 || out == len(dst) {
			return out, err
		}
	}
}

// refill makes at least 56 bits valid, or all that there are.
func (d *decoder) refill() {
	if d.pos+8 <= len(d.src) {
		d.bits |= binary.LittleEndian.Uint64(d.src[d.pos:]) << d.n
		d.pos += int(63-d.n) >> 3
		d.n |= 56
		return
	}
	for d.n < 56 && d.pos < len(d.src) {
		d.bits |= uint64(d.src[d.pos]) << d.n
		d.pos++
		d.n += 8
	}
}

func (d *decoder) skip(n uint) {
	d.bits >>= n
	d.n -= n
}

// stored copies a block that is not compressed.
func (d *decoder) stored(dst []byte, out int) (int, error) {
	d.pos -= int(d.n >> 3)
	d.bits, d.n = 0, 0
	if d.pos+4 > len(d.src) {
		return out, ErrTruncated
	}
	n := int(binary.LittleEndian.Uint16(d.src[d.pos:]))
	if n != int(^binary.LittleEndian.Uint16(d.src[d.pos+2:])) {
		return out, ErrInvalid
	}
	d.pos += 4
	k := min(n, len(dst)-out)
	if d.pos+k > len(d.src) {
		return out, ErrTruncated
	}
	copy(dst[out:out+k], d.src[d.pos:])
	d.pos += n // may pass the end: then dst is full
	return out + k, nil
}

// fixed sets up the codes that need no description.
func (d *decoder) fixed() error {
	l := d.lens[:maxLitSymbols]
	for i := range l {
		switch {
		case i < 144:
			l[i] = 8
		case i < 256:
			l[i] = 9
		case i < 280:
			l[i] = 7
		default:
			l[i] = 8
		}
	}
	if err := d.build(d.lit[:], litBits, l, litEntry); err != nil {
		return err
	}
	l = d.lens[:maxDistSymbols]
	for i := range l {
		l[i] = 5
	}
	return d.build(d.dist[:], distBits, l, distEntry)
}

// codeOrder is the order in which the lengths of the code length code come.
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block.
func (d *decoder) dynamic() error {
	d.refill()
	if d.n < 14 {
		return ErrTruncated
	}
	lits, dists, codes := int(d.bits&31)+257, int(d.bits>>5&31)+1, int(d.bits>>10&15)+4
	d.skip(14)
	if lits > 286 || dists > 30 {
		return ErrInvalid
	}
	clear(d.lens[:19])
	for _, sym := range codeOrder[:codes] {
		if d.n < 3 {
			if d.refill(); d.n < 3 {
				return ErrTruncated
			}
		}
		d.lens[sym] = uint8(d.bits & 7)
		d.skip(3)
	}
	// The code length code has at most 7 bits; the distance table has room.
	if err := d.build(d.dist[:], 7, d.lens[:19], literalEntry); err != nil {
		return err
	}
	if err := d.codeLengths(lits + dists); err != nil {
		return err
	}
	if d.lens[256] == 0 {
		return ErrNoEnd
	}
	if err := d.build(d.lit[:], litBits, d.lens[:lits], litEntry); err != nil {
		return err
	}
	return d.build(d.dist[:], distBits, d.lens[lits:lits+dists], distEntry)
}

// codeLengths reads total code lengths.
func (d *decoder) codeLengths(total int) error {
	for i := 0; i < total; {
		d.refill()
		e := d.dist[d.bits&127]
		n := uint(e & 15)
		if n == 0 {
			return ErrInvalid
		}
		if d.n < n {
			return ErrTruncated
		}
		d.skip(n)
		sym := e >> 16
		if sym < 16 {
			d.lens[i] = uint8(sym)
			i++
			continue
		}
		var value uint8
		repeat, extra := 3, uint(2)
		switch sym {
		case 16:
			if i == 0 {
				return ErrInvalid
			}
			value = d.lens[i-1]
		case 17:
			extra = 3
		case 18:
			repeat, extra = 11, 7
		}
		if d.n < extra {
			return ErrTruncated
		}
		repeat += int(d.bits & (1<<extra - 1))
		d.skip(extra)
		if i+repeat > total {
			return ErrInvalid
		}
		for range repeat {
			d.lens[i] = value
			i++
		}
	}
	return nil
}

// block decodes the symbols of a compressed block.
func (d *decoder) block(dst []byte, out int) (int, error) {
	src, pos, bits, n := d.src, d.pos, d.bits, d.n
	for {
		if n < 48 { // enough for one length and distance with extra bits
			if pos+8 <= len(src) {
				bits |= binary.LittleEndian.Uint64(src[pos:]) << n
				pos += int(63-n) >> 3
				n |= 56
			} else {
				for n < 56 && pos < len(src) {
					bits |= uint64(src[pos]) << n
					pos++
					n += 8
				}
			}
		}
		e := d.lit[bits&(1<<litBits-1)]
		if e&kindMask == kindSecond {
			e = d.lit[(uint64(e>>16)+bits>>litBits&(1<<(e>>4&15)-1))%litSize]
		}
		used := uint(e & 15)
		if used == 0 {
			return out, d.noCode(n)
		}
		if used > n {
			return out, ErrTruncated
		}
		bits >>= used
		n -= used
		if e&kindMask == kindLiteral {
			if out >= len(dst) {
				return out, nil // full; what follows is not wanted
			}
			dst[out] = byte(e >> 16)
			out++
			continue
		}
		if e&kindMask == kindEnd {
			d.pos, d.bits, d.n = pos, bits, n
			return out, nil
		}
		if out >= len(dst) {
			return out, nil
		}
		extra := uint(e >> 4 & 15)
		length := int(e>>16) + int(bits&(1<<extra-1))
		bits >>= extra & 63
		f := d.dist[bits&(1<<distBits-1)]
		if f&kindMask == kindSecond {
			f = d.dist[(uint64(f>>16)+bits>>distBits&(1<<(f>>4&15)-1))%distSize]
		}
		usedDist, extraDist := uint(f&15), uint(f>>4&15)
		if n < extra+usedDist+extraDist {
			return out, ErrTruncated
		}
		if usedDist == 0 {
			return out, d.noCode(n)
		}
		bits >>= usedDist
		distance := int(f>>16) + int(bits&(1<<extraDist-1))
		bits >>= extraDist & 63
		n -= extra + usedDist + extraDist
		if distance > out {
			return out, ErrInvalid
		}
		if length >= len(dst)-out {
			length = len(dst) - out
		}
		from := out - distance
		if distance >= length {
			copy(dst[out:out+length], dst[from:from+length])
			out += length
			continue
		}
		// The copy overlaps itself: what is there doubles each time.
		for end := out + length; out < end; {
			out += copy(dst[out:end], dst[from:out])
		}
	}
}

// noCode says why no code matched.
func (d *decoder) noCode(n uint) error {
	if n < maxCodeLen {
		return ErrTruncated
	}
	return ErrInvalid
}
