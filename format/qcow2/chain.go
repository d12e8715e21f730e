package qcow2

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
)

// The memory of which layer of the backing chain holds what: chainSlots runs,
// each found by the window of chainWindow bytes that it begins in, and at most
// chainLookahead bytes longer than asked. At most about half a MiB an image.
const (
	chainSlots     = 4096
	chainWindow    = 64 << 10
	chainLookahead = 1 << 20
)

// chainRun is a stretch of the disk below this image that one layer decides.
type chainRun struct {
	start, end int64
	depth      int        // of the layer, counted from this image
	owner      *Image     // a qcow2 layer that holds it
	base       block.Node // a layer of another kind, which is asked itself
	last       *Image     // without an owner: the last layer that was looked at, if not this image
	run        run        // what the owner, or the last layer, says from start on
	missing    string     // a backing file that was not opened has it
}

// chainCache remembers runs. The layers below an open image do not change, so
// what is remembered stays true, and a read costs the same at any depth.
type chainCache struct {
	slots atomic.Pointer[[chainSlots]atomic.Pointer[chainRun]]
}

func (c *chainCache) slot(off int64) *atomic.Pointer[chainRun] {
	s := c.slots.Load()
	if s == nil {
		s = new([chainSlots]atomic.Pointer[chainRun])
		if !c.slots.CompareAndSwap(nil, s) {
			s = c.slots.Load()
		}
	}
	return &s[off/chainWindow%chainSlots]
}

// below returns the run of the chain below img that holds off.
func (img *Image) below(off int64) (*chainRun, error) {
	slot := img.chain.slot(off)
	if c := slot.Load(); c != nil && c.start <= off && off < c.end {
		return c, nil
	}
	c, err := img.resolve(off, min(chainLookahead, img.Size()-off))
	if err != nil {
		return nil, err
	}
	slot.Store(&c)
	return &c, nil
}

// resolve looks down the chain for the layer that decides what [off, off+n)
// reads as; the result may be shorter. img has a backing file.
func (img *Image) resolve(off, n int64) (chainRun, error) {
	c := chainRun{start: off, depth: 1}
	for cur := img.backing; ; c.depth++ {
		size := cur.Size()
		if off >= size { // the layer above is the last that reaches here
			c.end = off + n
			c.depth--
			return c, nil
		}
		n = min(n, size-off)
		b, ok := cur.(*Image)
		if !ok || b.wr != nil {
			c.end, c.base = off+n, cur
			return c, nil
		}
		if b.closed.Load() {
			return c, b.fail("read", block.ErrClosed)
		}
		r, err := b.lookup(off, n)
		if err != nil {
			return c, b.fail("read", fmt.Errorf("guest offset %#x: %w", off, err))
		}
		n = r.length
		c.end, c.last, c.run = off+n, b, r
		if !r.kind.unallocated() {
			c.owner = b
			return c, nil
		}
		if b.backing == nil {
			c.missing = b.backingFile
			return c, nil
		}
		cur = b.backing
	}
}

// read fills p from guest offset off, which the run holds.
func (c *chainRun) read(p []byte, off int64) error {
	switch {
	case c.missing != "":
		return errNotOpened(c.missing)
	case c.base != nil:
		n, err := c.base.ReadAt(p, off)
		if n == len(p) {
			return nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	case c.owner == nil:
		clear(p)
		return nil
	}
	var err error
	switch c.run.kind {
	case clusterData:
		err = c.owner.readGuest(p, off, c.run.host+hostOffset(off-c.start))
	case clusterCompressed:
		err = c.owner.readCompressed(p, off, c.run.entry)
	default:
		clear(p)
	}
	if err != nil {
		return c.owner.fail("read", fmt.Errorf("guest offset %#x: %w", off, err))
	}
	return nil
}

// errNotOpened is for data of a backing file that the opener left closed.
func errNotOpened(name string) error {
	return fmt.Errorf("the data is in the backing file %s, which was not opened: %w", name, block.ErrUnsupported)
}

// readBacking reads what the image does not hold.
func (img *Image) readBacking(p []byte, off int64) error {
	if img.backing == nil {
		if img.backingFile != "" {
			return errNotOpened(img.backingFile)
		}
		clear(p)
		return nil
	}
	for len(p) > 0 {
		c, err := img.below(off)
		if err != nil {
			return err
		}
		n := min(int64(len(p)), c.end-off)
		if err := c.read(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
