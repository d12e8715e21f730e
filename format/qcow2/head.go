package qcow2

import (
	"encoding/binary"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// extDetour is an extension of our own that only says where the extensions
// go on: its data reaches up to there. It exists while a header is being
// changed, and is left out when one is written.
const extDetour = 0x4c614465

// replaceHead makes header fields, extensions and backing file name of the
// image those given, all at once: power loss at any instant leaves the old
// ones or the new ones. Everything that they refer to is in the file before.
// The caller holds wbMu; on success img.hdr and img.exts are the new ones.
//
// A disk writes one sector wholly or not at all, and the header's fields lie
// in the first. So what lies behind it is written first, where the old header
// does not use it, and the first sector, which refers to it, after a barrier.
// Where old and new would overlap, the new extensions and name go behind both,
// with a detour to them in the first sector; the place of the old ones is free
// then, and the same is done once more from there.
func (img *Image) replaceHead(h header, exts []extension, backing string) error {
	exts = withoutDetour(exts)
	head, err := encodeHead(&h, exts, backing)
	if err != nil {
		return noHeaderSpace(err)
	}
	if h.version >= 3 {
		h.headerLength = uint32(headerLenV3 + len(h.unknown))
	} else {
		h.headerLength = headerLenV2
	}
	cur := make([]byte, img.g.clusterSize())
	if err := readPadded(img.file, cur, 0); err != nil {
		return couldNotRead("qcow2 header", err)
	}
	used := img.usedHead(cur)
	moved := int64(0)
	if !fitsBeside(head, cur, used) {
		detour, place, err := detourHead(h, exts, backing, max(int64(len(used)), int64(len(head))))
		if err != nil {
			return err
		}
		if err := img.switchHead(detour[:block.SectorSize], detour[place:], place); err != nil {
			return err
		}
		moved = int64(len(detour))
	}
	first := min(block.SectorSize, len(head))
	if err := img.switchHead(head[:first], head[first:], block.SectorSize); err != nil {
		if moved > 0 {
			return img.refuseWrites(err) // the header in memory is not the one on disk
		}
		return err
	}
	img.mu.Lock()
	img.hdr, img.exts, img.version = h, exts, h.version
	img.mu.Unlock()
	return img.clearHead(int64(len(head)), max(moved, int64(len(used))))
}

// switchHead writes rest, which nothing refers to yet, and then the first
// sector.
func (img *Image) switchHead(first, rest []byte, at int64) error {
	if len(rest) > 0 {
		if err := img.writeMeta(rest, at); err != nil {
			return err
		}
		if err := img.barrier(); err != nil {
			return err
		}
	}
	if err := img.writeMeta(first, 0); err != nil {
		// Whether the file has it is not known.
		return img.refuseWrites(err)
	}
	return img.barrier()
}

// clearHead writes zeros to what an earlier header used behind the present
// one. Nothing depends on it.
func (img *Image) clearHead(from, to int64) error {
	if to = min(to, img.g.clusterSize()); from >= to {
		return nil
	}
	return img.writeMeta(make([]byte, to-from), from)
}

// usedHead returns, for each byte of the header cluster up to the last one
// that the present header uses, whether it does.
func (img *Image) usedHead(cur []byte) []bool {
	used := make([]bool, len(cur))
	end := 0
	mark := func(from, n int) {
		for i := max(from, 0); i < min(from+n, len(used)); i++ {
			used[i] = true
		}
		end = max(end, min(from+n, len(used)))
	}
	h := &img.hdr
	mark(0, max(int(h.headerLength), headerLenV3)+len(encodeExtensions(img.exts)))
	if h.backingOffset != 0 && h.backingOffset < uint64(len(cur)) {
		mark(int(h.backingOffset), int(h.backingSize))
	}
	return used[:end]
}

// fitsBeside reports whether what head has behind the first sector may be
// written while the old header is in force.
func fitsBeside(head, cur []byte, used []bool) bool {
	for i := block.SectorSize; i < len(head); i++ {
		if i < len(used) && used[i] && head[i] != cur[i] {
			return false
		}
	}
	return true
}

// detourHead returns a header cluster with the extensions and the name behind
// the byte from, and the first of these bytes.
func detourHead(h header, exts []extension, backing string, from int64) ([]byte, int64, error) {
	start := int64(h.headerLength)
	place := start + (from-start+7)&^7
	ext := encodeExtensions(exts)
	h.backingOffset, h.backingSize = 0, 0
	if backing != "" {
		h.backingOffset, h.backingSize = uint64(place)+uint64(len(ext)), uint32(len(backing))
	}
	n := place + int64(len(ext)+len(backing))
	if n > h.geometry().clusterSize() || start+8 > block.SectorSize {
		return nil, 0, noHeaderSpace(fmt.Errorf("the old and the new header need %d bytes beside each other for a change that survives power loss, a cluster has %d", n, h.geometry().clusterSize()))
	}
	b := make([]byte, n)
	copy(b, h.encode())
	binary.BigEndian.PutUint32(b[start:], extDetour)
	binary.BigEndian.PutUint32(b[start+4:], uint32(place-start-8))
	copy(b[place:], ext)
	copy(b[int(place)+len(ext):], backing)
	return b, place, nil
}

func withoutDetour(exts []extension) []extension {
	out := make([]extension, 0, len(exts))
	for _, e := range exts {
		if e.kind != extDetour {
			out = append(out, e)
		}
	}
	return out
}

func noHeaderSpace(err error) error {
	return &stockError{fmt.Sprintf("%v: %v", format.ErrHeaderFull, err), format.ErrHeaderFull}
}

// withExtension returns exts with the data of the first extension of a type
// replaced, in its place; a new one comes first. nil removes it.
func withExtension(exts []extension, kind uint32, data []byte) []extension {
	out := make([]extension, 0, len(exts)+1)
	found := false
	for _, e := range exts {
		switch {
		case e.kind != kind:
			out = append(out, e)
		case data != nil && !found:
			out = append(out, extension{kind, data})
			found = true
		}
	}
	if data != nil && !found {
		out = append([]extension{{kind, data}}, out...)
	}
	return out
}
