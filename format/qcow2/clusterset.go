package qcow2

import (
	"iter"
	"maps"
	"math/bits"
	"slices"
)

// clusterSet is a set of host clusters by index, sparse: it takes memory where
// it has members, a few words for each 64 clusters, wherever a damaged table
// may point. The zero value is empty.
type clusterSet struct {
	words map[int64]uint64 // by cluster / 64
}

// add adds the clusters [first, first+n).
func (s *clusterSet) add(first, n int64) {
	if s.words == nil {
		s.words = map[int64]uint64{}
	}
	for i := first; i < first+n; {
		mask, next := wordMask(i, first+n)
		s.words[i>>6] |= mask
		i = next
	}
}

// remove removes the clusters [first, first+n).
func (s *clusterSet) remove(first, n int64) {
	for i := first; i < first+n; {
		mask, next := wordMask(i, first+n)
		if w := s.words[i>>6] &^ mask; w != 0 {
			s.words[i>>6] = w
		} else {
			delete(s.words, i>>6)
		}
		i = next
	}
}

// has reports whether cluster i is a member.
func (s *clusterSet) has(i int64) bool { return s.words[i>>6]&(1<<(i&63)) != 0 }

// first returns the first member of [i, i+n), or -1.
func (s *clusterSet) first(i, n int64) int64 {
	for end := i + n; i < end; {
		mask, next := wordMask(i, end)
		if w := s.words[i>>6] & mask; w != 0 {
			return i&^63 + int64(bits.TrailingZeros64(w))
		}
		i = next
	}
	return -1
}

// wordMask returns the bits of [i, end) in the word of i, and where the next
// word begins.
func wordMask(i, end int64) (mask uint64, next int64) {
	next = i&^63 + 64
	mask = ^uint64(0) << (i & 63)
	if end < next {
		mask &= 1<<(end&63) - 1
	}
	return mask, next
}

// runs iterates over the members as runs (first, n), in ascending order.
func (s *clusterSet) runs() iter.Seq2[int64, int64] {
	return func(yield func(first, n int64) bool) {
		first, n := int64(0), int64(0)
		for _, word := range slices.Sorted(maps.Keys(s.words)) {
			for w := s.words[word]; w != 0; {
				at := int64(bits.TrailingZeros64(w))
				k := int64(bits.TrailingZeros64(^(w >> at)))
				if word<<6+at != first+n {
					if n > 0 && !yield(first, n) {
						return
					}
					first, n = word<<6+at, 0
				}
				n += k
				if at+k >= 64 {
					break
				}
				w &^= 1<<(at+k) - 1
			}
		}
		if n > 0 {
			yield(first, n)
		}
	}
}
