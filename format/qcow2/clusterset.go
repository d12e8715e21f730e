package qcow2

import "math/bits"

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
