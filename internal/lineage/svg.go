package lineage

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

// Pixels of the drawing, and its bounds: of what is more than maxRows it says how
// many there are.
const (
	rowHeight = 26
	boxHeight = 20
	indent    = 28
	boxWidth  = 260
	charWidth = 7
	nameWidth = boxWidth - 20
	margin    = 16
	maxRows   = 2000
)

// colors by what a node is.
var colors = map[string]string{
	string(api.LayerTemplate): "#0072b2", string(api.LayerFrozen): "#56b4e9", string(api.LayerWarm): "#e69f00", "machine": "#009e73",
}

// SVG writes the tree as an SVG document: what lies over something stands under it,
// further to the right, with a tool tip that says all.
func SVG(w io.Writer, nodes []api.LineageNode) error {
	all := layout(nodes)
	rows := all[:min(len(all), maxRows)]
	places := make([]int, len(rows)) // columns
	deepest := 0
	for i, r := range rows {
		if r.above >= 0 {
			places[i] = places[r.above] + 1
		}
		deepest = max(deepest, places[i])
	}
	lines := len(rows)
	if len(all) > len(rows) {
		lines++
	}
	width := 2*margin + deepest*indent + boxWidth + 40*charWidth
	height := 2*margin + rowHeight*(lines+1)
	b := bufio.NewWriter(w)
	put := func(format string, args ...any) { _, _ = fmt.Fprintf(b, format, args...) }
	put("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%[1]d\" height=\"%[2]d\" viewBox=\"0 0 %[1]d %[2]d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, height)
	put("<title>Templates, layers and machines</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n")
	top := func(i int) int { return margin + rowHeight*(i+1) }
	left := func(i int) int { return margin + places[i]*indent }
	put("<text x=\"%d\" y=\"%d\" font-size=\"14\">%s</text>\n", margin, margin+12, plain(summary(nodes)))
	for i, r := range rows {
		if r.above < 0 {
			continue
		}
		x, y := left(r.above)+indent/2, top(i)+boxHeight/2
		put("<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#999999\"/>\n", x, top(r.above)+boxHeight, y, left(i))
	}
	for i, r := range rows {
		box(put, r.node, left(i), top(i))
	}
	if n := len(all) - len(rows); n > 0 {
		put("<text x=\"%d\" y=\"%d\">and %d more</text>\n", margin, top(len(rows))+14, n)
	}
	put("</svg>\n")
	return b.Flush()
}

// box draws a node.
func box(put func(string, ...any), n api.LineageNode, x, y int) {
	kind := string(n.Kind)
	if n.Machine {
		kind = "machine"
	}
	color := colors[kind]
	if color == "" {
		color = "#999999"
	}
	corner := 2
	if n.Machine {
		corner = boxHeight / 2
	}
	put("<g><title>%s</title>", plain(tip(n)))
	put("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"%d\" fill=\"#ffffff\" stroke=\"%s\" stroke-width=\"2\"/>", x, y, boxWidth, boxHeight, corner, color)
	put("<text x=\"%d\" y=\"%d\">%s</text>", x+10, y+14, plain(clip(Name(n), nameWidth)))
	put("<text x=\"%d\" y=\"%d\" fill=\"#555555\">%s</text></g>\n", x+boxWidth+10, y+14, plain(What(n)+", "+progress.Bytes(n.DiskSize)))
}

func tip(n api.LineageNode) string {
	parts := []string{Name(n), n.ID, What(n), progress.Bytes(n.DiskSize) + " on disk"}
	if n.VirtualSize > 0 {
		parts = append(parts, "a disk of "+progress.Bytes(n.VirtualSize))
	}
	if !n.CreatedAt.IsZero() {
		parts = append(parts, "made "+n.CreatedAt.Local().Format("2006-01-02 15:04"))
	}
	if n.Advice != "" {
		parts = append(parts, n.Advice)
	}
	return strings.Join(parts, "; ")
}

func summary(nodes []api.LineageNode) string {
	machines, disk := 0, int64(0)
	for _, n := range nodes {
		disk += n.DiskSize
		if n.Machine {
			machines++
		}
	}
	return fmt.Sprintf("%d layers, %d machines, %s", len(nodes)-machines, machines, progress.Bytes(disk))
}

// clip takes characters out of the middle of what is wider than most pixels: the
// names of a fleet differ at their ends, web-001 and web-002.
func clip(s string, most int) string {
	all := []rune(s)
	sum := 0
	for _, r := range all {
		sum += runeWidth(r)
	}
	if sum <= most {
		return s
	}
	head, tail := 0, len(all)
	for left := most - runeWidth('…'); head < tail; {
		next := all[tail-1]
		if head <= len(all)-tail {
			next = all[head]
		}
		if left -= runeWidth(next); left < 0 {
			break
		}
		if head <= len(all)-tail {
			head++
		} else {
			tail--
		}
	}
	return string(all[:head]) + "…" + string(all[tail:])
}

// runeWidth is about how many pixels a character takes in the drawing. Which
// sans-serif font there will be is not known: it is that of a wide one, DejaVu Sans.
func runeWidth(r rune) int {
	switch {
	case strings.ContainsRune("mwMW@%…", r) || r >= 0x1100:
		return 12
	case r >= 'A' && r <= 'Z' || r >= 0x80:
		return 10
	case strings.ContainsRune("ijl.,:;'|!", r):
		return 5
	}
	return 8
}

// plain makes text safe inside an element; XML does not have the last two
// characters of its plane.
func plain(s string) string {
	return html.EscapeString(strings.Trim(strings.NewReplacer("\ufffe", "?", "\uffff", "?").Replace(progress.Clean(s)), " "))
}
