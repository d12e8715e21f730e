package picture

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Pixels of the drawings.
const (
	cellPixels = 7
	margin     = 16
	lineHeight = 18
	textTop    = 24 // of the grid, below the heading
)

// SVG writes the picture as an SVG document, with a tool tip on each run of
// cells that look the same.
func (p *Picture) SVG(w io.Writer) error {
	b := bufio.NewWriter(w)
	legend := p.legend()
	width := 2*margin + columns*cellPixels
	height := 2*margin + textTop + p.rows()*cellPixels + (len(legend)+1)*lineHeight
	put := func(format string, args ...any) { _, _ = fmt.Fprintf(b, format, args...) }
	put("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"13\">\n", width, height, width, height)
	put("<title>%s</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n", escape(p.heading()))
	put("<text x=\"%d\" y=\"%d\">%s</text>\n", margin, margin+10, escape(p.heading()))
	for i := 0; i < len(p.cells); {
		// One rectangle for neighbours of a row that look the same.
		c := p.cells[i].color()
		end := i + 1
		for end < len(p.cells) && end%columns != 0 && p.cells[end].color() == c {
			end++
		}
		kind, layer := p.cells[i].main()
		what := kind.String()
		if kind != Unallocated {
			what += ", " + p.layerName(layer)
		}
		put("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"><title>%s to %s: %s</title></rect>\n",
			margin+i%columns*cellPixels, margin+textTop+i/columns*cellPixels, (end-i)*cellPixels, cellPixels, c.hex(),
			bytesText(int64(i)*p.cell), bytesText(min(int64(end)*p.cell, p.size)), escape(what))
		i = end
	}
	put("<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#999999\"/>\n", margin, margin+textTop, columns*cellPixels, p.rows()*cellPixels)
	y := margin + textTop + p.rows()*cellPixels + lineHeight
	for _, e := range legend {
		put("<rect x=\"%d\" y=\"%d\" width=\"12\" height=\"12\" fill=\"%s\" stroke=\"#999999\"/>\n", margin, y-10, e.color().hex())
		put("<text x=\"%d\" y=\"%d\">%s</text>\n", margin+20, y, escape(e.text))
		y += lineHeight
	}
	put("</svg>\n")
	return b.Flush()
}

// escape makes text safe inside an XML element; control characters, which XML
// does not have, are taken out.
func escape(s string) string {
	s = strings.ToValidUTF8(clean(s), "?")
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\"", "&quot;").Replace(s)
}
