package qcow2

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/record"
)

// TestTablesGrow makes the refcount table and the L1 table move, under the
// record of a power loss, and lets the stock tool judge the result.
func TestTablesGrow(t *testing.T) {
	seed := newSeed(t)
	for _, lazy := range []string{"off", "on"} {
		t.Run("lazy="+lazy, func(t *testing.T) {
			// 64 refcounts a block, 64 blocks a table cluster: 2 MiB of file.
			m := newModel(t, geometryCase{"grow", 1 << 20, map[string]string{"cluster_size": "512", "refcount_bits": "64", "lazy_refcounts": lazy}, 0}, seed)
			if err := m.img.Close(); err != nil {
				t.Fatal(err)
			}
			m.file = m.file.Reopen()
			run := &crashRun{m: m, base: m.file.Clone(), rec: record.Wrap(m.file)}
			m.img, m.fixed = run.open(t, run.rec), true
			run.note(true)
			p := make([]byte, 200<<10)
			fillRandom(m.r, p)
			for off := int64(0); off < 5<<20; off += int64(len(p)) {
				if end := off + int64(len(p)); end > int64(len(m.want)) {
					size := end + 300<<10
					if err := m.img.Resize(context.Background(), size, block.ResizeOptions{}); err != nil {
						t.Fatal(err)
					}
					m.want = append(m.want, make([]byte, size-int64(len(m.want)))...)
					run.note(true)
				}
				if _, err := m.img.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				copy(m.want[off:], p)
				run.note(false)
			}
			tables := m.img.hdr.refTableClusters
			if tables < 2 || m.img.hdr.l1Size <= 64 {
				t.Fatalf("refcount table has %d clusters, L1 table %d entries: neither was to stay in one cluster", tables, m.img.hdr.l1Size)
			}
			m.verify()
			m.verifyStock()
			r := rand.New(rand.NewPCG(seed, 1))
			log := run.rec.Log()
			for range 40 {
				n := r.IntN(len(log) + 1)
				if err := run.check(n, log.Crash(run.base, n, r)); err != nil {
					t.Fatalf("power loss after %d of %d events: %v", n, len(log), err)
				}
			}
		})
	}
}

// TestCacheBounds holds that more L2 slices than the cache keeps are written
// back and read again.
func TestCacheBounds(t *testing.T) {
	m := newModel(t, geometryCase{"bounds", 8 << 20, map[string]string{"cluster_size": "512"}, 0}, newSeed(t))
	m.img.l2.limit = 16
	m.img.refs.limit = 4
	p := make([]byte, 700)
	for range 3000 {
		fillRandom(m.r, p)
		off := m.r.Int64N(8<<20 - 700)
		if _, err := m.img.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(m.want[off:], p)
	}
	if n := len(m.img.l2.slices); n > 2*16 {
		t.Errorf("%d slices are cached, the limit is 16", n)
	}
	if n := len(m.img.refs.blocks); n > 3*4 {
		t.Errorf("%d refcount blocks are cached, the limit is 4", n)
	}
	m.verify()
	m.verifyStock()
}
