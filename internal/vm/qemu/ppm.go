package qemu

import (
	"bufio"
	"fmt"
	"image"
	"io"
)

// picture is a screen of 8-bit RGB pixels, row by row.
type picture struct {
	width, height int
	rgb           []byte
}

// maxPixels is more than any screen that QEMU has.
const maxPixels = 64 << 20

// readPPM reads a binary PPM (netpbm's "P6") of 8 bits a sample, its header on
// three lines as QEMU writes it. The pixels begin right after the third, and may
// themselves look like blanks.
func readPPM(r io.Reader) (picture, error) {
	br := bufio.NewReader(r)
	var header string
	for range 3 {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return picture{}, fmt.Errorf("PPM header: %w", err)
		}
		header += string(line)
	}
	var magic string
	var w, h, depth int
	if _, err := fmt.Sscan(header, &magic, &w, &h, &depth); err != nil {
		return picture{}, fmt.Errorf("PPM header %.40q: %w", header, err)
	}
	switch {
	case magic != "P6" || depth != 255:
		return picture{}, fmt.Errorf("PPM header: %q with samples up to %d, expected P6 with 255", magic, depth)
	case w < 1 || h < 1 || w > maxPixels/h:
		return picture{}, fmt.Errorf("PPM header: %d x %d pixels", w, h)
	}
	p := picture{w, h, make([]byte, w*h*3)}
	if _, err := io.ReadFull(br, p.rgb); err != nil {
		return picture{}, fmt.Errorf("PPM of %d x %d pixels: %w", w, h, err)
	}
	return p, nil
}

// image returns p for the encoders of the standard library.
func (p picture) image() image.Image {
	img := image.NewRGBA(image.Rect(0, 0, p.width, p.height))
	for i := range p.width * p.height {
		copy(img.Pix[i*4:], p.rgb[i*3:i*3+3])
		img.Pix[i*4+3] = 0xff
	}
	return img
}
