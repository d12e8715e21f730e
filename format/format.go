// Package format says what an image format driver is.
//
// Drivers are values that stand in one list, format/all, in probe order, and
// are handed down from there; nothing registers itself. A driver that must
// open another image (a backing file) is given an
// [Opener], so no format imports another one or the file system.
package format

import (
	"context"

	"github.com/lamina-vm/lamina/block"
)

// Driver is an image format.
type Driver interface {
	// Name is the format's name on command lines: "raw", "qcow2".
	Name() string

	// Probe scores how likely a file that begins with prefix (at most
	// [ProbeSize] bytes, less for a shorter file) is of this format: 0 is
	// no, 100 certain. raw answers 1.
	Probe(prefix []byte, filename string) int

	// Open returns the disk inside file. On success the node owns file and
	// closes it; on error file is still the caller's.
	Open(ctx context.Context, file block.Node, opts OpenOptions) (block.Node, error)

	// Create writes a new, empty image of size bytes into file, which is
	// empty and stays the caller's. It returns after everything is written;
	// the caller flushes. Unknown options fail with an error that matches
	// block.ErrUnsupported.
	Create(ctx context.Context, file block.Node, size int64, opts CreateOptions) error

	// Options describes the creation options (`qemu-img create -o help`),
	// in the order in which the stock tool prints them.
	Options() []Option
}

// CreateChecker is a driver that can say what Create would refuse about size
// and options, before there is a file: making one destroys what was there.
type CreateChecker interface {
	CheckCreate(size int64, opts CreateOptions) error
}

// ProbeSize is the number of bytes that [Driver].Probe is given.
const ProbeSize = 2048

// OpenOptions are the choices of [Driver].Open. The zero value opens
// read-only, without any other file.
type OpenOptions struct {
	// Writable opens for writing. The file node must be a block.Writer.
	Writable bool
	// Filename is the name for messages, as the user gave it.
	Filename string
	// Opener opens the files that the image names. nil means that they are
	// not opened: ranges that only they hold fail to read, and
	// [block.Backed] returns nil.
	Opener Opener
	// Secrets resolves the names of keys. nil is none.
	Secrets Secrets
	// Values holds the format's runtime options by key, spelled as QEMU's
	// block options are ("encrypt.key-secret", "lazy-refcounts"). Unknown
	// ones fail with an error that matches block.ErrUnsupported.
	Values map[string]string
	// NoData opens the image to be described only: no guest data is read or
	// written, so the keys of an encrypted image are not asked for.
	NoData bool
	// ForceBacking asks Opener for a backing file also where the image names
	// none.
	ForceBacking bool
	// Untrusted refuses, with block.ErrUntrusted, an image that names
	// another file, and bounds what its header may claim.
	Untrusted bool
	// ForCheck lets a damaged image be opened as far as a check needs:
	// tables that do not hold together are findings, not errors.
	ForCheck bool
	// Unsafe skips flushes (cache mode "unsafe").
	Unsafe bool
	// Warn is told, while the image is opened, what is wrong with it and no
	// error: a line, and what to do about it. May be nil.
	Warn func(text, hint string)
	// Damage is told, once and in the stock tool's form, when the image's
	// tables are found damaged while the guest's data is read or written; the
	// error of the request says it too. Any goroutine may call it.
	Damage func(line string)
}

// Opener opens another file that an image names.
type Opener interface {
	// OpenBacking opens the backing file as a read-only chain. name is what
	// the image says, still relative to it; format is the recorded backing
	// format or "" to probe.
	// A nil node without an error leaves it closed.
	OpenBacking(ctx context.Context, name, format string) (block.Node, error)

	// OpenData opens the external data file, in which the image keeps the
	// guest's data and nothing else, as plain bytes; writable as a
	// block.Writer that grows. name is what the image says, "" if it says
	// nothing. Unlike a backing file's it is relative to the working
	// directory. The node is the image's to close. A nil node without an
	// error leaves the file closed: what only it holds fails to read, and
	// the image cannot be opened for writing.
	OpenData(ctx context.Context, name string, writable bool) (block.Node, error)
}

// CreateOptions are the choices of [Driver].Create.
type CreateOptions struct {
	// Values holds `-o key=value` options by key. Keys and the spelling of
	// values are the stock tool's. An absent key means the default.
	Values map[string]string
	// Filename is the name for messages.
	Filename string
	// BackingFile and BackingFormat are recorded as they are; the caller has
	// made sure that they can be opened.
	BackingFile, BackingFormat string
	// Secrets resolves the names of keys. nil is none.
	Secrets Secrets
	// Data is the new external data file that Values["data_file"] names:
	// empty, writable, and able to be resized. It stays the caller's, who
	// flushes it before the image. nil where no file is named.
	Data block.Node
}

// OptionType is how a creation option's value is written.
type OptionType string

// The types as `-o help` prints them.
const (
	TypeString OptionType = "str"
	TypeBool   OptionType = "bool (on/off)"
	TypeNumber OptionType = "num"
	TypeSize   OptionType = "size"
)

// Option describes one creation option.
type Option struct {
	Name    string
	Type    OptionType
	Help    string // the stock tool's text
	Default string // "" where the stock tool names none
	// Amendable options can be changed later by amend.
	Amendable bool
}

// Info is what a format says of an open image beyond its size, for
// `qemu-img info`. Fields that the format does not have are zero.
type Info struct {
	Format        string
	ClusterSize   int64
	Compressed    bool // the whole image is (streamOptimized)
	Encrypted     bool
	Dirty         bool   // needs repair before it is written
	BackingFile   string // as recorded
	BackingFormat string // as recorded, "" if not
	// Specific is the format's own table, in print order.
	Specific  []InfoField
	Snapshots []Snapshot
	Bitmaps   []Bitmap
}

// InfoField is one line of "Format specific information". Name is the text
// form ("refcount bits"), Key the JSON form ("refcount-bits"); Value is a
// string, bool, int64, []InfoField, or []any of these.
type InfoField struct {
	Name, Key string
	Value     any
}

// Snapshot is an internal snapshot as the image lists it.
type Snapshot struct {
	ID, Name    string
	VMStateSize int64
	DateSec     uint32
	DateNsec    uint32
	VMClockNsec uint64
	ICount      int64 // -1 if not recorded
	DiskSize    int64
}

// Informer is a node that describes its image.
type Informer interface {
	ImageInfo() (Info, error)
}

// SnapshotOpener is a node whose image can hold internal snapshots.
type SnapshotOpener interface {
	Informer
	// OpenSnapshot returns the disk as it was when a snapshot was made, as
	// a node that can only be read, of the size that the disk had then.
	// index is the snapshot's place in [Info].Snapshots; names and IDs
	// need not be unique, so the caller looks for them there. The disk
	// reads through the image's file and backing chain and is closed before
	// the image, which must be open read-only.
	OpenSnapshot(ctx context.Context, index int) (block.Node, error)
}
