package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
)

// Bounds of a comparison.
const (
	compareChunk   = 1 << 20 // bytes of one request
	compareWorkers = 4
)

// comparison is a compare under way.
type comparison struct {
	opts          CompareOptions
	sides         [2]*side
	common, total int64 // bytes that both disks have, and that the larger one has

	// limit is the offset of first, or the largest number: what begins there
	// or behind it need not be looked at any more.
	limit atomic.Int64

	mu    sync.Mutex // guards what follows, and Progress
	first *finding
	done  int64
	// queue is what is planned and not counted in done yet, in order: what
	// is behind a difference is not progress.
	queue []*comparePart
}

// comparePart is a run of the disk on its way.
type comparePart struct {
	n    int64
	done bool
}

// finding is a difference, or an error.
type finding struct {
	offset int64 // of the difference, or of the request that failed
	kind   DifferenceKind
	err    *CompareError
}

// found takes a finding over unless there is one in front of it.
func (c *comparison) found(f finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil || f.offset < c.first.offset {
		c.first = &f
		c.limit.Store(f.offset)
	}
}

// compareTask is a run to read: of both sides, or of one that is to be zeros.
type compareTask struct {
	off, n int64
	read   [2]bool
	part   *comparePart
}

// run returns the first finding, nil if there is none, or the error of ctx.
func (c *comparison) run(ctx context.Context) (*finding, error) {
	c.limit.Store(c.total)
	tasks := make(chan compareTask, compareWorkers)
	var wg sync.WaitGroup
	for range compareWorkers {
		wg.Go(func() {
			var w compareWorker
			for t := range tasks {
				if ctx.Err() == nil && t.off < c.limit.Load() {
					w.do(c, t)
				}
			}
		})
	}
	c.plan(ctx, tasks)
	close(tasks)
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.first, nil
}

// plan goes through the extents of both sides and hands out what must be read,
// in ascending order, until there is a finding.
func (c *comparison) plan(ctx context.Context, out chan<- compareTask) {
	a, b := newExtentCursor(c.sides[0]), newExtentCursor(c.sides[1])
	defer a.close()
	defer b.close()
	for off := int64(0); off < c.limit.Load() && ctx.Err() == nil; {
		t := compareTask{off: off, n: c.total - off}
		var status [2]status
		var runs [2]block.Extent
		for i, cur := range []*extentCursor{a, b} {
			if off >= cur.side.size {
				continue // the other one is longer
			}
			e, err := cur.at(off)
			if err != nil {
				c.found(finding{offset: off, err: &CompareError{Name: cur.side.name, Offset: off, Status: true, Tail: off >= c.common, Err: err}})
				return
			}
			t.n = min(t.n, e.Length)
			t.read[i] = !e.IsZero()
			status[i], runs[i] = cur.side.status(e), e
		}
		if off < c.common {
			t.n = min(t.n, c.common-off)
			if c.opts.Strict && status[0] != status[1] {
				c.found(finding{offset: off, kind: StatusDiffers})
				return
			}
			if sameBytes(c.sides[0], c.sides[1], runs[0], runs[1]) {
				t.read = [2]bool{}
			}
		}
		off += t.n
		if !t.read[0] && !t.read[1] {
			c.finish(c.expect(t.n, true))
			continue
		}
		for t.n > 0 {
			part := t
			part.n = min(t.n, compareChunk)
			part.part = c.expect(part.n, false)
			t.off, t.n = t.off+part.n, t.n-part.n
			select {
			case out <- part:
			case <-ctx.Done():
				return
			}
			if t.off >= c.limit.Load() {
				return
			}
		}
	}
}

// expect enters n more bytes into the queue.
func (c *comparison) expect(n int64, done bool) *comparePart {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := len(c.queue) - 1; done && k >= 0 && c.queue[k].done {
		c.queue[k].n += n
		return c.queue[k]
	}
	p := &comparePart{n: n, done: done}
	c.queue = append(c.queue, p)
	return p
}

// finish marks a part as done, and reports what is done up to the first that
// is not.
func (c *comparison) finish(p *comparePart) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.done = true
	before := c.done
	for len(c.queue) > 0 && c.queue[0].done {
		c.done += c.queue[0].n
		c.queue = c.queue[1:]
	}
	if c.opts.Progress != nil && c.done > before {
		c.opts.Progress(c.done, c.total)
	}
}

// extentCursor walks through the extents of one side.
type extentCursor struct {
	side *side
	next func() (block.Extent, error, bool)
	stop func()
	cur  block.Extent // Length 0 at the beginning
}

func newExtentCursor(s *side) *extentCursor {
	next, stop := iter.Pull2(s.node.Extents(0, s.size))
	return &extentCursor{side: s, next: next, stop: stop}
}

func (c *extentCursor) close() { c.stop() }

// at returns what is left from off, which ascends, of the extent there.
func (c *extentCursor) at(off int64) (block.Extent, error) {
	for off >= c.cur.End() {
		e, err, ok := c.next()
		if err != nil {
			return block.Extent{}, err
		}
		if !ok {
			return block.Extent{}, io.ErrUnexpectedEOF
		}
		c.cur = e
	}
	e := c.cur
	skip := off - e.Start
	e.Start, e.Length = off, e.Length-skip
	if e.HostOffset != block.NoHostOffset {
		e.HostOffset += skip
	}
	return e, nil
}

// compareWorker does tasks, one at a time, with buffers of its own.
type compareWorker struct{ bufs [2][]byte }

func (w *compareWorker) do(c *comparison, t compareTask) {
	var p [2][]byte
	for i, s := range c.sides {
		if !t.read[i] {
			continue
		}
		if w.bufs[i] == nil {
			w.bufs[i] = make([]byte, compareChunk)
		}
		p[i] = w.bufs[i][:t.n]
		n, err := s.node.ReadAt(p[i], t.off)
		if err != nil && !errors.Is(err, io.EOF) {
			c.found(finding{offset: t.off, err: &CompareError{Name: s.name, Offset: t.off, Tail: t.off >= c.common, Err: err}})
			return
		}
		clear(p[i][n:])
	}
	at := -1
	switch {
	case t.read[0] && t.read[1]:
		at = differentSector(p[0], p[1])
	case t.read[0]:
		at = differentSector(p[0], nil)
	default:
		at = differentSector(p[1], nil)
	}
	if at >= 0 {
		c.found(finding{offset: t.off + int64(at), kind: ContentDiffers})
		return
	}
	c.finish(t.part)
}

// differentSector returns the offset of the first sector of p that is not that
// of q, or not zeros where q is nil, or -1.
func differentSector(p, q []byte) int {
	if q == nil && isZero(p) || q != nil && bytes.Equal(p, q) {
		return -1
	}
	for at := 0; at < len(p); at += block.SectorSize {
		end := min(at+block.SectorSize, len(p))
		if q == nil && !isZero(p[at:end]) || q != nil && !bytes.Equal(p[at:end], q[at:end]) {
			return at
		}
	}
	return -1
}
