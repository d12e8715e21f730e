package stream

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Run reads the stream to its end. On an error the RAM file and the state are of
// no use. Of one that ends within the devices only the QEMU that sent it knows that it
// is not whole: it is to say that the migration is completed.  It may be called once, and it is for whoever made the reader to end a
// read that takes too long.
func (s *Splitter) Run(r io.Reader) (Result, error) {
	if s.o.Size <= 0 || s.o.Size%PageSize != 0 {
		return Result{}, fmt.Errorf("%d bytes of guest RAM are no number of pages", s.o.Size)
	}
	ram, err := newRAMFile(s.o.RAM, s.o.Size, &s.written)
	if err != nil {
		return Result{}, err
	}
	p := &split{
		in:    input{src: r, buf: make([]byte, bufferSize), onMove: ram.flush},
		ram:   ram,
		main:  s.o.Block,
		out:   newStateWriter(s.o.State),
		names: map[string]*block{},
	}
	if err := p.head(); err != nil {
		return Result{}, err
	}
	if err := p.sections(); err != nil {
		return Result{}, err
	}
	if err := p.devices(); err != nil {
		return Result{}, err
	}
	if err := ram.finish(); err != nil {
		return Result{}, err
	}
	if err := p.out.seal(ram); err != nil {
		return Result{}, err
	}
	p.result.Data, p.result.State = ram.bytes(), p.out.n
	return p.result, nil
}

// split is the state of one run.
type split struct {
	in     input
	ram    *ramFile
	main   string // the name of the block that goes to ram
	out    *stateWriter
	result Result

	id      uint32 // of the section "ram"
	started bool
	footers bool
	names   map[string]*block
	blocks  []*block
	last    *block // of the page before
}

// block is one of the guest's RAM. The pages of all but the main one are kept
// until the section's end, as a later copy replaces an earlier one.
type block struct {
	Block
	main   bool
	pages  []pageKind
	chunks [][]byte // nil where no page has come
}

type pageKind byte

const (
	pageUnseen pageKind = iota
	pageZero
	pageData
)

// head reads what is before the first section.
func (p *split) head() error {
	b, err := p.in.take(8)
	if err != nil {
		return err
	}
	if be32(b) != magic {
		return fmt.Errorf("%w: it does not begin with QEVM", ErrFormat)
	}
	if v := be32(b[4:]); v != version {
		return fmt.Errorf("%w: its version is %d, not %d", ErrFormat, v, version)
	}
	p.out.write(b)
	if err := p.in.need(1); err != nil {
		return p.in.fail(err)
	}
	if p.in.buf[p.in.r] != sectionConfiguration {
		return nil // a machine type before QEMU 2.3
	}
	b, err = p.in.take(5)
	if err != nil {
		return err
	}
	p.out.write(b)
	n := be32(b[1:])
	if n > maxName {
		return p.in.unknown("a machine type of %d characters", n)
	}
	if b, err = p.in.take(int(n)); err != nil {
		return err
	}
	p.out.write(b)
	p.result.Machine = string(b)
	return p.configuration()
}

// configuration reads the optional parts of the head.
func (p *split) configuration() error {
	for {
		if err := p.in.need(1); err != nil {
			return p.in.fail(err)
		}
		if p.in.buf[p.in.r] != sectionSubsection {
			return nil
		}
		if err := p.in.need(2 + 255 + 4 + 4); err != nil {
			return p.in.fail(err) // no stream is as short as that
		}
		from := p.in.r // in the buffer, which does not move any more
		p.in.r++
		name, err := p.in.name()
		if err != nil {
			return err
		}
		if string(name) != "configuration/target-page-bits" {
			return p.in.unknown("it has a part %q, which is of a kind of migration that was not asked for", name)
		}
		b, err := p.in.take(8) // its version, then the bits
		if err != nil {
			return err
		}
		if bits := be32(b[4:]); 1<<bits != PageSize {
			return p.in.unknown("its pages have 2^%d bytes, not %d", bits, PageSize)
		}
		if p.out.write(p.in.buf[from:p.in.r]); p.out.err != nil {
			return p.out.err
		}
	}
}

// sections reads all to the last page.
func (p *split) sections() error {
	for {
		kind, err := p.in.u8()
		if err != nil {
			return err
		}
		switch kind {
		case sectionStart:
			err = p.start()
		case sectionPart, sectionEnd:
			if err = p.part(kind); err == nil && kind == sectionEnd {
				return nil
			}
		case sectionCommand:
			err = p.command()
		case sectionFull:
			err = p.early()
		case sectionEOF:
			err = p.in.unknown("it ends before the guest's RAM")
		default:
			err = p.in.unknown("unknown kind of section %#x", kind)
		}
		if err != nil {
			return err
		}
	}
}

// start reads the begin of the section "ram", which lists the blocks.
func (p *split) start() error {
	b, err := p.in.take(4)
	if err != nil {
		return err
	}
	id := be32(b)
	p.out.write([]byte{sectionStart})
	p.out.write(b)
	name, err := p.in.name()
	if err != nil {
		return err
	}
	if string(name) != ramSection {
		return p.in.unknown("it has a section %q, which can only go to another QEMU at once", name)
	}
	if p.started {
		return p.in.unknown("a second section %q", ramSection)
	}
	p.out.writeName(ramSection)
	if b, err = p.in.take(8); err != nil {
		return err
	}
	p.out.write(b)
	if be32(b) != 0 || be32(b[4:]) != ramVersion {
		return p.in.unknown("section %q has instance %d, version %d, not 0 and %d", ramSection, be32(b), be32(b[4:]), ramVersion)
	}
	p.id, p.started = id, true
	if err := p.records(); err != nil {
		return err
	}
	if len(p.blocks) == 0 {
		return p.in.unknown("section %q does not begin with the list of blocks", ramSection)
	}
	p.out.writeU64(flagEOS)
	if err := p.in.need(1); err != nil {
		return p.in.fail(err)
	}
	p.footers = p.in.buf[p.in.r] == sectionFooter
	if err := p.footer(); err != nil {
		return err
	}
	p.writeFooter()
	return nil
}

// part reads pages. Those of the other blocks are written with the last of them.
func (p *split) part(kind byte) error {
	id, err := p.in.u32()
	if err != nil {
		return err
	}
	if !p.started || id != p.id {
		return p.in.unknown("pages of a section %d, which has not begun", id)
	}
	if err := p.records(); err != nil {
		return err
	}
	if err := p.footer(); err != nil || kind != sectionEnd {
		return err
	}
	p.out.write([]byte{sectionEnd})
	p.out.writeU32(p.id)
	for _, b := range p.blocks {
		p.writePages(b)
	}
	p.out.writeU64(flagEOS)
	p.writeFooter()
	return p.out.err
}

func (p *split) writePages(b *block) {
	first := true
	for i, kind := range b.pages {
		if kind == pageUnseen {
			continue
		}
		flags := uint64(flagZero)
		if kind == pageData {
			flags = flagPage
		}
		if !first {
			flags |= flagContinue
		}
		p.out.writeU64(uint64(i)*PageSize | flags)
		if first {
			p.out.writeName(b.Name)
			first = false
		}
		if kind == pageData {
			p.out.write(b.keep(int64(i) * PageSize))
		} else {
			p.out.write([]byte{0})
		}
	}
}

func (p *split) footer() error {
	if !p.footers {
		return nil
	}
	b, err := p.in.take(5)
	if err != nil {
		return err
	}
	if b[0] != sectionFooter || be32(b[1:]) != p.id {
		return p.in.unknown("a section does not end as it should")
	}
	return nil
}

func (p *split) writeFooter() {
	if p.footers {
		p.out.write([]byte{sectionFooter})
		p.out.writeU32(p.id)
	}
}

// commands are by number (MigrationCommand of QEMU's migration/savevm.h).
var commands = map[uint16]string{
	1: "return path", 2: "return path", 3: "postcopy", 4: "postcopy", 5: "postcopy", 6: "postcopy", 7: "postcopy", 8: "COLO", 9: "postcopy", 10: "postcopy",
}

// switchoverStart tells devices that the pages are all there.
const switchoverStart = 11

// command passes on a word to the QEMU that loads.
func (p *split) command() error {
	b, err := p.in.take(4)
	if err != nil {
		return err
	}
	number, n := uint16(b[0])<<8|uint16(b[1]), int(b[2])<<8|int(b[3])
	if number != switchoverStart {
		what := commands[number]
		if what == "" {
			what = "something new"
		}
		return p.in.unknown("it has a command %d (%s), which needs a QEMU at the other end", number, what)
	}
	p.out.write([]byte{sectionCommand})
	p.out.write(b)
	if b, err = p.in.take(n); err != nil {
		return err
	}
	p.out.write(b)
	return p.out.err // nothing else bounds how many there are
}

// early refuses a device that comes before the RAM: nothing tells where it ends.
func (p *split) early() error {
	if _, err := p.in.take(4); err != nil {
		return err
	}
	name, err := p.in.name()
	if err != nil {
		return err
	}
	return p.in.unknown("device %q comes before the guest's RAM", name)
}

// devices passes on what follows the RAM.
func (p *split) devices() error {
	if err := p.in.need(1); err != nil {
		return p.in.fail(err)
	}
	if kind := p.in.buf[p.in.r]; kind != sectionFull {
		return p.in.unknown("the guest's RAM is not followed by devices, but by a section of kind %#x", kind)
	}
	for left := int64(maxDevices); ; {
		n := p.in.w - p.in.r
		if left -= int64(n); left < 0 {
			return p.in.unknown("more than %d MiB of devices", maxDevices>>20)
		}
		p.out.write(p.in.buf[p.in.r:p.in.w])
		if p.out.err != nil {
			return p.out.err
		}
		p.in.r = p.in.w
		if err := p.in.need(1); errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return p.in.fail(err)
		}
	}
}

// blockNames lists the blocks for people, without those of firmware.
func (p *split) blockNames() string {
	var names []string
	for _, b := range p.blocks {
		if len(names) == 8 {
			return strings.Join(names, ", ") + ", ..."
		}
		names = append(names, fmt.Sprintf("%s (%d bytes)", b.Name, b.Size))
	}
	return strings.Join(names, ", ")
}
