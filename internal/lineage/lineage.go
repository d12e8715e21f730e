// Package lineage draws who lies over whom: templates, layers and machines as a
// tree, in text and as SVG.
package lineage

import (
	"cmp"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

// row is a node at its place in the drawing.
type row struct {
	node  api.LineageNode
	above int    // the row that it hangs on, -1 for a root
	last  bool   // of those that hang there
	lines string // what stands before its name in text
}

// layout puts the nodes in the order of the drawing: each under what it lies
// over, layers before machines, by name. A node whose parent is not there is a
// root; one that lies over itself by way of others, which no store makes, is too.
func layout(nodes []api.LineageNode) []row {
	known := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		known[n.ID] = true
	}
	under := make(map[string][]api.LineageNode, len(nodes))
	for _, n := range nodes {
		parent := n.Parent
		if !known[parent] {
			parent = ""
		}
		under[parent] = append(under[parent], n)
	}
	for _, list := range under {
		slices.SortStableFunc(list, byName)
	}
	l := &layouter{under: under, drawn: make(map[string]bool, len(nodes))}
	l.add("", -1, "")
	for _, n := range nodes { // of a circle
		if !l.drawn[n.ID] {
			l.node(n, -1, true, "")
		}
	}
	return l.rows
}

// layouter makes the rows. Its recursion is as deep as the tree, which
// api.MaxDepth bounds where a store made it.
type layouter struct {
	under map[string][]api.LineageNode
	drawn map[string]bool
	rows  []row
}

func (l *layouter) add(parent string, above int, lines string) {
	list := l.under[parent]
	for i, n := range list {
		if !l.drawn[n.ID] {
			l.node(n, above, i == len(list)-1, lines)
		}
	}
}

func (l *layouter) node(n api.LineageNode, above int, last bool, lines string) {
	l.drawn[n.ID] = true
	at := len(l.rows)
	own, below := lines, lines
	if above >= 0 {
		own, below = lines+"├─ ", lines+"│  "
		if last {
			own, below = lines+"└─ ", lines+"   "
		}
	}
	l.rows = append(l.rows, row{node: n, above: above, last: last, lines: own})
	if n.ID != "" {
		l.add(n.ID, at, below)
	}
}

func byName(a, b api.LineageNode) int {
	if a.Machine != b.Machine {
		return map[bool]int{false: -1, true: 1}[a.Machine]
	}
	return cmp.Or(strings.Compare(Name(a), Name(b)), strings.Compare(a.ID, b.ID))
}

// Name is what a node is called: its names, or the beginning of its id.
func Name(n api.LineageNode) string {
	if len(n.Names) > 0 {
		return progress.Clean(strings.Join(n.Names, ", "))
	}
	return n.ID[:min(len(n.ID), 12)]
}

// What says what a node is: "machine, login", "template, warm".
func What(n api.LineageNode) string {
	what := string(n.Kind)
	if n.Machine {
		what = "machine, " + string(n.State)
	}
	if len(n.Warm) > 0 {
		what += ", warm"
	}
	return what
}

// Under are the nodes that match and all that they lie over or that lies over
// them, in the order of nodes.
func Under(nodes []api.LineageNode, match func(api.LineageNode) bool) []api.LineageNode {
	parent := make(map[string]string, len(nodes))
	keep := make(map[string]bool)
	for _, n := range nodes {
		parent[n.ID] = n.Parent
		// A parent comes before what lies over it.
		if match(n) || n.Parent != "" && keep[n.Parent] {
			keep[n.ID] = true
		}
	}
	below := make(map[string]bool)
	for id := range keep {
		for up := parent[id]; up != "" && !below[up]; up = parent[up] {
			below[up] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(nodes), func(n api.LineageNode) bool { return !keep[n.ID] && !below[n.ID] })
}
