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
	w block.Writer

	mu     sync.Mutex // guards what follows
	events []Event
	acked  []int // acknowledged since the last barrier began to cover them
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
func Wrap(w block.Writer) *Disk { return &Disk{w: w} }

// Unwrap implements [block.Wrapper].
func (d *Disk) Unwrap() block.Node { return d.w }

// Len returns the number of events so far. Taken after a call has returned, a
// power loss from that event on may not undo what the call promised.
func (d *Disk) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.events)
}

// Log returns the events so far.
func (d *Disk) Log() Log {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.events)
}

// do records an event, carries it out, and notes that it was acknowledged.
// One that failed stays in the log: a part of it may have reached the disk.
func (d *Disk) do(e Event, run func() error) error {
	d.mu.Lock()
	i := len(d.events)
	d.events = append(d.events, e)
	d.mu.Unlock()
	err := run()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		d.acked = append(d.acked, i)
	case errors.Is(err, block.ErrOutOfRange), errors.Is(err, block.ErrReadOnly), errors.Is(err, block.ErrClosed), errors.Is(err, block.ErrUnsupported):
		d.events[i] = Event{Kind: Refused}
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
	d.mu.Lock()
	covered := d.acked
	d.acked = nil
	d.mu.Unlock()
	err := d.w.Flush()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.acked = append(covered, d.acked...)
		return err
	}
	d.events = append(d.events, Event{Kind: Barrier, Durable: covered})
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
