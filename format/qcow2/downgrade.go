package qcow2

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/block"
)

// downgrade makes a version 3 image one of version 2, which has no zero
// clusters: those of the disk and of all snapshots become unallocated ones,
// or, where a backing file would show, clusters that hold zeros. The header
// says so last; until then it is a good image of version 3.
func (img *Image) downgrade(ctx context.Context, p *amendProgress) error {
	if err := img.amendLazy(false); err != nil {
		return err
	}
	// What was let go of must not count as a user of a table any more.
	if err := img.writeback(true); err != nil {
		return err
	}
	tables, err := img.allTables()
	if err != nil {
		return err
	}
	p.add(int64(len(tables)))
	if img.hdr.compressionType != compressionZlib {
		for _, t := range tables {
			if err := img.refuseCompressed(t.host); err != nil {
				return err
			}
		}
	}
	for _, t := range tables {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := img.expandTable(ctx, t); err != nil {
			return err
		}
		p.step()
	}
	// Version 2 cannot say whether bitmaps can be trusted.
	if err := img.dropBitmaps(); err != nil {
		return err
	}
	if err := img.writeback(true); err != nil {
		return err
	}
	p.end()
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	h := img.hdr
	h.version, h.incompat, h.compat, h.autoclear, h.compressionType, h.unknown = 2, 0, 0, 0, compressionZlib, nil
	return img.replaceHead(h, withExtension(img.exts, extFeatureNames, nil), img.backingFile)
}

// l2Place is an L2 table and the guest offset of what it maps, which is the
// same for all who share it.
type l2Place struct {
	host  hostOffset
	guest int64
}

// allTables returns the L2 tables of the disk and of all snapshots, each once.
func (img *Image) allTables() ([]l2Place, error) {
	var tables []l2Place
	add := func(l1 []l1Entry) error {
		for i, e := range l1 {
			if err := e.check(img.g); err != nil {
				return err
			}
			if e.l2Table() != 0 {
				tables = append(tables, l2Place{e.l2Table(), int64(i) * img.g.l2Span()})
			}
		}
		slices.SortFunc(tables, func(a, b l2Place) int { return cmp.Compare(a.host, b.host) })
		tables = slices.CompactFunc(tables, func(a, b l2Place) bool { return a.host == b.host })
		return nil
	}
	img.mu.RLock()
	l1 := slices.Clone(img.l1)
	img.mu.RUnlock()
	if err := add(l1); err != nil {
		return nil, err
	}
	for _, s := range img.snapshots {
		if err := s.checkL1(img.g); err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", s.id, err)
		}
		b := make([]byte, int64(s.l1Size)*8)
		if err := readPadded(img.file, b, int64(s.l1Offset)); err != nil {
			return nil, couldNotRead("snapshot L1 table", err)
		}
		if err := add(decodeL1(b)); err != nil {
			return nil, err
		}
	}
	return tables, nil
}

// refuseCompressed refuses a table with clusters compressed by a method that
// version 2 does not have.
func (img *Image) refuseCompressed(table hostOffset) error {
	img.mu.Lock()
	defer img.mu.Unlock()
	for off := int64(0); off < img.g.clusterSize(); off += img.g.sliceBytes() {
		s, err := img.loadSlice(table + hostOffset(off))
		if err != nil {
			return err
		}
		for _, e := range s.entries {
			if e.kind(img.g) == clusterCompressed {
				return unsupportedf("Cannot downgrade an image with zstd compression type and existing compressed clusters")
			}
		}
	}
	return nil
}

// expandTable replaces the zero clusters of an L2 table. The table is changed
// in place, for all who share it: refs of them, who each count in the
// refcounts of its clusters.
func (img *Image) expandTable(ctx context.Context, table l2Place) error {
	if err := img.relieve(); err != nil {
		return err
	}
	img.mu.Lock()
	refs, err := img.refcount(img.g.cluster(int64(table.host)))
	img.mu.Unlock()
	if err != nil {
		return err
	}
	if refs == 0 {
		return corruptf("L2 table at offset %#x has the refcount 0: run a check with repair", int64(table.host))
	}
	for off := int64(0); off < img.g.clusterSize(); off += img.g.sliceBytes() {
		slice := l2Place{table.host + hostOffset(off), table.guest + off/8<<img.g.clusterBits}
		for k := 0; k < img.g.sliceEntries(); {
			n, err := img.expandEntries(ctx, slice, k, refs)
			if err != nil {
				return err
			}
			k += n
		}
	}
	return nil
}

// expandEntries replaces the zero clusters of a slice from entry k on, as many
// as can be done at once; it returns how many entries are done.
func (img *Image) expandEntries(ctx context.Context, slice l2Place, k int, refs uint64) (int, error) {
	img.mu.Lock()
	s, err := img.loadSlice(slice.host)
	if err != nil {
		img.mu.Unlock()
		return 0, err
	}
	n := 0
	for k+n < len(s.entries) && !s.entries[k+n].kind(img.g).zero() {
		n++
	}
	if n > 0 {
		img.mu.Unlock()
		return n, nil
	}
	for k+n < len(s.entries) && s.entries[k+n].kind(img.g).zero() {
		n++
	}
	e := s.entries[k]
	var shared uint64
	if e.kind(img.g) == clusterZeroAlloc {
		shared, err = img.refcount(img.g.cluster(int64(e.host())))
	}
	img.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case img.backingFile == "":
		return n, img.setZeroEntries(slice.host, k, n, refs, func(int64) l2Entry { return 0 })
	case e.kind(img.g) == clusterZeroAlloc && shared == refs:
		// Nobody else sees the bytes of the cluster, and these not yet.
		if err := img.writeZeroCluster(slice.guest+int64(k)<<img.g.clusterBits, e.host()); err != nil {
			return 0, err
		}
		return 1, img.setZeroEntries(slice.host, k, 1, refs, func(int64) l2Entry { return expanded(e.host(), refs) })
	}
	return img.expandNew(ctx, slice, k, n, refs)
}

// expanded returns the entry of a cluster of zeros in a table of refs users.
func expanded(host hostOffset, refs uint64) l2Entry {
	if refs == 1 {
		return newDataEntry(host)
	}
	return l2Entry(host)
}

// writeZeroCluster writes zeros to the host cluster of a guest cluster.
func (img *Image) writeZeroCluster(guest int64, host hostOffset) error {
	for n := img.g.clusterSize(); n > 0; {
		k := min(n, int64(len(zeroBuffer)))
		if err := img.writeGuest(zeroBuffer[:k], guest, host); err != nil {
			return err
		}
		guest, host, n = guest+k, host+hostOffset(k), n-k
	}
	return nil
}

// expandNew gives up to n zero clusters new host clusters.
func (img *Image) expandNew(ctx context.Context, slice l2Place, k, n int, refs uint64) (int, error) {
	var first, count int64
	var fresh bool
	err := img.update(func() (err error) {
		first, count, fresh, err = img.allocRun(int64(n))
		return err
	})
	if err != nil {
		return 0, err
	}
	if img.hdr.cryptMethod == 0 {
		err = img.prepareHost(ctx, first<<img.g.clusterBits, count<<img.g.clusterBits, fresh, block.PreallocOff)
	}
	for i := int64(0); i < count && img.hdr.cryptMethod != 0 && err == nil; i++ {
		err = img.writeZeroCluster(slice.guest+(int64(k)+i)<<img.g.clusterBits, hostOffset((first+i)<<img.g.clusterBits))
	}
	if err == nil {
		err = img.update(func() error {
			for range refs - 1 {
				if err := img.addRefs(first, count, 1); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		img.abandon(first, count)
		return 0, err
	}
	return int(count), img.setZeroEntries(slice.host, k, int(count), refs, func(i int64) l2Entry {
		return expanded(hostOffset((first+i)<<img.g.clusterBits), refs)
	})
}

// setZeroEntries changes n entries of a slice and releases, for each user of
// the table, the clusters that they had.
func (img *Image) setZeroEntries(slice hostOffset, k, n int, refs uint64, entry func(i int64) l2Entry) error {
	img.mu.Lock()
	defer img.mu.Unlock()
	s, err := img.loadSlice(slice)
	if err != nil {
		return err
	}
	for i := range n {
		old, e := s.entries[k+i], entry(int64(i))
		if old.kind(img.g) == clusterZeroAlloc && old.host() != e.host() {
			have, err := img.refcount(img.g.cluster(int64(old.host())))
			if err != nil {
				return err
			}
			for range min(refs, have) {
				if err := img.releaseEntry(old); err != nil {
					return err
				}
			}
		}
		s.entries[k+i] = e
		img.touch(s)
	}
	return nil
}
