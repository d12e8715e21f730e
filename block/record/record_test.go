package record_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// TestConformance holds that recording changes nothing, and that the whole log
// replayed gives the disk: the model test is a random log.
func TestConformance(t *testing.T) {
	bases := map[block.Node]*memory.Disk{}
	wrap := func(m *memory.Disk) *record.Disk {
		d := record.Wrap(m)
		bases[d] = m.Clone()
		return d
	}
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer { return wrap(memory.New(size)) },
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			d := n.(*record.Disk).Unwrap().(*memory.Disk)
			if readOnly {
				return wrap(d.ReadOnly())
			}
			return wrap(d.Reopen())
		},
		Check: func(t *testing.T, n block.Node) {
			if t.Name() == "TestConformance/Overlapping" {
				return // the order of concurrent writes is not the log's
			}
			d := n.(*record.Disk)
			log := d.Log()
			blocktest.RequireSame(t, log.Prefix(bases[d], len(log)), d)
			blocktest.RequireSame(t, log.Crash(bases[d], len(log), rand.New(rand.NewPCG(1, 1))), d)
		},
		Zeroer: true, Discarder: true, Resizer: true,
	})
}

func write(t *testing.T, d *record.Disk, b byte, off int64, n int) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{b}, n), off); err != nil {
		t.Fatal(err)
	}
}

// TestPrefixes holds that each prefix is the disk as it was then.
func TestPrefixes(t *testing.T) {
	base := memory.NewFile()
	d := record.Wrap(base.Clone())
	var was [][]byte
	now := func() {
		was = append(was, d.Unwrap().(*memory.Disk).Bytes())
	}
	now()
	for i := range byte(5) {
		write(t, d, i+1, int64(i)*700, 1000)
		now()
	}
	if err := d.WriteZeroes(100, 2000, 0); err != nil {
		t.Fatal(err)
	}
	now()
	if err := d.Resize(t.Context(), 2500, block.ResizeOptions{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
	now()
	seen := 0
	for i, disk := range d.Log().Prefixes(base) {
		if !bytes.Equal(disk.Bytes(), was[i]) {
			t.Errorf("prefix of %d events differs", i)
		}
		seen++
	}
	if seen != len(was) || base.Size() != 0 {
		t.Errorf("%d prefixes, want %d; the base has %d bytes, want 0", seen, len(was), base.Size())
	}
}

// TestCrash holds what a power loss may do and what not: what a barrier
// covered stays, every other sector is old or new, and each mix comes up.
func TestCrash(t *testing.T) {
	base := memory.New(4 * 512)
	d := record.Wrap(base.Clone())
	write(t, d, 1, 0, 512)
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, d, 2, 512, 1024)
	write(t, d, 3, 1536, 512)
	r := rand.New(rand.NewPCG(blocktest.Seed(t), 4))
	states := map[[4]byte]int{}
	for range 2000 {
		p := d.Log().Crash(base, d.Len(), r).Bytes()
		var state [4]byte
		for s := range 4 {
			state[s] = p[s*512]
			if !bytes.Equal(p[s*512:s*512+512], bytes.Repeat(p[s*512:s*512+1], 512)) {
				t.Fatalf("sector %d is torn", s)
			}
		}
		states[state]++
	}
	for s := range states {
		if s[0] != 1 || s[1] != 0 && s[1] != 2 || s[2] != 0 && s[2] != 2 || s[3] != 0 && s[3] != 3 {
			t.Errorf("impossible state %v", s)
		}
	}
	if len(states) != 8 {
		t.Errorf("%d states came up, want all 8: %v", len(states), states)
	}
	// Before the barrier even the first write may be lost.
	lost := false
	for range 200 {
		lost = lost || d.Log().Crash(base, 1, r).Bytes()[0] == 0
	}
	if !lost {
		t.Error("a write without barrier was never lost")
	}
}

// TestFailedFlush holds that a flush that failed makes nothing durable.
func TestFailedFlush(t *testing.T) {
	f := fault.Wrap(memory.New(512), fault.Rule{Op: fault.Flush})
	d := record.Wrap(f)
	write(t, d, 1, 0, 512)
	if err := d.Flush(); err == nil {
		t.Fatal("the flush did not fail")
	}
	f.Heal()
	for _, e := range d.Log() {
		if e.Kind == record.Barrier {
			t.Error("a failed flush left a barrier")
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	log := d.Log()
	if last := log[len(log)-1]; last.Kind != record.Barrier || len(last.Durable) != 1 {
		t.Errorf("the next flush covers %v, want the one write", last.Durable)
	}
}
