package image

import "bytes"

// zeroGrain is the unit in which zeros are looked for: a host page, and the
// smallest hole that file systems make.
const zeroGrain = 4096

var zeroPage [zeroGrain]byte

// isZero reports whether p holds only zeros. Most data shows in the first or
// last word, so those are looked at before the rest.
func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), zeroGrain)
		if p[0] != 0 || p[n-1] != 0 || !bytes.Equal(p[:n], zeroPage[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// zeroRuns cuts p, which lies at guest offset off, into runs that are all
// zero and at least sparse bytes long, and runs that are not. Runs of zeros
// begin and end on a grain of the disk, or where p does.
func zeroRuns(p []byte, off, sparse int64, yield func(from, to int, zero bool) error) error {
	start, zeroFrom := 0, -1 // begin of the data not yet yielded, and of the zeros behind it
	flush := func(end int) error {
		if zeroFrom < 0 {
			return nil
		}
		from := zeroFrom
		zeroFrom = -1
		// A short run is not worth a hole, unless p is all of it.
		if int64(end-from) < sparse && (from > 0 || end < len(p)) {
			return nil
		}
		if from > start {
			if err := yield(start, from, false); err != nil {
				return err
			}
		}
		start = end
		return yield(from, end, true)
	}
	for at := 0; at < len(p); {
		n := min(int(zeroGrain-(off+int64(at))%zeroGrain), len(p)-at)
		if isZero(p[at : at+n]) {
			if zeroFrom < 0 {
				zeroFrom = at
			}
		} else if err := flush(at); err != nil {
			return err
		}
		at += n
	}
	if err := flush(len(p)); err != nil {
		return err
	}
	if start < len(p) {
		return yield(start, len(p), false)
	}
	return nil
}
