package qcow2

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

// packCursor is where the next compressed cluster goes: behind the last one,
// in a host cluster that has room left. The zero value is nowhere.
type packCursor struct{ next int64 }

// cluster returns the index of the host cluster that is being packed, or -1.
func (p packCursor) cluster(g geometry) int64 {
	if p.next == 0 {
		return -1
	}
	return g.cluster(p.next)
}

// WriteCompressed implements [block.CompressedWriter]. Compressed clusters are
// packed to the byte, as stock QEMU does; a host cluster counts one reference
// for each of them that touches it.
func (img *Image) WriteCompressed(p []byte, off int64) error {
	if err := img.writeCompressed(p, off); err != nil {
		return img.failAccess("write compressed", err)
	}
	return nil
}

func (img *Image) writeCompressed(p []byte, off int64) error {
	n := int64(len(p))
	if err := img.checkChange(off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	if img.crypt != nil {
		return stockf("Compression and encryption not supported at the same time: %w", block.ErrUnsupported)
	}
	if img.g.external {
		return fmt.Errorf("an external data file holds no compressed clusters: %w", syscall.ENOTSUP)
	}
	cs := img.g.clusterSize()
	if img.g.inCluster(off) != 0 || n > cs || (n < cs && off+n != img.Size()) {
		return fmt.Errorf("offset %d, length %d is not one whole cluster of %d bytes: %w", off, n, cs, block.ErrUnsupported)
	}
	if err := img.begin(); err != nil {
		return err
	}
	defer img.noteDirty(off, n)
	if err := img.relieve(); err != nil {
		return err
	}
	if n < cs { // the end of the disk
		whole := clusterBuffers.get(cs)
		defer clusterBuffers.put(whole)
		clear(whole[copy(whole, p):])
		p = whole
	}
	c := compressors.Get().(*compressor)
	defer compressors.Put(c)
	packed, err := c.compress(p, img.hdr.compressionType)
	if err != nil {
		return err
	}
	hold := img.lockBytes(off, n, true)
	defer img.guest.unlock(hold)
	r, err := img.lookup(off, n)
	if err != nil {
		return err
	}
	if r.kind.hasHost() || r.kind == clusterCompressed {
		return fmt.Errorf("the cluster at guest offset %d is allocated, only a new one can be written compressed: %w", off, block.ErrUnsupported)
	}
	if packed == nil {
		_, err := img.writeRange(p[:n], off)
		return err
	}
	return img.storeCompressed(packed, off)
}

// storeCompressed writes compressed bytes and makes the cluster at off refer
// to them. The caller holds the guest range alone.
func (img *Image) storeCompressed(packed []byte, off int64) error {
	n := int64(len(packed))
	var host int64
	err := img.update(func() (err error) {
		host, err = img.allocBytes(n)
		return err
	})
	if err != nil {
		return err
	}
	if err := img.writeData(packed, hostOffset(host)); err != nil {
		img.freeBytes(host, n)
		return err
	}
	return img.update(func() error {
		return img.setEntries(off, 1, func(int64, mapping) mapping {
			return mapping{entry: newCompressedEntry(hostOffset(host), n, img.g)}
		})
	})
}

// allocBytes finds room for n bytes, less than a cluster: in the cluster that
// is being packed, on from there into the next one if that is free, or in a
// new one. The caller holds mu.
func (img *Image) allocBytes(n int64) (int64, error) {
	g := img.g
	at := img.pack.next
	if at != 0 && g.roundUp(at)-at >= n {
		err := img.addRefs(g.cluster(at), 1, 1)
		if err == nil {
			img.advancePack(at + n)
			return at, nil
		}
		if !errors.Is(err, errRefcountFull) {
			return 0, err
		}
		at = 0
	}
	first, _, _, err := img.allocRun(1)
	if err != nil {
		return 0, err
	}
	host := first << g.clusterBits
	if at != 0 && g.roundUp(at) == host && img.addRefs(g.cluster(at), 1, 1) == nil {
		host = at
	}
	if host+n > g.maxCompressedOffset() {
		img.pack = packCursor{}
		return 0, fmt.Errorf("host offset %#x is beyond what a compressed cluster can refer to: %w", host, block.ErrUnsupported)
	}
	img.advancePack(host + n)
	return host, nil
}

func (img *Image) advancePack(next int64) {
	img.pack.next = next
	if img.g.inCluster(next) == 0 {
		img.pack.next = 0 // full
	}
}

// freeBytes gives back bytes that nothing refers to yet. An error only leaks
// them.
func (img *Image) freeBytes(host, n int64) {
	img.mu.Lock()
	defer img.mu.Unlock()
	first := img.g.cluster(host)
	_ = img.addRefs(first, img.g.cluster(host+n-1)-first+1, -1)
	img.pack = packCursor{}
}
