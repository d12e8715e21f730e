package qcow2

// setChunkBits is log2 of the clusters in one chunk of a clusterSet.
const setChunkBits = 12

// clusterSet is a set of host clusters by index, sparse: it takes memory where
// it has members. The zero value is empty.
type clusterSet struct {
	chunks map[int64]*[1 << setChunkBits / 64]uint64
}

// add adds the clusters [first, first+n).
func (s *clusterSet) add(first, n int64) {
	if s.chunks == nil {
		s.chunks = map[int64]*[1 << setChunkBits / 64]uint64{}
	}
	for i := first; i < first+n; i++ {
		c := s.chunks[i>>setChunkBits]
		if c == nil {
			c = new([1 << setChunkBits / 64]uint64)
			s.chunks[i>>setChunkBits] = c
		}
		c[i&(1<<setChunkBits-1)/64] |= 1 << (i & 63)
	}
}

// remove removes the clusters [first, first+n).
func (s *clusterSet) remove(first, n int64) {
	for i := first; i < first+n; i++ {
		if c := s.chunks[i>>setChunkBits]; c != nil {
			c[i&(1<<setChunkBits-1)/64] &^= 1 << (i & 63)
		}
	}
}

// has reports whether cluster i is a member.
func (s *clusterSet) has(i int64) bool {
	c := s.chunks[i>>setChunkBits]
	return c != nil && c[i&(1<<setChunkBits-1)/64]&(1<<(i&63)) != 0
}

// first returns the first member of [i, i+n), or -1.
func (s *clusterSet) first(i, n int64) int64 {
	for end := i + n; i < end; {
		c := s.chunks[i>>setChunkBits]
		if c == nil {
			i = (i>>setChunkBits + 1) << setChunkBits
			continue
		}
		if i&63 == 0 && c[i&(1<<setChunkBits-1)/64] == 0 {
			i += 64
			continue
		}
		if c[i&(1<<setChunkBits-1)/64]&(1<<(i&63)) != 0 {
			return i
		}
		i++
	}
	return -1
}
