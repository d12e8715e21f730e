package qcow2

import (
	"cmp"
	"slices"

	"github.com/lamina-vm/lamina/block"
)

// giveBack takes one reference from each cluster of runs, to which nothing on
// disk refers any more, and gives the space of those without a reference back
// to the file system. The caller holds wbMu.
func (img *Image) giveBack(runs []freedRun) error {
	runs = joinRuns(runs)
	if d, ok := block.As[block.Discarder](img.file); ok {
		unused, err := img.lastReferences(runs)
		if err != nil {
			return err
		}
		// They still have their refcount, so nobody can take them yet.
		for _, r := range unused {
			off := r.first << img.g.clusterBits
			if n := min(r.n<<img.g.clusterBits, img.file.Size()-off); n > 0 {
				// Without it the file only keeps space that it could give back.
				_ = d.Discard(off, n)
			}
		}
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	for _, r := range runs {
		if err := img.addRefs(r.first, r.n, -1); err != nil {
			return err
		}
	}
	return nil
}

// joinRuns sorts runs and joins those that touch without overlapping. A
// cluster that lost more than one reference is in several.
func joinRuns(runs []freedRun) []freedRun {
	slices.SortFunc(runs, func(a, b freedRun) int { return cmp.Compare(a.first, b.first) })
	out := runs[:0]
	for _, r := range runs {
		if k := len(out); k > 0 && out[k-1].first+out[k-1].n == r.first && out[k-1].keep == r.keep {
			out[k-1].n += r.n
			continue
		}
		out = append(out, r)
	}
	return out
}

// lastReferences returns the clusters of sorted runs that have no other
// reference than the one that they lose. The place where compressed clusters
// are being packed is left if it is among them, so that nobody adds one.
func (img *Image) lastReferences(runs []freedRun) ([]freedRun, error) {
	img.mu.Lock()
	defer img.mu.Unlock()
	lost := map[int64]uint64{} // only clusters that are in more than one run
	for i := 1; i < len(runs); i++ {
		prev := runs[i-1]
		for c := runs[i].first; c < min(prev.first+prev.n, runs[i].first+runs[i].n); c++ {
			lost[c]++
		}
	}
	var out []freedRun
	for _, r := range runs {
		for c := r.first; c < r.first+r.n; c++ {
			refs, err := img.refcount(c)
			if err != nil {
				return nil, err
			}
			if refs != 1+lost[c] || r.keep {
				continue
			}
			if img.pack.cluster(img.g) == c {
				img.pack = packCursor{}
			}
			if k := len(out); k > 0 && out[k-1].first+out[k-1].n == c {
				out[k-1].n++
			} else {
				out = append(out, freedRun{first: c, n: 1})
			}
		}
	}
	return out, nil
}
