package domxml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The bounds of Parse. Libvirt's own limit for a document is 10 MiB; the
// largest that it writes for a machine has some 100 KiB.
const (
	MaxSize  = 10 << 20 // bytes
	maxDepth = 100
)

// Parse reads a document. Comments and processing instructions are dropped,
// and so is the white space between elements. Documents with entity
// declarations of their own are refused, as is anything above MaxSize.
func Parse(doc []byte) (*Element, error) {
	if len(doc) > MaxSize {
		return nil, fmt.Errorf("XML document of %d bytes: at most %d are read", len(doc), MaxSize)
	}
	d := xml.NewDecoder(bytes.NewReader(doc))
	d.Strict = true
	var root *Element
	var open []*Element // from the root to the element being read
	for {
		t, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("XML document: %w", err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			e := &Element{Name: rawName(t.Name)}
			for _, a := range t.Attr {
				e.Attrs = append(e.Attrs, Attr{rawName(a.Name), a.Value})
			}
			switch {
			case len(open) == maxDepth:
				return nil, fmt.Errorf("XML document: line %d: elements nest deeper than %d", line(d), maxDepth)
			case len(open) > 0:
				open[len(open)-1].Add(e)
			case root != nil:
				return nil, fmt.Errorf("XML document: line %d: a second root element <%s>", line(d), e.Name)
			default:
				root = e
			}
			open = append(open, e)
		case xml.EndElement:
			name := rawName(t.Name)
			if len(open) == 0 || open[len(open)-1].Name != name {
				return nil, fmt.Errorf("XML document: line %d: </%s> closes nothing", line(d), name)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].Text += string(t)
			} else if len(bytes.TrimSpace(t)) > 0 {
				return nil, fmt.Errorf("XML document: line %d: text outside of the root element", line(d))
			}
		case xml.Directive:
			if bytes.HasPrefix(t, []byte("DOCTYPE")) && bytes.ContainsRune(t, '[') {
				return nil, errors.New("XML document: it declares entities of its own, which no document of libvirt does")
			}
		}
	}
	if len(open) > 0 {
		return nil, fmt.Errorf("XML document: <%s> is not closed", open[len(open)-1].Name)
	}
	if root == nil {
		return nil, errors.New("XML document: it has no element")
	}
	root.trim()
	return root, nil
}

func line(d *xml.Decoder) int {
	l, _ := d.InputPos()
	return l
}

func rawName(n xml.Name) string {
	if n.Space != "" {
		return n.Space + ":" + n.Local
	}
	return n.Local
}

// trim removes the white space that only lays a document out.
func (e *Element) trim() {
	if len(e.Children) > 0 {
		e.Text = strings.TrimSpace(e.Text)
	}
	for _, c := range e.Children {
		c.trim()
	}
}

var (
	escapeText = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#13;")
	escapeAttr = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "\n", "&#10;", "\t", "&#9;", "\r", "&#13;")
)

// String writes the document as libvirt's tools lay it out: two blanks for
// each level, an end of line after each element.
func (e *Element) String() string {
	var b strings.Builder
	e.write(&b, 0)
	return b.String()
}

func (e *Element) write(b *strings.Builder, depth int) {
	indent := strings.Repeat("  ", depth)
	b.WriteString(indent + "<" + e.Name)
	for _, a := range e.Attrs {
		b.WriteString(" " + a.Name + `="` + escapeAttr.Replace(a.Value) + `"`)
	}
	if e.Text == "" && len(e.Children) == 0 {
		b.WriteString("/>\n")
		return
	}
	b.WriteString(">" + escapeText.Replace(e.Text))
	if len(e.Children) > 0 {
		b.WriteString("\n")
		for _, c := range e.Children {
			c.write(b, depth+1)
		}
		b.WriteString(indent)
	}
	b.WriteString("</" + e.Name + ">\n")
}
