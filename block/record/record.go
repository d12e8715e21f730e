// Package record keeps every change of a disk, in order and with the barriers,
// so that a test can see the disk as a power loss at any instant leaves it.
package record

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/lamina-vm/lamina/block"
)

// Kind is the kind of an event.
type Kind uint8

// The events.
const (
	Write Kind = iota
	Zero
	Discard
	Resize
	Barrier // a flush that worked
	Refused // a request that the disk turned down, changing nothing
)

// Event is a change or a barrier. Its position in the log is the instant in
// which it was asked for; a barrier's the instant in which it was done.
type Event struct {
	Kind Kind
	Disk int // which of a [Set]; 0 where there is only one
	Off  int64
	N    int64  // bytes; of Resize the new size
	Data []byte // of Write
	// Durable says, of Barrier, which events before it survive a power loss
	// from then on: those that were acknowledged when the flush began.
	Durable []int
}

// String describes the event.
func (e Event) String() string {
	switch e.Kind {
	case Write:
		return fmt.Sprintf("write %d+%d", e.Off, e.N)
	case Zero:
		return fmt.Sprintf("zero %d+%d", e.Off, e.N)
	case Discard:
		return fmt.Sprintf("discard %d+%d", e.Off, e.N)
	case Resize:
		return fmt.Sprintf("resize to %d", e.N)
	}
	if e.Kind == Refused {
		return "refused"
	}
	return "barrier"
}

// Disk is a writable disk that records its changes. Its methods are as safe
// for concurrent use as those of the disk below.
type Disk struct {
	w    block.Writer
	disk int
	log  *Set
}

// Set records several disks in one log, for what rests on the order in which
// they change. Its zero value is ready for use.
type Set struct {
	mu     sync.Mutex // guards what follows
	events []Event
	acked  map[int][]int // by disk: acknowledged since the last barrier began to cover them
}

// Wrap records the changes of w, which is the disk of the number given; the
// same disk may be wrapped several times, one after the other.
func (s *Set) Wrap(disk int, w block.Writer) *Disk { return &Disk{w: w, disk: disk, log: s} }

// Len returns the number of events so far.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// Log returns the events so far.
func (s *Set) Log() Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}

func (s *Set) ack(disk int, events ...int) {
	if s.acked == nil {
		s.acked = map[int][]int{}
	}
	s.acked[disk] = append(s.acked[disk], events...)
}

var (
	_ block.Writer    = (*Disk)(nil)
	_ block.Zeroer    = (*Disk)(nil)
	_ block.Discarder = (*Disk)(nil)
	_ block.Resizer   = (*Disk)(nil)
	_ block.Wrapper   = (*Disk)(nil)
)

// Wrap records the changes of w from now on. Zeroing, discarding and resizing
// fail with [block.ErrUnsupported] where w cannot do that.
func Wrap(w block.Writer) *Disk { return new(Set).Wrap(0, w) }

// Unwrap implements [block.Wrapper].
func (d *Disk) Unwrap() block.Node { return d.w }

// Len returns the number of events so far. Taken after a call has returned, a
// power loss from that event on may not undo what the call promised.
func (d *Disk) Len() int { return d.log.Len() }

// Log returns the events so far.
func (d *Disk) Log() Log { return d.log.Log() }

// do records an event, carries it out, and notes that it was acknowledged.
// One that failed stays in the log: a part of it may have reached the disk.
func (d *Disk) do(e Event, run func() error) error {
	s := d.log
	e.Disk = d.disk
	s.mu.Lock()
	i := len(s.events)
	s.events = append(s.events, e)
	s.mu.Unlock()
	err := run()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.ack(d.disk, i)
	case errors.Is(err, block.ErrOutOfRange), errors.Is(err, block.ErrReadOnly), errors.Is(err, block.ErrClosed), errors.Is(err, block.ErrUnsupported):
		s.events[i] = Event{Kind: Refused, Disk: d.disk}
	}
	return err
}

// WriteAt implements [block.Writer].
func (d *Disk) WriteAt(p []byte, off int64) (n int, err error) {
	if len(p) == 0 {
		return d.w.WriteAt(p, off)
	}
	err = d.do(Event{Kind: Write, Off: off, N: int64(len(p)), Data: slices.Clone(p)}, func() error {
		n, err = d.w.WriteAt(p, off)
		return err
	})
	return n, err
}

// WriteZeroes implements [block.Zeroer].
func (d *Disk) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	z, ok := block.As[block.Zeroer](d.w)
	if !ok {
		return fmt.Errorf("zero: %w", block.ErrUnsupported)
	}
	return d.do(Event{Kind: Zero, Off: off, N: n}, func() error { return z.WriteZeroes(off, n, flags) })
}

// Discard implements [block.Discarder].
func (d *Disk) Discard(off, n int64) error {
	dis, ok := block.As[block.Discarder](d.w)
	if !ok {
		return fmt.Errorf("discard: %w", block.ErrUnsupported)
	}
	return d.do(Event{Kind: Discard, Off: off, N: n}, func() error { return dis.Discard(off, n) })
}

// Resize implements [block.Resizer].
func (d *Disk) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	r, ok := block.As[block.Resizer](d.w)
	if !ok {
		return fmt.Errorf("resize: %w", block.ErrUnsupported)
	}
	return d.do(Event{Kind: Resize, N: size}, func() error { return r.Resize(ctx, size, opts) })
}

// Flush implements [block.Writer].
func (d *Disk) Flush() error {
	s := d.log
	s.mu.Lock()
	covered := s.acked[d.disk]
	delete(s.acked, d.disk)
	s.mu.Unlock()
	err := d.w.Flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.ack(d.disk, covered...)
		return err
	}
	s.events = append(s.events, Event{Kind: Barrier, Disk: d.disk, Durable: covered})
	return nil
}

// ReadAt implements [block.Node].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) { return d.w.ReadAt(p, off) }

// Size implements [block.Node].
func (d *Disk) Size() int64 { return d.w.Size() }

// Extents implements [block.Node].
func (d *Disk) Extents(off, n int64) iter.Seq2[block.Extent, error] { return d.w.Extents(off, n) }

// Close implements [block.Node].
func (d *Disk) Close() error { return d.w.Close() }
