package blocktest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

// testDisjoint has writers in ranges of their own, which share units and
// sectors, beside readers, flushes and extents.
func testDisjoint(t *testing.T, s Suite) {
	const writers = 8
	size := 8*s.Unit + 512
	n := s.open(t, size)
	want := make([]byte, size)
	errs := make(chan error, writers+2)
	stop := make(chan struct{})
	var writing, watching sync.WaitGroup
	for w := range int64(writers) {
		writing.Go(func() { errs <- writeStripes(n, want, w, writers) })
	}
	watching.Go(func() { errs <- watch(n, stop) })
	writing.Wait()
	close(stop)
	watching.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	RequireContent(t, n, want)
	RequireExtents(t, n, 0, size)
	s.finish(t, n)
	RequireContent(t, s.reopen(t, n, false), want)
}

// stripe is an odd width, so that neighbours share sectors and clusters.
const stripe = 1021

// writeStripes writes every w-th stripe in random order and reads each back.
// It touches only its own stripes of want.
func writeStripes(n block.Writer, want []byte, w, writers int64) error {
	r := rand.New(rand.NewPCG(uint64(w), 1))
	count := int64(len(want)) / (stripe * writers)
	for _, i := range r.Perm(int(count)) {
		off := (int64(i)*writers + w) * stripe
		p := want[off : off+stripe]
		Pattern(p, uint64(off)+7)
		if k, err := n.WriteAt(p, off); k != len(p) || err != nil {
			return fmt.Errorf("write %d bytes at %d: %d, %v", len(p), off, k, err)
		}
		got := make([]byte, stripe)
		if k, err := n.ReadAt(got, off); k != len(got) {
			return fmt.Errorf("read %d bytes at %d: %d, %v", len(got), off, k, err)
		}
		if !bytes.Equal(got, p) {
			return fmt.Errorf("stripe at %d is not what its only writer wrote", off)
		}
	}
	return nil
}

// watch reads, maps and flushes until told to stop.
func watch(n block.Writer, stop chan struct{}) error {
	p := make([]byte, 4096)
	for i := int64(0); ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		off := i * 4096 % (n.Size() - 4096)
		if k, err := n.ReadAt(p, off); k != len(p) {
			return fmt.Errorf("read %d bytes at %d: %d, %v", len(p), off, k, err)
		}
		at := int64(0)
		for e, err := range n.Extents(0, n.Size()) {
			if err != nil {
				return err
			}
			if e.Start != at {
				return fmt.Errorf("extent %+v, want one that starts at %d", e, at)
			}
			at = e.End()
		}
		if at != n.Size() {
			return fmt.Errorf("extents end at %d of %d", at, n.Size())
		}
		if i%16 == 0 {
			if err := n.Flush(); err != nil {
				return err
			}
		}
	}
}

// testOverlapping has writers of whole sectors of one byte each in the same
// place: every byte has to come from one of them.
func testOverlapping(t *testing.T, s Suite) {
	size := 2 * s.Unit
	n := s.open(t, size)
	var writing sync.WaitGroup
	errs := make([]error, 4)
	for w := range errs {
		writing.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for range 50 {
				length := 1 + r.Int64N(s.Unit)
				off := r.Int64N(size - length + 1)
				if _, err := n.WriteAt(bytes.Repeat([]byte{byte(w + 1)}, int(length)), off); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	writing.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, size)
	if k, err := n.ReadAt(got, 0); k != len(got) {
		t.Fatalf("read: %d, %v", k, err)
	}
	for i, b := range got {
		if int(b) > len(errs) {
			t.Fatalf("byte %d is %#x, which nobody wrote", i, b)
		}
	}
	s.finish(t, n)
	RequireContent(t, s.reopen(t, n, false), got)
}
