package image

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/block"
)

// location is what a name means.
type location struct {
	path   string
	format string // "" unless the name says it
	// values are runtime options of the format.
	values map[string]string
}

// parseName takes a name apart: a plain path, "file:path", or "json:{...}"
// with the driver and the file's name.
func parseName(name string) (location, error) {
	if rest, ok := strings.CutPrefix(name, "json:"); ok {
		return parseJSON(name, rest)
	}
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		return location{path: rest}, nil
	}
	if p := protocol(name); p != "" {
		return location{}, &ProtocolError{Name: name, Protocol: p}
	}
	return location{path: name}, nil
}

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

// parseJSON reads a name like
//
//	json:{"driver":"qcow2","file":{"driver":"file","filename":"disk.qcow2"}}
//
// Nested objects may be written flat ("file.filename"). Options other than
// these are refused rather than ignored.
func parseJSON(name, text string) (location, error) {
	var tree map[string]any
	if err := json.Unmarshal([]byte(text), &tree); err != nil {
		return location{}, fmt.Errorf("%s: not a JSON object: %w", name, err)
	}
	flat := map[string]string{}
	if err := flatten(name, "", tree, flat, 0); err != nil {
		return location{}, err
	}
	return parseBlockOptions(name, flat)
}

// flatten turns nested objects into dotted keys. The depth is bounded because
// names come from images.
func flatten(name, prefix string, tree map[string]any, flat map[string]string, depth int) error {
	for k, v := range tree {
		switch v := v.(type) {
		case string:
			flat[prefix+k] = v
		case map[string]any:
			if depth > 4 {
				return fmt.Errorf("%s: nested too deeply: %w", name, block.ErrUnsupported)
			}
			if err := flatten(name, prefix+k+".", v, flat, depth+1); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: option %q: only text values are supported: %w", name, prefix+k, block.ErrUnsupported)
		}
	}
	return nil
}

// parseBlockOptions reads the dotted options of a block device: driver (a
// format, or "file" for plain bytes), file.driver ("file") and file.filename,
// or filename where driver is file or absent.
func parseBlockOptions(name string, flat map[string]string) (location, error) {
	var loc location
	for k, v := range flat {
		switch {
		case k == "driver" && v == "file":
			loc.format = rawName
		case k == "driver":
			loc.format = v
		case k == "file.driver" && v == "file":
		case k == "file.filename", k == "filename":
			if loc.path != "" {
				return loc, fmt.Errorf("%s: two file names: %w", name, block.ErrUnsupported)
			}
			loc.path = v
		case k == "key-secret", k == "encrypt.key-secret", k == "encrypt.format":
			if loc.values == nil {
				loc.values = map[string]string{}
			}
			loc.values[k] = v
		default:
			return loc, fmt.Errorf("%s: block option %s=%s is not supported: %w", name, k, v, block.ErrUnsupported)
		}
	}
	if loc.path == "" {
		return loc, fmt.Errorf("%s: it names no file (file.filename): %w", name, block.ErrUnsupported)
	}
	return loc, nil
}

// FromBlockOptions returns the file name and format ("" to probe) that
// block options in dotted form mean (`--image-opts`): driver,
// file.driver=file, file.filename. Others match block.ErrUnsupported.
func FromBlockOptions(options map[string]string) (name, formatName string, err error) {
	loc, err := parseBlockOptions("image options", options)
	return loc.path, loc.format, err
}
