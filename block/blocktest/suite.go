// Package blocktest is the conformance suite of the block contract: every
// node that a format, protocol or wrapper makes has to pass it.
package blocktest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
)

// Suite says how to make the nodes under test.
type Suite struct {
	// New returns a new writable disk of exactly size bytes that reads as
	// zeros. size is a multiple of 512. The suite closes it.
	New func(t *testing.T, size int64) block.Writer

	// Reopen closes n, a node that New or Reopen returned, and opens the
	// same disk again. With readOnly the node has to refuse changes.
	Reopen func(t *testing.T, n block.Node, readOnly bool) block.Node

	// Check, if set, is called with every node that a test wrote to, while
	// it is open and flushed: a format checks its metadata here. It may
	// also run the stock tool on the file.
	Check func(t *testing.T, n block.Node)

	// Which optional abilities the node has to have. The suite fails if
	// that is not what it finds, so that no test falls out unseen.
	Zeroer, Discarder, Resizer bool

	// Dense says that the node stores every byte: it never knows of a range
	// that it reads as zeros.
	Dense bool

	// Unit is the granularity worth aiming at, for example the cluster
	// size: requests are placed around its multiples. 0 means 64 KiB.
	Unit int64

	// Operations is the number of random operations of the model test.
	// 0 means 1000.
	Operations int
}

// Run runs the whole suite, one subtest for each rule of the contract.
func Run(t *testing.T, s Suite) {
	t.Helper()
	if s.Unit == 0 {
		s.Unit = 64 << 10
	}
	if s.Operations == 0 {
		s.Operations = 1000
	}
	for _, c := range []struct {
		name string
		run  func(*testing.T, Suite)
	}{
		{"Abilities", testAbilities},
		{"New", testNew},
		{"End", testEnd},
		{"ZeroLength", testZeroLength},
		{"OutOfRange", testOutOfRange},
		{"Unaligned", testUnaligned},
		{"NotRetained", testNotRetained},
		{"Extents", testExtents},
		{"ExtentsRange", testExtentsRange},
		{"Reopen", testReopen},
		{"ReadOnly", testReadOnly},
		{"Closed", testClosed},
		{"Disjoint", testDisjoint},
		{"Overlapping", testOverlapping},
		{"WriteZeroes", testWriteZeroes},
		{"Discard", testDiscard},
		{"Grow", testGrow},
		{"Shrink", testShrink},
		{"Model", testModel},
	} {
		switch {
		case c.name == "WriteZeroes" && !s.Zeroer,
			c.name == "Discard" && !s.Discarder,
			(c.name == "Grow" || c.name == "Shrink") && !s.Resizer:
			continue // testAbilities holds that the node has none
		}
		t.Run(c.name, func(t *testing.T) { c.run(t, s) })
	}
}

// Seed returns the seed of a random test and logs it. It is always the same,
// so that what CI says is about the change, unless LAMINA_SEED in the
// environment has another one; 0 takes the time.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(20261123)
	if v := os.Getenv("LAMINA_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("LAMINA_SEED: %v", err)
		}
		seed = n
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with LAMINA_SEED=%d", seed)
	return seed
}

// Pattern fills p with bytes that depend on the seed and differ everywhere, so
// that misplaced data is seen, and that are never all zero in a sector.
func Pattern(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0x6c616d696e61))
	for i := 0; i < len(p); i += 8 {
		v := r.Uint64() | 1
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v)
			v >>= 8
		}
	}
}

// open makes a node that is closed at the end of the test.
func (s Suite) open(t *testing.T, size int64) block.Writer {
	t.Helper()
	n := s.New(t, size)
	if got := n.Size(); got != size {
		t.Fatalf("new disk has %d bytes, want %d", got, size)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n
}

// reopen reopens a node and closes the new one at the end of the test.
func (s Suite) reopen(t *testing.T, n block.Node, readOnly bool) block.Node {
	t.Helper()
	m := s.Reopen(t, n, readOnly)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close reopened: %v", err)
		}
	})
	return m
}

// finish flushes and checks a node that was written to.
func (s Suite) finish(t *testing.T, n block.Writer) {
	t.Helper()
	if err := n.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
	if s.Check != nil {
		s.Check(t, n)
	}
}
