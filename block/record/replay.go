package record

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// sector is what a disk writes wholly or not at all.
const sector = block.SectorSize

// Log is a sequence of events on one disk.
type Log []Event

// Prefixes yields, for each number of events from 0 to all, the disk as it is
// if exactly those have reached it, in order. base is what the disk held when
// the recording began; it is not changed. Each disk yielded is the caller's.
func (l Log) Prefixes(base *memory.Disk) iter.Seq2[int, *memory.Disk] {
	return func(yield func(int, *memory.Disk) bool) {
		now := base.Clone()
		for i := 0; ; i++ {
			if !yield(i, now.Clone()) || i == len(l) {
				return
			}
			l[i].Apply(now)
		}
	}
}

// Prefix returns the disk after the first n events.
func (l Log) Prefix(base *memory.Disk, n int) *memory.Disk {
	now := base.Clone()
	for _, e := range l[:n] {
		e.Apply(now)
	}
	return now
}

// Crash returns the disk as a power loss after the first n events may leave
// it: everything that a barrier made durable is there; of the rest each change
// is there or not, in any order, and a write may be there in some of its
// sectors only. The choice is r's.
func (l Log) Crash(base *memory.Disk, n int, r *rand.Rand) *memory.Disk {
	durable := make([]bool, n)
	for _, e := range l[:n] {
		for _, i := range e.Durable {
			durable[i] = true
		}
	}
	now := base.Clone()
	var rest []int
	for i, e := range l[:n] {
		switch {
		case durable[i]:
			e.Apply(now)
		case e.Kind < Barrier:
			rest = append(rest, i)
		}
	}
	r.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	for _, i := range rest {
		switch r.IntN(8) {
		case 0, 1, 2: // lost
		case 3:
			l[i].Tear(now, r)
		default:
			l[i].Apply(now)
		}
	}
	return now
}

// Apply carries an event out. Whatever the order, it fits: a write past the
// end makes the disk longer, a zero or discard there does nothing.
func (e Event) Apply(d *memory.Disk) {
	var err error
	switch e.Kind {
	case Write:
		err = grow(d, e.Off+e.N)
		if err == nil {
			_, err = d.WriteAt(e.Data, e.Off)
		}
	case Zero:
		err = grow(d, e.Off+e.N)
		if err == nil {
			err = d.WriteZeroes(e.Off, e.N, block.ZeroMayUnmap)
		}
	case Discard:
		if n := min(e.N, d.Size()-e.Off); n > 0 {
			err = d.Discard(e.Off, n)
		}
	case Resize:
		err = d.Resize(context.Background(), e.N, block.ResizeOptions{AllowShrink: true})
	}
	if err != nil {
		// Only a closed or read-only base can do that: a fault of the test.
		panic(fmt.Sprintf("replay %s: %v", e, err))
	}
}

// Tear writes some sectors of a write, and all of anything else.
func (e Event) Tear(d *memory.Disk, r *rand.Rand) {
	if e.Kind != Write {
		e.Apply(d)
		return
	}
	for off := e.Off; off < e.Off+e.N; {
		end := min((off/sector+1)*sector, e.Off+e.N)
		if r.IntN(2) == 0 {
			Event{Kind: Write, Off: off, N: end - off, Data: e.Data[off-e.Off : end-e.Off]}.Apply(d)
		}
		off = end
	}
}

func grow(d *memory.Disk, size int64) error {
	if size <= d.Size() {
		return nil
	}
	return d.Resize(context.Background(), size, block.ResizeOptions{})
}
