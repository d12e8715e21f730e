package picture

import (
	"bufio"
	"fmt"
	"io"
)

// Text writes the picture for a terminal that is width columns wide. With
// color, layers have colours; without, data is the number of its layer.
func (p *Picture) Text(w io.Writer, width int, color bool) error {
	b := bufio.NewWriter(w)
	_, _ = fmt.Fprintln(b, clean(p.heading())) // the flush reports errors
	merge := 1                                 // cells to a character
	width = min(max(width, 16), columns)
	for (len(p.cells)+merge-1)/merge > width*24 {
		merge++
	}
	for i := 0; i < len(p.cells); i += merge {
		var c counts
		for _, cell := range p.cells[i:min(i+merge, len(p.cells))] {
			for k := range kinds {
				for l := range maxLayers {
					c[k][l] += cell[k][l]
				}
			}
		}
		_, _ = b.WriteString(character(c.main()).text(color))
		if i/merge%width == width-1 || i+merge >= len(p.cells) {
			_ = b.WriteByte('\n')
		}
	}
	for _, e := range p.legend() {
		_, _ = fmt.Fprintf(b, "%s %s\n", character(e.kind, e.layer).text(color), clean(e.text))
	}
	return b.Flush()
}

// glyph is how a cell is written.
type glyph struct {
	plain, block string
	color        rgb
}

func character(k Kind, layer int) glyph {
	switch k {
	case Data:
		return glyph{fmt.Sprint(layer), "█", kindColor(k, layer)}
	case Compressed:
		return glyph{string(rune('a' + layer)), "▓", layerColors[layer]}
	case Zero:
		return glyph{"-", "─", rgb{150, 150, 150}}
	}
	return glyph{".", "·", rgb{120, 120, 120}}
}

func (g glyph) text(color bool) string {
	if !color {
		return g.plain
	}
	return fmt.Sprintf("\x1b[38;2;%d;%d;%dm%s\x1b[0m", g.color.r, g.color.g, g.color.b, g.block)
}

// clean takes out control characters: a name must not move the cursor.
func clean(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			out[i] = '?'
		}
	}
	return string(out)
}
