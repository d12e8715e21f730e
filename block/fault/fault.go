// Package fault makes the requests of a disk fail on purpose, to test what
// the layers above do then.
package fault

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

// Op is a kind of request.
type Op uint8

// The requests that can fail.
const (
	Read Op = iota
	Write
	Zero
	Discard
	Flush
	Resize
	numOps
)

var opNames = [numOps]string{"read", "write", "zero", "discard", "flush", "resize"}

// String returns the request's name.
func (o Op) String() string {
	if o < numOps {
		return opNames[o]
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Rule makes requests fail.
type Rule struct {
	Op Op
	// After is how many requests of this kind pass before the rule begins,
	// counted from the moment in which the rule is added.
	After int
	// Times is how often it strikes. 0 means for ever.
	Times int
	// Err is the error. nil means EIO.
	Err error
	// Short is how many bytes of a read or write are done before it fails.
	Short int64
	// Where, if set, limits the rule to requests for which it is true.
	// Requests for which it is not do not count.
	Where func(off, n int64) bool
}

// Disk is a writable disk whose requests fail as its rules say. A request
// that fails is not passed on, but for the first bytes of a short one. A
// failed flush stays: every later one fails too, as the contract says.
type Disk struct {
	w block.Writer

	mu       sync.Mutex // guards what follows
	rules    []*Rule
	counts   [numOps]int
	flushErr error
}

var (
	_ block.Writer    = (*Disk)(nil)
	_ block.Zeroer    = (*Disk)(nil)
	_ block.Discarder = (*Disk)(nil)
	_ block.Resizer   = (*Disk)(nil)
	_ block.Wrapper   = (*Disk)(nil)
)

// Wrap returns w with faults by rules. Zeroing, discarding and resizing fail
// with [block.ErrUnsupported] where w cannot do that.
func Wrap(w block.Writer, rules ...Rule) *Disk {
	d := &Disk{w: w}
	for _, r := range rules {
		d.Add(r)
	}
	return d
}

// Add adds a rule.
func (d *Disk) Add(r Rule) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules = append(d.rules, &r)
}

// Heal drops all rules and forgets a failed flush, as opening the file again
// on a repaired disk would.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules, d.flushErr = nil, nil
}

// Count returns how many requests of a kind there were, failed ones included.
func (d *Disk) Count(op Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[op]
}

// Unwrap implements [block.Wrapper].
func (d *Disk) Unwrap() block.Node { return d.w }

// strike counts a request and returns the rule that makes it fail, if any.
func (d *Disk) strike(op Op, off, n int64) (short int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counts[op]++
	if op == Flush && d.flushErr != nil {
		return 0, d.flushErr
	}
	for i, r := range d.rules {
		if r.Op != op || r.Where != nil && !r.Where(off, n) {
			continue
		}
		if r.After > 0 {
			r.After--
			continue
		}
		if r.Times > 0 {
			if r.Times--; r.Times == 0 {
				d.rules = append(d.rules[:i:i], d.rules[i+1:]...)
			}
		}
		cause := r.Err
		if cause == nil {
			cause = syscall.EIO
		}
		err = fmt.Errorf("injected fault, %s %d bytes at %d: %w", op, n, off, cause)
		if op == Flush {
			d.flushErr = err
		}
		return min(r.Short, n), err
	}
	return 0, nil
}

// ReadAt implements [block.Node].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	short, err := d.strike(Read, off, int64(len(p)))
	if err == nil {
		return d.w.ReadAt(p, off)
	}
	n, readErr := d.w.ReadAt(p[:short], off)
	return n, errors.Join(err, readErr)
}

// WriteAt implements [block.Writer].
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	short, err := d.strike(Write, off, int64(len(p)))
	if err == nil {
		return d.w.WriteAt(p, off)
	}
	if short == 0 {
		return 0, err
	}
	n, writeErr := d.w.WriteAt(p[:short], off)
	return n, errors.Join(err, writeErr)
}

// Flush implements [block.Writer].
func (d *Disk) Flush() error {
	if _, err := d.strike(Flush, 0, 0); err != nil {
		return err
	}
	return d.w.Flush()
}

// WriteZeroes implements [block.Zeroer].
func (d *Disk) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if _, err := d.strike(Zero, off, n); err != nil {
		return err
	}
	z, ok := block.As[block.Zeroer](d.w)
	if !ok {
		return fmt.Errorf("zero: %w", block.ErrUnsupported)
	}
	return z.WriteZeroes(off, n, flags)
}

// Discard implements [block.Discarder].
func (d *Disk) Discard(off, n int64) error {
	if _, err := d.strike(Discard, off, n); err != nil {
		return err
	}
	dis, ok := block.As[block.Discarder](d.w)
	if !ok {
		return fmt.Errorf("discard: %w", block.ErrUnsupported)
	}
	return dis.Discard(off, n)
}

// Resize implements [block.Resizer]; a rule's Where gets the new size as the
// number of bytes at 0.
func (d *Disk) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if _, err := d.strike(Resize, 0, size); err != nil {
		return err
	}
	r, ok := block.As[block.Resizer](d.w)
	if !ok {
		return fmt.Errorf("resize: %w", block.ErrUnsupported)
	}
	return r.Resize(ctx, size, opts)
}

// Size implements [block.Node].
func (d *Disk) Size() int64 { return d.w.Size() }

// Extents implements [block.Node].
func (d *Disk) Extents(off, n int64) iter.Seq2[block.Extent, error] { return d.w.Extents(off, n) }

// Close implements [block.Node].
func (d *Disk) Close() error { return d.w.Close() }
