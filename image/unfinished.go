package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// unfinishedFile is the bytes of an image's file while it is being filled.
// From before the first change until finish the first sector of the file is
// marked as the format's driver says, and what the sector should hold is kept
// here. The mark is durable before anything else changes, and all the rest is
// durable before the mark goes: whenever the program or the machine stops, the
// file is as it was, marked, or complete.
type unfinishedFile struct {
	w    block.Writer
	drv  format.Unfinished
	sync bool // false with CacheUnsafe, where the order of the writes must do
	// fresh says that the file was made for this image, or left marked.
	fresh bool

	// marked becomes true with the first change. finished says that the
	// first sector is passed through again.
	marked, finished atomic.Bool

	mu      sync.RWMutex // guards what follows and the file's first sector
	head    []byte       // what the sector should hold
	onFile  []byte       // what it holds
	written bool         // the head was written as data
}

var (
	_ block.Writer      = (*unfinishedFile)(nil)
	_ block.Zeroer      = (*unfinishedFile)(nil)
	_ block.Discarder   = (*unfinishedFile)(nil)
	_ block.Resizer     = (*unfinishedFile)(nil)
	_ block.RangeCopier = (*unfinishedFile)(nil)
	_ block.Wrapper     = (*unfinishedFile)(nil)
)

// newUnfinished returns file, which is empty or a device, as one that is
// marked at once.
func newUnfinished(file block.Node, drv format.Driver, sync bool) (*unfinishedFile, error) {
	u, err := openUnfinished(file, drv, sync)
	if u == nil || err != nil {
		return nil, err
	}
	u.fresh = true
	if drv.Name() == rawName {
		// Another format's image begins with its first write.
		u.head = make([]byte, format.HeadSize)
	}
	return u, u.begin()
}

// openUnfinished returns file as one that is marked with the first change,
// unless it is already. It returns nil for a format that has no mark.
func openUnfinished(file block.Node, drv format.Driver, sync bool) (*unfinishedFile, error) {
	m, ok := drv.(format.Unfinished)
	if !ok {
		return nil, nil
	}
	w, ok := file.(block.Writer)
	if !ok {
		return nil, block.ErrReadOnly
	}
	u := &unfinishedFile{w: w, drv: m, sync: sync}
	u.head = make([]byte, min(format.HeadSize, w.Size()))
	if _, err := w.ReadAt(u.head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	u.onFile = bytes.Clone(u.head)
	u.fresh = m.ClearUnfinished(u.head)
	u.marked.Store(u.fresh)
	return u, nil
}

// begin marks the file before its first change.
func (u *unfinishedFile) begin() error {
	if u.marked.Load() || u.finished.Load() {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mark()
}

// mark is begin for who holds mu.
func (u *unfinishedFile) mark() error {
	if u.marked.Load() || u.finished.Load() {
		return nil
	}
	if n := len(u.head); n > 0 && n < format.HeadSize && u.w.Size() == int64(n) {
		// The mark needs a whole sector, which the disk has anyway.
		if r, ok := block.As[block.Resizer](u.w); ok {
			if err := r.Resize(context.Background(), format.HeadSize, block.ResizeOptions{}); err != nil {
				return err
			}
			u.head = append(u.head, make([]byte, format.HeadSize-n)...)
		}
	}
	changed, err := u.put(true)
	if err == nil && changed && u.sync {
		err = u.w.Flush()
	}
	if err != nil {
		return fmt.Errorf("mark as unfinished: %w", err)
	}
	u.marked.Store(true)
	return nil
}

// put brings the file's first sector up to date and says whether that was
// needed. The caller holds mu.
func (u *unfinishedFile) put(marked bool) (changed bool, err error) {
	b := bytes.Clone(u.head)
	if marked {
		u.drv.MarkUnfinished(b)
	}
	if bytes.Equal(b, u.onFile) {
		return false, nil
	}
	if len(b) > 0 {
		if _, err := u.w.WriteAt(b, 0); err != nil {
			return true, err
		}
	}
	u.onFile = b
	return true, nil
}

// finish takes the mark away. The caller has flushed what it wrote.
func (u *unfinishedFile) finish() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.marked.Load() || u.finished.Load() {
		u.finished.Store(true)
		return nil
	}
	changed, err := u.put(false)
	if err == nil && changed {
		err = u.unmapHead()
	}
	if err == nil && changed && u.sync {
		err = u.w.Flush()
	}
	if err != nil {
		return fmt.Errorf("take the mark \"unfinished\" away: %w", err)
	}
	u.finished.Store(true)
	return nil
}

// headBlock is the file systems' usual block.
const headBlock = 4096

// unmapHead makes a hole of the first block again if it is all zeros and the
// mark was the only reason to write it.
func (u *unfinishedFile) unmapHead() error {
	z, ok := block.As[block.Zeroer](u.w)
	if !ok || u.fresh || u.written || u.w.Size() < headBlock {
		return nil
	}
	b := make([]byte, headBlock)
	if _, err := u.w.ReadAt(b, 0); err != nil || !isZero(b) {
		return err
	}
	err := z.WriteZeroes(0, headBlock, block.ZeroMayUnmap|block.ZeroNoFallback)
	if errors.Is(err, block.ErrUnsupported) {
		return nil
	}
	return err
}

// Unwrap implements [block.Wrapper].
func (u *unfinishedFile) Unwrap() block.Node { return u.w }

// Size implements [block.Node].
func (u *unfinishedFile) Size() int64 { return u.w.Size() }

// Close implements [block.Node]. The mark stays as it is.
func (u *unfinishedFile) Close() error { return u.w.Close() }

// Flush implements [block.Writer].
func (u *unfinishedFile) Flush() error { return u.w.Flush() }

// Extents implements [block.Node].
func (u *unfinishedFile) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return u.w.Extents(off, n)
}

// ReadAt implements [block.Node].
func (u *unfinishedFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= format.HeadSize || off < 0 || u.finished.Load() {
		return u.w.ReadAt(p, off)
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	n, err := u.w.ReadAt(p, off)
	if off < int64(len(u.head)) && !u.finished.Load() {
		copy(p[:n], u.head[off:])
	}
	return n, err
}

// WriteAt implements [block.Writer].
func (u *unfinishedFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || len(p) == 0 || u.finished.Load() {
		return u.w.WriteAt(p, off)
	}
	if err := u.begin(); err != nil {
		return 0, err
	}
	if off >= format.HeadSize {
		return u.w.WriteAt(p, off)
	}
	n := min(int64(len(p)), format.HeadSize-off)
	err := u.changeHead(off, n, func(head []byte) {
		copy(head, p)
		u.written = true
	})
	if err != nil || n == int64(len(p)) {
		return int(n), err
	}
	k, err := u.w.WriteAt(p[n:], off+n)
	return int(n) + k, err
}

// changeHead changes [off, off+n) of the first sector by edit.
func (u *unfinishedFile) changeHead(off, n int64, edit func([]byte)) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.head
	u.head = make([]byte, max(int64(len(old)), off+n))
	copy(u.head, old)
	edit(u.head[off : off+n])
	_, err := u.put(!u.finished.Load())
	if err != nil {
		u.head = old
	}
	return err
}

// WriteZeroes implements [block.Zeroer].
func (u *unfinishedFile) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	inHead := min(n, format.HeadSize-off)
	if off < 0 || inHead <= 0 || u.finished.Load() {
		inHead = 0
	}
	if err := u.begin(); err != nil {
		return err
	}
	if n > inHead || n == 0 {
		if err := zeroBy(u.w, off+inHead, n-inHead, flags); err != nil {
			return err
		}
	}
	if inHead == 0 {
		return nil
	}
	return u.changeHead(off, inHead, func(head []byte) { clear(head) })
}

// zeroBy zeroes a range of w by the fastest way that it has.
func zeroBy(w block.Writer, off, n int64, flags block.ZeroFlags) error {
	if z, ok := block.As[block.Zeroer](w); ok {
		return z.WriteZeroes(off, n, flags)
	}
	if flags&block.ZeroNoFallback != 0 {
		return fmt.Errorf("zero: the file has no fast way: %w", block.ErrUnsupported)
	}
	zeros := make([]byte, min(n, 64<<10))
	for n > 0 {
		k, err := w.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// Discard implements [block.Discarder]. Where the file cannot give space back
// it does nothing. The first sector keeps what it holds.
func (u *unfinishedFile) Discard(off, n int64) error {
	if err := u.begin(); err != nil {
		return err
	}
	if off >= 0 && off < format.HeadSize && !u.finished.Load() {
		skip := min(n, format.HeadSize-off)
		off, n = off+skip, n-skip
	}
	if d, ok := block.As[block.Discarder](u.w); ok && n > 0 {
		return d.Discard(off, n)
	}
	return nil
}

// Resize implements [block.Resizer].
func (u *unfinishedFile) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	r, ok := block.As[block.Resizer](u.w)
	if !ok {
		return fmt.Errorf("resize: the storage has a fixed size: %w", block.ErrUnsupported)
	}
	if err := u.begin(); err != nil {
		return err
	}
	if err := r.Resize(ctx, size, opts); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := min(size, format.HeadSize); n < int64(len(u.head)) {
		u.head, u.onFile = u.head[:n], u.onFile[:min(n, int64(len(u.onFile)))]
	}
	return nil
}

// CopyFrom implements [block.RangeCopier], but for the first sector.
func (u *unfinishedFile) CopyFrom(src block.Node, srcOff, off, n int64) error {
	c, ok := block.As[block.RangeCopier](u.w)
	if !ok || off < format.HeadSize && !u.finished.Load() {
		return fmt.Errorf("copy between files: %w", block.ErrUnsupported)
	}
	if err := u.begin(); err != nil {
		return err
	}
	return c.CopyFrom(src, srcOff, off, n)
}

// unfinishedData is the bytes of the external data file of an image that is
// being filled: the image is marked before they change.
type unfinishedData struct {
	block.Writer
	u *unfinishedFile
}

var (
	_ block.Zeroer      = unfinishedData{}
	_ block.Discarder   = unfinishedData{}
	_ block.Resizer     = unfinishedData{}
	_ block.RangeCopier = unfinishedData{}
	_ block.Wrapper     = unfinishedData{}
)

// Unwrap implements [block.Wrapper].
func (d unfinishedData) Unwrap() block.Node { return d.Writer }

// WriteAt implements [block.Writer].
func (d unfinishedData) WriteAt(p []byte, off int64) (int, error) {
	if err := d.u.begin(); err != nil {
		return 0, err
	}
	return d.Writer.WriteAt(p, off)
}

// WriteZeroes implements [block.Zeroer].
func (d unfinishedData) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if err := d.u.begin(); err != nil {
		return err
	}
	return zeroBy(d.Writer, off, n, flags)
}

// Discard implements [block.Discarder].
func (d unfinishedData) Discard(off, n int64) error {
	if err := d.u.begin(); err != nil {
		return err
	}
	if dis, ok := block.As[block.Discarder](d.Writer); ok {
		return dis.Discard(off, n)
	}
	return nil
}

// Resize implements [block.Resizer].
func (d unfinishedData) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	r, ok := block.As[block.Resizer](d.Writer)
	if !ok {
		return fmt.Errorf("resize: the storage has a fixed size: %w", block.ErrUnsupported)
	}
	if err := d.u.begin(); err != nil {
		return err
	}
	return r.Resize(ctx, size, opts)
}

// CopyFrom implements [block.RangeCopier].
func (d unfinishedData) CopyFrom(src block.Node, srcOff, off, n int64) error {
	c, ok := block.As[block.RangeCopier](d.Writer)
	if !ok {
		return fmt.Errorf("copy between files: %w", block.ErrUnsupported)
	}
	if err := d.u.begin(); err != nil {
		return err
	}
	return c.CopyFrom(src, srcOff, off, n)
}
