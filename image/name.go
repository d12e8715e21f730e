package image

import (
	"strings"

	"github.com/lamina-vm/lamina/format"
)

// location is what a name means.
type location struct {
	path   string // of the file at the bottom
	format string // "" unless the name says it
	// opts are the block options of a json: name, nil of a plain one.
	opts *BlockOptions
}

// parseName takes a name apart: a plain path, "file:path", or "json:{...}"
// with block options.
func parseName(name string) (location, error) {
	if text, ok := strings.CutPrefix(name, "json:"); ok {
		flat, err := parseJSONOptions(text)
		if err != nil {
			return location{}, err
		}
		o, err := ParseBlockOptions(flat)
		if err != nil {
			return location{}, err
		}
		return o.location()
	}
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		if protocol(rest) != "" {
			rest = "./" + rest // so the path alone is no name of another protocol
		}
		return location{path: rest}, nil
	}
	if p := protocol(name); p != "" {
		return location{}, &ProtocolError{Name: name, Protocol: p}
	}
	return location{path: name}, nil
}

// location says which file is at the bottom of the nodes.
func (o *BlockOptions) location() (location, error) {
	loc := location{opts: o, format: o.Driver}
	if isProtocol(o.Driver) {
		loc.format = rawName
	}
	if err := o.checkDriver(); err != nil {
		return loc, err
	}
	switch {
	case isProtocol(o.Driver):
	case o.Driver == "" && o.File == nil:
		return loc, &format.OptionError{Text: "Must specify either driver or file"}
	case o.File == nil:
		return loc, errNoFile
	}
	n := o
	for n.File != nil {
		n = n.File
		if err := n.checkDriver(); err != nil {
			return loc, err
		}
		if n.File == nil && n.Driver != "" && !isProtocol(n.Driver) {
			return loc, errNoFile
		}
	}
	f, err := n.file(true)
	loc.path = f.path
	if loc.path == "" {
		return loc, err
	}
	return loc, nil
}

// errNoFile is for a format without the node that holds its bytes.
var errNoFile = &format.OptionError{Text: `A block device must be specified for "file"`}

// protocol returns the protocol that a name begins with: what stands before
// a colon that comes before any slash.
func protocol(name string) string {
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		return name[:i]
	}
	return ""
}

// combine returns the name that the image at path means by name, as QEMU
// does: relative ones start in the image's folder, and nothing is cleaned.
func combine(path, name string) string {
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "json:") || protocol(name) != "" {
		return name
	}
	path = strings.TrimPrefix(path, "file:")
	return path[:strings.LastIndexByte(path, '/')+1] + name
}

// Filename returns the name by which stock QEMU calls the image that name
// means: that of its file, where nothing but the format is said about it.
func Filename(name string) string {
	loc, err := parseName(name)
	switch {
	case err != nil:
		return name
	case loc.opts != nil:
		return loc.opts.Filename()
	}
	return loc.path
}
