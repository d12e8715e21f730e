package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/block"
)

// Bounds of a conversion.
const (
	chunkSize      = 2 << 20 // bytes of one request; a multiple of every cluster size
	defaultWorkers = 8
	maxWorkers     = 16
)

// action is what happens to a run of the target.
type action uint8

const (
	doSkip    action = iota // it reads right already
	doZero                  // make it read as zeros
	doCopy                  // copy what is not zero
	doCompare               // write what the target does not read as already
)

// task is a run of the target within one chunk.
type task struct {
	seq    int64
	off, n int64
	action action
}

// conversion is a convert under way.
type conversion struct {
	opts         ConvertOptions // Format is the target's
	targetFormat string         // to open it with; "" leaves it to its name
	srcs         []source
	total        int64 // bytes of the target that are written

	dst      block.Writer
	zeroer   block.Zeroer           // nil if the target has none
	comp     block.CompressedWriter // nil unless compressing
	copier   block.RangeCopier      // nil unless asked for
	zeroInit bool                   // what is not written reads as zeros, or as the backing file

	backing     block.Node // of the target, nil if none
	backingSize int64
	sharedDepth int        // layer of the source that is the target's backing file, 0 if none
	against     block.Node // what doCompare compares with

	order orderer

	mu   sync.Mutex // guards what follows
	done int64
	sent int64     // bytes written, for the rate limit
	from time.Time // since when
}

// setTarget learns what the target can do.
func (c *conversion) setTarget(im *Image) error {
	w, ok := block.As[block.Writer](im.Node())
	if !ok {
		return block.ErrReadOnly
	}
	c.dst = w
	if c.opts.Bitmaps {
		if k, ok := bitmapKeeper(im.Node()); !ok || !k.KeepsBitmaps() {
			return ErrTargetBitmaps
		}
	}
	if im.Node().Size() < c.total {
		return ErrTargetTooSmall
	}
	c.zeroer, _ = block.As[block.Zeroer](im.Node())
	if c.opts.Compress {
		if c.comp, ok = block.As[block.CompressedWriter](im.Node()); !ok {
			return ErrNoCompression
		}
	}
	if c.opts.CopyRange {
		c.copier, _ = block.As[block.RangeCopier](im.Node())
	}
	layers := im.Layers()
	c.zeroInit = c.opts.TargetZero || !c.opts.NoCreate && !layers[0].file.IsDevice() && !(layers[0].data != nil && layers[0].data.IsDevice())
	if z, ok := block.As[block.ZeroIniter](im.Node()); ok && !c.opts.TargetZero {
		c.zeroInit = c.zeroInit && z.ZeroInit()
	}
	if len(layers) > 1 {
		c.backing = layers[1].Node
		c.backingSize = c.backing.Size()
		if c.opts.NoCreate {
			// What the target holds already hides its backing file, so only
			// a look at the target itself tells what need not be copied.
			c.against = im.Node()
		} else {
			c.against = c.backing
			c.sharedDepth = c.shared(layers[1])
		}
	}
	if !c.zeroInit && c.backing == nil && !c.opts.NoSparse && c.zeroer != nil {
		// One request is much quicker than one for each hole; where the
		// target cannot, holes are zeroed one by one. What a larger target
		// holds behind the copy is kept.
		err := c.zeroer.WriteZeroes(0, c.total, block.ZeroMayUnmap|block.ZeroNoFallback)
		c.zeroInit = err == nil
		if err != nil && !errors.Is(err, block.ErrUnsupported) {
			return &CopyError{Writing: true, Err: err}
		}
	}
	return nil
}

// shared returns the depth at which the source's chain goes on with the
// target's backing file, or 0.
func (c *conversion) shared(backing *Layer) int {
	if len(c.srcs) != 1 {
		return 0
	}
	for depth, l := range c.srcs[0].im.Layers() {
		if depth > 0 && l.Format == backing.Format && l.file.SameFile(backing.file) {
			return depth
		}
	}
	return 0
}

// classify says what to do with an extent of source s, in target offsets.
func (c *conversion) classify(e block.Extent) action {
	switch {
	case c.backing != nil && c.sharedDepth > 0 && e.Depth >= c.sharedDepth:
		return doSkip
	case c.backing != nil && c.opts.NoCreate && c.opts.BackingFile != "":
		return doCompare
	case c.backing != nil && c.sharedDepth == 0 && e.Start < c.backingSize && !c.opts.NoCreate:
		return doCompare
	case !e.IsZero():
		return doCopy
	case c.opts.NoSparse:
		return doCopy
	case c.zeroInit && (c.backing == nil || e.Start >= c.backingSize):
		return doSkip
	}
	return doZero
}

// plan goes through the sources' extents and hands out tasks in order.
func (c *conversion) plan(ctx context.Context, out chan<- task) error {
	seq, end := int64(0), int64(0)
	emit := func(off, n int64, a action) error {
		if c.comp != nil && a != doSkip {
			// Whole clusters, each once.
			size := c.comp.ClusterSize()
			to := min((off+n+size-1)/size*size, c.total)
			off = max(off/size*size, end)
			if n = to - off; n <= 0 {
				return nil
			}
			if a == doZero {
				a = doCopy // a part of it may be data
			}
		}
		if a != doSkip {
			end = max(end, off+n)
		}
		for n > 0 {
			t := task{seq: seq, off: off, n: min(n, chunkSize-off%chunkSize), action: a}
			if a == doSkip || a == doZero {
				t.n = n
			}
			off, n = off+t.n, n-t.n
			if a == doSkip {
				c.progress(t.n)
				continue
			}
			seq++
			select {
			case out <- t:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	for _, s := range c.srcs {
		known := s.start
		for e, err := range s.node.Extents(0, s.node.Size()) {
			if err != nil {
				return &CopyError{Status: true, Offset: known, Err: err}
			}
			known = s.start + e.End()
			e.Start += s.start
			// An extent across the end of the backing file is two.
			if cut := c.backingSize - e.Start; c.backing != nil && cut > 0 && cut < e.Length {
				head := e
				head.Length = cut
				if err := emit(head.Start, head.Length, c.classify(head)); err != nil {
					return err
				}
				e.Start, e.Length = e.Start+cut, e.Length-cut
			}
			if err := emit(e.Start, e.Length, c.classify(e)); err != nil {
				return err
			}
		}
		if gap := s.size - s.node.Size(); gap > 0 {
			zero := block.Extent{Start: s.start + s.node.Size(), Length: gap, Kind: block.Zero}
			if err := emit(zero.Start, zero.Length, c.classify(zero)); err != nil {
				return err
			}
		}
	}
	return nil
}

// run carries the plan out with several workers.
func (c *conversion) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	workers := c.opts.Workers
	if workers <= 0 {
		workers = defaultWorkers
	}
	workers = min(workers, maxWorkers)
	c.from = time.Now()
	c.order.init()
	stop := context.AfterFunc(ctx, c.order.abort)
	defer stop()
	tasks := make(chan task, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			w := worker{c: c}
			for t := range tasks {
				if ctx.Err() != nil {
					continue // drain
				}
				if err := w.do(ctx, t); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := c.plan(ctx, tasks)
	close(tasks)
	if err != nil {
		cancel(err)
	}
	wg.Wait()
	return context.Cause(ctx)
}

// progress counts n more bytes as done.
func (c *conversion) progress(n int64) {
	if c.opts.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = min(c.done+n, c.total)
	c.opts.Progress(c.done, c.total)
}

// throttle waits until n more bytes may be written.
func (c *conversion) throttle(ctx context.Context, n int64) error {
	if c.opts.RateLimit <= 0 {
		return nil
	}
	c.mu.Lock()
	due := c.from.Add(time.Duration(float64(c.sent) / float64(c.opts.RateLimit) * float64(time.Second)))
	c.sent += n
	c.mu.Unlock()
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// orderer lets tasks write one after the other.
type orderer struct {
	mu      sync.Mutex
	cond    *sync.Cond
	next    int64
	aborted bool
}

func (o *orderer) init() { o.cond = sync.NewCond(&o.mu) }

// wait returns when it is seq's turn, or false when there are no more turns.
func (o *orderer) wait(seq int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.next != seq && !o.aborted {
		o.cond.Wait()
	}
	return !o.aborted
}

func (o *orderer) finish() {
	o.mu.Lock()
	o.next++
	o.mu.Unlock()
	o.cond.Broadcast()
}

func (o *orderer) abort() {
	o.mu.Lock()
	o.aborted = true
	o.mu.Unlock()
	o.cond.Broadcast()
}

// worker does tasks, one at a time, with buffers of its own.
type worker struct {
	c        *conversion
	buf, cmp []byte
}

func (w *worker) do(ctx context.Context, t task) error {
	c := w.c
	offload := false
	var p []byte
	if t.action != doZero {
		offload = t.action == doCopy && c.copier != nil
		if !offload {
			if w.buf == nil {
				w.buf = make([]byte, chunkSize)
			}
			p = w.buf[:t.n]
			if err := c.read(p, t.off); err != nil {
				return err
			}
		}
	}
	if !c.opts.OutOfOrder && c.comp == nil {
		if !c.order.wait(t.seq) {
			return context.Cause(ctx)
		}
		defer c.order.finish()
	}
	var err error
	switch {
	case offload:
		err = w.offload(ctx, t)
	case t.action == doZero:
		err = c.writeZeroes(t.off, t.n)
	case t.action == doCompare:
		err = w.writeDifferent(ctx, p, t.off)
	default:
		err = c.write(ctx, p, t.off)
	}
	if err == nil {
		c.progress(t.n)
	}
	return err
}

// read fills p from the sources, which lie behind each other; what is past
// the end of one is zeros.
func (c *conversion) read(p []byte, off int64) error {
	for _, s := range c.srcs {
		if len(p) == 0 || off >= s.start+s.size {
			continue
		}
		n := min(int64(len(p)), s.start+s.size-off)
		if err := c.readSource(s, p[:n], off-s.start); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	clear(p)
	return nil
}

func (c *conversion) readSource(s source, p []byte, off int64) error {
	n, err := s.node.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	if !c.opts.Salvage {
		return &CopyError{Offset: s.start + off, Err: err}
	}
	// Sector by sector, to lose no more than must be.
	for len(p) > 0 {
		n := min(block.SectorSize, len(p))
		k, err := s.node.ReadAt(p[:n], off)
		if err != nil && !errors.Is(err, io.EOF) {
			k = 0
			if c.opts.Unreadable != nil {
				c.mu.Lock()
				c.opts.Unreadable(s.start+off, err)
				c.mu.Unlock()
			}
		}
		clear(p[k:n])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// write writes p but for its zeros.
func (c *conversion) write(ctx context.Context, p []byte, off int64) error {
	if c.comp != nil {
		return c.writeCompressed(ctx, p, off)
	}
	if c.opts.NoSparse {
		return c.writeData(ctx, p, off)
	}
	sparse := c.opts.Sparse
	if sparse <= 0 {
		sparse = zeroGrain
	}
	return zeroRuns(p, off, sparse, func(from, to int, zero bool) error {
		if !zero {
			return c.writeData(ctx, p[from:to], off+int64(from))
		}
		if c.zeroInit && (c.backing == nil || off+int64(from) >= c.backingSize) {
			return nil
		}
		return c.writeZeroes(off+int64(from), int64(to-from))
	})
}

func (c *conversion) writeData(ctx context.Context, p []byte, off int64) error {
	if err := c.throttle(ctx, int64(len(p))); err != nil {
		return err
	}
	if _, err := c.dst.WriteAt(p, off); err != nil {
		return &CopyError{Writing: true, Offset: off, Err: err}
	}
	return nil
}

func (c *conversion) writeZeroes(off, n int64) error {
	err := error(block.ErrUnsupported)
	if c.zeroer != nil {
		var flags block.ZeroFlags
		if !c.opts.NoSparse {
			flags = block.ZeroMayUnmap
		}
		err = c.zeroer.WriteZeroes(off, n, flags)
	}
	if errors.Is(err, block.ErrUnsupported) {
		zeros := make([]byte, min(n, chunkSize))
		for err = nil; n > 0 && err == nil; {
			k := min(n, int64(len(zeros)))
			_, err = c.dst.WriteAt(zeros[:k], off)
			off, n = off+k, n-k
		}
	}
	if err != nil {
		return &CopyError{Writing: true, Offset: off, Err: err}
	}
	return nil
}

// writeCompressed stores p, which begins on a cluster, cluster by cluster.
func (c *conversion) writeCompressed(ctx context.Context, p []byte, off int64) error {
	size := c.comp.ClusterSize()
	for len(p) > 0 {
		n := min(size, int64(len(p)))
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case !c.opts.NoSparse && isZero(p[:n]):
			if !c.zeroInit || c.backing != nil && off < c.backingSize {
				if err := c.writeZeroes(off, n); err != nil {
					return err
				}
			}
		case n < size && off+n < c.dst.Size():
			// The copy ends inside a cluster of a larger target.
			if err := c.writeData(ctx, p[:n], off); err != nil {
				return err
			}
		default:
			if err := c.throttle(ctx, n); err != nil {
				return err
			}
			err := c.comp.WriteCompressed(p[:n], off)
			if errors.Is(err, block.ErrUnsupported) && c.opts.NoCreate {
				// An existing target has a cluster there, which can only be
				// written as it is.
				_, err = c.dst.WriteAt(p[:n], off)
			}
			if err != nil {
				return &CopyError{Writing: true, Offset: off, Err: err}
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writeDifferent writes what the target does not read as already.
func (w *worker) writeDifferent(ctx context.Context, p []byte, off int64) error {
	c := w.c
	if w.cmp == nil {
		w.cmp = make([]byte, chunkSize)
	}
	q := w.cmp[:len(p)]
	if n, err := c.against.ReadAt(q, off); errors.Is(err, io.EOF) {
		clear(q[n:])
	} else if err != nil {
		return &CopyError{Offset: off, Err: err}
	}
	grain := int64(64 << 10)
	if c.comp != nil {
		grain = c.comp.ClusterSize()
	}
	for at := int64(0); at < int64(len(p)); {
		end := at
		for end < int64(len(p)) {
			n := min(grain, int64(len(p))-end)
			if bytes.Equal(p[end:end+n], q[end:end+n]) {
				break
			}
			end += n
		}
		if end == at {
			at += min(grain, int64(len(p))-at)
			continue
		}
		if err := c.write(ctx, p[at:end], off+at); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// offload has the kernel copy a run, or does it by hand.
func (w *worker) offload(ctx context.Context, t task) error {
	c := w.c
	for t.n > 0 {
		s := c.at(t.off)
		n := min(t.n, s.start+s.size-t.off)
		err := c.throttle(ctx, n)
		if err == nil {
			err = c.copier.CopyFrom(s.node, t.off-s.start, t.off, n)
		}
		if errors.Is(err, block.ErrUnsupported) {
			if w.buf == nil {
				w.buf = make([]byte, chunkSize)
			}
			if err = c.read(w.buf[:n], t.off); err == nil {
				err = c.writeData(ctx, w.buf[:n], t.off)
			}
		}
		if err != nil {
			return &CopyError{Writing: true, Offset: t.off, Err: err}
		}
		t.off, t.n = t.off+n, t.n-n
	}
	return nil
}

// at returns the source that holds the target's offset.
func (c *conversion) at(off int64) source {
	for _, s := range c.srcs {
		if off < s.start+s.size {
			return s
		}
	}
	return c.srcs[len(c.srcs)-1]
}
