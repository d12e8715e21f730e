package picture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"strings"
	"testing"
)

func text(t *testing.T, p *Picture, width int, color bool) string {
	t.Helper()
	var b strings.Builder
	if err := p.Text(&b, width, color); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestText(t *testing.T) {
	p := New("disk", 64<<10, []string{"top", "base"})
	p.Add(0, 8<<10, Data, 0)
	p.Add(8<<10, 4<<10, Zero, 0)
	p.Add(12<<10, 8<<10, Compressed, 1)
	p.Add(20<<10, 1<<30, Unallocated, 1) // reaches past the end
	want := `disk: 64 KiB, a cell is 4 KiB
00-bb...........
0 data, 8 KiB (12.5%): layer 0, top
b compressed, 8 KiB (12.5%): layer 1, base
- zeros, 4 KiB (6.2%): layer 0, top
. not allocated, 44 KiB (68.8%)
`
	if got := text(t, p, 80, false); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	colored := text(t, p, 80, true)
	if !strings.Contains(colored, "\x1b[38;2;0;114;178m█\x1b[0m") {
		t.Errorf("no colours: %q", colored)
	}
}

// The grid is bounded, and the bytes add up, for every size.
func TestBounds(t *testing.T) {
	for _, size := range []int64{0, 1, 512, 4096, 4097, 1 << 25, 1<<25 + 1, 1 << 40, math.MaxInt64} {
		p := New("disk", size, nil)
		if len(p.cells) > columns*maxRows {
			t.Fatalf("size %d: %d cells", size, len(p.cells))
		}
		p.Add(0, size/2, Data, 100)
		p.Add(size/2, size-size/2, Zero, -1)
		p.Add(size, 10, Data, 0)
		var sum int64
		for _, c := range p.cells {
			for k := range kinds {
				for l := range maxLayers {
					sum += c[k][l]
				}
			}
		}
		if sum != size {
			t.Errorf("size %d: the cells have %d", size, sum)
		}
		out := text(t, p, 10, false)
		if n := strings.Count(out, "\n"); n > 1100 {
			t.Errorf("size %d: %d lines", size, n)
		}
		var svg, pngFile bytes.Buffer
		if err := errors.Join(p.SVG(&svg), p.PNG(&pngFile)); err != nil {
			t.Fatal(err)
		}
		if svg.Len() > 4<<20 {
			t.Errorf("size %d: %d bytes of SVG", size, svg.Len())
		}
	}
}

// A name can hold anything; the SVG stays XML, the terminal stays as it is.
func TestHostileNames(t *testing.T) {
	name := "<script>&\"\x00\x1b[2J\xff\u009b"
	p := New(name, 1<<20, []string{name})
	p.Add(0, 4096, Data, 0)
	var svg, pngFile bytes.Buffer
	if err := errors.Join(p.SVG(&svg), p.PNG(&pngFile)); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(&svg); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "script" {
			t.Error("a name became an element")
		}
	}
	if out := text(t, p, 80, false); strings.ContainsAny(out, "\x00\x1b\u009b") {
		t.Errorf("control characters: %q", out)
	}
}

// What a reader of the PNG sees at the place of a cell.
func TestPNG(t *testing.T) {
	p := New("disk", 4096*columns*3, []string{"top"})
	p.Add(4096*(columns+5), 4096, Data, 0)
	p.Add(0, 4096, Zero, 0)
	var b bytes.Buffer
	if err := p.PNG(&b); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	at := func(column, row int) rgb {
		r, g, b, _ := img.At(margin+column*cellPixels+3, margin+textTop+row*cellPixels+3).RGBA()
		return rgb{uint8(r >> 8), uint8(g >> 8), uint8(b >> 8)}
	}
	if got := at(5, 1); got != kindColor(Data, 0) {
		t.Errorf("data is %v", got)
	}
	if got := at(0, 0); got != kindColor(Zero, 0) {
		t.Errorf("zeros are %v", got)
	}
	if got := at(6, 1); got != kindColor(Unallocated, 0) {
		t.Errorf("nothing is %v", got)
	}
}
