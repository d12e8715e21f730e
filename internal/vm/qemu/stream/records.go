package stream

import (
	"encoding/binary"
	"math"
)

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// records reads the records of a section "ram".
func (p *split) records() error {
	for {
		v, err := p.in.u64()
		if err != nil {
			return err
		}
		offset := v &^ flagMask
		switch flags := v & flagMask; flags &^ flagContinue {
		case flagPage:
			err = p.page(offset, flags)
		case flagZero:
			err = p.zero(offset, flags)
		case flagEOS:
			return nil
		case flagMemSize:
			err = p.list(v)
		default:
			err = p.refuse(flags)
		}
		if err != nil {
			return err
		}
	}
}

// refuse names what is not known.
func (p *split) refuse(flags uint64) error {
	for _, k := range []struct {
		flag uint64
		name string
	}{{flagXBZRLE, "xbzrle"}, {flagCompressed, "compress"}, {flagMultiFD, "multifd"}, {flagHook, "RDMA"}, {flagFull, "of before 2009"}} {
		if flags&k.flag != 0 {
			return p.in.unknown("it is of a kind of migration that was not asked for: %s", k.name)
		}
	}
	return p.in.unknown("unknown flags %#x of a page", flags)
}

// page reads one page, with the name of its block if that is another one than
// that of the page before.
func (p *split) page(offset, flags uint64) error {
	b, err := p.blockOf(offset, flags)
	if err != nil {
		return err
	}
	data, err := p.in.take(PageSize)
	if err != nil {
		return err
	}
	if b.main {
		return p.ram.put(int64(offset), data)
	}
	copy(b.keep(int64(offset)), data)
	b.pages[offset/PageSize] = pageData
	return nil
}

// chunkSize is how much room is made for pages that are kept at once.
const chunkSize = 64 * PageSize

// keep is the room for a page.
func (b *block) keep(offset int64) []byte {
	c := &b.chunks[offset/chunkSize]
	if *c == nil {
		*c = make([]byte, chunkSize)
	}
	at := offset % chunkSize
	return (*c)[at : at+PageSize]
}

func (p *split) zero(offset, flags uint64) error {
	b, err := p.blockOf(offset, flags)
	if err != nil {
		return err
	}
	fill, err := p.in.u8()
	if err != nil {
		return err
	}
	if fill != 0 {
		return p.in.unknown("a page of bytes %#x, which no QEMU since 1.7 sends", fill)
	}
	if b.main {
		p.ram.zero(int64(offset))
		return nil
	}
	b.pages[offset/PageSize] = pageZero
	return nil
}

// blockOf returns the block of a page, which is inside of it.
func (p *split) blockOf(offset, flags uint64) (*block, error) {
	if flags&flagContinue == 0 {
		name, err := p.in.name()
		if err != nil {
			return nil, err
		}
		if p.last = p.names[string(name)]; p.last == nil {
			return nil, p.in.unknown("a page of block %q, which is not in the list", name)
		}
	}
	switch {
	case p.last == nil:
		return nil, p.in.unknown("the first page has no block")
	case offset >= uint64(p.last.Size):
		return nil, p.in.unknown("a page at %d of block %q, which has %d bytes", offset, p.last.Name, p.last.Size)
	}
	return p.last, nil
}

// list reads the names and sizes of all blocks, which it passes on.
func (p *split) list(v uint64) error {
	if len(p.blocks) > 0 {
		return p.in.unknown("a second list of blocks")
	}
	p.out.writeU64(v)
	others := int64(0)
	for left := v &^ flagMask; left > 0; {
		name, err := p.in.name()
		if err != nil {
			return err
		}
		b := &block{Block: Block{Name: string(name)}}
		size, err := p.in.u64()
		if err != nil {
			return err
		}
		switch {
		case size == 0 || size%PageSize != 0 || size > left || size > math.MaxInt64:
			return p.in.unknown("block %q has %d bytes, of %d", b.Name, size, left)
		case p.names[b.Name] != nil:
			return p.in.unknown("two blocks %q", b.Name)
		case len(p.blocks) == maxBlocks:
			return p.in.unknown("more than %d blocks", maxBlocks)
		}
		left -= size
		b.Size, b.main = int64(size), b.Name == p.main
		if b.main && b.Size != p.ram.size {
			return p.in.unknown("block %q has %d bytes, not %d", b.Name, b.Size, p.ram.size)
		}
		if !b.main {
			if others += b.Size; b.Size > maxOthers || others > maxOthers {
				return p.in.unknown("block %q has %d bytes: with the other blocks beside %q that is more than %d MiB", b.Name, b.Size, p.main, maxOthers>>20)
			}
			b.pages, b.chunks = make([]pageKind, b.Size/PageSize), make([][]byte, (b.Size+chunkSize-1)/chunkSize)
		}
		p.names[b.Name] = b
		p.blocks = append(p.blocks, b)
		p.result.Blocks = append(p.result.Blocks, b.Block)
		p.out.writeName(b.Name)
		p.out.writeU64(size)
	}
	if p.names[p.main] == nil {
		return p.in.unknown("there is no block %q, only %s", p.main, p.blockNames())
	}
	return nil
}
