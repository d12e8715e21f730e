package qemuimg

import (
	"errors"

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
	if mode == outputJSON {
		t.printf("%s\n", writeJSON(lineageJSON(roots)))
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
	case errors.Is(n.Err, image.ErrNotFollowed):
		return "its backing file " + n.BackingFile + " was not looked at"
	}
	return "UNREADABLE: " + openText(n.Err)
}

func lineageJSON(nodes []*image.LineageNode) []any {
	list := []any{}
	for _, n := range nodes {
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
		o.add("overlays", lineageJSON(n.Overlays))
		list = append(list, o)
	}
	return list
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
