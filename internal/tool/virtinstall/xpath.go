package virtinstall

import (
	"fmt"
	"strings"

	"github.com/antchfx/xpath"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// place is what an XPath finds: an element, or one of its attributes.
type place struct {
	el   *domxml.Element
	attr string // "" is the element itself
}

// set gives the place a text; an empty one removes it.
func (p *place) set(root *domxml.Element, text string) {
	switch {
	case p.attr != "" && text == "":
		p.el.DelAttr(p.attr)
		prune(root, p.el)
	case p.attr != "":
		p.el.SetAttr(p.attr, text)
	case text == "" && parentOf(root, p.el) != nil:
		parent := parentOf(root, p.el)
		parent.Drop(p.el)
		prune(root, parent)
	default:
		p.el.Text = text
	}
}

// maxXPath bounds an expression, whose evaluation can take long otherwise.
const maxXPath = 1000 // bytes

// evaluate returns the first place that an XPath 1.0 expression finds from the
// element at, nil where it finds none.
func evaluate(root, at *domxml.Element, path string) (found *place, err error) {
	if len(path) > maxXPath {
		return nil, fmt.Errorf("XPath of %d bytes: at most %d are read", len(path), maxXPath)
	}
	expr, err := xpath.Compile(path)
	if err != nil {
		return nil, fmt.Errorf("%s is not an XPath: %w", path, err)
	}
	defer func() {
		// The library panics where functions get arguments of a wrong kind.
		if r := recover(); r != nil {
			found, err = nil, fmt.Errorf("%s is not an XPath that can be evaluated: %v", path, r)
		}
	}()
	nodes, ok := expr.Evaluate(newCursor(root, at)).(*xpath.NodeIterator)
	if !ok {
		return nil, fmt.Errorf("%s is not an XPath of elements or attributes", path)
	}
	if !nodes.MoveNext() {
		return nil, nil
	}
	c := nodes.Current().(*cursor)
	switch c.NodeType() {
	case xpath.AttributeNode:
		return &place{c.at(), c.at().Attrs[c.attr].Name}, nil
	case xpath.ElementNode:
		return &place{el: c.at()}, nil
	}
	return nil, fmt.Errorf("%s is not an XPath of elements or attributes", path)
}

// makePath makes the elements of a simple path that are missing and gives the
// last a text. What a predicate says of an attribute is set, too.
func makePath(root, at *domxml.Element, path, text string) error {
	switch {
	case strings.HasPrefix(path, "//"):
		return fmt.Errorf("%s finds nothing, and where it should be made is not clear: give the whole path", path)
	case strings.HasPrefix(path, "/"):
		rest, ok := strings.CutPrefix(path, "/"+root.Name+"/")
		if !ok {
			return fmt.Errorf("%s finds nothing: the document's root is <%s>", path, root.Name)
		}
		at, path = root, rest
	}
	var plain []string
	for _, s := range strings.Split(strings.TrimPrefix(path, "./"), "/") {
		name, predicate, has := strings.Cut(s, "[")
		key, value, isAttr := strings.Cut(strings.TrimSuffix(predicate, "]"), "=")
		switch {
		case has && isAttr && strings.HasPrefix(key, "@") && strings.HasSuffix(predicate, "]"):
			plain = append(plain, name+"["+key+"='"+strings.Trim(value, `"'`)+"']")
		case has: // a number, of which there are not as many: the next one
			plain = append(plain, fmt.Sprintf("%s[%s", name, predicate))
		default:
			plain = append(plain, s)
		}
	}
	created := at
	for i, s := range plain {
		last := i == len(plain)-1
		if strings.HasPrefix(s, "@") && last {
			created.SetAttr(s[1:], text)
			return nil
		}
		next, err := childFor(created, s)
		if err != nil {
			return fmt.Errorf("%s finds nothing, and cannot be made: %w", path, err)
		}
		created = next
	}
	created.Text = text
	return nil
}

// childFor returns the child that a step names, made if there is none.
func childFor(e *domxml.Element, step string) (*domxml.Element, error) {
	if c := e.Find(step); c != nil {
		return c, nil
	}
	name, predicate, has := strings.Cut(step, "[")
	if strings.ContainsAny(name, "*@()|:.") && !strings.HasPrefix(name, "qemu:") || name == "" {
		return nil, fmt.Errorf("%q is not the name of an element", name)
	}
	c := domxml.New(name)
	if has && strings.HasPrefix(predicate, "@") {
		key, value, _ := strings.Cut(strings.TrimSuffix(predicate[1:], "]"), "=")
		c.SetAttr(key, strings.Trim(value, `'"`))
	}
	if name == "qemu:commandline" {
		c.SetAttr("xmlns:qemu", qemuNamespace)
	}
	return e.Add(c), nil
}

// cursor walks a tree for the XPath library: a path of elements from the root
// and, where it stands on one, an attribute or the element's text.
type cursor struct {
	path []*domxml.Element
	// index[i] is the place of path[i+1] among the children of path[i].
	index []int
	attr  int // -1 where it stands on none
	text  bool
	above bool // on the document, above its root element
}

func newCursor(root, at *domxml.Element) *cursor {
	c := &cursor{path: []*domxml.Element{root}, attr: -1}
	var walk func(e *domxml.Element) bool
	walk = func(e *domxml.Element) bool {
		if e == at {
			return true
		}
		for i, child := range e.Children {
			c.path, c.index = append(c.path, child), append(c.index, i)
			if walk(child) {
				return true
			}
			c.path, c.index = c.path[:len(c.path)-1], c.index[:len(c.index)-1]
		}
		return false
	}
	walk(root)
	return c
}

func (c *cursor) at() *domxml.Element { return c.path[len(c.path)-1] }

func (c *cursor) NodeType() xpath.NodeType {
	switch {
	case c.above:
		return xpath.RootNode
	case c.attr >= 0:
		return xpath.AttributeNode
	case c.text:
		return xpath.TextNode
	}
	return xpath.ElementNode
}

func (c *cursor) name() string {
	switch {
	case c.above || c.text:
		return ""
	case c.attr >= 0:
		return c.at().Attrs[c.attr].Name
	}
	return c.at().Name
}

func (c *cursor) LocalName() string {
	name := c.name()
	return name[strings.IndexByte(name, ':')+1:]
}

func (c *cursor) Prefix() string {
	prefix, _, ok := strings.Cut(c.name(), ":")
	if !ok {
		return ""
	}
	return prefix
}

func (c *cursor) Value() string {
	if c.attr >= 0 {
		return c.at().Attrs[c.attr].Value
	}
	if c.text {
		return c.at().Text
	}
	var all func(e *domxml.Element) string
	all = func(e *domxml.Element) string {
		text := e.Text
		for _, child := range e.Children {
			text += all(child)
		}
		return text
	}
	return all(c.at())
}

func (c *cursor) Copy() xpath.NodeNavigator {
	d := *c
	d.path = append([]*domxml.Element(nil), c.path...)
	d.index = append([]int(nil), c.index...)
	return &d
}

func (c *cursor) MoveToRoot() {
	c.path, c.index, c.attr, c.text, c.above = c.path[:1], c.index[:0], -1, false, true
}

func (c *cursor) MoveToParent() bool {
	switch {
	case c.above:
		return false
	case c.attr >= 0 || c.text:
		c.attr, c.text = -1, false
	case len(c.path) == 1:
		c.above = true
	default:
		c.path, c.index = c.path[:len(c.path)-1], c.index[:len(c.index)-1]
	}
	return true
}

func (c *cursor) MoveToNextAttribute() bool {
	if c.above || c.text || c.attr+1 >= len(c.at().Attrs) {
		return false
	}
	c.attr++
	return true
}

func (c *cursor) MoveToChild() bool {
	switch {
	case c.above:
		c.above = false
		return true
	case c.attr >= 0 || c.text:
		return false
	case c.at().Text != "":
		c.text = true
		return true
	}
	return c.child(0)
}

// child moves to the i-th child of the element.
func (c *cursor) child(i int) bool {
	if i < 0 || i >= len(c.at().Children) {
		return false
	}
	c.path, c.index = append(c.path, c.at().Children[i]), append(c.index, i)
	return true
}

func (c *cursor) MoveToFirst() bool {
	if c.above || c.attr >= 0 || len(c.path) == 1 && !c.text {
		return false
	}
	if c.text {
		return true
	}
	c.MoveToParent()
	return c.MoveToChild()
}

func (c *cursor) MoveToNext() bool {
	switch {
	case c.above || c.attr >= 0:
		return false
	case c.text:
		c.text = false
		if c.child(0) {
			return true
		}
		c.text = true
		return false
	case len(c.path) == 1:
		return false
	}
	i := c.index[len(c.index)-1]
	if i+1 >= len(c.path[len(c.path)-2].Children) {
		return false
	}
	c.MoveToParent()
	return c.child(i + 1)
}

func (c *cursor) MoveToPrevious() bool {
	if c.above || c.attr >= 0 || c.text || len(c.path) == 1 {
		return false
	}
	i := c.index[len(c.index)-1]
	c.MoveToParent()
	if i > 0 {
		return c.child(i - 1)
	}
	if c.at().Text != "" {
		c.text = true
		return true
	}
	return !c.child(0) // it was the first: it stays
}

func (c *cursor) MoveTo(other xpath.NodeNavigator) bool {
	o, ok := other.(*cursor)
	if !ok || o.path[0] != c.path[0] {
		return false
	}
	*c = *o.Copy().(*cursor)
	return true
}
