package qcow2

import (
	"fmt"
	"io"

	"github.com/lamina-vm/lamina/block"
)

// ReadAt implements [block.Node]. Neighbouring clusters that lie together in
// the file are read by one request.
func (img *Image) ReadAt(p []byte, off int64) (int, error) {
	if img.closed.Load() {
		return 0, img.fail("read", block.ErrClosed)
	}
	size := img.Size()
	if off < 0 {
		return 0, img.fail("read", block.CheckRange(off, int64(len(p)), size))
	}
	if len(p) == 0 && off <= size {
		return 0, nil
	}
	if off >= size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > size-off {
		p, end = p[:size-off], io.EOF
	}
	hold := img.lockBytes(off, int64(len(p)), false)
	defer img.guest.unlock(hold)
	if n, err := img.readRange(p, off); err != nil {
		return n, img.failAccess("read", err)
	}
	return len(p), end
}

// readRange reads [off, off+len(p)), which lies in the disk and whose guest
// clusters the caller has locked. It returns how many bytes are good.
func (img *Image) readRange(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		r, err := img.lookup(off, int64(len(p)-done))
		if err != nil {
			return done, err
		}
		q := p[done : done+int(r.length)]
		switch r.kind {
		case clusterData:
			err = img.readGuest(q, off, r.host)
		case clusterCompressed:
			err = img.readCompressed(q, off, r.entry)
		case clusterUnallocated, clusterUnallocatedAlloc:
			err = img.readBacking(q, off)
		default:
			clear(q)
		}
		if err != nil {
			return done, fmt.Errorf("guest offset %#x: %w", off, err)
		}
		off += r.length
		done += int(r.length)
	}
	return done, nil
}

// readData reads host clusters. The last cluster of a file may be cut off; a
// cluster that lies wholly behind the end is not there. An external data file
// may end anywhere.
func (img *Image) readData(p []byte, host hostOffset) error {
	if img.g.external {
		return img.data.read(p, host)
	}
	n, err := img.file.ReadAt(p, int64(host))
	if err != io.EOF {
		return err
	}
	end := img.g.roundUp(img.file.Size())
	if int64(host)+int64(len(p)) > end {
		return corruptf("data cluster at offset %#x lies behind the end of the file (%d bytes): the file is truncated or the L2 table is damaged", max(int64(host), end), img.file.Size())
	}
	clear(p[n:])
	return nil
}
