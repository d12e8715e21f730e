package picture

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// PNG writes the picture as a PNG image.
func (p *Picture) PNG(w io.Writer) error {
	legend := p.legend()
	width := 2*margin + columns*cellPixels
	height := 2*margin + textTop + p.rows()*cellPixels + (len(legend)+1)*lineHeight
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	fill := func(x, y, w, h int, c rgb) {
		draw.Draw(img, image.Rect(x, y, x+w, y+h), image.NewUniform(color.RGBA{c.r, c.g, c.b, 255}), image.Point{}, draw.Src)
	}
	text := func(x, y int, s string) {
		d := font.Drawer{Dst: img, Src: image.Black, Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
		d.DrawString(clean(s))
	}
	fill(0, 0, width, height, rgb{255, 255, 255})
	text(margin, margin+10, p.heading())
	frame := rgb{153, 153, 153}
	fill(margin-1, margin+textTop-1, columns*cellPixels+2, p.rows()*cellPixels+2, frame)
	fill(margin, margin+textTop, columns*cellPixels, p.rows()*cellPixels, rgb{255, 255, 255})
	for i := range p.cells {
		fill(margin+i%columns*cellPixels, margin+textTop+i/columns*cellPixels, cellPixels, cellPixels, p.cells[i].color())
	}
	y := margin + textTop + p.rows()*cellPixels + lineHeight
	for _, e := range legend {
		fill(margin-1, y-11, 14, 14, frame)
		c := e.color()
		fill(margin, y-10, 12, 12, c)
		text(margin+20, y, e.text)
		y += lineHeight
	}
	return png.Encode(w, img)
}
