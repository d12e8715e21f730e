// Package screen reads a machine's screen: QEMU's picture of it, and the text
// that a VGA text screen shows.
package screen

import (
	"bufio"
	"bytes"
	"fmt"
	"image"
	"image/png"
	"io"
)

// Picture is a screen of 8-bit RGB pixels, row by row.
type Picture struct {
	Width, Height int // in pixels
	RGB           []byte
}

// maxPixels is more than any screen that QEMU has.
const maxPixels = 64 << 20

// ReadPPM reads a binary PPM (netpbm's "P6") of 8 bits a sample, its header on
// three lines as QEMU writes it. The pixels begin right after the third, and may
// themselves look like blanks.
func ReadPPM(r io.Reader) (Picture, error) {
	br := bufio.NewReader(r)
	var header string
	for range 3 {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return Picture{}, fmt.Errorf("PPM header: %w", err)
		}
		header += string(line)
	}
	var magic string
	var w, h, depth int
	if _, err := fmt.Sscan(header, &magic, &w, &h, &depth); err != nil {
		return Picture{}, fmt.Errorf("PPM header %.40q: %w", header, err)
	}
	switch {
	case magic != "P6" || depth != 255:
		return Picture{}, fmt.Errorf("PPM header: %q with samples up to %d, expected P6 with 255", magic, depth)
	case w < 1 || h < 1 || w > maxPixels/h:
		return Picture{}, fmt.Errorf("PPM header: %d x %d pixels", w, h)
	}
	p := Picture{w, h, make([]byte, w*h*3)}
	if _, err := io.ReadFull(br, p.RGB); err != nil {
		return Picture{}, fmt.Errorf("PPM of %d x %d pixels: %w", w, h, err)
	}
	return p, nil
}

// Image returns p for the encoders of the standard library.
func (p Picture) Image() image.Image {
	img := image.NewRGBA(image.Rect(0, 0, p.Width, p.Height))
	for i := range p.Width * p.Height {
		copy(img.Pix[i*4:], p.RGB[i*3:i*3+3])
		img.Pix[i*4+3] = 0xff
	}
	return img
}

// PNG returns p as a PNG file.
func (p Picture) PNG() ([]byte, error) {
	var b bytes.Buffer
	if err := png.Encode(&b, p.Image()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// ReadPNG reads a PNG file, which newer libvirt may give.
func ReadPNG(r io.Reader) (Picture, error) {
	var head bytes.Buffer
	c, err := png.DecodeConfig(io.TeeReader(r, &head))
	if err != nil {
		return Picture{}, err
	}
	if c.Width < 1 || c.Height < 1 || c.Width > maxPixels/c.Height {
		return Picture{}, fmt.Errorf("PNG of %d x %d pixels", c.Width, c.Height)
	}
	img, err := png.Decode(io.MultiReader(&head, r))
	if err != nil {
		return Picture{}, err
	}
	p := Picture{c.Width, c.Height, make([]byte, 0, c.Width*c.Height*3)}
	b := img.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			red, green, blue, _ := img.At(x, y).RGBA()
			p.RGB = append(p.RGB, byte(red>>8), byte(green>>8), byte(blue>>8))
		}
	}
	return p, nil
}
