// Package picture draws what a disk image holds where: data, compressed data,
// zeros and nothing, each with the layer of the backing chain that it comes
// from; as text for a terminal, as SVG and as PNG.
//
// A picture is a grid of cells that is read like a page. A cell is a stretch
// of the disk, and its colour the mixture of what lies in it.
package picture

import (
	"fmt"
	"strings"
)

// Kind is what a run of the disk is.
type Kind uint8

// The kinds, in the order of the legend.
const (
	Data Kind = iota
	Compressed
	Zero        // known to read as zeros
	Unallocated // no layer holds it; it reads as zeros too
	kinds
)

// String returns the word of the legend.
func (k Kind) String() string {
	return [...]string{"data", "compressed", "zeros", "not allocated"}[k]
}

// The bounds of a picture, whatever the size of the disk and of the chain.
const (
	columns   = 128
	maxRows   = 64
	maxLayers = 8    // deeper ones are drawn as the deepest of these
	minCell   = 4096 // bytes of the disk
)

// counts are bytes by kind and layer.
type counts [kinds][maxLayers]int64

// Picture collects runs. It takes about 2 MiB for any disk. It is not safe for
// concurrent use.
type Picture struct {
	title  string
	size   int64
	layers []string
	cell   int64 // bytes of the disk in a cell
	cells  []counts
	total  counts
}

// New returns a picture of a disk of size bytes. layers are the names of the
// backing chain, top first.
func New(title string, size int64, layers []string) *Picture {
	p := &Picture{title: title, size: size, layers: layers, cell: minCell}
	for p.cell < size && (size-1)/p.cell >= columns*maxRows {
		p.cell *= 2
	}
	if size > 0 {
		p.cells = make([]counts, (size-1)/p.cell+1)
	}
	return p
}

// Add draws a run of n bytes at off, which is cut to the disk. Runs may come
// in any order and must not overlap.
func (p *Picture) Add(off, n int64, kind Kind, layer int) {
	off = max(off, 0)
	n = min(n, p.size-off)
	layer = min(max(layer, 0), maxLayers-1)
	if kind == Unallocated {
		layer = 0 // no layer holds it
	}
	if n <= 0 {
		return
	}
	p.total[kind][layer] += n
	for n > 0 {
		i := off / p.cell
		k := min(n, (i+1)*p.cell-off)
		p.cells[i][kind][layer] += k
		off, n = off+k, n-k
	}
}

// rows returns the number of rows of the grid.
func (p *Picture) rows() int { return (len(p.cells) + columns - 1) / columns }

// main returns what most of the bytes are; what holds data comes first.
func (c *counts) main() (kind Kind, layer int) {
	best := int64(-1)
	for k := range kinds {
		for l := range maxLayers {
			if c[k][l] > best {
				best, kind, layer = c[k][l], k, l
			}
		}
	}
	return kind, layer
}

// rgb is a colour.
type rgb struct{ r, g, b uint8 }

func (c rgb) hex() string { return fmt.Sprintf("#%02x%02x%02x", c.r, c.g, c.b) }

// layerColors tells layers apart, also for people who are colour-blind (the
// palette of Okabe and Ito).
var layerColors = [maxLayers]rgb{
	{0, 114, 178}, {213, 94, 0}, {0, 158, 115}, {204, 121, 167}, {86, 180, 233}, {230, 159, 0}, {153, 153, 51}, {90, 90, 90},
}

// kindColor returns the colour of a kind in a layer.
func kindColor(k Kind, layer int) rgb {
	c := layerColors[layer]
	switch k {
	case Compressed: // darker
		return rgb{c.r / 2, c.g / 2, c.b / 2}
	case Zero:
		return rgb{225, 225, 215}
	case Unallocated:
		return rgb{250, 250, 250}
	}
	return c
}

// color returns the mixture of what is in a cell.
func (c *counts) color() rgb {
	var r, g, b, n int64
	var sum int64
	for k := range kinds {
		for l := range maxLayers {
			sum += c[k][l]
		}
	}
	for k := range kinds {
		for l := range maxLayers {
			if c[k][l] == 0 {
				continue
			}
			// In 1/4096, so that no size overflows; a little data is seen.
			w := max(c[k][l]>>12*4096/max(sum>>12, 1), 1)
			if k <= Compressed {
				w = max(w, 600)
			}
			x := kindColor(k, l)
			r, g, b, n = r+int64(x.r)*w, g+int64(x.g)*w, b+int64(x.b)*w, n+w
		}
	}
	if n == 0 {
		return kindColor(Unallocated, 0)
	}
	return rgb{uint8(r / n), uint8(g / n), uint8(b / n)}
}

// entry is a line of the legend.
type entry struct {
	kind  Kind
	layer int
	text  string
}

// legend describes what there is in the picture.
func (p *Picture) legend() []entry {
	var list []entry
	for k := range kinds {
		for l := range maxLayers {
			n := p.total[k][l]
			if n == 0 {
				continue
			}
			text := fmt.Sprintf("%s, %s (%.1f%%)", k, bytesText(n), float64(n)*100/float64(p.size))
			if k != Unallocated {
				text += ": " + p.layerName(l)
			}
			list = append(list, entry{k, l, text})
		}
	}
	return list
}

func (p *Picture) layerName(l int) string {
	name := fmt.Sprintf("layer %d", l)
	if l < len(p.layers) {
		name += ", " + p.layers[l]
	}
	if l == maxLayers-1 && len(p.layers) > maxLayers {
		name += " and below"
	}
	return name
}

// heading is the line over the grid.
func (p *Picture) heading() string {
	if len(p.cells) == 0 {
		return p.title + ": an empty disk"
	}
	return fmt.Sprintf("%s: %s, a cell is %s", p.title, bytesText(p.size), bytesText(p.cell))
}

// bytesText writes a number of bytes for a person.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	s := fmt.Sprintf("%.1f", v)
	return strings.TrimSuffix(s, ".0") + " " + units[i:i+1] + "iB"
}

// color is the colour of a legend's box.
func (e entry) color() rgb { return kindColor(e.kind, e.layer) }
