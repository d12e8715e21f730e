package image

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

const (
	// rebaseWindow is the part of the disk whose extents are asked for at a
	// time, rebaseRanges how many are held.
	rebaseWindow = 1 << 30
	rebaseRanges = 1 << 16
	// rebaseBuffer is how much is read at a time, of each side.
	rebaseBuffer = 2 << 20
)

// copy copies what the overlay takes from the old backing file and the new one
// has otherwise. The overlay's own clusters are left alone.
func (r *rebasing) copy(ctx context.Context) error {
	c := &rebaseCopy{
		rebasing: r, top: r.im.Node(), w: r.im.Node().(block.Writer), unit: rebaseUnit(r.im.Node(), r.opts.Compress),
		old: make([]byte, rebaseBuffer), new: make([]byte, rebaseBuffer),
	}
	size := c.top.Size()
	for off := int64(0); off < size; {
		if r.opts.Progress != nil {
			r.opts.Progress(off, size)
		}
		n := min(rebaseWindow-off%rebaseWindow, size-off)
		ranges, next, err := c.taken(off, n)
		if err != nil {
			return &RebaseError{StepMap, off, err}
		}
		for _, e := range ranges {
			if err := c.compareRange(ctx, e[0], e[1]); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		off = next
	}
	return nil
}

// taken returns the parts of [off, off+n), by begin and end, that the overlay
// takes from layers which will not be there, or not alone, below it. They are
// those before next.
func (c *rebaseCopy) taken(off, n int64) (ranges [][2]int64, next int64, err error) {
	for e, err := range c.top.Extents(off, n) {
		if err != nil {
			return nil, 0, err
		}
		own := e.Depth == 0 && e.Kind != block.Unallocated
		if own || c.prefix > 0 && e.Depth >= c.prefix {
			continue // the new backing file decides the latter already
		}
		if k := len(ranges); k > 0 && ranges[k-1][1] == e.Start {
			ranges[k-1][1] = e.End()
			continue
		} else if k == rebaseRanges {
			return ranges, ranges[k-1][1], nil
		}
		ranges = append(ranges, [2]int64{e.Start, e.End()})
	}
	return ranges, off + n, nil
}

// rebaseCopy is the copying of a rebase.
type rebaseCopy struct {
	*rebasing
	top      block.Node
	w        block.Writer
	unit     int64 // what is copied if any of it differs
	old, new []byte
}

// rebaseUnit is what the overlay allocates at least: a cluster, or a subcluster
// of an image that has them; compressed, only whole clusters.
func rebaseUnit(n block.Node, compress bool) int64 {
	inf, ok := block.As[format.Informer](n)
	if !ok {
		return block.SectorSize
	}
	info, err := inf.ImageInfo()
	if err != nil || info.ClusterSize <= 0 {
		return block.SectorSize
	}
	for _, f := range info.Specific {
		if on, ok := f.Value.(bool); f.Key == "extended-l2" && ok && on && !compress {
			return max(info.ClusterSize/32, block.SectorSize)
		}
	}
	return info.ClusterSize
}

// compareRange compares one range that the overlay does not hold, by whole
// units as far as they lie in it.
func (c *rebaseCopy) compareRange(ctx context.Context, off, end int64) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		oldZero, n, err := zeroRun(c.top, off, end-off)
		if err != nil {
			return &RebaseError{StepMap, off, err}
		}
		newZero, k, err := zeroRun(c.next, off, n)
		if err != nil {
			return &RebaseError{StepReadNew, off, err}
		}
		n = min(n, k)
		if oldZero && newZero {
			skip := off + n
			if skip < end {
				skip -= skip % c.unit
			}
			if skip > off {
				off = skip
				continue
			}
		}
		upTo := min((off+n+c.unit-1)/c.unit*c.unit, off-off%c.unit+rebaseBuffer, end)
		if err := c.compare(off, upTo-off); err != nil {
			return err
		}
		off = upTo
		if c.opts.Progress != nil {
			c.opts.Progress(off, c.top.Size())
		}
	}
	return nil
}

// zeroRun says whether the disk is known to read as zeros at off, and for how
// long, up to n, that goes on. Behind the end of a disk, and of none, it does.
func zeroRun(disk block.Node, off, n int64) (zero bool, length int64, err error) {
	if disk == nil || off >= disk.Size() {
		return true, n, nil
	}
	for e, err := range disk.Extents(off, min(n, disk.Size()-off, rebaseWindow)) {
		if err != nil {
			return false, 0, err
		}
		if length == 0 {
			zero = e.IsZero()
		}
		if e.IsZero() != zero {
			break
		}
		length += e.Length
	}
	return zero, length, nil
}

// compare reads n bytes of both sides and copies the units that differ.
func (c *rebaseCopy) compare(off, n int64) error {
	old, now := c.old[:n], c.new[:n]
	if err := readFull(c.top, old, off); err != nil {
		return &RebaseError{StepReadOld, off, err}
	}
	clear(now)
	if c.next != nil && off < c.next.Size() {
		if err := readFull(c.next, now[:min(n, c.next.Size()-off)], off); err != nil {
			return &RebaseError{StepReadNew, off, err}
		}
	}
	for at := int64(0); at < n; {
		k := c.unitAt(off, at, n)
		if bytes.Equal(old[at:at+k], now[at:at+k]) {
			at += k
			continue
		}
		end := at + k
		for end < n {
			k := c.unitAt(off, end, n)
			if bytes.Equal(old[end:end+k], now[end:end+k]) {
				break
			}
			end += k
		}
		if err := c.write(old[at:end], off+at); err != nil {
			return &RebaseError{StepWrite, off + at, err}
		}
		at = end
	}
	return nil
}

// unitAt returns the length of the unit, or its part before n, at off+at.
func (c *rebaseCopy) unitAt(off, at, n int64) int64 {
	return min(c.unit-(off+at)%c.unit, n-at)
}

// write writes what the disk holds to the overlay; runs of zeros are recorded
// as such, whatever the new backing file has there.
func (c *rebaseCopy) write(p []byte, off int64) error {
	for len(p) > 0 {
		n := c.unitAt(off, 0, int64(len(p)))
		zero := isZero(p[:n])
		for n < int64(len(p)) {
			k := c.unitAt(off, n, int64(len(p)))
			if isZero(p[n:n+k]) != zero {
				break
			}
			n += k
		}
		if err := c.writeRun(p[:n], off, zero); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (c *rebaseCopy) writeRun(p []byte, off int64, zero bool) error {
	if z, ok := block.As[block.Zeroer](c.w); ok && zero {
		return z.WriteZeroes(off, int64(len(p)), block.ZeroExplicit|block.ZeroMayUnmap)
	}
	if c.opts.Compress {
		return c.writeCompressed(p, off)
	}
	_, err := c.w.WriteAt(p, off)
	return err
}

// writeCompressed writes whole clusters compressed. A part of one, which
// stands beside something that the overlay holds, is written as it is.
func (c *rebaseCopy) writeCompressed(p []byte, off int64) error {
	w, _ := block.As[block.CompressedWriter](c.w)
	cs := w.ClusterSize()
	for len(p) > 0 {
		n := min(cs-off%cs, int64(len(p)))
		var err error
		if off%cs == 0 && (n == cs || off+n == c.top.Size()) {
			err = w.WriteCompressed(p[:n], off)
		} else {
			_, err = c.w.WriteAt(p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readFull reads p, which lies in the disk.
func readFull(n block.Node, p []byte, off int64) error {
	got, err := n.ReadAt(p, off)
	if got == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
