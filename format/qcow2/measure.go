package qcow2

import (
	"context"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.Measurer = Driver{}

// measurePlan is what of the creation options decides the size of an image.
type measurePlan struct {
	clusterSize   uint64
	refcountOrder uint
	entrySize     uint64 // of an L2 entry
	version       uint32
	allocated     bool // preallocated, so that the content does not matter
	backing       bool
}

// planMeasure reads the options. Texts and order of the checks are those of
// stock QEMU, which looks at fewer than when it makes an image.
func planMeasure(values map[string]string) (p measurePlan, err error) {
	p = measurePlan{clusterSize: 1 << 16, entrySize: 8, version: 3}
	if v, ok := values["extended_l2"]; ok {
		on, err := parseBool("extended_l2", v)
		if err != nil {
			return p, err
		}
		if on {
			p.entrySize = 16
		}
	}
	if v, ok := values["cluster_size"]; ok {
		if p.clusterSize, err = parseSize("cluster_size", v); err != nil {
			return p, err
		}
	}
	switch {
	case bits.OnesCount64(p.clusterSize) != 1 || p.clusterSize < 1<<minClusterBits || p.clusterSize > 1<<maxClusterBits:
		return p, unsupportedf("Cluster size must be a power of two between 512 and 2048k")
	case p.entrySize == 16 && p.clusterSize < 16<<10:
		return p, unsupportedf("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")
	}
	switch v, ok := values["compat"]; {
	case ok && v == "0.10":
		p.version = 2
	case ok && v != "1.1":
		return p, unsupportedf("Invalid compatibility level: '%s'", v)
	}
	width := uint64(16)
	if v, ok := values["refcount_bits"]; ok {
		if width, err = parseNumber("refcount_bits", v); err != nil {
			return p, err
		}
	}
	switch {
	case bits.OnesCount64(width) != 1 || width > 64:
		return p, unsupportedf("Refcount width must be a power of two and may not exceed 64 bits")
	case p.version < 3 && width != 16:
		return p, unsupportedf("Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)")
	}
	p.refcountOrder = uint(bits.TrailingZeros64(width))
	switch v := block.Preallocation(values["preallocation"]); v {
	case "", block.PreallocOff, block.PreallocMetadata:
	case block.PreallocFalloc, block.PreallocFull:
		p.allocated = true
	default:
		return p, unsupportedf("invalid parameter value: %s", string(v))
	}
	_, p.backing = values["backing_file"]
	return p, nil
}

// Measure implements [format.Measurer].
func (Driver) Measure(ctx context.Context, opts format.MeasureOptions) (m format.Measurement, err error) {
	p, err := planMeasure(opts.Values)
	if err != nil {
		return m, err
	}
	header, err := p.luksHeader(opts)
	if err != nil {
		return m, err
	}
	size := roundUp(uint64(opts.Size), p.clusterSize)
	if divUp(size/p.clusterSize, p.clusterSize/p.entrySize)*8 > maxL1Bytes {
		return m, unsupportedf("The image size is too large (try using a larger cluster size)")
	}
	required := uint64(0)
	if src := opts.Source; src != nil {
		size = roundUp(uint64(src.Size()), p.clusterSize)
		switch {
		case p.allocated:
		case p.backing || opts.BackingFile != "":
			// How much both share is not known here.
			required = size
		default:
			if required, err = p.contentBytes(ctx, src); err != nil {
				return m, err
			}
		}
		if b := opts.Bitmaps; b != nil && b.KeepsBitmaps() && p.version >= 3 {
			m.HasBitmaps = true
			m.Bitmaps = uint64(format.BitmapBytes(b.Bitmaps(), opts.BitmapsSize, int64(p.clusterSize)))
		}
	}
	if p.allocated {
		required = size
	}
	m.FullyAllocated = header + p.imageBytes(size)
	m.Required = m.FullyAllocated - size + required
	return m, nil
}

// luksHeader returns what the LUKS header with its key slots takes, in whole
// clusters, 0 where the image has none.
func (p measurePlan) luksHeader(opts format.MeasureOptions) (uint64, error) {
	if opts.Values["encrypt.format"] != "luks" {
		return 0, nil
	}
	var crypt cryptPlan
	for _, k := range slices.Sorted(maps.Keys(opts.Values)) {
		if strings.HasPrefix(k, cryptPrefix) {
			if err := crypt.set(k, opts.Values[k]); err != nil {
				return 0, err
			}
		}
	}
	if err := crypt.check(opts.Secrets); err != nil {
		return 0, err
	}
	return roundUp(uint64(crypt.bytes), p.clusterSize), nil
}

// contentBytes returns how much of a disk is stored, in whole clusters of the
// new image.
func (p measurePlan) contentBytes(ctx context.Context, src block.Node) (uint64, error) {
	n, next := uint64(0), int64(0) // what is before next is counted
	for e, err := range src.Extents(0, src.Size()) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return 0, &format.MeasureError{Offset: next, Err: err}
		}
		if e.IsZero() || e.End() <= next {
			continue
		}
		from := max(e.Start, next)
		end := int64(roundUp(uint64(e.End()), p.clusterSize))
		n += uint64(end) - uint64(from)/p.clusterSize*p.clusterSize
		next = end
	}
	return n, nil
}

// imageBytes returns the size of an image whose clusters are all allocated.
func (p measurePlan) imageBytes(size uint64) uint64 {
	cs := p.clusterSize
	meta := cs // the header
	entries := roundUp(size/cs, cs/p.entrySize)
	meta += entries * p.entrySize
	tables := roundUp(entries*p.entrySize/cs, cs/8)
	meta += tables * 8
	// Refcounts count their own clusters too: find the fixed point.
	clusters := (meta + size) / cs
	perBlock := cs * 8 >> p.refcountOrder
	blocks, table := uint64(0), uint64(0)
	for last, n := ^uint64(0), uint64(0); n != last; {
		last = n
		blocks = divUp(clusters+table+blocks, perBlock)
		table = divUp(blocks, cs/8)
		n = clusters + blocks + table
	}
	return meta + size + (blocks+table)*cs
}

func roundUp(n, unit uint64) uint64 { return divUp(n, unit) * unit }

// divUp is n/unit, rounded up, also for the largest n.
func divUp(n, unit uint64) uint64 {
	q := n / unit
	if n%unit != 0 {
		q++
	}
	return q
}
