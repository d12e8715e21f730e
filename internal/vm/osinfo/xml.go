package osinfo

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The bounds of one XML document. The largest of the database has 22 KiB,
// some 500 elements, and a depth of 6.
const (
	maxDocument = 4 << 20 // bytes
	maxElements = 100_000
	maxDepth    = 32
	maxAttrs    = 64 // of one element
)

// element is one XML element. Its strings share the document's memory where
// nothing had to be decoded.
type element struct {
	name     string
	attrs    []attribute
	text     string // the character data directly inside, decoded, untrimmed
	children []element
}

type attribute struct{ name, value string }

// attr returns the value of an attribute, "" where there is none.
func (e *element) attr(name string) string {
	for _, a := range e.attrs {
		if a.name == name {
			return a.value
		}
	}
	return ""
}

// child returns the first child of that name, nil where there is none.
func (e *element) child(name string) *element {
	for i := range e.children {
		if e.children[i].name == name {
			return &e.children[i]
		}
	}
	return nil
}

// childText returns the text of the first child of that name.
func (e *element) childText(name string) string {
	if c := e.child(name); c != nil {
		return c.text
	}
	return ""
}

// parseXML reads one document into its root element. It knows what the
// database's files use: elements, attributes, text, the five named and the
// numeric entities, CDATA, comments and processing instructions, in UTF-8.
// Document types are refused, so nothing can expand. Translations (elements
// with xml:lang) are read and dropped. encoding/xml needs ten times as long,
// which would be most of the time of a `lamina install --print-xml`.
func parseXML(doc string) (*element, error) {
	if len(doc) > maxDocument {
		return nil, fmt.Errorf("document of %d bytes, more than the limit of %d", len(doc), maxDocument)
	}
	doc = strings.TrimPrefix(doc, "\ufeff")
	if !utf8.ValidString(doc) {
		return nil, fmt.Errorf("document is not UTF-8")
	}
	p := xmlParser{doc: doc}
	if err := p.run(); err != nil {
		return nil, fmt.Errorf("offset %d: %w", p.pos, err)
	}
	return p.root, nil
}

type xmlParser struct {
	doc   string
	pos   int
	open  []element // from the root to the innermost
	root  *element  // once it is closed
	count int
}

func (p *xmlParser) run() error {
	for p.pos < len(p.doc) {
		lt := strings.IndexByte(p.doc[p.pos:], '<')
		if lt < 0 {
			lt = len(p.doc) - p.pos
		}
		if err := p.addText(p.doc[p.pos:p.pos+lt], true); err != nil {
			return err
		}
		if p.pos += lt; p.pos == len(p.doc) {
			break
		}
		if err := p.markup(); err != nil {
			return err
		}
	}
	if len(p.open) > 0 {
		return fmt.Errorf("element <%s> is not closed", p.open[len(p.open)-1].name)
	}
	if p.root == nil {
		return fmt.Errorf("no element")
	}
	return nil
}

// markup reads what starts with the '<' at pos.
func (p *xmlParser) markup() error {
	rest := p.doc[p.pos:]
	switch {
	case strings.HasPrefix(rest, "<!--"):
		return p.skip("<!--", "-->")
	case strings.HasPrefix(rest, "<?"):
		return p.skip("<?", "?>")
	case strings.HasPrefix(rest, "<![CDATA["):
		start := p.pos + len("<![CDATA[")
		if err := p.skip("<![CDATA[", "]]>"); err != nil {
			return err
		}
		return p.addText(p.doc[start:p.pos-len("]]>")], false)
	case strings.HasPrefix(rest, "<!"):
		return fmt.Errorf("document types are not read")
	case strings.HasPrefix(rest, "</"):
		return p.endTag()
	}
	return p.startTag()
}

// skip moves behind the end of what starts at pos.
func (p *xmlParser) skip(start, end string) error {
	i := strings.Index(p.doc[p.pos+len(start):], end)
	if i < 0 {
		return fmt.Errorf("%s has no %s", start, end)
	}
	p.pos += len(start) + i + len(end)
	return nil
}

// addText adds character data to the innermost element.
func (p *xmlParser) addText(raw string, entities bool) error {
	if len(p.open) == 0 {
		if !isBlank(raw) {
			return fmt.Errorf("text outside of the root element")
		}
		return nil
	}
	e := &p.open[len(p.open)-1]
	// The white space between elements is nobody's text.
	if raw == "" || (entities && (len(e.children) > 0 || p.nextIsStartTag(raw)) && isBlank(raw)) {
		return nil
	}
	text := raw
	if entities {
		var err error
		if text, err = unescapeXML(raw); err != nil {
			return err
		}
	}
	if e.text == "" {
		e.text = text
		return nil
	}
	if len(e.text)+len(text) > maxDocument {
		return fmt.Errorf("too much text")
	}
	e.text += text
	return nil
}

// nextIsStartTag reports whether an element, or a comment, starts behind raw.
func (p *xmlParser) nextIsStartTag(raw string) bool {
	rest := p.doc[p.pos+len(raw):]
	return strings.HasPrefix(rest, "<") && !strings.HasPrefix(rest, "</")
}

func isBlank(s string) bool { return strings.Trim(s, " \t\r\n") == "" }

func (p *xmlParser) endTag() error {
	end := strings.IndexByte(p.doc[p.pos:], '>')
	if end < 0 {
		return fmt.Errorf("a tag has no >")
	}
	name := strings.TrimRight(p.doc[p.pos+2:p.pos+end], " \t\r\n")
	if len(p.open) == 0 || p.open[len(p.open)-1].name != name {
		return fmt.Errorf("</%.40s> closes nothing", name)
	}
	p.pos += end + 1
	p.close()
	return nil
}

// close ends the innermost element.
func (p *xmlParser) close() {
	n := len(p.open) - 1
	e := p.open[n]
	p.open = p.open[:n]
	switch {
	case n == 0:
		p.root = &e
	case e.attr("xml:lang") == "":
		p.open[n-1].children = append(p.open[n-1].children, e)
	}
}

func (p *xmlParser) startTag() error {
	if p.root != nil {
		return fmt.Errorf("a second root element")
	}
	if len(p.open) == maxDepth {
		return fmt.Errorf("elements nested deeper than %d", maxDepth)
	}
	if p.count++; p.count > maxElements {
		return fmt.Errorf("more than %d elements", maxElements)
	}
	p.pos++
	e := element{name: p.name()}
	if e.name == "" {
		return fmt.Errorf("an element has no name")
	}
	for {
		p.space()
		rest := p.doc[p.pos:]
		switch {
		case strings.HasPrefix(rest, ">"):
			p.pos++
			p.open = append(p.open, e)
			return nil
		case strings.HasPrefix(rest, "/>"):
			p.pos += 2
			p.open = append(p.open, e)
			p.close()
			return nil
		}
		a, err := p.attribute()
		if err != nil {
			return fmt.Errorf("element <%.40s>: %w", e.name, err)
		}
		if len(e.attrs) == maxAttrs {
			return fmt.Errorf("element <%.40s>: more than %d attributes", e.name, maxAttrs)
		}
		e.attrs = append(e.attrs, a)
	}
}

func (p *xmlParser) attribute() (attribute, error) {
	a := attribute{name: p.name()}
	if a.name == "" {
		return a, fmt.Errorf("an attribute has no name")
	}
	p.space()
	if !strings.HasPrefix(p.doc[p.pos:], "=") {
		return a, fmt.Errorf("attribute %.40s has no value", a.name)
	}
	p.pos++
	p.space()
	if p.pos == len(p.doc) || (p.doc[p.pos] != '"' && p.doc[p.pos] != '\'') {
		return a, fmt.Errorf("attribute %.40s has no quotes", a.name)
	}
	end := strings.IndexByte(p.doc[p.pos+1:], p.doc[p.pos])
	if end < 0 {
		return a, fmt.Errorf("attribute %.40s has no closing quote", a.name)
	}
	raw := p.doc[p.pos+1 : p.pos+1+end]
	if strings.IndexByte(raw, '<') >= 0 {
		return a, fmt.Errorf("attribute %.40s holds a <", a.name)
	}
	p.pos += end + 2
	var err error
	a.value, err = unescapeXML(raw)
	return a, err
}

// name reads a name at pos. Which letters XML allows in names matters to
// nobody here; what ends a name does.
func (p *xmlParser) name() string {
	start := p.pos
	for p.pos < len(p.doc) && strings.IndexByte(" \t\r\n/>=<\"'&", p.doc[p.pos]) < 0 {
		p.pos++
	}
	return p.doc[start:p.pos]
}

func (p *xmlParser) space() {
	for p.pos < len(p.doc) && strings.IndexByte(" \t\r\n", p.doc[p.pos]) >= 0 {
		p.pos++
	}
}

// unescapeXML replaces the entities of s.
func unescapeXML(s string) (string, error) {
	if strings.IndexByte(s, '&') < 0 {
		return s, nil
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "&")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		name, after, found := strings.Cut(rest, ";")
		r, ok := entity(name)
		if !found || !ok {
			return "", fmt.Errorf("unknown entity &%.20s", name)
		}
		b.WriteRune(r)
		s = after
	}
}

func entity(name string) (rune, bool) {
	switch name {
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "amp":
		return '&', true
	case "quot":
		return '"', true
	case "apos":
		return '\'', true
	}
	digits, base := strings.CutPrefix(name, "#x")
	radix := 16
	if !base {
		if digits, base = strings.CutPrefix(name, "#"); !base {
			return 0, false
		}
		radix = 10
	}
	n, err := strconv.ParseUint(digits, radix, 32)
	if err != nil || n == 0 || n > utf8.MaxRune || !utf8.ValidRune(rune(n)) {
		return 0, false
	}
	return rune(n), true
}
