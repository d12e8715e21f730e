package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// edit is one XPath edit of a document: --xml, or the sub-options xpath.... of
// an option, which are about its element. It is made when the document is
// complete, so that it has the last word.
type edit struct {
	mark  string // of the element that it is about, "" is the domain
	index int    // of the sub-options: xpath2.set comes after xpath1.set
	// One of these is done, in this order: delete what the path finds; make
	// what it names; set it.
	remove, create, set string
	value               string
	valued              bool
}

// editMark is the attribute by which an element that edits are about is found
// again in copies of the document. It is no name that a document can have.
const editMark = "\x00edit"

// setXPath remembers an edit of an option's element: xpath.set, xpath1.delete.
func setXPath(g *guest, el *domxml.Element, v value) error {
	mark := ""
	if el != g.dom {
		if mark = el.Attr(editMark); mark == "" {
			mark = strconv.Itoa(len(g.edits)) + "." + el.Name
			el.SetAttr(editMark, mark)
		}
	}
	_, what, _ := strings.Cut(v.key, ".")
	e := g.editOf(mark, v.index[0])
	switch what {
	case "delete":
		e.remove = v.text
	case "create":
		e.create = v.text
	case "set":
		e.set = v.text
	case "value":
		e.value, e.valued = v.text, true
	}
	return nil
}

// editOf returns the edit of an element and an index, made if it is new.
func (g *guest) editOf(mark string, index int) *edit {
	key := mark + "/" + strconv.Itoa(index)
	if g.editKeys == nil {
		g.editKeys = map[string]int{}
	}
	i, ok := g.editKeys[key]
	if !ok {
		i = len(g.edits)
		g.editKeys[key] = i
		g.edits = append(g.edits, edit{mark: mark, index: index})
	}
	return &g.edits[i]
}

// xpathSubs are the sub-options of edits, which every option with an element
// of its own has.
func xpathSubs() []sub {
	var out []sub
	for _, what := range []string{"delete", "set", "create", "value"} {
		out = append(out, sub{name: "xpath[0-9]*." + what, set: setXPath})
	}
	return out
}

// parseXMLEdits reads --xml: PATH=VALUE as it stands, or xpath.delete=PATH and
// the like.
func (g *guest) parseXMLEdits() error {
	for _, text := range g.args.all("xml") {
		if text == "" {
			continue
		}
		e := edit{set: text}
		if strings.HasPrefix(text, "xpath") {
			o := option{flag: "xml", subs: xpathSubs}
			given, err := o.parse(text)
			if err != nil {
				return fmt.Errorf("Error: --xml %s: %w", text, err)
			}
			e.set = ""
			for _, w := range given.list {
				switch _, what, _ := strings.Cut(w.key, "."); {
				case what == "delete" && w.given:
					e.remove = w.text
				case what == "create" && w.given:
					e.create = w.text
				case what == "set" && w.given:
					e.set = w.text
				case what == "value" && w.given:
					e.value, e.valued = w.text, true
				default:
					return &unknownError{"xml", []suboption{w}}
				}
			}
		}
		g.edits = append(g.edits, e)
	}
	return nil
}

// documents are the installation's documents with the edits made.
func (g *guest) documents(ctx context.Context, in *installation) (first, final *domxml.Element, err error) {
	if first, final, err = in.documents(ctx, g); err != nil {
		return nil, nil, err
	}
	for _, d := range []**domxml.Element{&first, &final} {
		if *d == nil {
			continue
		}
		*d = (*d).Clone()
		if err := g.edit(*d); err != nil {
			return nil, nil, err
		}
	}
	return first, final, nil
}

// edit makes the edits in a document.
func (g *guest) edit(doc *domxml.Element) error {
	marked := map[string]*domxml.Element{"": doc}
	unmark(doc, marked)
	edits := slices.Clone(g.edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return a.index - b.index })
	// The elements' own come first, --xml last.
	for _, own := range []bool{true, false} {
		for _, e := range edits {
			at := marked[e.mark]
			if at == nil || own != (e.mark != "") {
				continue // the device is not in this phase's document
			}
			if err := e.apply(doc, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// unmark takes the marks off and notes which element had which.
func unmark(e *domxml.Element, marked map[string]*domxml.Element) {
	if mark, ok := e.LookAttr(editMark); ok {
		e.DelAttr(editMark)
		marked[mark] = e
	}
	for _, c := range e.Children {
		unmark(c, marked)
	}
}

// apply makes one edit of the element at in the document.
func (e edit) apply(doc, at *domxml.Element) error {
	switch {
	case e.remove != "":
		found, err := evaluate(doc, at, e.remove)
		if err != nil || found == nil {
			return err
		}
		// As the original, one element goes, and with an attribute its element.
		if parent := parentOf(doc, found.el); parent != nil {
			parent.Drop(found.el)
			prune(doc, parent)
		}
		return nil
	case e.create != "":
		found, err := evaluate(doc, at, e.create)
		if err != nil || found != nil {
			return err
		}
		return makePath(doc, at, e.create, "")
	case e.set == "" && e.valued:
		return errors.New("--xml xpath.value= needs an xpath.set= that says where the value goes")
	case e.set == "":
		return nil
	}
	path, text := e.set, e.value
	if !e.valued {
		var ok bool
		if path, text, ok = cutAssignment(e.set); !ok {
			return fmt.Errorf("%s: Setting xpath must be in the form of XPATH=VALUE", e.set)
		}
	}
	found, err := evaluate(doc, at, path)
	switch {
	case err != nil:
		return err
	case found == nil && text == "":
		return nil
	case found == nil:
		return makePath(doc, at, path, text)
	}
	found.set(doc, text)
	return nil
}

// cutAssignment splits PATH=VALUE at the first "=" outside of brackets and
// quotes.
func cutAssignment(text string) (path, value string, ok bool) {
	depth := 0
	var quote byte
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case (c == '"' || c == '\'') && depth > 0:
			quote = c
		case c == '[' || c == '(':
			depth++
		case c == ']' || c == ')':
			depth--
		case c == '=' && depth == 0:
			return text[:i], text[i+1:], true
		}
	}
	return "", "", false
}

// parentOf returns the element that has child, nil for the root.
func parentOf(root, child *domxml.Element) *domxml.Element {
	for _, c := range root.Children {
		if c == child {
			return root
		}
		if p := parentOf(c, child); p != nil {
			return p
		}
	}
	return nil
}

// prune removes an element that says nothing any more, and so on upwards.
func prune(root, e *domxml.Element) {
	for e != root && e.Empty() {
		parent := parentOf(root, e)
		if parent == nil {
			return
		}
		parent.Drop(e)
		e = parent
	}
}
