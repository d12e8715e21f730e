// Package domain translates between machines as package vm describes them and
// libvirt's domain documents, in both directions.
//
// [Unmarshal] accounts for every element and attribute of a document: each is
// either understood, or known to mean nothing outside of libvirt (the lists
// are in ignored.go), or named as a problem with its path, the reason and the
// remedy. Nothing is dropped in silence.
package domain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// Reading is a document as a machine.
type Reading struct {
	Spec vm.Spec
	// Problems are what the document asks for and plain QEMU, or this program,
	// does not do. A machine with any is not what the document says.
	Problems []vm.Problem
	// Notes are what is done in another way than libvirt does it.
	Notes []vm.Problem
}

// useLibvirt is the remedy for what only a daemon can do.
const useLibvirt = "use --connect qemu:///system"

// Unmarshal reads a domain document. The error is that of a document that is
// no XML or no domain; everything else is a problem of the reading.
func Unmarshal(doc []byte) (Reading, error) {
	root, err := domxml.Parse(doc)
	if err != nil {
		return Reading{}, err
	}
	return Read(root)
}

// Read is [Unmarshal] for a parsed document, which it does not change.
func Read(root *domxml.Element) (Reading, error) {
	if root.Name != "domain" {
		return Reading{}, fmt.Errorf("the document is a <%s>, expected a <domain>", root.Name)
	}
	r := &reader{seen: map[*domxml.Element]*node{}}
	n := r.node(root, "")
	r.domain(n)
	r.unread(n)
	return Reading{Spec: r.spec, Problems: r.problems, Notes: r.notes}, nil
}

// reader builds a spec from a document.
type reader struct {
	spec     vm.Spec
	problems []vm.Problem
	notes    []vm.Problem
	seen     map[*domxml.Element]*node

	// scsi are the models of the SCSI controllers by index, as disks need them.
	scsi map[int]string
	// rootPorts counts the document's free and taken PCIe ports.
	rootPorts int
}

// maxFindings bounds the lists on hostile documents.
const maxFindings = 200

func (r *reader) problem(path, text, remedy string) {
	if len(r.problems) < maxFindings {
		r.problems = append(r.problems, vm.Problem{Field: path, Text: text, Remedy: remedy})
	}
}

func (r *reader) note(path, text, remedy string) {
	if len(r.notes) < maxFindings {
		r.notes = append(r.notes, vm.Problem{Field: path, Text: text, Remedy: remedy})
	}
}

// node is an element that is being read: what of it was looked at is known.
// All methods may be called on nil, the element that is not there.
type node struct {
	r     *reader
	e     *domxml.Element
	path  string
	attrs []string // looked at
	text  bool     // looked at
	whole bool     // settled with everything below it
}

func (r *reader) node(e *domxml.Element, path string) *node {
	if n := r.seen[e]; n != nil {
		return n
	}
	n := &node{r: r, e: e, path: path}
	r.seen[e] = n
	return n
}

// under is the path of a child.
func (n *node) under(name string, place, of int) string {
	p := name
	if of > 1 {
		p = fmt.Sprintf("%s[%d]", name, place+1)
	}
	if n.path == "" {
		return p
	}
	return n.path + "/" + p
}

// child returns the first child of a name.
func (n *node) child(name string) *node {
	if all := n.all(name); len(all) > 0 {
		return all[0]
	}
	return nil
}

// one returns the only child of a name; more are a problem each, as only the
// first is looked at.
func (n *node) one(name string) *node {
	all := n.all(name)
	if len(all) == 0 {
		return nil
	}
	for _, extra := range all[1:] {
		extra.refuse("a second one", "keep one")
	}
	return all[0]
}

// all returns the children of a name.
func (n *node) all(name string) []*node {
	if n == nil {
		return nil
	}
	same := n.e.All(name)
	out := make([]*node, len(same))
	for i, e := range same {
		out[i] = n.r.node(e, n.under(name, i, len(same)))
	}
	return out
}

// attr returns an attribute, "" where there is none.
func (n *node) attr(name string) string {
	if n == nil {
		return ""
	}
	n.attrs = append(n.attrs, name)
	return n.e.Attr(name)
}

// words returns the element's text.
func (n *node) words() string {
	if n == nil {
		return ""
	}
	n.text = true
	return strings.TrimSpace(n.e.Text)
}

// childWords is the text of the only child of that name.
func (n *node) childWords(name string) string { return n.one(name).words() }

// at is the path of an attribute, also of an element that is not there.
func (n *node) at(attr string) string {
	if n == nil || n.path == "" {
		return "@" + attr
	}
	return n.path + "/@" + attr
}

// refuse names the whole element as a problem.
func (n *node) refuse(text, remedy string) {
	if n == nil || n.whole {
		return
	}
	n.whole = true
	n.r.problem(n.path, text, remedy)
}

// ignore settles children and, with "@" in front, attributes that mean nothing
// here.
func (n *node) ignore(names ...string) {
	if n == nil {
		return
	}
	for _, name := range names {
		if a, ok := strings.CutPrefix(name, "@"); ok {
			n.attrs = append(n.attrs, a)
			continue
		}
		for _, c := range n.all(name) {
			c.whole = true
		}
	}
}

// plain allows an attribute only values that say what is so anyway.
func (n *node) plain(attr string, values ...string) {
	if n == nil {
		return
	}
	if v, ok := n.e.LookAttr(attr); ok && !slices.Contains(values, v) {
		n.attr(attr)
		n.r.problem(n.at(attr), fmt.Sprintf("%s is not done by plain QEMU here", quote(v)), "leave it out, or "+useLibvirt)
	}
	n.attrs = append(n.attrs, attr)
}

// enum returns an attribute that has one of a few values; another is a problem.
func (n *node) enum(attr string, values ...string) string {
	v := n.attr(attr)
	if v == "" || slices.Contains(values, v) {
		return v
	}
	n.r.problem(n.at(attr), fmt.Sprintf("%s is unknown", quote(v)), "use "+orList(values))
	return ""
}

// toggle returns an attribute that is on or off, yes or no.
func (n *node) toggle(attr string) vm.Toggle {
	switch n.enum(attr, "on", "off", "yes", "no") {
	case "on", "yes":
		return vm.On
	case "off", "no":
		return vm.Off
	}
	return ""
}

// flag is toggle for a field that is on or not.
func (n *node) flag(attr string) bool { return n.toggle(attr) == vm.On }

// number returns an attribute that is a number, 0 where there is none.
func (n *node) number(attr string) int { return int(n.ranged(attr, -1<<31, 1<<31-1)) }

// size is number for 64 bits.
func (n *node) size(attr string) int64 { return n.ranged(attr, -1<<62, 1<<62) }

func (n *node) ranged(attr string, least, most int64) int64 {
	v := n.attr(attr)
	if v == "" {
		return 0
	}
	i, err := strconv.ParseInt(v, 0, 64)
	if err != nil || i < least || i > most {
		n.r.problem(n.at(attr), fmt.Sprintf("%s is not a number in range", quote(v)), fmt.Sprintf("use %d to %d", least, most))
		return 0
	}
	return i
}

// numberText is a number as the element's text.
func (n *node) numberText() int64 {
	if n == nil {
		return 0
	}
	v := n.words()
	i, err := strconv.ParseInt(v, 0, 64)
	if err != nil || i < 0 || i > 1<<62 {
		n.r.problem(n.path, fmt.Sprintf("%s is not a number", quote(v)), "use a whole number")
		return 0
	}
	return i
}

// units are libvirt's, in bytes.
var units = map[string]int64{
	"": 1 << 10, "b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 1e6, "M": 1 << 20, "MiB": 1 << 20,
	"GB": 1e9, "G": 1 << 30, "GiB": 1 << 30, "TB": 1e12, "T": 1 << 40, "TiB": 1 << 40,
}

// bytes reads an amount of memory: a number and, in the attribute unit, what it
// counts, KiB by default.
func (n *node) bytes() int64 {
	if n == nil {
		return 0
	}
	return n.scaled(n.numberText(), n.attr("unit"))
}

func (n *node) scaled(v int64, unit string) int64 {
	scale, ok := units[unit]
	if !ok {
		n.r.problem(n.path, fmt.Sprintf("%s is not a unit", quote(unit)), "use KiB, MiB or GiB")
		return 0
	}
	if v > 1<<62/scale {
		n.r.problem(n.path, "more than there is", "use less")
		return 0
	}
	return v * scale
}

// unread names what nobody has looked at.
func (r *reader) unread(n *node) {
	if n.whole {
		return
	}
	for _, a := range n.e.Attrs {
		if !slices.Contains(n.attrs, a.Name) && !strings.HasPrefix(a.Name, "xmlns") {
			r.problem(n.at(a.Name), fmt.Sprintf("%s is not known here", quote(a.Value)), "leave it out, or "+useLibvirt)
		}
	}
	if text := strings.TrimSpace(n.e.Text); text != "" && !n.text {
		r.problem(n.path, fmt.Sprintf("the text %s is not known here", quote(text)), "leave it out, or "+useLibvirt)
	}
	count, place := map[string]int{}, map[string]int{}
	for _, c := range n.e.Children {
		count[c.Name]++
	}
	for _, c := range n.e.Children {
		i := place[c.Name]
		place[c.Name]++
		if child := r.seen[c]; child != nil {
			r.unread(child)
			continue
		}
		r.problem(n.under(c.Name, i, count[c.Name]), "this is not known here", "leave it out, or "+useLibvirt)
	}
}

// quote is a value from a document for a message.
func quote(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return strconv.Quote(s)
}

func orList(values []string) string {
	if len(values) < 2 {
		return strings.Join(values, "")
	}
	return strings.Join(values[:len(values)-1], ", ") + " or " + values[len(values)-1]
}
