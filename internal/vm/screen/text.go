package screen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"
)

// The window of the VGA text modes: two bytes a cell, character and attribute.
const (
	textBase   = 0xb8000
	textWindow = 32 << 10
	textCols   = 80
	cellBytes  = 2
)

// ErrNoScreen: QEMU gave no picture, or no memory.
var ErrNoScreen = errors.New("the screen cannot be read")

// textTries is how often the text is read when the guest writes meanwhile.
const textTries = 3

// Text returns the lines of the text screen, nil where the screen is in no text
// mode. shoot takes a picture, and monitor runs a line of QEMU's human monitor.
func Text(shoot func() (Picture, error), monitor func(command string) (string, error)) ([]string, error) {
	var best textScreen
	for try := range textTries {
		pic, err := shoot()
		if err != nil {
			return nil, err
		}
		grid, ok := textGrid(pic)
		if !ok {
			return nil, nil
		}
		memory, err := textMemory(monitor)
		if err != nil {
			return nil, err
		}
		s := locate(memory, grid)
		if try == 0 || s.misses < best.misses {
			best = s
		}
		if best.sure() {
			break
		}
	}
	if best.hopeless() {
		// A graphics mode of the same size.
		return nil, nil
	}
	return best.lines(), nil
}

// textMemory reads the window of VGA memory that text modes use. Reading it in
// a text mode changes nothing in the guest.
func textMemory(monitor func(command string) (string, error)) ([]byte, error) {
	out, err := monitor(fmt.Sprintf("xp /%dwx 0x%x", textWindow/4, textBase))
	if err != nil {
		return nil, err
	}
	memory, err := parseDump(out)
	if err == nil && len(memory) != textWindow {
		err = fmt.Errorf("%d bytes, expected %d", len(memory), textWindow)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: dump of VGA memory: %w", ErrNoScreen, err)
	}
	return memory, nil
}

// parseDump reads the output of the monitor's `xp /Nwx`: an address and a
// colon, then 32-bit words in hex.
func parseDump(out string) ([]byte, error) {
	var memory []byte
	for line := range strings.Lines(out) {
		_, words, found := strings.Cut(line, ":")
		if !found {
			return nil, fmt.Errorf("line %.40q has no address", line)
		}
		for _, w := range strings.Fields(words) {
			v, err := strconv.ParseUint(strings.TrimPrefix(w, "0x"), 16, 32)
			if err != nil {
				return nil, fmt.Errorf("word %.40q: %w", w, err)
			}
			memory = binary.LittleEndian.AppendUint32(memory, uint32(v))
		}
	}
	return memory, nil
}

// cell is what can be told of a character from its picture alone.
type cell struct {
	hash  uint64
	plain bool // one colour all over
}

// textGrid cuts a picture into the cells of the text mode that firmware, boot
// loaders and Linux use, 80 columns and 25 rows; false where it has not its
// size, which no usual graphics mode has.
func textGrid(p Picture) ([]cell, bool) {
	const width, height, cellHeight = 720, 400, 16
	if p.Width != width || p.Height != height {
		return nil, false
	}
	seed := maphash.MakeSeed()
	const cellWidth = width / textCols
	grid := make([]cell, 0, textCols*height/cellHeight)
	for y := 0; y < height; y += cellHeight {
		for x := 0; x < width; x += cellWidth {
			grid = append(grid, cellAt(p, x, y, cellWidth, cellHeight, seed))
		}
	}
	return grid, true
}

func cellAt(p Picture, x, y, w, h int, seed maphash.Seed) cell {
	var hash maphash.Hash
	hash.SetSeed(seed)
	c := cell{plain: true}
	first := p.RGB[(y*p.Width+x)*3:][:3]
	for dy := range h {
		row := p.RGB[((y+dy)*p.Width+x)*3:][:w*3]
		_, _ = hash.Write(row) // never fails
		for i := 0; i < len(row); i += 3 {
			if row[i] != first[0] || row[i+1] != first[1] || row[i+2] != first[2] {
				c.plain = false
			}
		}
	}
	c.hash = hash.Sum64()
	return c
}

// textScreen is a part of the text memory, and how many cells of the picture
// it does not explain.
type textScreen struct {
	cells  []byte
	misses int
}

// locate finds the part of the text memory that the picture shows. Where that
// begins is in a register of the VGA that cannot be read without disturbing
// the guest (its index would have to be set), and is not 0: Linux scrolls the
// console by moving the beginning. So every row of the memory is tried, and the
// page of each firmware call, and the one that explains the picture is taken.
func locate(memory []byte, grid []cell) textScreen {
	best := textScreen{cells: window(memory, 0, len(grid))}
	best.misses = misses(best.cells, grid)
	try := func(start int) {
		if best.misses == 0 {
			return
		}
		w := window(memory, start, len(grid))
		if n := misses(w, grid); n < best.misses {
			best = textScreen{w, n}
		}
	}
	const page = 4096 // of the firmware, in bytes
	for start := page; start < len(memory); start += page {
		try(start)
	}
	for start := textCols * cellBytes; start < len(memory); start += textCols * cellBytes {
		try(start)
	}
	return best
}

// window returns n cells from a byte offset on; the memory is a ring.
func window(memory []byte, start, n int) []byte {
	end := start + n*cellBytes
	if end <= len(memory) {
		return memory[start:end]
	}
	w := append([]byte(nil), memory[start:]...)
	return append(w, memory[:end-len(memory)]...)
}

// misses counts the cells whose picture does not fit the character: one that
// has no ink drawn with some, or the other way round, or a character that is
// drawn in two ways.
func misses(cells []byte, grid []cell) int {
	n := 0
	drawn := make(map[uint16]uint64, 128)
	for i, c := range grid {
		char, attr := cells[i*2], cells[i*2+1]
		if plain(char, attr) != c.plain {
			n++
			continue
		}
		key := uint16(char) | uint16(attr)<<8
		if h, ok := drawn[key]; !ok {
			drawn[key] = c.hash
		} else if h != c.hash {
			n++
		}
	}
	return n
}

// plain says whether a cell is of one colour.
func plain(char, attr byte) bool {
	switch char {
	case 0x00, 0x20, 0xdb, 0xff:
		return true
	}
	return attr&0x0f == attr>>4&0x07 // bit 7 makes it blink
}

// sure: but for the cursor and a blinking character or two it all fits.
func (s textScreen) sure() bool { return s.misses <= 4 }

// hopeless: what is shown is not this text at all.
func (s textScreen) hopeless() bool { return s.misses > len(s.cells)/cellBytes/3 }

// lines returns the text, trailing blanks and trailing empty lines cut. It is
// never nil.
func (s textScreen) lines() []string {
	lines := []string{}
	for row := 0; row < len(s.cells); row += textCols * cellBytes {
		var b strings.Builder
		for col := range textCols {
			b.WriteRune(cp437[s.cells[row+col*cellBytes]])
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// cp437 is the character set of the PC's text screen, in Unicode.
var cp437 = []rune(" ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼" +
	" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~⌂" +
	"ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀" +
	"αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ")
