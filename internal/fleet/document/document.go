// Package document reads a fleet as people write it: a YAML document.
//
//	name: shop
//	groups:
//	  - name: web
//	    template: debian-web
//	    count: 3
//	    memory: 2G
//	    ports: ["8080:80"]
//	    userDataFile: web.yaml
//	    health: {check: http, port: 80}
//
// The keys are those of [api.Fleet]'s JSON, and userDataFile. What is not known is
// refused. Errors say file, line, field, what is wrong and what to do.
package document

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
)

// Bounds of what is read.
const (
	maxDocument = 1 << 20 // bytes
	maxTotal    = 8 << 20 // bytes of user-data, of all groups
	maxNodes    = 200_000 // values, with what aliases repeat
	maxErrors   = 10      // that are told
)

// Error is what is wrong at a place of a document.
type Error struct {
	File  string
	Line  int    // from 1; 0 where it is the whole document
	Field string // "groups[0].count", "" for the document
	Text  string
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += fmt.Sprintf(":%d", e.Line)
	}
	if e.Field != "" {
		s += ": " + e.Field
	}
	return s + ": " + e.Text
}

// Read reads the document in a file, "-" being in, and the files that it names,
// which are relative to its folder. The fleet is complete and free of what
// [fleet.Check] finds. An error may be several, joined.
func Read(name string, in io.Reader) (api.Fleet, error) {
	dir := filepath.Dir(name)
	if name == "-" {
		name, dir = "standard input", "."
	} else {
		f, err := os.Open(name)
		if err != nil {
			return api.Fleet{}, err
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	b, err := readBounded(in, maxDocument)
	if err != nil {
		return api.Fleet{}, &Error{File: name, Text: err.Error()}
	}
	return Parse(name, dir, b)
}

// Parse reads the text of a document that is called name; dir is the folder that
// the files it names are relative to.
func Parse(name, dir string, text []byte) (f api.Fleet, err error) {
	r := &reader{file: name, dir: dir, lines: make(map[place]int)}
	root, err := r.parse(text)
	if err != nil {
		return api.Fleet{}, err
	}
	r.fleet(root, &f)
	if len(r.errs) > 0 {
		return api.Fleet{}, r.failed()
	}
	f = fleet.Complete(f)
	for _, p := range fleet.Problems(f) {
		r.errs = append(r.errs, &Error{File: name, Line: r.lineOf(place{p.Group, p.Field}), Field: field(p.Group, p.Field), Text: p.Text})
	}
	if len(r.errs) > 0 {
		return api.Fleet{}, r.failed()
	}
	return f, nil
}

// place is a field of the fleet (group -1) or of one of its groups.
type place struct {
	group int
	field string
}

func field(group int, name string) string {
	if group < 0 {
		return name
	}
	return strings.TrimSuffix(fmt.Sprintf("groups[%d].%s", group, name), ".")
}

type reader struct {
	file, dir string
	lines     map[place]int
	nodes     int // seen
	total     int // bytes of user-data
	group     int // the current one, -1 outside
	errs      []error
}

// parse returns the document's one value.
func (r *reader) parse(text []byte) (root *yaml.Node, err error) {
	// The parser is a foreign one, and a document may come from anywhere.
	defer func() {
		if v := recover(); v != nil {
			err = &Error{File: r.file, Text: fmt.Sprintf("it cannot be read as YAML: %v", v)}
		}
	}()
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, &Error{File: r.file, Text: "it is empty: begin with `name: ` and `groups:`, see `lamina fleet apply --help`"}
	case err != nil:
		return nil, r.notYAML(err)
	}
	if len(doc.Content) == 0 {
		return nil, &Error{File: r.file, Text: "it is empty"}
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, &Error{File: r.file, Line: more.Line, Text: "a second document begins: one file is one fleet"}
	}
	return doc.Content[0], nil
}

// notYAML is what the parser found. It tells the line in its text, where a reader
// and an editor that jumps to errors do not look for it.
func (r *reader) notYAML(err error) error {
	e := &Error{File: r.file, Text: strings.TrimPrefix(err.Error(), "yaml: ")}
	if rest, ok := strings.CutPrefix(e.Text, "line "); ok {
		number, text, _ := strings.Cut(rest, ": ")
		if line, err := strconv.Atoi(number); err == nil && line > 0 {
			e.Line, e.Text = line, text
		}
	}
	if e.Text = "it is not YAML: " + e.Text; strings.Contains(e.Text, "tab character") {
		e.Text += "; indent with spaces"
	}
	return e
}

// failed is what was found, the first of it.
func (r *reader) failed() error {
	if n := len(r.errs); n > maxErrors {
		r.errs = append(r.errs[:maxErrors], fmt.Errorf("%s: and %d more", r.file, n-maxErrors))
	}
	return errors.Join(r.errs...)
}

// lineOf is the line of a field, or of what it is part of.
func (r *reader) lineOf(p place) int {
	for {
		if line, ok := r.lines[p]; ok {
			return line
		}
		i := strings.LastIndexAny(p.field, ".[")
		switch {
		case i > 0:
			p.field = p.field[:i]
		case p.field != "":
			p.field = ""
		case p.group >= 0:
			p = place{-1, "groups"}
		default:
			return 0
		}
	}
}

func readBounded(in io.Reader, most int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > most {
		return nil, fmt.Errorf("it has more than %d KiB", most>>10)
	}
	return b, nil
}
