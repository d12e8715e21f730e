package screen

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"
	"strings"
	"testing"
)

// paint draws text memory as a VGA would, from a byte offset on: every
// character has a picture of its own.
func paint(memory []byte, start int) Picture {
	p := Picture{720, 400, make([]byte, 720*400*3)}
	for i := range 80 * 25 {
		at := (start + i*2) % len(memory)
		char, attr := memory[at], memory[at+1]
		for y := range 16 {
			for x := range 9 {
				ink := !plain(char, attr) && (y == int(char)%16 || x == int(char)/32 || y == int(attr)%16)
				if !ink {
					continue
				}
				o := ((i/80*16+y)*720 + i%80*9 + x) * 3
				p.RGB[o], p.RGB[o+1] = 200, attr
			}
		}
	}
	return p
}

// blank returns empty text memory.
func blank() []byte { return bytes.Repeat([]byte{' ', 7}, textWindow/2) }

// write puts text at a byte offset.
func write(memory []byte, at int, text string) {
	for i := range len(text) {
		memory[(at+i*2)%len(memory)] = text[i]
	}
}

func TestLocate(t *testing.T) {
	for _, start := range []int{0, 160, 160 * 100, 4096, 160 * 204} {
		memory := blank()
		for row := range 204 { // what scrolled by, and what will be written over
			write(memory, row*160, fmt.Sprintf("line %d of many", row*row))
		}
		write(memory, start, "first line"+strings.Repeat(" ", 20))
		write(memory, start+160*24, "last line "+strings.Repeat("-", 10))
		pic := paint(memory, start)
		// The cursor.
		for x := range 9 {
			pic.RGB[((24*16+14)*720+30*9+x)*3] = 255
		}
		grid, ok := textGrid(pic)
		if !ok {
			t.Fatal("no text mode")
		}
		s := locate(memory, grid)
		lines := s.lines()
		if !s.sure() || len(lines) != 25 || !strings.HasPrefix(lines[0], "first line") || !strings.HasPrefix(lines[24], "last line") {
			t.Errorf("start %d: %d misses, %q", start, s.misses, lines)
		}
	}
}

// TestLocateGraphics: a picture of the size of a text screen that is none.
func TestLocateGraphics(t *testing.T) {
	p := Picture{720, 400, make([]byte, 720*400*3)}
	for i := range p.RGB {
		p.RGB[i] = byte(i * i)
	}
	grid, ok := textGrid(p)
	if !ok || !locate(blank(), grid).hopeless() {
		t.Error("noise was read as text")
	}
	for _, size := range [][2]int{{640, 480}, {1024, 768}, {720, 401}} {
		if _, ok := textGrid(Picture{size[0], size[1], nil}); ok {
			t.Errorf("%v is no text mode", size)
		}
	}
}

func TestLines(t *testing.T) {
	memory := blank()
	write(memory, 160, "caf\x82  \x00 \xc9\xcd\xbb  ")
	s := textScreen{cells: memory[:80*25*2]}
	if got, want := s.lines(), []string{"", "café    ╔═╗"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (textScreen{cells: blank()[:80*25*2]}).lines(); got == nil || len(got) != 0 {
		t.Errorf("blank screen: %#v", got)
	}
	if len(cp437) != 256 {
		t.Errorf("%d characters", len(cp437))
	}
}

func TestParseDump(t *testing.T) {
	got, err := parseDump("00000000000b8000: 0x07420741 0x07200743\r\n00000000000b8008: 0xffffffff\r\n")
	if want := []byte("A\x07B\x07C\x07 \x07\xff\xff\xff\xff"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"nothing", "0: 0xzz", "0: 0x100000000"} {
		if _, err := parseDump(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestPPM(t *testing.T) {
	p, err := ReadPPM(strings.NewReader("P6\n2 1\n255\n\x01\x02\x03\n \t"))
	if err != nil || p.Width != 2 || p.Height != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	img := p.Image()
	if got, want := img.At(0, 0), (color.RGBA{1, 2, 3, 255}); got != want {
		t.Errorf("first pixel %v, want %v", got, want)
	}
	if got, want := img.At(1, 0), (color.RGBA{'\n', ' ', '\t', 255}); got != want {
		t.Errorf("second pixel %v, want %v", got, want)
	}
	p, err = ReadPPM(strings.NewReader("P6\n1 1\n255\n\n \t"))
	if err != nil || string(p.RGB) != "\n \t" {
		t.Errorf("pixels that look like blanks: %q, %v", p.RGB, err)
	}
	for _, bad := range []string{"", "P5\n1 1\n255\nxxx", "P6\n1 1\n65535\nxxxxxx", "P6\n0 1\n255\n", "P6\n-1 1\n255\n", "P6\n100000 100000\n255\n", "P6\n2 2\n255\nxxx"} {
		if _, err := ReadPPM(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// FuzzScreen: no output of QEMU panics or takes memory out of proportion.
func FuzzScreen(f *testing.F) {
	f.Add("P6\n2 1\n255\n123456")
	f.Add("b8000: 0x07420741")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ReadPPM(strings.NewReader(s)); err == nil && len(p.RGB) != p.Width*p.Height*3 {
			t.Errorf("%d x %d pixels in %d bytes", p.Width, p.Height, len(p.RGB))
		}
		if b, err := parseDump(s); err == nil && len(b) > 4*len(s) {
			t.Errorf("%d bytes of %d", len(b), len(s))
		}
	})
}
