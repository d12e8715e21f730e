package qemuimg

import (
	"errors"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const treeSyntax = "[--output=ofmt] [--untrusted] [filename | folder]..."

// tree shows which image lies over which. It fails where a link is broken.
func (t *tool) tree(args []string) int {
	c, status, done := t.parse(args, ":h", []getopt.Long{longHelp, longOutput}, nil)
	if done {
		return status
	}
	mode, ok := t.outputFormat(c.output, c.hasOutput)
	if !ok {
		return exitFailed
	}
	names := c.rest
	if len(names) == 0 {
		names = []string{"."}
	}
	roots, err := image.Lineage(t.ctx, names, image.LineageOptions{Untrusted: c.untrusted})
	if err != nil {
		return t.failOpen(err)
	}
	roots = cutDeep(roots)
	if mode == outputJSON {
		t.printLineageJSON(roots, "\n")
		t.printf("\n")
	} else {
		for _, n := range roots {
			t.printLineage(n, "", "")
		}
	}
	if brokenLineage(roots) {
		return exitFailed
	}
	return exitOK
}

// maxTreeDepth is the most images that are shown over one another. It bounds
// how far a folder full of links is indented; no such chain can be used.
const maxTreeDepth = 256

// errTooDeep is the problem of an image that is shown apart from its chain.
var errTooDeep = errors.New("the backing chain is too long to be shown")

// cutDeep takes off what lies too high over a base and adds it to the roots.
func cutDeep(roots []*image.LineageNode) []*image.LineageNode {
	var cut func(n *image.LineageNode, depth int)
	cut = func(n *image.LineageNode, depth int) {
		if depth < maxTreeDepth {
			for _, o := range n.Overlays {
				cut(o, depth+1)
			}
			return
		}
		for _, o := range n.Overlays {
			o.Err = errTooDeep
		}
		roots, n.Overlays = append(roots, n.Overlays...), nil
	}
	for i := 0; i < len(roots); i++ {
		cut(roots[i], 1)
	}
	return roots
}

// printLineage prints a node behind the lines that lead to it, and those over it.
func (t *tool) printLineage(n *image.LineageNode, lead, below string) {
	t.printf("%s%s", lead, n.Name)
	if n.Format != "" {
		t.printf("  (%s, %s, %s on disk)", n.Format, humanSize(n.VirtualSize), humanSize(n.DiskSize))
	}
	if n.Err != nil {
		t.printf("  %s", lineageProblem(n))
	}
	t.printf("\n")
	for i, o := range n.Overlays {
		if i == len(n.Overlays)-1 {
			t.printLineage(o, below+"└── ", below+"    ")
		} else {
			t.printLineage(o, below+"├── ", below+"│   ")
		}
	}
}

// lineageProblem is what is wrong, in the words of the picture.
func lineageProblem(n *image.LineageNode) string {
	switch {
	case errors.Is(n.Err, image.ErrMissingImage):
		return "MISSING"
	case errors.Is(n.Err, block.ErrBackingLoop):
		return "LOOP: its backing file " + n.BackingFile + " lies over it"
	case errors.Is(n.Err, errTooDeep):
		return "TOO DEEP: its backing file " + n.BackingFile + " is the last of its chain that is shown"
	case errors.Is(n.Err, image.ErrNotFollowed):
		return "its backing file " + n.BackingFile + " was not looked at"
	}
	return "UNREADABLE: " + openText(n.Err)
}

// printLineageJSON prints a list of nodes, one at a time: the indentation of
// deep chains is more than all the rest. nl is a newline and the indentation.
func (t *tool) printLineageJSON(nodes []*image.LineageNode, nl string) {
	t.printf("[")
	for i, n := range nodes {
		if i > 0 {
			t.printf(",")
		}
		in := nl + "    "
		var b strings.Builder
		appendJSON(&b, lineageJSON(n), in)
		t.printf("%s%s,%s    \"overlays\": ", in, strings.TrimSuffix(b.String(), in+"}"), in)
		t.printLineageJSON(n.Overlays, in+"    ")
		t.printf("%s}", in)
	}
	t.printf("%s]", nl)
}

// lineageJSON describes one node.
func lineageJSON(n *image.LineageNode) object {
	var o object
	o.add("filename", n.Name)
	if n.Format != "" {
		o.add("format", n.Format)
		o.add("virtual-size", n.VirtualSize)
		o.add("actual-size", n.DiskSize)
	}
	if n.BackingFile != "" {
		o.add("backing-filename", n.BackingFile)
	}
	if n.BackingFormat != "" {
		o.add("backing-filename-format", n.BackingFormat)
	}
	if n.Err != nil {
		o.add("problem", lineageProblem(n))
	}
	return o
}

// brokenLineage reports whether a link leads nowhere.
func brokenLineage(nodes []*image.LineageNode) bool {
	for _, n := range nodes {
		if n.Err != nil && !errors.Is(n.Err, image.ErrNotFollowed) || brokenLineage(n.Overlays) {
			return true
		}
	}
	return false
}
