package image

import (
	"context"
	"iter"
	"math"

	"github.com/lamina-vm/lamina/block"
)

// MapExtent is a run of the guest's disk and where it comes from, in the
// terms of `qemu-img map`.
type MapExtent struct {
	Start, Length int64
	Depth         int  // layer of the chain, 0 is the image itself
	Present       bool // a layer holds the range (as data or as zeros)
	Zero          bool // reads as zeros
	Data          bool // stored in the layer's file
	Compressed    bool // stored compressed
	HasOffset     bool
	Offset        int64 // in the layer's file, if HasOffset
	// Filename is the file that Offset counts in, "" without one.
	Filename string
}

func (e MapExtent) follows(p MapExtent) bool {
	return e.Depth == p.Depth && e.Present == p.Present && e.Zero == p.Zero && e.Data == p.Data && e.Compressed == p.Compressed &&
		e.HasOffset == p.HasOffset && e.Filename == p.Filename && (!e.HasOffset || e.Offset == p.Offset+p.Length)
}

// Map iterates over the runs of [start, start+max) in ascending order,
// neighbours of one kind joined, without gaps. max < 0 means to the end of
// the disk; a range that reaches past the end is cut. Cancelling the context
// ends it with the context's error.
func (im *Image) Map(ctx context.Context, start, max int64) iter.Seq2[MapExtent, error] {
	size := im.Node().Size()
	n := size - start
	if max >= 0 && max < n {
		n = max
	}
	return func(yield func(MapExtent, error) bool) {
		if n <= 0 || start < 0 {
			return
		}
		var run MapExtent
		for e, err := range im.Node().Extents(start, n) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(MapExtent{}, err)
				return
			}
			next := im.mapExtent(e)
			if run.Length > 0 && next.follows(run) && run.Length <= math.MaxInt64-next.Length {
				run.Length += next.Length
				continue
			}
			if run.Length > 0 && !yield(run, nil) {
				return
			}
			run = next
		}
		if run.Length > 0 {
			yield(run, nil)
		}
	}
}

// mapExtent puts an extent in the words of the stock tool. A hole of a raw
// file is "present" (the layer has the offset) but not data; a cluster that
// is allocated over a hole of the file is both data and zero.
func (im *Image) mapExtent(e block.Extent) MapExtent {
	m := MapExtent{Start: e.Start, Length: e.Length, Depth: e.Depth}
	var layer *Layer
	if e.Depth < len(im.layers) {
		layer = im.layers[e.Depth]
	}
	raw := layer != nil && layer.Format == rawName
	switch e.Kind {
	case block.Unallocated:
		m.Zero = true
	case block.Zero:
		m.Present, m.Zero = true, true
	case block.Compressed:
		m.Present, m.Data, m.Compressed = true, true, true
	case block.Data:
		m.Present, m.Zero = true, e.ReadsZero
		m.Data = !e.ReadsZero || !raw
	}
	if e.HostOffset != block.NoHostOffset && e.Kind != block.Compressed {
		m.HasOffset, m.Offset = true, e.HostOffset
		if n, ok := block.As[interface{ Name() string }](e.File); ok {
			m.Filename = n.Name()
		} else if layer != nil {
			m.Filename = layer.fileName()
		}
	}
	return m
}
