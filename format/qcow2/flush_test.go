package qcow2

import (
	"testing"

	"github.com/lamina-vm/lamina/block/fault"
)

// TestBarriers holds that a flush costs at most five barriers however many
// clusters were allocated, and one if none was.
func TestBarriers(t *testing.T) {
	m := newModel(t, geometryCase{"barriers", 4 << 20, map[string]string{"cluster_size": "512"}, 0}, newSeed(t))
	if err := m.img.Close(); err != nil {
		t.Fatal(err)
	}
	m.file = m.file.Reopen()
	count := fault.Wrap(m.file)
	run := &crashRun{m: m}
	m.img, m.fixed = run.open(t, count), true
	p := make([]byte, 3000)
	for _, limit := range []int{5, 1} {
		for off := int64(0); off < 4<<20-3000; off += 7000 {
			fillRandom(m.r, p)
			copy(m.want[off:], p)
			if _, err := m.img.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		before := count.Count(fault.Flush)
		if err := m.img.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := count.Count(fault.Flush) - before; n < 1 || n > limit {
			t.Errorf("the flush cost %d barriers, at most %d are needed", n, limit)
		}
	}
	m.verify()
	m.verifyStock()
}
