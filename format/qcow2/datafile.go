package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// dataFile is the external data file of an image that keeps only metadata in
// its own file (spec "External data files"). Every guest cluster has its place
// there, at its guest offset; the L2 entries say which clusters the image
// holds. Nothing of it has a refcount, and nothing in it moves. The zero value
// is no data file.
type dataFile struct {
	name string       // as the image records it
	node block.Node   // nil if there is none or it was not opened
	wr   block.Writer // nil if opened read-only

	// end is the size of the disk, or the larger one that it is being given:
	// nothing is written behind it.
	end atomic.Int64

	// changed says that something was written that no flush has covered. It
	// is set after each write and before the write is acknowledged; flushes
	// come one at a time, under Image.wbMu.
	changed atomic.Bool
}

// rawData reports whether the data file must read as the disk does for who
// does not look at the metadata.
func (img *Image) rawData() bool {
	return img.g.external && img.hdr.autoclear&autoclearRawData != 0
}

// dataNode returns the file that holds the guest's data.
func (img *Image) dataNode() block.Node {
	if img.g.external {
		return img.data.node
	}
	return img.file
}

// openData opens the external data file.
func (img *Image) openData(ctx context.Context, opts format.OpenOptions) error {
	if !img.g.external {
		if img.hdr.autoclear&autoclearRawData != 0 && !opts.ForCheck {
			return corruptf("data-file-raw requires a data file")
		}
		return nil
	}
	if opts.Opener != nil {
		node, err := opts.Opener.OpenData(ctx, img.data.name, opts.Writable)
		if err != nil {
			return err
		}
		img.data.node = node
	}
	if img.wr == nil {
		return nil
	}
	if img.data.node == nil {
		return unsupportedf("'data-file' is required for this image")
	}
	w, ok := img.data.node.(block.Writer)
	if !ok {
		_ = img.data.close()
		return img.fail("open", fmt.Errorf("its data file cannot be written: %w", block.ErrReadOnly))
	}
	img.data.wr = w
	img.data.end.Store(img.Size())
	img.data.changed.Store(true) // by who made it, perhaps
	return nil
}

// read reads guest data; behind the end of the file it is zeros.
func (d *dataFile) read(p []byte, host hostOffset) error {
	if d.node == nil {
		return fmt.Errorf("the data is in the data file %s, which was not opened: %w", d.name, block.ErrUnsupported)
	}
	n, err := d.node.ReadAt(p, int64(host))
	if err == io.EOF {
		clear(p[n:])
		return nil
	}
	return err
}

// flush makes what was written durable.
func (d *dataFile) flush() error {
	if d.wr == nil || !d.changed.Swap(false) {
		return nil
	}
	return d.wr.Flush()
}

// close closes the data file, if it is open.
func (d *dataFile) close() error {
	if d.node == nil {
		return nil
	}
	return d.node.Close()
}

// writeExternal writes guest data to its place. Nothing is written behind the
// end of the disk, so that the file stays as long as that.
func (img *Image) writeExternal(p []byte, host hostOffset) error {
	n := min(int64(len(p)), img.data.end.Load()-int64(host))
	if n <= 0 {
		return nil
	}
	_, err := img.data.wr.WriteAt(p[:n], int64(host))
	img.data.changed.Store(true)
	return err
}

// place finds room for n clusters of guest data, which begin at guest offset
// off: their own in an external data file, else up to n free ones that lie
// together. It returns what [Image.allocRun] does. The caller holds mu.
func (img *Image) place(off, n int64) (first, count int64, fresh bool, err error) {
	if img.g.external {
		// What a cluster held before it was discarded may still be there.
		return img.g.cluster(off), n, false, nil
	}
	return img.allocRun(n)
}

// checkExternal refuses entries that an image with an external data file
// cannot have, for the cluster that holds guest offset pos.
func (e l2Entry) checkExternal(g geometry, pos int64) error {
	switch e.kind(g) {
	case clusterCompressed:
		return damagef("Compressed cluster entry found in image with external data file (L2 entry %#x)", uint64(e))
	case clusterData, clusterZeroAlloc:
		if guest := g.roundDown(pos); int64(e.host()) != guest {
			return damagef("External data file host cluster offset %#x does not match guest cluster offset: %#x", int64(e.host()), guest)
		}
	}
	return nil
}

// clearExternal makes a range of a raw data file read as zeros, as the guest
// will see it; unmap gives the space back.
func (img *Image) clearExternal(off, n int64, unmap bool) error {
	end := min(off+n, img.data.node.Size())
	if n = end - off; n <= 0 {
		return nil
	}
	if z, ok := block.As[block.Zeroer](img.data.node); ok {
		flags := block.ZeroFlags(0)
		if unmap {
			flags = block.ZeroMayUnmap
		}
		err := z.WriteZeroes(off, n, flags)
		img.data.changed.Store(true)
		return err
	}
	for ; n > 0; off, n = off+int64(len(zeroBuffer)), n-int64(len(zeroBuffer)) {
		if err := img.writeExternal(zeroBuffer[:min(n, int64(len(zeroBuffer)))], hostOffset(off)); err != nil {
			return err
		}
	}
	return nil
}

// zeroExternal prepares the data file, if there is one, for a run of guest
// clusters that is about to read as zeros. A raw one has to read as zeros too;
// of another the space is given back if unmap says so, which is only a hint.
//
// It comes before the L2 entries change, not after a barrier as for clusters of
// the image: what is in the place may be used again at once, and a crash
// between the two leaves the old content or zeros. Of an encrypted image it
// would leave neither, for zeros there do not decrypt to zeros, and a raw file
// has nothing that could be read: there the entries alone say it.
func (img *Image) zeroExternal(off int64, r run, unmap bool) error {
	if !img.g.external || img.crypt != nil {
		return nil
	}
	if img.rawData() {
		return img.clearExternal(off, r.length, unmap)
	}
	if !unmap || img.rt.keepSpace[discardRequest] || !r.kind.hasHost() {
		return nil
	}
	n := min(r.length, img.data.node.Size()-off)
	if d, ok := block.As[block.Discarder](img.data.node); ok && n > 0 {
		_ = d.Discard(off, n)
		img.data.changed.Store(true)
	}
	return nil
}

// growExternal makes the data file, if there is one, as long as the disk will
// be, with the space of the new part as mode says. Where its clusters will be
// mapped at once, what a longer file holds there is made to read as zeros.
func (img *Image) growExternal(ctx context.Context, old, size int64, mode block.Preallocation) error {
	if !img.g.external {
		return nil
	}
	img.data.end.Store(size)
	if mode != block.PreallocOff {
		if err := img.clearExternal(old, size-old, false); err != nil {
			return err
		}
	}
	return img.resizeExternal(ctx, size, mode)
}

// cutExternal makes the data file, if there is one, as long as the disk now is.
func (img *Image) cutExternal(ctx context.Context, size int64) error {
	if !img.g.external {
		return nil
	}
	img.data.end.Store(size)
	return img.resizeExternal(ctx, size, block.PreallocOff)
}

func (img *Image) resizeExternal(ctx context.Context, size int64, mode block.Preallocation) error {
	err := resizeData(ctx, img.data.node, size, mode)
	img.data.changed.Store(true)
	return err
}

// resizeData makes a data file size bytes long, with the space of a grown part
// as mode says. A block device that is longer stays as it is.
func resizeData(ctx context.Context, data block.Node, size int64, mode block.Preallocation) error {
	if data.Size() == size {
		return nil
	}
	if mode == block.PreallocMetadata || data.Size() > size {
		mode = block.PreallocOff
	}
	r, ok := block.As[block.Resizer](data)
	if !ok {
		return fmt.Errorf("the data file cannot be resized to %d bytes: %w", size, block.ErrUnsupported)
	}
	old := data.Size()
	err := r.Resize(ctx, size, block.ResizeOptions{Prealloc: mode, AllowShrink: true})
	if errors.Is(err, block.ErrUnsupported) && (mode == block.PreallocFalloc || mode == block.PreallocFull) {
		if err = r.Resize(ctx, size, block.ResizeOptions{}); err == nil {
			err = fillZeros(ctx, data, old, size)
		}
	}
	return err
}

// fillZeros writes zeros to [off, end) of a data file.
func fillZeros(ctx context.Context, data block.Node, off, end int64) error {
	w, ok := data.(block.Writer)
	if !ok {
		return block.ErrReadOnly
	}
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-off, int64(len(zeroBuffer)))
		if _, err := w.WriteAt(zeroBuffer[:n], off); err != nil {
			return err
		}
		off += n
	}
	return nil
}
