package inflate

import "math/bits"

// Bases and extra bits of the length symbols from 257 on and of the distance
// symbols (RFC 1951, 3.2.5).
var (
	lengthBase  = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [30]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = [30]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
)

// litEntry returns the table entry of a literal or length symbol, without the
// length of its code; 0 for symbols that must not occur.
func litEntry(sym uint16) (entry uint32, ok bool) {
	switch {
	case sym < 256:
		return uint32(sym)<<16 | kindLiteral, true
	case sym == 256:
		return kindEnd, true
	case int(sym)-257 < len(lengthBase):
		i := sym - 257
		return uint32(lengthBase[i])<<16 | uint32(lengthExtra[i])<<4 | kindBase, true
	}
	return 0, false
}

func distEntry(sym uint16) (entry uint32, ok bool) {
	if int(sym) >= len(distBase) {
		return 0, false
	}
	return uint32(distBase[sym])<<16 | uint32(distExtra[sym])<<4 | kindBase, true
}

func literalEntry(sym uint16) (entry uint32, ok bool) { return uint32(sym) << 16, true }

// build fills a table for the canonical code with the given lengths. Codes
// that are not there get the entry 0. A code with more words than its lengths
// allow is invalid; one with fewer is not, as long as no missing word is used.
func (d *decoder) build(table []uint32, root uint, lens []uint8, entry func(uint16) (uint32, bool)) error {
	var count [maxCodeLen + 1]int
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	var next, start [maxCodeLen + 2]int
	code, left, longest := 0, 1, uint(0)
	for l := 1; l <= maxCodeLen; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return ErrInvalid
		}
		code = (code + count[l-1]) << 1
		next[l] = code
		start[l+1] = start[l] + count[l]
		if count[l] > 0 {
			longest = uint(l)
		}
	}
	for sym, l := range lens {
		if l > 0 {
			d.sorted[start[l]] = uint16(sym)
			start[l]++
		}
	}
	if left > 0 || longest > root {
		clear(table)
	}
	second, prefix, secondBits := 1<<root, -1, uint(0)
	i := 0
	for l := uint(1); l <= longest; l++ {
		for range count[l] {
			sym := d.sorted[i]
			i++
			word := int(bits.Reverse16(uint16(next[l])) >> (16 - l))
			next[l]++
			e, ok := entry(sym)
			if !ok {
				e = 0 // an error when it is used
			} else {
				e |= uint32(l)
			}
			if l <= root {
				count[l]--
				for k := word; k < 1<<root; k += 1 << l {
					table[k] = e
				}
				continue
			}
			if p := word & (1<<root - 1); p != prefix {
				if prefix >= 0 {
					second += 1 << secondBits
				}
				prefix = p
				secondBits = secondLevelBits(&count, l, root, longest)
				if second+1<<secondBits > len(table) {
					return ErrInvalid
				}
				table[p] = uint32(second)<<16 | uint32(secondBits)<<4 | kindSecond | uint32(root)
			}
			for k := word >> root; k < 1<<secondBits; k += 1 << (l - root) {
				table[second+k] = e
			}
			count[l]--
		}
	}
	return nil
}

// secondLevelBits returns how many bits index the table of the codes that
// share a prefix, the first of which has l bits; count holds the codes of each
// length that are not in the table yet.
func secondLevelBits(count *[maxCodeLen + 1]int, l, root, longest uint) uint {
	n := l - root
	for left := 1 << n; n+root < longest; {
		if left -= count[n+root]; left <= 0 {
			break
		}
		n++
		left <<= 1
	}
	return n
}
