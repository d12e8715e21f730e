// Package domxml is libvirt's domain document as a plain tree: elements with
// their attributes and children in order, read and written without loss, and
// changed by path. It knows XML, not machines: what an element means is the
// matter of packages vm/domain and tool/virtinstall.
//
// Names keep their prefix as it was written ("qemu:commandline"), as libvirt's
// documents use fixed ones. A tree is not safe for concurrent use.
package domxml

import "slices"

// Attr is an attribute.
type Attr struct{ Name, Value string }

// Element is an element: either with children or with text, as in all of
// libvirt's documents. An element that has both keeps its text in front.
type Element struct {
	Name     string
	Attrs    []Attr
	Children []*Element
	Text     string
}

// New returns an element with attributes given as name, value, name, value.
func New(name string, attrs ...string) *Element {
	e := &Element{Name: name}
	for i := 0; i+1 < len(attrs); i += 2 {
		e.SetAttr(attrs[i], attrs[i+1])
	}
	return e
}

// Attr returns the value of an attribute, "" where there is none.
func (e *Element) Attr(name string) string {
	v, _ := e.LookAttr(name)
	return v
}

// LookAttr returns the value of an attribute and whether it is there.
func (e *Element) LookAttr(name string) (string, bool) {
	if e == nil {
		return "", false
	}
	for _, a := range e.Attrs {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// SetAttr sets an attribute, in its place if it is there, else as the last.
func (e *Element) SetAttr(name, value string) {
	for i := range e.Attrs {
		if e.Attrs[i].Name == name {
			e.Attrs[i].Value = value
			return
		}
	}
	e.Attrs = append(e.Attrs, Attr{name, value})
}

// DelAttr removes an attribute, if it is there.
func (e *Element) DelAttr(name string) {
	e.Attrs = slices.DeleteFunc(e.Attrs, func(a Attr) bool { return a.Name == name })
}

// Child returns the first child of that name, nil where there is none. It may
// be called on nil, so that Child(a).Child(b) needs no test in between.
func (e *Element) Child(name string) *Element {
	if e == nil {
		return nil
	}
	for _, c := range e.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// All returns the children of that name.
func (e *Element) All(name string) []*Element {
	if e == nil {
		return nil
	}
	var out []*Element
	for _, c := range e.Children {
		if c.Name == name {
			out = append(out, c)
		}
	}
	return out
}

// Need returns the first child of that name, made if there is none.
func (e *Element) Need(name string) *Element {
	if c := e.Child(name); c != nil {
		return c
	}
	return e.Add(New(name))
}

// Add appends a child and returns it.
func (e *Element) Add(c *Element) *Element {
	e.Children = append(e.Children, c)
	return c
}

// AddText appends a child that holds text and returns it.
func (e *Element) AddText(name, text string) *Element {
	return e.Add(&Element{Name: name, Text: text})
}

// Drop removes a child, which is found by identity.
func (e *Element) Drop(child *Element) {
	e.Children = slices.DeleteFunc(e.Children, func(c *Element) bool { return c == child })
}

// Empty reports whether the element says nothing.
func (e *Element) Empty() bool {
	return e == nil || len(e.Attrs) == 0 && len(e.Children) == 0 && e.Text == ""
}

// Clone returns a deep copy.
func (e *Element) Clone() *Element {
	if e == nil {
		return nil
	}
	c := &Element{Name: e.Name, Attrs: slices.Clone(e.Attrs), Text: e.Text}
	for _, child := range e.Children {
		c.Children = append(c.Children, child.Clone())
	}
	return c
}

// Equal reports whether two trees are the same. The order of attributes has no
// meaning in XML; that of children has one only among those of one name, as
// libvirt's documents use it (the first disk, the second), so Equal looks at
// that and at no other order.
func (e *Element) Equal(o *Element) bool {
	if e == nil || o == nil {
		return e == o
	}
	if e.Name != o.Name || e.Text != o.Text || len(e.Attrs) != len(o.Attrs) || len(e.Children) != len(o.Children) {
		return false
	}
	for _, a := range e.Attrs {
		if v, ok := o.LookAttr(a.Name); !ok || v != a.Value {
			return false
		}
	}
	next := map[string]int{} // of o's children of a name, the one that comes next
	for _, c := range e.Children {
		same := o.All(c.Name)
		i := next[c.Name]
		if i >= len(same) || !c.Equal(same[i]) {
			return false
		}
		next[c.Name]++
	}
	return true
}

// Order sorts the children of e, and of all elements below it, by the place
// that their names have in order[parent's name]; children without a place
// follow, and what has the same place keeps its order.
func (e *Element) Order(order map[string][]string) {
	if names := order[e.Name]; names != nil {
		place := func(c *Element) int {
			if i := slices.Index(names, c.Name); i >= 0 {
				return i
			}
			return len(names)
		}
		slices.SortStableFunc(e.Children, func(a, b *Element) int { return place(a) - place(b) })
	}
	for _, c := range e.Children {
		c.Order(order)
	}
}
