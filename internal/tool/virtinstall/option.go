package virtinstall

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// kind is how a sub-option's value becomes XML.
type kind int

const (
	text   kind = iota // as it is
	yesNo              // yes, no, on, off, true, ... become yes or no
	onOff              // the same become on or off
	bare               // yes makes the element, no removes it
	abs                // a file name, made absolute
	number             // a whole number, decimal or 0x...
)

// sub is one sub-option.
type sub struct {
	// name is the sub-option as "=?" lists it; "[0-9]*" in it stands for an
	// index, counted from 0, that may be left out.
	name    string
	aliases []string
	// path is where the value goes in the option's element (see package
	// domxml); each "[#]" stands for the next index of the name. An empty value
	// removes what it names. "" where set does it all.
	path string
	kind kind
	// comma: the value goes on over commas, up to what is a sub-option again.
	comma bool
	// repeat: each use in one option counts, not only the last.
	repeat bool
	// ignoreDefault: the value "default" says nothing.
	ignoreDefault bool
	// set does what a path cannot say. It is called in place of it.
	set func(g *guest, el *domxml.Element, v value) error
}

// value is a sub-option as it was given.
type value struct {
	key   string // as it was typed: "seclabel1.model"
	text  string // "" removes; for yesNo, onOff and bare: "yes" or "no"
	index []int  // of the name's "[0-9]*", in order
}

// on reports whether a value of the kind yesNo, onOff or bare is a yes.
func (v value) on() bool { return v.text == "yes" }

// option is an option that takes sub-options.
type option struct {
	flag    string   // without the dashes
	element string   // in the domain: "devices/disk", "cpu"; "" is the domain itself
	many    bool     // each use adds an element, else all change the one
	first   []string // sub-options whose names may be left out, in front
	edits   bool     // it has the sub-options xpath... though it has no element of its own
	none    bool     // the value "none" alone says nothing
	// subs are in the order in which they take effect, whatever the order on
	// the command line. It is a function as the command should start at once.
	subs func() []sub
	// parser reads a value that is not a list at commas.
	parser func(text string) (*suboptions, error)
	// before may change what was given, or the element, before the sub-options
	// take effect; after sees what they made. Both may be nil.
	before func(g *guest, el *domxml.Element, given *suboptions) error
	after  func(g *guest, el *domxml.Element, given *suboptions) error
}

// suboptions are the sub-options of one use of an option, in the order given.
// A later one takes the place of an earlier one of the same key.
type suboptions struct {
	raw  string // as it was typed, for messages
	list []suboption
}

type suboption struct {
	key   string
	text  string
	given bool // key=..., not the bare key
}

// get returns the value of a key and whether it was given.
func (s *suboptions) get(key string) (string, bool) {
	for _, o := range s.list {
		if o.key == key {
			return o.text, true
		}
	}
	return "", false
}

// set gives a key a value, in its place if it has one.
func (s *suboptions) set(key, text string) {
	for i := range s.list {
		if s.list[i].key == key {
			s.list[i].text, s.list[i].given = text, true
			return
		}
	}
	s.list = append(s.list, suboption{key, text, true})
}

// take removes a key and returns what it had.
func (s *suboptions) take(key string) (string, bool) {
	text, ok := s.get(key)
	s.list = slices.DeleteFunc(s.list, func(o suboption) bool { return o.key == key })
	return text, ok
}

// split takes an option's value apart at the commas. Quotes and backslashes
// keep a comma, as in a shell.
func split(text string) ([]suboption, error) {
	var out []suboption
	var word strings.Builder
	started := false
	flush := func() {
		if started {
			key, val, given := strings.Cut(word.String(), "=")
			out = append(out, suboption{key, val, given})
		}
		word.Reset()
		started = false
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == ',':
			flush()
		case c == '\\':
			if i++; i == len(text) {
				return nil, &bareError{"No escaped character"}
			}
			word.WriteByte(text[i])
			started = true
		case c == '\'' || c == '"':
			started = true
			end := i + 1
			for ; end < len(text) && text[end] != c; end++ {
				if c == '"' && text[end] == '\\' && end+1 < len(text) && (text[end+1] == '"' || text[end+1] == '\\') {
					end++
				}
				word.WriteByte(text[end])
			}
			if end >= len(text) {
				return nil, &bareError{"No closing quotation"}
			}
			i = end
		default:
			word.WriteByte(c)
			started = true
		}
	}
	flush()
	return out, nil
}

// parse reads an option's value.
func (o option) parse(text string) (*suboptions, error) {
	if o.parser != nil {
		return o.parser(text)
	}
	words, err := split(text)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(words) && i < len(o.first) && !words[i].given; i++ {
		words[i] = suboption{o.first[i], words[i].key, true}
	}
	subs := o.all()
	known := func(key string) *sub {
		for i := range subs {
			if _, ok := subs[i].match(key); ok {
				return &subs[i]
			}
		}
		return nil
	}
	s := &suboptions{raw: text}
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		if k := known(w.key); k != nil && k.comma {
			for len(words) > 0 && known(words[0].key) == nil {
				w.text += "," + words[0].key
				if words[0].given && words[0].text != "" {
					w.text += "=" + words[0].text
				}
				words = words[1:]
			}
		}
		if k := known(w.key); k == nil || !k.repeat {
			_, _ = s.take(w.key)
		}
		s.list = append(s.list, w)
	}
	return s, nil
}

// match reports whether key is this sub-option, and the indices in it.
func (s sub) match(key string) ([]int, bool) {
	for _, name := range append([]string{s.name}, s.aliases...) {
		if name == key {
			return make([]int, strings.Count(name, "[0-9]*")), true
		}
		if !strings.Contains(name, "[0-9]*") {
			continue
		}
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(name), `\[0-9\]\*`, "([0-9]*)") + "$"
		m := regexp.MustCompile(pattern).FindStringSubmatch(key)
		if m == nil {
			continue
		}
		index := make([]int, 0, len(m)-1)
		for _, digits := range m[1:] {
			n, err := strconv.Atoi("0" + digits)
			if err != nil || n > 1000 {
				return nil, false
			}
			index = append(index, n)
		}
		return index, true
	}
	return nil, false
}

// apply makes of one use of the option what it says in the guest's document.
// The element is nil where the option said nothing.
func (o option) apply(g *guest, text string) (*domxml.Element, error) {
	if text == "" || o.none && text == "none" {
		return nil, nil
	}
	el, err := o.applyTo(g, text)
	if errors.Is(err, errNothingMore) {
		return nil, nil
	}
	var unknown *unknownError
	var bare *bareError
	if errors.As(err, &unknown) || errors.As(err, &bare) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("Error: --%s %s: %w", o.flag, text, err)
	}
	return el, nil
}

func (o option) applyTo(g *guest, text string) (*domxml.Element, error) {
	given, err := o.parse(text)
	if err != nil {
		return nil, err
	}
	el := o.target(g)
	if o.before != nil {
		if err := o.before(g, el, given); err != nil {
			return nil, err
		}
	}
	left := slices.Clone(given.list)
	var counted []string // elements that an index may have left empty ones of
	for _, s := range o.all() {
		for i := 0; i < len(left); i++ {
			index, ok := s.match(left[i].key)
			if !ok {
				continue
			}
			w := left[i]
			left = slices.Delete(left, i, i+1)
			i--
			if err := s.apply(g, el, w, index); err != nil {
				return nil, err
			}
			counted = append(counted, s.counts()...)
		}
	}
	dropEmpty(el, counted)
	if len(left) > 0 {
		return nil, &unknownError{o.flag, left}
	}
	if o.after != nil {
		if err := o.after(g, el, given); err != nil {
			return nil, err
		}
	}
	switch {
	case o.many && !(el.Empty() && !strings.Contains(o.element, "/")):
		g.add(o.element, el)
	case !o.many && el != g.dom && el.Empty():
		g.dom.Drop(el) // a document has no empty elements at its top
	}
	return el, nil
}

// counts returns the names of the elements that the sub-option's indices count.
func (s sub) counts() []string {
	var names []string
	for rest := s.path; ; {
		before, after, ok := strings.Cut(rest, "[#]")
		if !ok {
			return names
		}
		names = append(names, before[strings.LastIndexByte(before, '/')+1:])
		rest = after
	}
}

// dropEmpty removes the elements of these names that say nothing, at every
// depth: the index of a sub-option may go beyond those that were given.
func dropEmpty(el *domxml.Element, names []string) {
	if len(names) == 0 {
		return
	}
	for _, c := range slices.Clone(el.Children) {
		dropEmpty(c, names)
		if c.Empty() && slices.Contains(names, c.Name) {
			el.Drop(c)
		}
	}
}

// target is the element that a use of the option is about: a new one that is
// not in the document yet, or the one in it.
func (o option) target(g *guest) *domxml.Element {
	at := g.dom
	if o.element == "" {
		return at
	}
	names := strings.Split(o.element, "/")
	if o.many {
		return domxml.New(names[len(names)-1])
	}
	for _, name := range names {
		at = at.Need(name)
	}
	return at
}

// apply makes one sub-option take effect.
func (s sub) apply(g *guest, el *domxml.Element, w suboption, index []int) error {
	if !w.given {
		return fmt.Errorf("Option '%s' had no value set.", w.key)
	}
	if s.ignoreDefault && w.text == "default" {
		return nil
	}
	v := value{key: w.key, text: w.text, index: index}
	if v.text != "" && (s.kind == yesNo || s.kind == onOff || s.kind == bare) {
		on, err := yes(w.key, w.text)
		if err != nil {
			return err
		}
		v.text = map[bool]string{true: "yes", false: "no"}[on]
	}
	if s.set != nil {
		return s.set(g, el, v)
	}
	path := s.path
	for _, n := range index {
		path = strings.Replace(path, "[#]", "["+strconv.Itoa(n+1)+"]", 1)
	}
	path = strings.ReplaceAll(path, "[#]", "[1]") // of an alias without an index
	switch {
	case s.kind == bare && v.text == "no", v.text == "":
		return el.Remove(path)
	case s.kind == bare:
		if _, there := el.Look(path); there {
			return nil
		}
		return el.Set(path, "")
	case s.kind == onOff:
		return el.Set(path, map[string]string{"yes": "on", "no": "off"}[v.text])
	case s.kind == number:
		n, err := wholeNumber(v.text)
		if err != nil {
			return err
		}
		return el.Set(path, strconv.FormatInt(n, 10))
	case s.kind == abs:
		full, err := filepath.Abs(v.text)
		if err != nil {
			return err
		}
		return el.Set(path, full)
	}
	return el.Set(path, v.text)
}

// wholeNumber reads a number as the original does, with its words where it is
// none.
func wholeNumber(text string) (int64, error) {
	trimmed := strings.TrimSpace(text)
	base := 10
	if digits, ok := strings.CutPrefix(strings.ToLower(trimmed), "0x"); ok {
		base, trimmed = 16, digits
	}
	n, err := strconv.ParseInt(trimmed, base, 64)
	if err != nil {
		return 0, fmt.Errorf("invalid literal for int() with base %d: '%s'", base, text)
	}
	return n, nil
}

// yes reads the spellings of yes and no.
func yes(key, text string) (bool, error) {
	switch strings.ToLower(text) {
	case "y", "yes", "1", "true", "t", "on":
		return true, nil
	case "n", "no", "0", "false", "f", "off":
		return false, nil
	}
	return false, &bareError{fmt.Sprintf("%s must be 'yes' or 'no'", key)}
}

// errNothingMore ends an option whose before did all that it says.
var errNothingMore = errors.New("nothing more")

// bareError is one of which the original does not say in which option it is.
type bareError struct{ text string }

func (e *bareError) Error() string { return e.text }

// unknownError is about sub-options that the option does not have.
type unknownError struct {
	flag string
	list []suboption
}

func (e *unknownError) Error() string {
	keys := make([]string, 0, len(e.list))
	for _, o := range e.list {
		keys = append(keys, "'"+o.key+"'")
	}
	return fmt.Sprintf("Unknown --%s options: [%s]", e.flag, strings.Join(keys, ", "))
}

// all are the sub-options: those that every option has, and its own.
func (o option) all() []sub {
	list := []sub{{name: "clearxml", kind: yesNo, set: o.clear}}
	if o.element != "" || o.edits {
		list = append(list, xpathSubs()...)
	}
	return append(list, o.subs()...)
}

// clear makes the option start over, without what was there.
func (o option) clear(_ *guest, el *domxml.Element, v value) error {
	switch {
	case !v.on():
	case o.element == "":
		return fmt.Errorf("Don't know how to clearxml for --%s", o.flag)
	default:
		*el = domxml.Element{Name: el.Name}
	}
	return nil
}

// names lists the sub-options as "=?" does.
func (o option) names() []string {
	var out []string
	for _, s := range o.all() {
		out = append(out, s.name)
	}
	rank := func(name string) string {
		switch {
		case name == "clearxml":
			return "0" + name
		case strings.HasPrefix(name, "address."):
			return "1" + name
		case strings.HasPrefix(name, "xpath"):
			return "2" + name
		}
		return name
	}
	sort.SliceStable(out, func(i, j int) bool { return rank(out[i]) < rank(out[j]) })
	return out
}
