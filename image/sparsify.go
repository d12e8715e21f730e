package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/file"
)

// SparsifyOptions are the choices of [Sparsify].
type SparsifyOptions struct {
	Format    string // as in Options
	Cache     CacheMode
	Untrusted bool           // as in Options
	Secrets   format.Secrets // as in Options
	// Progress receives the bytes of the disk that were looked at, of the
	// total, ascending. May be nil.
	Progress func(done, total int64)
}

// SparsifyResult says what Sparsify gained.
type SparsifyResult struct {
	// Before and After are the bytes that the image's file takes on the host.
	Before, After int64
	// Zeroed is the number of bytes of the disk that were stored as zeros
	// and are no more.
	Zeroed int64
	// ProbedRaw says that the format was guessed to be raw.
	ProbedRaw bool
}

// Sparsify looks through what the image itself stores, and gives back the
// space of what reads as zeros: whole clusters of a format that has them,
// 4 KiB of a raw file. The guest sees the same disk at every instant, also
// when it is cancelled. The image must not be in use.
func Sparsify(ctx context.Context, name string, opts SparsifyOptions) (res SparsifyResult, err error) {
	im, err := Open(ctx, name, Options{Format: opts.Format, Cache: opts.Cache, Writable: true, Untrusted: opts.Untrusted, Secrets: opts.Secrets})
	if err != nil {
		return res, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, im.Close())
		}
	}()
	top := im.layers[0]
	res.ProbedRaw = top.ProbedRaw()
	if res.Before, err = top.DiskSize(); err != nil {
		return res, err
	}
	s, err := newSparsifier(ctx, im, opts.Progress)
	if err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	err = s.run()
	res.Zeroed = s.zeroed
	if err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	if opts.Cache != CacheUnsafe {
		if err := s.w.Flush(); err != nil {
			return res, fmt.Errorf("%s: %w", name, err)
		}
	}
	// What the format frees at last is counted too, so it is closed first.
	path := top.file.Name()
	closed = true
	if err := im.Close(); err != nil {
		return res, err
	}
	res.After, err = diskSizeOf(path)
	return res, err
}

// sparsifier is a Sparsify under way.
type sparsifier struct {
	ctx      context.Context
	disk     block.Node
	w        block.Writer
	zeroer   block.Zeroer
	grain    int64
	progress func(done, total int64)
	zeroed   int64
	buf      []byte
}

func newSparsifier(ctx context.Context, im *Image, progress func(done, total int64)) (*sparsifier, error) {
	s := &sparsifier{ctx: ctx, disk: im.Node(), grain: zeroGrain, progress: progress, buf: make([]byte, chunkSize)}
	var ok bool
	if s.w, ok = block.As[block.Writer](s.disk); !ok {
		return nil, block.ErrReadOnly
	}
	if s.zeroer, ok = block.As[block.Zeroer](s.disk); !ok {
		return nil, unsupported("giving space back in an image of format " + im.Format())
	}
	if inf, ok := block.As[format.Informer](s.disk); ok {
		info, err := inf.ImageInfo()
		if err != nil {
			return nil, err
		}
		s.grain = max(s.grain, info.ClusterSize)
	}
	return s, nil
}

// run goes through the disk in stretches, so that the changes that it makes
// are not those of a run that it still iterates over.
func (s *sparsifier) run() error {
	size := s.disk.Size()
	for off := int64(0); off < size; {
		var list []block.Extent
		end := size
		for e, err := range s.disk.Extents(off, size-off) {
			if err != nil {
				return err
			}
			if list = append(list, e); len(list) == 1024 {
				end = e.End()
				break
			}
		}
		for _, e := range list {
			if err := s.extent(e); err != nil {
				return err
			}
			if s.progress != nil {
				s.progress(e.End(), size)
			}
		}
		off = end
	}
	return nil
}

// extent frees what an extent stores for nothing.
func (s *sparsifier) extent(e block.Extent) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	switch {
	case e.Depth > 0 || e.Kind == block.Unallocated, e.Kind == block.Zero && e.HostOffset == block.NoHostOffset:
		return nil
	case e.IsZero():
		return s.free(e.Start, e.End(), e.Kind == block.Data)
	}
	// Whole grains only: a part of one gives nothing back.
	at := (e.Start + s.grain - 1) / s.grain * s.grain
	for at < e.End() {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		p := s.buf[:min(int64(len(s.buf)), e.End()-at)]
		if n, err := s.disk.ReadAt(p, at); err != nil && !(errors.Is(err, io.EOF) && n == len(p)) {
			return fmt.Errorf("at byte %d: %w", at, err)
		}
		if err := s.chunk(p, at); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}

// chunk frees the grains of p, which begins on one at off, that hold only zeros.
func (s *sparsifier) chunk(p []byte, off int64) error {
	start, end := off, off // of the zeros found last
	for at := int64(0); at < int64(len(p)); at += s.grain {
		n := min(s.grain, int64(len(p))-at)
		whole := n == s.grain || off+at+n == s.disk.Size()
		if whole && isZero(p[at:at+n]) {
			end = off + at + n
			continue
		}
		if err := s.free(start, end, true); err != nil {
			return err
		}
		start, end = off+at+n, off+at+n
	}
	return s.free(start, end, true)
}

// free makes [start, end), which reads as zeros, take no space; stored says
// that the zeros were.
func (s *sparsifier) free(start, end int64, stored bool) error {
	if end <= start {
		return nil
	}
	err := s.zeroer.WriteZeroes(start, end-start, block.ZeroMayUnmap|block.ZeroNoFallback)
	switch {
	case errors.Is(err, block.ErrUnsupported):
		return nil // the ends of an extent, or version 2 over a backing file
	case err != nil:
		return err
	}
	if stored {
		s.zeroed += end - start
	}
	return nil
}

// diskSizeOf returns the bytes that a closed file takes on the host.
func diskSizeOf(path string) (int64, error) {
	f, err := file.Open(path, file.Options{NoLock: true})
	if err != nil {
		return 0, err
	}
	n, err := f.DiskSize()
	return n, errors.Join(err, f.Close())
}
