package block_test

import (
	"errors"
	"math"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/protocol/memory"
)

func TestCheckRange(t *testing.T) {
	for _, c := range []struct {
		off, n, size int64
		ok           bool
	}{
		{0, 0, 0, true}, {0, 10, 10, true}, {10, 0, 10, true}, {9, 1, 10, true},
		{-1, 1, 10, false}, {0, -1, 10, false}, {11, 0, 10, false}, {9, 2, 10, false},
		{1, math.MaxInt64, 10, false}, {math.MaxInt64, math.MaxInt64, 10, false}, {math.MinInt64, 0, 10, false},
	} {
		err := block.CheckRange(c.off, c.n, c.size)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("%d+%d of %d: %v", c.off, c.n, c.size, err)
		}
	}
}

func TestFollows(t *testing.T) {
	p := block.Extent{Start: 0, Length: 10, Kind: block.Data, HostOffset: 100}
	for _, c := range []struct {
		name string
		e    block.Extent
		want bool
	}{
		{"next", block.Extent{Start: 10, Length: 5, Kind: block.Data, HostOffset: 110}, true},
		{"elsewhere in the file", block.Extent{Start: 10, Length: 5, Kind: block.Data, HostOffset: 111}, false},
		{"no host offset", block.Extent{Start: 10, Length: 5, Kind: block.Data, HostOffset: block.NoHostOffset}, false},
		{"a gap", block.Extent{Start: 11, Length: 5, Kind: block.Data, HostOffset: 111}, false},
		{"other kind", block.Extent{Start: 10, Length: 5, Kind: block.Zero, HostOffset: 110}, false},
		{"other layer", block.Extent{Start: 10, Length: 5, Kind: block.Data, Depth: 1, HostOffset: 110}, false},
		{"a hole", block.Extent{Start: 10, Length: 5, Kind: block.Data, HostOffset: 110, ReadsZero: true}, false},
		{"other file", block.Extent{Start: 10, Length: 5, Kind: block.Data, HostOffset: 110, File: memory.New(0)}, false},
	} {
		if got := c.e.Follows(p); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	a := block.Extent{Start: 0, Length: 10, HostOffset: block.NoHostOffset}
	b := block.Extent{Start: 10, Length: 10, HostOffset: block.NoHostOffset}
	if !b.Follows(a) {
		t.Error("two unallocated neighbours cannot be joined")
	}
}

// TestAs holds that abilities are found through wrappers, the nearest first.
func TestAs(t *testing.T) {
	m := memory.New(512)
	d := fault.Wrap(fault.Wrap(m))
	if got, ok := block.As[*memory.Disk](d); !ok || got != m {
		t.Error("the disk below the wrappers is not found")
	}
	if got, ok := block.As[block.Zeroer](d); !ok || got != block.Zeroer(d) {
		t.Error("the wrapper's own ability is passed by")
	}
	if _, ok := block.As[block.Checker](d); ok {
		t.Error("an ability that nobody has is found")
	}
	if _, ok := block.As[block.Checker](nil); ok {
		t.Error("nil has an ability")
	}
}
