package blocktest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// testModel runs random operations on the node and on a memory disk.
func testModel(t *testing.T, s Suite) {
	size := 32*s.Unit + 512
	m := &Model{
		Node:  s.open(t, size),
		Model: memory.New(size),
		Unit:  s.Unit,
		Rand:  rand.New(rand.NewPCG(Seed(t), 3)),
		Reopen: func(n block.Writer) block.Writer {
			s.finish(t, n)
			return s.reopen(t, n, false).(block.Writer)
		},
		MaxSize: 2 * size,
	}
	for range s.Operations {
		m.Step(t)
	}
	m.Compare(t)
	s.finish(t, m.Node)
}

// Model drives a node and a memory disk with the same random operations. Its
// fields are set by the caller; a format's own tests can add operations of
// their own between the steps.
type Model struct {
	Node  block.Writer
	Model *memory.Disk
	Unit  int64 // requests are placed around its multiples
	Rand  *rand.Rand
	// Reopen closes the node and returns it opened anew. nil: not done.
	Reopen func(block.Writer) block.Writer
	// MaxSize bounds Resize. 0: no resize.
	MaxSize int64

	ops int
	log [32]string // the last operations, for the failure's text
}

// Step runs one random operation on both and compares what it touched.
func (m *Model) Step(t testing.TB) {
	t.Helper()
	m.ops++
	switch k := m.Rand.IntN(1000); {
	case k < 450:
		off, n := m.place()
		p := make([]byte, n)
		Pattern(p, m.Rand.Uint64())
		m.note("write %d+%d", off, n)
		if w, err := m.Node.WriteAt(p, off); w != len(p) || err != nil {
			m.fail(t, "%d, %v", w, err)
		}
		if _, err := m.Model.WriteAt(p, off); err != nil {
			m.fail(t, "model: %v", err)
		}
	case k < 750:
		m.read(t)
	case k < 850:
		m.zero(t)
	case k < 920:
		m.discard(t)
	case k < 960:
		off, n := m.place()
		m.note("extents %d+%d", off, n)
		m.mapRange(t, off, n)
	case k < 980:
		m.note("flush")
		if err := m.Node.Flush(); err != nil {
			m.fail(t, "%v", err)
		}
	case k < 990:
		m.resize(t)
	default:
		if m.Reopen == nil {
			return
		}
		m.note("reopen")
		m.Node = m.Reopen(m.Node)
	}
}

// Compare compares the whole content, and the extents with it.
func (m *Model) Compare(t testing.TB) {
	t.Helper()
	m.note("compare")
	if m.Node.Size() != m.Model.Size() {
		m.fail(t, "size %d, want %d", m.Node.Size(), m.Model.Size())
	}
	size := m.Model.Size()
	for off := int64(0); off < size; off += window {
		m.same(t, off, min(window, size-off))
	}
	m.mapRange(t, 0, size)
}

// place returns a range: small, around a border, or large.
func (m *Model) place() (off, n int64) {
	size := m.Model.Size()
	if size == 0 {
		return 0, 0
	}
	switch m.Rand.IntN(4) {
	case 0:
		n = 1 + m.Rand.Int64N(4096)
	case 1:
		n = m.Unit
	case 2:
		n = 1 + m.Rand.Int64N(4*m.Unit)
	default:
		n = 512 * (1 + m.Rand.Int64N(64))
	}
	off = m.Rand.Int64N(size)
	if m.Rand.IntN(2) == 0 {
		off = off / m.Unit * m.Unit
		if m.Rand.IntN(2) == 0 {
			off = max(0, off-1-m.Rand.Int64N(600))
		}
	}
	return off, min(n, size-off)
}

func (m *Model) read(t testing.TB) {
	t.Helper()
	off, n := m.place()
	m.note("read %d+%d", off, n)
	m.same(t, off, n)
}

// same compares a range of both.
func (m *Model) same(t testing.TB, off, n int64) {
	t.Helper()
	got, want := make([]byte, n), make([]byte, n)
	if _, err := m.Model.ReadAt(want, off); err != nil {
		m.fail(t, "model: %v", err)
	}
	if k, err := m.Node.ReadAt(got, off); k != len(got) {
		m.fail(t, "read %d+%d: %d, %v", off, n, k, err)
	}
	if i := difference(got, want); i >= 0 {
		m.fail(t, "byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
	}
}

func (m *Model) zero(t testing.TB) {
	t.Helper()
	z, ok := m.Node.(block.Zeroer)
	if !ok {
		return
	}
	off, n := m.place()
	flags := block.ZeroFlags(m.Rand.IntN(2)) // with or without ZeroMayUnmap
	m.note("zero %d+%d flags %d", off, n, flags)
	if err := z.WriteZeroes(off, n, flags); err != nil {
		m.fail(t, "%v", err)
	}
	if err := m.Model.WriteZeroes(off, n, flags); err != nil {
		m.fail(t, "model: %v", err)
	}
}

// discard discards and lets the model take over what the node then reads,
// which has to be zeros or the bytes of before.
func (m *Model) discard(t testing.TB) {
	t.Helper()
	d, ok := m.Node.(block.Discarder)
	if !ok {
		return
	}
	off, n := m.place()
	m.note("discard %d+%d", off, n)
	if err := d.Discard(off, n); err != nil {
		m.fail(t, "%v", err)
	}
	got, old := make([]byte, n), make([]byte, n)
	if _, err := m.Model.ReadAt(old, off); err != nil {
		m.fail(t, "model: %v", err)
	}
	if k, err := m.Node.ReadAt(got, off); k != len(got) {
		m.fail(t, "%d, %v", k, err)
	}
	for i, b := range got {
		if b != 0 && b != old[i] {
			m.fail(t, "byte %d is %#x, want 0 or %#x", off+int64(i), b, old[i])
		}
	}
	if _, err := m.Model.WriteAt(got, off); err != nil {
		m.fail(t, "model: %v", err)
	}
}

// mapRange compares the extents with the model's content.
func (m *Model) mapRange(t testing.TB, off, n int64) {
	t.Helper()
	at := off
	var last block.Extent
	for e, err := range m.Node.Extents(off, n) {
		if err != nil {
			m.fail(t, "%v", err)
		}
		if e.Start != at || e.Length < 1 || at > off && e.Follows(last) {
			m.fail(t, "extent %+v after %+v, want one that starts at %d and is merged", e, last, at)
		}
		if e.IsZero() {
			m.requireZero(t, e)
		}
		at, last = e.End(), e
	}
	if at != off+n {
		m.fail(t, "extents of %d+%d end at %d", off, n, at)
	}
}

func (m *Model) requireZero(t testing.TB, e block.Extent) {
	t.Helper()
	p := make([]byte, min(window, e.Length))
	for off := e.Start; off < e.End(); off += int64(len(p)) {
		p = p[:min(int64(len(p)), e.End()-off)]
		if k, err := m.Model.ReadAt(p, off); k != len(p) {
			m.fail(t, "model: %d, %v", k, err)
		}
		for i, b := range p {
			if b != 0 {
				m.fail(t, "byte %d is %#x but lies in a zero extent %+v", off+int64(i), b, e)
			}
		}
	}
}

func (m *Model) resize(t testing.TB) {
	t.Helper()
	r, ok := m.Node.(block.Resizer)
	if !ok || m.MaxSize == 0 {
		return
	}
	size := block.SectorSize * m.Rand.Int64N(m.MaxSize/block.SectorSize+1)
	m.note("resize %d to %d", m.Model.Size(), size)
	opts := block.ResizeOptions{AllowShrink: true}
	if err := r.Resize(t.Context(), size, opts); err != nil {
		m.fail(t, "%v", err)
	}
	if err := m.Model.Resize(t.Context(), size, opts); err != nil {
		m.fail(t, "model: %v", err)
	}
}

// note remembers an operation.
func (m *Model) note(format string, args ...any) {
	m.log[m.ops%len(m.log)] = fmt.Sprintf(format, args...)
}

// fail ends the test with the last operations.
func (m *Model) fail(t testing.TB, format string, args ...any) {
	t.Helper()
	for i := max(1, m.ops-len(m.log)+1); i <= m.ops; i++ {
		t.Logf("operation %d: %s", i, m.log[i%len(m.log)])
	}
	t.Fatalf("operation %d, %s: %s", m.ops, m.log[m.ops%len(m.log)], fmt.Sprintf(format, args...))
}
