package image

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/protocol/file"
)

// BlockOptions says what a disk is made of: one of QEMU's block nodes with its
// options, and the nodes below it. It is what `--image-opts` and names of the
// form json:{...} mean; the reference is QEMU's BlockdevOptions.
//
// A node is a protocol (file, host_device), which names a file, or a format
// (raw, qcow2, ...) over the node File. Options of every node:
//
//	node-name, read-only, auto-read-only, force-share (on: no locks, read-only),
//	discard (ignore, unmap), detect-zeroes (off, on, unmap),
//	cache.direct (O_DIRECT), cache.no-flush (DANGER: flushes are skipped)
//
// Of file and host_device: filename; locking (on, off, auto); aio (threads,
// native, io_uring), aio-max-batch, drop-cache and x-check-cache-dropped are
// checked and change nothing that can be seen, and pr-manager is refused. Of
// raw: size and offset, a window of the node below in bytes. Of qcow2:
// lazy-refcounts; pass-discard-request, -snapshot, -other; discard-no-unref;
// encrypt.format, encrypt.key-secret; overlap-check and its parts, cache-size,
// l2-cache-size, l2-cache-entry-size, refcount-cache-size and
// cache-clean-interval are checked and change nothing: the metadata is always
// guarded, and the caches have bounds of their own.
type BlockOptions struct {
	// Driver is the format or protocol; "" probes the format, and is file
	// where only a protocol can be.
	Driver string
	// Values are the node's own options by their names, with dots:
	// string, bool, int64, uint64, float64, or nil for JSON's null.
	Values map[string]any
	// File is the node below. Data overrides the image's external data file,
	// Backing its backing file; what they leave out is as the image says.
	File, Data, Backing *BlockOptions
	// NoBacking leaves the backing file out: what only it holds reads as
	// zeros.
	NoBacking bool

	anyFile bool // nobody chose Driver, so a device is as good as a file
}

// maxOptionDepth bounds nodes over nodes; names come from images too.
const maxOptionDepth = 16

// children are the options that are nodes.
const (
	childFile    = "file"
	childData    = "data-file"
	childBacking = "backing"
)

// ParseBlockOptions makes a tree of options whose names have dots:
// "file.filename" is the option filename of the node file. Errors are a
// *[format.OptionError] with the stock tool's text.
func ParseBlockOptions(flat map[string]any) (*BlockOptions, error) {
	return parseBlockOptions(flat, 0)
}

func parseBlockOptions(flat map[string]any, depth int) (*BlockOptions, error) {
	if depth > maxOptionDepth {
		return nil, &format.OptionError{Text: "Block nodes are nested too deeply"}
	}
	o := &BlockOptions{Values: map[string]any{}}
	below := map[string]map[string]any{}
	for k, v := range flat {
		child, rest, ok := strings.Cut(k, ".")
		if ok && (child == childFile || child == childData || child == childBacking) {
			if below[child] == nil {
				below[child] = map[string]any{}
			}
			below[child][rest] = v
			continue
		}
		o.Values[k] = v
	}
	for _, child := range []string{childFile, childData, childBacking} {
		if err := o.takeReference(child); err != nil {
			return nil, err
		}
	}
	if v, ok := o.Values["driver"]; ok {
		if s, ok := v.(string); ok {
			o.Driver = s
			delete(o.Values, "driver")
			if s == "" {
				return nil, &UnknownFormatError{}
			}
		}
	}
	for child, values := range below {
		n, err := parseBlockOptions(values, depth+1)
		if err != nil {
			return nil, err
		}
		*o.child(child) = n
	}
	return o, nil
}

// takeReference takes out a node that is named instead of described: there are
// none of a name, but that no backing file is wanted can be said so.
func (o *BlockOptions) takeReference(child string) error {
	v, ok := o.Values[child]
	if !ok {
		return nil
	}
	name, isText := v.(string)
	switch {
	case child == childBacking && (v == nil || isText && name == ""):
		o.NoBacking = true
	case child == childBacking:
		return nil // is refused when it would be opened
	case isText:
		return &format.OptionError{Text: "Cannot find device='" + name + "' nor node-name='" + name + "'"}
	default:
		return nil // is reported as an option that there is not
	}
	delete(o.Values, child)
	return nil
}

func (o *BlockOptions) child(name string) **BlockOptions {
	switch name {
	case childData:
		return &o.Data
	case childBacking:
		return &o.Backing
	}
	return &o.File
}

// checkDriver refuses a driver that there is not.
func (o *BlockOptions) checkDriver() error {
	if o.Driver != "" && !isProtocol(o.Driver) && all.Find(o.Driver) == nil {
		return &UnknownFormatError{Format: o.Driver}
	}
	return nil
}

// backingReference returns the node that is to be the backing file, by name.
func (o *BlockOptions) backingReference() string {
	if o == nil {
		return ""
	}
	name, _ := o.Values[childBacking].(string)
	return name
}

// isProtocol reports whether a driver names a file by itself.
func isProtocol(driver string) bool { return driver == "file" || driver == hostDevice }

// hostDevice is the driver of block and character devices.
const hostDevice = "host_device"

// optionText returns a value as text, and whether it is one.
func optionText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		if v {
			return "on", true
		}
		return "off", true
	case int64:
		return strconv.FormatInt(v, 10), true
	case uint64:
		return strconv.FormatUint(v, 10), true
	case float64:
		return strconv.FormatFloat(v, 'g', 17, 64), true
	}
	return "", false
}

// nodeOptions are the options that every node has.
type nodeOptions struct {
	readOnly, forceShare    bool
	direct, noFlush         *bool // nil: as above
	discard, detectZeroes   string
	rest                    map[string]string // the driver's own
	hasForceShare, autoRead bool
}

// node takes the options that every node has apart from the driver's.
func (o *BlockOptions) node() (nodeOptions, error) {
	n := nodeOptions{rest: map[string]string{}}
	for _, k := range queueOrder(slices.Collect(maps.Keys(o.Values))) {
		v, ok := optionText(o.Values[k])
		if !ok {
			if o.Values[k] != nil {
				n.rest[k] = ""
			}
			continue
		}
		if err := n.take(k, v); err != nil {
			return n, err
		}
	}
	switch {
	case n.discard != "" && n.discard != "ignore" && n.discard != "off" && n.discard != "unmap" && n.discard != "on":
		return n, &format.OptionError{Text: "Invalid discard option"}
	case n.detectZeroes == "unmap" && n.discard != "unmap" && n.discard != "on":
		return n, &format.OptionError{Text: "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"}
	}
	return n, nil
}

func (n *nodeOptions) take(k, v string) (err error) {
	set := func(p *bool) { *p, err = format.OptionBool(k, v) }
	switch k {
	case "node-name":
		if !wellFormed(v) {
			return &format.OptionError{Text: "Invalid node-name: '" + v + "'"}
		}
	case "read-only":
		set(&n.readOnly)
	case "auto-read-only":
		set(&n.autoRead)
	case "force-share":
		n.hasForceShare = true
		set(&n.forceShare)
	case "cache.direct":
		n.direct = new(bool)
		set(n.direct)
	case "cache.no-flush":
		n.noFlush = new(bool)
		set(n.noFlush)
	case "discard":
		n.discard = v
	case "detect-zeroes":
		if v != "off" && v != "on" && v != "unmap" {
			return invalidValue(v)
		}
		n.detectZeroes = v
	default:
		n.rest[k] = v
	}
	return err
}

func invalidValue(v string) error {
	return &format.OptionError{Text: "invalid parameter value: " + v}
}

// wellFormed reports whether s can name a node: a letter, then letters,
// digits, '-', '.' and '_', at most 31.
func wellFormed(s string) bool {
	if s == "" || len(s) > 31 || !isLetter(s[0]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// fileOptions are the options of a protocol node.
type fileOptions struct {
	nodeOptions
	path     string
	unlocked bool   // locking=off
	driver   string // as it was chosen, "" if the file decides
}

// check refuses a file that is not of the kind that the chosen driver is for.
func (f fileOptions) check(opened *file.File) error {
	switch {
	case f.driver == "file" && opened.IsDevice():
		return &file.NotRegularError{File: f.path}
	case f.driver == hostDevice && !opened.IsDevice():
		return &format.OptionError{Text: "'" + hostDevice + "' driver requires '" + f.path + "' to be either a character or block device"}
	}
	return nil
}

// file takes a protocol node's options. direct is the cache.direct of the node
// above.
func (o *BlockOptions) file(direct bool) (fileOptions, error) {
	f := fileOptions{}
	var err error
	if f.nodeOptions, err = o.node(); err != nil {
		return f, err
	}
	name, isText := o.Values["filename"].(string)
	driver := o.Driver
	if driver == "" {
		driver = "file"
	}
	if !isText || name == "" {
		return f, &format.OptionError{Text: "The '" + driver + "' block driver requires a file name"}
	}
	f.path = name
	if !o.anyFile {
		f.driver = o.Driver
	}
	if f.direct != nil {
		direct = *f.direct
	}
	for _, k := range queueOrder(slices.Collect(maps.Keys(f.rest))) {
		if err := f.takeFile(k, f.rest[k], driver, direct); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (f *fileOptions) takeFile(k, v, driver string, direct bool) (err error) {
	switch k {
	case "filename":
	case "locking":
		f.unlocked = v == "off"
		if v != "on" && v != "off" && v != "auto" {
			err = invalidValue(v)
		}
	case "aio":
		switch {
		case v != "threads" && v != "native" && v != "io_uring":
			err = invalidValue(v)
		case v == "native" && !direct:
			err = &format.OptionError{Text: "aio=native was specified, but it requires cache.direct=on, which was not specified."}
		}
	case "aio-max-batch":
		_, err = format.OptionNumber(k, v)
	case "drop-cache", "x-check-cache-dropped":
		_, err = format.OptionBool(k, v)
	case "pr-manager":
		err = &format.OptionError{Text: "No persistent reservation manager with id '" + v + "'"}
	default:
		err = &format.OptionError{Text: "Block protocol '" + driver + "' doesn't support the option '" + k + "'"}
	}
	return err
}
