package domxml

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A path names one attribute or element: "./os/loader/@secure",
// "devices/disk[2]/source", "@type". A step may carry one predicate, a place
// counted from 1 or the value of an attribute: "timer[@name='rtc']". It is the
// part of XPath in which a document can also be written; a leading "./" means
// nothing.
type step struct {
	name  string
	place int // counted from 1; 0 is the first, or any with key
	key   string
	value string
}

// split takes a path apart; attr is "" where it names an element.
func split(path string) (steps []step, attr string, err error) {
	rest := strings.TrimPrefix(path, "./")
	if rest == "." || rest == "" {
		return nil, "", nil
	}
	for _, part := range cut(rest) {
		if attr != "" {
			return nil, "", fmt.Errorf("path %q: an attribute has nothing below it", path)
		}
		if name, ok := strings.CutPrefix(part, "@"); ok && name != "" {
			attr = name
			continue
		}
		s, ok := parseStep(part)
		if !ok {
			return nil, "", fmt.Errorf("path %q: %q is neither a name, nor a name with [NUMBER] or [@ATTRIBUTE='VALUE']", path, part)
		}
		steps = append(steps, s)
	}
	return steps, attr, nil
}

// cut splits at the slashes that stand outside of brackets.
func cut(path string) []string {
	var parts []string
	depth, from := 0, 0
	for i, r := range path {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case r == '/' && depth == 0:
			parts = append(parts, path[from:i])
			from = i + 1
		}
	}
	return append(parts, path[from:])
}

func parseStep(part string) (step, bool) {
	name, predicate, has := strings.Cut(part, "[")
	if name == "" || strings.ContainsAny(name, " @'\"]=<>") {
		return step{}, false
	}
	if !has {
		return step{name: name}, true
	}
	predicate, ok := strings.CutSuffix(predicate, "]")
	if !ok {
		return step{}, false
	}
	if n, err := strconv.Atoi(predicate); err == nil {
		return step{name: name, place: n}, n > 0
	}
	key, value, ok := strings.Cut(strings.TrimPrefix(predicate, "@"), "=")
	if !ok || !strings.HasPrefix(predicate, "@") || len(value) < 2 || value[0] != value[len(value)-1] || value[0] != '\'' && value[0] != '"' {
		return step{}, false
	}
	return step{name: name, key: key, value: value[1 : len(value)-1]}, true
}

// matching returns the children that a step names, in order.
func (e *Element) matching(s step) []*Element {
	all := e.All(s.name)
	switch {
	case s.key != "":
		return slices.DeleteFunc(all, func(c *Element) bool { v, ok := c.LookAttr(s.key); return !ok || v != s.value })
	case s.place > len(all):
		return nil
	case s.place > 0:
		return all[s.place-1 : s.place]
	}
	return all
}

// Find returns the first element that the path names, nil where there is none.
// A path that is not one finds nothing; see [Element.Set] for its error.
func (e *Element) Find(path string) *Element {
	steps, _, err := split(path)
	if err != nil || e == nil {
		return nil
	}
	return e.find(steps)
}

func (e *Element) find(steps []step) *Element {
	if len(steps) == 0 {
		return e
	}
	for _, c := range e.matching(steps[0]) {
		if found := c.find(steps[1:]); found != nil {
			return found
		}
	}
	return nil
}

// Get returns what the path names, the attribute's value or the element's
// text, "" where there is none.
func (e *Element) Get(path string) string {
	v, _ := e.Look(path)
	return v
}

// Look returns what the path names and whether it is there.
func (e *Element) Look(path string) (string, bool) {
	steps, attr, err := split(path)
	if err != nil || e == nil {
		return "", false
	}
	at := e.find(steps)
	switch {
	case at == nil:
		return "", false
	case attr != "":
		return at.LookAttr(attr)
	}
	return at.Text, true
}

// Set gives the attribute or the element's text that the path names a value,
// and makes what is missing on the way to it. A step with a place makes as
// many elements as it takes. The error is about the path: where it came from a
// person, it is theirs to see.
func (e *Element) Set(path, value string) error {
	steps, attr, err := split(path)
	if err != nil {
		return err
	}
	at := e
	for _, s := range steps {
		if s.place > maxPlace {
			return fmt.Errorf("path %q: there are never more than %d of one element", path, maxPlace)
		}
		at = at.need(s)
	}
	if attr != "" {
		at.SetAttr(attr, value)
	} else {
		at.Text = value
	}
	return nil
}

// maxPlace bounds what a path can make.
const maxPlace = 10000

func (e *Element) need(s step) *Element {
	if found := e.matching(s); len(found) > 0 {
		return found[0]
	}
	if s.key != "" {
		return e.Add(New(s.name, s.key, s.value))
	}
	for n := len(e.All(s.name)); n < s.place-1; n++ {
		e.Add(New(s.name))
	}
	return e.Add(New(s.name))
}

// Remove removes what the path names, every one of it, and then the elements
// above it that say nothing any more.
func (e *Element) Remove(path string) error {
	steps, attr, err := split(path)
	if err != nil {
		return err
	}
	e.remove(steps, attr)
	return nil
}

func (e *Element) remove(steps []step, attr string) {
	if len(steps) == 0 {
		e.DelAttr(attr)
		return
	}
	for _, c := range e.matching(steps[0]) {
		if len(steps) == 1 && attr == "" {
			e.Drop(c)
			continue
		}
		said := !c.Empty()
		c.remove(steps[1:], attr)
		if said && c.Empty() {
			e.Drop(c)
		}
	}
}
