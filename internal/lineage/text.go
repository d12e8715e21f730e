package lineage

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

// Text writes the tree, one node a line, with what each is and takes; the advice
// for long chains stands below it.
func Text(w io.Writer, nodes []api.LineageNode) error {
	rows := layout(nodes)
	width := len("NAME")
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(r.lines)+utf8.RuneCountInString(Name(r.node)))
	}
	var b strings.Builder
	line := func(name, what, disk, size string) {
		fmt.Fprintf(&b, "%s%s  %-22s  %9s  %9s\n", name, strings.Repeat(" ", width-utf8.RuneCountInString(name)), what, disk, size)
	}
	line("NAME", "WHAT", "DISK", "SIZE")
	var advice []string
	for _, r := range rows {
		size := ""
		if r.node.VirtualSize > 0 {
			size = progress.Bytes(r.node.VirtualSize)
		}
		line(r.lines+Name(r.node), What(r.node), progress.Bytes(r.node.DiskSize), size)
		if r.node.Advice != "" {
			advice = append(advice, Name(r.node)+": "+progress.Clean(r.node.Advice))
		}
	}
	text := strings.Builder{}
	for l := range strings.Lines(b.String()) {
		text.WriteString(strings.TrimRight(l, " \n") + "\n")
	}
	for _, a := range advice {
		text.WriteString(a + "\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}
