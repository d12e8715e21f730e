// Package stream takes the migration stream of a QEMU apart as it comes: the
// guest's memory becomes a file that machines can map, the rest a stream without
// it, which a QEMU that maps the file loads.
//
// The format is QEMU's docs/devel/migration and its migration/savevm.c and
// migration/ram.c, as of QEMU 6.0 to 10. All numbers are big-endian. A stream is
//
//	magic "QEVM", version 3
//	0x07 the machine type, with optional parts
//	0x01 section "ram": the list of RAM blocks
//	0x02 section "ram": pages; any number of these
//	0x03 section "ram": the last pages
//	0x04 sections of devices, 0x00, 0x06 a description for people
//
// A section ends with a footer, unless the machine type is older than QEMU 2.4.
// In the section "ram" each record begins with a page's offset in its block, the
// low 12 bits of which say what follows.
package stream

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
)

// PageSize is that of the records, in bytes. It is x86's, not the host's.
const PageSize = 4096

// Kinds of sections.
const (
	sectionEOF           = 0x00
	sectionStart         = 0x01
	sectionPart          = 0x02
	sectionEnd           = 0x03
	sectionFull          = 0x04
	sectionSubsection    = 0x05
	sectionConfiguration = 0x07
	sectionCommand       = 0x08
	sectionFooter        = 0x7e
)

// What a record of the section "ram" is.
const (
	flagFull       = 0x01 // not used by any QEMU since 2009
	flagZero       = 0x02 // a page of zeros
	flagMemSize    = 0x04 // the list of blocks
	flagPage       = 0x08 // a page
	flagEOS        = 0x10 // the end of the section
	flagContinue   = 0x20 // of the same block as the page before
	flagXBZRLE     = 0x40
	flagHook       = 0x80
	flagCompressed = 0x100
	flagMultiFD    = 0x200
	flagMask       = PageSize - 1
)

const (
	magic      = 0x5145564d // "QEVM"
	version    = 3
	ramVersion = 4
	ramSection = "ram"
)

// Bounds of what a stream may ask for.
const (
	maxBlocks = 4096
	// maxOthers bounds the memory that the other blocks take here: graphics
	// memory, firmware, ACPI tables.
	maxOthers = 1 << 30
	// maxDevices is the most that the devices' state may have.
	maxDevices = 1 << 30
	maxName    = 256
	// maxState is more than all of these make.
	maxState = 2*maxOthers + maxDevices
)

// ErrFormat: this is no stream that can be taken apart; the wrapping error says
// where and why.
var ErrFormat = errors.New("not a migration stream of the expected kind")

// Options say what to make of a stream.
type Options struct {
	// Block is the name of the RAM block that becomes the file: "pc.ram", or the
	// id of the machine's memory backend. Size is its length in bytes.
	Block string
	Size  int64
	// RAM gets the block's pages at their offsets. It must be an empty regular file,
	// open for reading and writing; pages of zeros become holes.
	RAM *os.File
	// State gets the stream without the pages of the block, and behind it what
	// [Check] needs.
	State io.Writer
}

// Block is a block of the guest's memory.
type Block struct {
	Name string
	Size int64 // bytes
}

// Result is what a stream held.
type Result struct {
	// Machine is the machine type with its version, "pc-i440fx-7.2"; "" in the
	// stream of a machine type older than QEMU 2.3.
	Machine string
	Blocks  []Block
	// Data is how many bytes of the RAM file are no holes, State the length of the
	// state in bytes.
	Data, State int64
}

// Splitter takes one stream apart.
type Splitter struct {
	o       Options
	written atomic.Int64
}

// New returns a splitter for one stream.
func New(o Options) *Splitter { return &Splitter{o: o} }

// Written is how many bytes of pages came so far for the RAM file, those of zeros
// left out. It may be called from any goroutine.
func (s *Splitter) Written() int64 { return s.written.Load() }
