package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/lamina-vm/lamina/block"
)

// Bounds of a bench.
const (
	maxBenchBuffers = 256 << 20 // bytes of all buffers
	maxBenchWorkers = 1024      // requests under way
)

// BenchOptions are the choices of [Image.Bench]. The zero value does nothing.
type BenchOptions struct {
	// Count is the number of requests, Depth how many are under way at a
	// time: at most 1024, and as many as fit into 256 MiB.
	Count, Depth int
	// Offset is the guest offset of the first request in bytes, Size the
	// bytes of each, and Step how far the next one is: 0 means Size. Behind
	// the end of the disk the offset begins again, from 0.
	Offset, Size, Step int64
	// Write writes instead of reading: bytes of the value Pattern. DANGER:
	// it overwrites what the disk holds.
	Write   bool
	Pattern byte
	// FlushInterval flushes after every so many writes; 0 is never. Those
	// under way end before the flush begins, unless NoDrain is set.
	FlushInterval int
	NoDrain       bool
}

// BenchError says which request of a bench failed.
type BenchError struct {
	Flush  bool
	Offset int64 // guest offset of the request, in bytes
	Err    error
}

// Error names the offset and the cause.
func (e *BenchError) Error() string {
	if e.Flush {
		return fmt.Sprintf("flush: %v", e.Err)
	}
	return fmt.Sprintf("request at guest offset %#x: %v", e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *BenchError) Unwrap() error { return e.Err }

// Bench sends requests to the disk and returns how long they took. A request
// that reaches past the end of the disk fails with EIO. Errors are a
// *[BenchError], block.ErrReadOnly, or that of ctx.
func (im *Image) Bench(ctx context.Context, opts BenchOptions) (time.Duration, error) {
	b := &bench{opts: opts, node: im.Node(), offset: opts.Offset}
	if opts.Write {
		var ok bool
		if b.writer, ok = block.As[block.Writer](im.Node()); !ok {
			return 0, block.ErrReadOnly
		}
	}
	if opts.Step == 0 {
		b.opts.Step = opts.Size
	}
	workers := min(opts.Depth, opts.Count, maxBenchWorkers)
	if opts.Size > 0 {
		workers = max(min(workers, int(maxBenchBuffers/opts.Size)), min(workers, 1))
	}
	for range workers {
		b.buffers = append(b.buffers, b.newBuffer())
		if opts.Write {
			break // one for all: nobody changes it
		}
	}
	start := time.Now()
	err := b.run(ctx, workers)
	took := time.Since(start)
	b.flushes.Wait()
	if err == nil {
		err = b.failed()
	}
	return took, err
}

// bench is one under way.
type bench struct {
	opts    BenchOptions
	node    block.Node
	writer  block.Writer // nil if it reads
	buffers [][]byte     // of each worker, or one for all
	flushes sync.WaitGroup

	err atomic.Pointer[BenchError] // the first

	mu     sync.Mutex // guards what follows
	offset int64      // of the next request
	left   int        // requests of this batch that are not sent
}

// newBuffer returns a buffer that can be given to O_DIRECT.
func (b *bench) newBuffer() []byte {
	const align = 4096
	p := make([]byte, b.opts.Size+align)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(p))) & (align - 1)
	p = p[skip : skip+uintptr(b.opts.Size)]
	for i := range p {
		p[i] = b.opts.Pattern
	}
	return p
}

// run sends all requests. With flushes it does so in batches, which end where
// those of the stock tool do: at the first multiple of the interval that is
// left once the queue was full.
func (b *bench) run(ctx context.Context, workers int) error {
	interval := b.opts.FlushInterval
	if !b.opts.Write {
		interval = 0
	}
	for left := b.opts.Count; left > 0 && workers > 0; {
		next := 0
		if interval > 0 {
			next = max(left-b.opts.Depth, 0) / interval * interval
		}
		if err := b.batch(ctx, left-next, workers); err != nil {
			return err
		}
		left = next
		switch {
		case interval == 0:
		case b.opts.NoDrain:
			b.flushes.Go(b.flush)
		default:
			b.flush()
		}
		if err := b.failed(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) flush() {
	if err := b.writer.Flush(); err != nil {
		b.err.CompareAndSwap(nil, &BenchError{Flush: true, Err: err})
	}
}

// failed returns the first error, without a nil pointer in it.
func (b *bench) failed() error {
	if err := b.err.Load(); err != nil {
		return err
	}
	return nil
}

// batch sends n requests.
func (b *bench) batch(ctx context.Context, n, workers int) error {
	b.left = n
	var wg sync.WaitGroup
	for i := range min(workers, n) {
		wg.Go(func() {
			p := b.buffers[min(i, len(b.buffers)-1)]
			for ctx.Err() == nil && b.err.Load() == nil {
				off, ok := b.take()
				if !ok {
					return
				}
				if err := b.request(p, off); err != nil {
					b.err.CompareAndSwap(nil, &BenchError{Offset: off, Err: err})
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.failed()
}

// take returns the offset of the next request, if there is one.
func (b *bench) take() (int64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		return 0, false
	}
	b.left--
	off := b.offset
	// Behind the end, as far as a first offset may lie, it wraps too.
	if size := b.node.Size(); size > 0 {
		b.offset = off%size + b.opts.Step%size
		b.offset %= size
	} else {
		b.offset = 0
	}
	return off, true
}

func (b *bench) request(p []byte, off int64) error {
	if off > b.node.Size()-int64(len(p)) {
		return syscall.EIO
	}
	if b.writer != nil {
		_, err := b.writer.WriteAt(p, off)
		return err
	}
	_, err := b.node.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil // nothing was asked for, at the end
	}
	return err
}
