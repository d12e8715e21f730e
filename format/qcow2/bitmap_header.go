package qcow2

import "github.com/lamina-vm/lamina/block"

// switchBitmaps makes the header's bitmaps extension that of h, and the
// autoclear bit say whether there is one; without a bitmap there is none. What
// h refers to is durable; when it returns, the change is. Power loss leaves the
// old extension or the new one.
func (img *Image) switchBitmaps(h bitmapsHeader) error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	if err := img.refuse.Load(); err != nil {
		return *err
	}
	s := &img.bitmaps
	head := img.hdr
	head.autoclear &= autoclearHandled &^ autoclearBitmaps
	var data []byte
	if h.count > 0 {
		head.autoclear |= autoclearBitmaps
		data = h.encode()
	}
	off, found := img.extensionData(extBitmaps, bitmapsExtLength)
	if found && data != nil && head.autoclear == img.hdr.autoclear && off/block.SectorSize == (off+bitmapsExtLength-1)/block.SectorSize {
		// All of it lies in one sector, which a disk writes wholly or not.
		if err := img.writeMeta(data, off); err != nil {
			return img.refuseWrites(err)
		}
		if err := img.barrier(); err != nil {
			return err
		}
		img.exts = withExtension(img.exts, extBitmaps, data)
	} else if err := img.replaceHead(head, lastExtension(img.exts, extBitmaps, data), img.backingFile); err != nil {
		return err
	}
	s.ignored = false
	return nil
}

// extensionData returns where the data of an extension of a type and length
// lies in the file.
func (img *Image) extensionData(kind uint32, length int) (off int64, found bool) {
	off = int64(img.hdr.headerLength)
	for _, e := range img.exts {
		if e.kind == kind {
			return off + 8, len(e.data) == length
		}
		off += 8 + (int64(len(e.data))+7)&^7
	}
	return 0, false
}

// lastExtension returns exts with the data of an extension of a type replaced;
// a new one comes last, where QEMU has that of bitmaps. nil removes it.
func lastExtension(exts []extension, kind uint32, data []byte) []extension {
	if _, found := findExtension(exts, kind); found || data == nil {
		return withExtension(exts, kind, data)
	}
	return append(exts[:len(exts):len(exts)], extension{kind, data})
}
