package qcow2

import (
	"context"
	"fmt"
	"io"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// headBytes is how much of the file is read first: header, extensions and
// backing file name as stock QEMU writes them fit.
const headBytes = 4096

// open opens the image in file. See [format.Driver].
func open(ctx context.Context, file block.Node, opts format.OpenOptions) (*Image, error) {
	img := &Image{file: file, name: opts.Filename, unsafe: opts.Unsafe, report: opts.Damage}
	if img.name == "" {
		img.name = "qcow2 image"
	}
	if opts.Writable {
		w, ok := file.(block.Writer)
		if !ok {
			return nil, img.fail("open", fmt.Errorf("its file cannot be written: %w", block.ErrReadOnly))
		}
		img.wr = w
	}
	size := file.Size()
	if size > maxFileSize {
		return nil, img.fail("open", unsupportedf("the file has %d bytes, more than %d", size, int64(maxFileSize)))
	}
	if err := img.readHead(size, opts); err != nil {
		return nil, err
	}
	if err := img.parseRuntime(opts.Values); err != nil {
		return nil, err
	}
	if name, ok := findExtension(img.exts, extDataFile); ok || img.g.external {
		img.data.name = string(name)
		if opts.Untrusted {
			return nil, &stockError{fmt.Sprintf("the image names an external data file, %q, which an image from outside may not", img.data.name), block.ErrUntrusted}
		}
	}
	if opts.Untrusted && img.backingFile != "" {
		return nil, &stockError{fmt.Sprintf("the image names a backing file, %q, which an image from outside may not", img.backingFile), block.ErrUntrusted}
	}
	img.openEnd = img.g.roundUp(size)
	img.fileEnd = img.openEnd
	img.l2 = newL2Cache(img.g)
	if err := img.readTables(opts); err != nil {
		return nil, err
	}
	if err := img.openCrypt(ctx, opts); err != nil {
		return nil, err
	}
	if err := img.openBitmaps(opts); err != nil {
		return nil, err
	}
	if img.wr != nil {
		img.noteMetadata()
	}
	if err := img.openOthers(ctx, opts); err != nil {
		return nil, err
	}
	if img.wr != nil && img.hdr.incompat&incompatDirty != 0 && !opts.ForCheck {
		if err := img.repairDirty(); err != nil {
			img.closeOthers()
			return nil, fmt.Errorf("could not repair dirty image: %w", err)
		}
	}
	return img, nil
}

// readHead reads and checks header, extensions and backing file name.
func (img *Image) readHead(fileSize int64, opts format.OpenOptions) error {
	b, err := readUpTo(img.file, min(fileSize, headBytes))
	if err != nil {
		return err
	}
	h, err := decodeHeader(b)
	if err != nil && len(b) == headBytes && isQcow2(b) {
		// A header longer than what was read.
		if b, err = readUpTo(img.file, min(fileSize, 1<<maxClusterBits)); err != nil {
			return err
		}
		h, err = decodeHeader(b)
	}
	if err != nil {
		return err
	}
	end := min(int64(1)<<h.clusterBits, fileSize)
	if h.backingOffset != 0 {
		end = min(end, int64(min(h.backingOffset, 1<<maxClusterBits)))
	}
	if need := min(end+maxBackingName, fileSize); need > int64(len(b)) && moreExtensions(b, int(h.headerLength), end) {
		if b, err = readUpTo(img.file, need); err != nil {
			return err
		}
	}
	img.exts, err = decodeExtensions(b[:min(end, int64(len(b)))], int(h.headerLength))
	if err != nil && !opts.ForCheck {
		return err
	}
	names, _ := findExtension(img.exts, extFeatureNames)
	if err := h.validate(fileSize, decodeFeatureNames(names), opts.ForCheck); err != nil {
		return err
	}
	if opts.Untrusted {
		if err := h.checkUntrusted(); err != nil {
			return err
		}
	}
	if img.wr != nil && h.incompat&incompatCorrupt != 0 && !opts.ForCheck {
		return corruptf("qcow2: Image is corrupt; cannot be opened read/write")
	}
	img.hdr, img.version, img.g = *h, h.version, h.geometry()
	img.size.Store(int64(h.size))
	if f, ok := findExtension(img.exts, extBackingFormat); ok {
		img.backingFormat = string(f)
	}
	if h.backingOffset == 0 || h.backingSize == 0 {
		return nil
	}
	name := make([]byte, h.backingSize)
	if _, err := img.file.ReadAt(name, int64(h.backingOffset)); err != nil {
		return couldNotRead("backing file name", endIsCorrupt(err))
	}
	img.backingFile = string(name)
	return nil
}

// moreExtensions reports whether the extensions go on behind b, which ends
// before end.
func moreExtensions(b []byte, start int, end int64) bool {
	if int64(len(b)) >= end {
		return true // only the backing file name lies behind
	}
	pos := int64(start)
	for pos+8 <= int64(len(b)) {
		e := b[pos:]
		if e[0]|e[1]|e[2]|e[3] == 0 {
			return false
		}
		n := int64(e[4])<<24 | int64(e[5])<<16 | int64(e[6])<<8 | int64(e[7])
		pos += 8 + (n+7)&^7
	}
	return true
}

// readTables reads the L1 table, the snapshot table and, for writing, the
// refcount table.
func (img *Image) readTables(opts format.OpenOptions) error {
	b := make([]byte, int64(img.hdr.l1Size)*8)
	if err := readPadded(img.file, b, int64(img.hdr.l1Offset)); err != nil {
		return couldNotRead("L1 table", err)
	}
	img.l1 = decodeL1(b)
	if !opts.ForCheck || opts.Untrusted { // a check reads it itself
		if err := img.readSnapshots(opts.Untrusted); err != nil {
			return err
		}
	}
	if img.wr == nil {
		return nil
	}
	return img.readRefTable()
}

// readRefTable reads the refcount table.
func (img *Image) readRefTable() error {
	b := make([]byte, int64(img.hdr.refTableClusters)<<img.g.clusterBits)
	if err := readPadded(img.file, b, int64(img.hdr.refTableOffset)); err != nil {
		return couldNotRead("reference count table", err)
	}
	img.refs = newRefcounts(decodeRefTable(b), img.g)
	return nil
}

// noteMetadata collects the clusters that hold metadata, which no guest data
// may be written to. Entries that point nowhere are left out: using them is an
// error of its own. Where two tables lie at one place, a change of one would
// destroy the other: no change is made then.
func (img *Image) noteMetadata() {
	g := img.g
	img.meta, img.overlap = clusterSet{}, nil
	img.meta.add(0, 1)
	table := func(off hostOffset, bytes int64) {
		if bytes <= 0 || off < 0 || int64(off) >= img.openEnd || img.overlap != nil {
			return // what one overlap forbids needs no more of them
		}
		first, n := g.cluster(int64(off)), min(g.cluster(g.roundUp(bytes)), g.cluster(img.openEnd-int64(off)))
		if bad := img.meta.first(first, n); bad >= 0 {
			img.overlap = corruptf("two of the image's tables lie at offset %#x; changing one would destroy the other: run a check with repair", bad<<g.clusterBits)
		}
		img.meta.add(first, n)
	}
	table(hostOffset(img.hdr.l1Offset), int64(len(img.l1))*8)
	if img.crypt != nil {
		table(img.crypt.offset, img.crypt.length)
	}
	table(hostOffset(img.hdr.refTableOffset), int64(len(img.refs.table))*8)
	for _, e := range img.l1 {
		if e.l2Table() != 0 {
			table(e.l2Table(), 1)
		}
	}
	for _, e := range img.refs.table {
		if e.block() != 0 && e <= refTableOffsetMax {
			table(e.block(), 1)
		}
	}
	if img.hdr.snapshotCount > 0 {
		table(hostOffset(img.hdr.snapshotsOffset), max(img.snapshotBytes, 1))
	}
	for _, s := range img.snapshots {
		if s.checkL1(img.g) == nil {
			table(s.l1Offset, int64(s.l1Size)*8)
		}
	}
	table(img.bitmaps.header.directoryOffset, int64(img.bitmaps.header.directorySize))
}

// openOthers opens the external data file and the backing file.
func (img *Image) openOthers(ctx context.Context, opts format.OpenOptions) error {
	if err := img.openData(ctx, opts); err != nil {
		return err
	}
	if err := img.openBacking(ctx, opts); err != nil {
		img.closeOthers()
		return err
	}
	return nil
}

// closeOthers closes the files that openOthers opened, after an error that is
// worse than one of closing.
func (img *Image) closeOthers() {
	_ = img.data.close()
	if img.backing != nil {
		_ = img.backing.Close()
	}
}

// openBacking opens the backing file.
func (img *Image) openBacking(ctx context.Context, opts format.OpenOptions) error {
	if img.backingFile == "" && !opts.ForceBacking || opts.Opener == nil {
		return nil
	}
	b, err := opts.Opener.OpenBacking(ctx, img.backingFile, img.backingFormat)
	if err != nil {
		return err
	}
	img.backing = b
	return nil
}

// readUpTo reads the first n bytes of r.
func readUpTo(r io.ReaderAt, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, couldNotRead("qcow2 header", err)
	}
	return b[:got], nil
}

// endIsCorrupt turns the end of the file, where there should be more, into an
// error that says so.
func endIsCorrupt(err error) error {
	if err == io.EOF {
		return corruptf("the file is truncated")
	}
	return err
}
