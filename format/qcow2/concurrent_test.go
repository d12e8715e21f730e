package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

// TestConcurrent lets goroutines change interleaved stripes of one disk, so
// that they meet in clusters, tables and host clusters but not in bytes, while
// others read, map and flush.
func TestConcurrent(t *testing.T) {
	seed := newSeed(t)
	for _, c := range []geometryCase{
		{"512-64", 1 << 20, map[string]string{"cluster_size": "512", "refcount_bits": "64"}, 0},
		{"4k-backing", 1 << 20, map[string]string{"cluster_size": "4k"}, 700 << 10},
		{"16k-extended-backing", 1 << 20, map[string]string{"cluster_size": "16k", "extended_l2": "on"}, 700 << 10},
		{"64k-v2-backing", 4 << 20, map[string]string{"compat": "0.10"}, 4 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			const workers, stripe = 4, 1536
			m := newModel(t, c, seed)
			var wg, readers sync.WaitGroup
			errs := make(chan error, 2*workers)
			for w := range int64(workers) {
				r := rand.New(rand.NewPCG(seed, uint64(w)))
				wg.Go(func() { errs <- changeStripes(m, r, w, workers, stripe, 300) })
			}
			stop := make(chan struct{})
			for range 2 {
				readers.Go(func() { errs <- readAll(m.img, stop) })
			}
			wg.Wait()
			close(stop)
			readers.Wait()
			close(errs)
			for err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
			m.verify()
			m.verifyStock()
		})
	}
}

// changeStripes changes every workers-th stripe of the disk at random and
// checks what it reads there.
func changeStripes(m *model, r *rand.Rand, w, workers, stripe int64, ops int) error {
	stripes := int64(len(m.want)) / stripe / workers
	for range ops {
		off := (r.Int64N(stripes)*workers + w) * stripe
		n := r.Int64N(stripe) + 1
		want := m.want[off : off+n]
		var err error
		switch k := r.IntN(10); {
		case k < 6:
			fillRandom(r, want)
			_, err = m.img.WriteAt(want, off)
		case k < 8:
			clear(want)
			err = m.img.WriteZeroes(off, n, block.ZeroMayUnmap)
		case k < 9:
			got := make([]byte, n)
			if _, err = m.img.ReadAt(got, off); err == nil && !bytes.Equal(got, want) {
				err = fmt.Errorf("wrong data at %d, %d bytes", off, n)
			}
		default:
			err = m.img.Flush()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readAll reads and maps the disk until stop is closed.
func readAll(img *Image, stop <-chan struct{}) error {
	p := make([]byte, 200<<10)
	for off := int64(0); ; off = (off + 100<<10) % (img.Size() - int64(len(p))) {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := img.ReadAt(p, off); err != nil {
			return err
		}
		for _, err := range img.Extents(off, int64(len(p))) {
			if err != nil {
				return err
			}
		}
	}
}

// TestConcurrentCompressed packs compressed clusters from several goroutines.
func TestConcurrentCompressed(t *testing.T) {
	for _, method := range []string{"zlib", "zstd"} {
		t.Run(method, func(t *testing.T) {
			m := newModel(t, geometryCase{"compressed", 8<<20 + 512, map[string]string{"compression_type": method}, 0}, newSeed(t))
			fillRandom(m.r, m.want)
			var wg sync.WaitGroup
			errs := make(chan error, 4)
			cs := m.img.ClusterSize()
			for w := range int64(4) {
				wg.Go(func() {
					for off := w * cs; off < int64(len(m.want)); off += 4 * cs {
						if err := m.img.WriteCompressed(m.want[off:min(off+cs, int64(len(m.want)))], off); err != nil {
							errs <- err
							return
						}
					}
					errs <- nil
				})
			}
			wg.Wait()
			for range 4 {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
			m.verify()
			m.verifyStock()
		})
	}
}
