package boot

import (
	"bytes"
	"strings"
)

// Bounds of what is kept of a console.
const (
	maxLine  = 1024 // bytes of a line; the rest of it is dropped
	maxLast  = 12   // lines of a Problem
	clipLine = 240  // bytes of a line that is shown
)

// terminal turns what a console is sent into lines: escape sequences are
// taken out, moving the cursor ends a line (GRUB draws its menu that way),
// and a line that is written over (carriage return) is a line of its own.
// The zero value with emit set is ready.
type terminal struct {
	emit  func(line string)
	line  []byte
	state termState
	cr    bool // a carriage return came last
}

type termState int

const (
	termText termState = iota
	termEscape
	termCSI     // ESC [ ... letter
	termOSC     // ESC ] ... BEL, or ESC \
	termOSCEsc  // ESC inside of it
	termCharset // ESC ( x
)

func (t *terminal) write(p []byte) {
	for _, b := range p {
		t.put(b)
	}
}

func (t *terminal) put(b byte) {
	switch t.state {
	case termEscape:
		t.escape(b)
		return
	case termCSI:
		if b >= 0x40 && b <= 0x7e {
			t.state = termText
			t.control(b)
		} else if b < 0x20 || b > 0x7e { // not a sequence after all
			t.state = termText
		}
		return
	case termOSC:
		switch b {
		case 0x07, '\n':
			t.state = termText
		case 0x1b:
			t.state = termOSCEsc
		}
		return
	case termOSCEsc, termCharset:
		t.state = termText
		return
	}
	if t.cr && b != '\n' && b != '\r' {
		t.flush()
	}
	t.cr = b == '\r'
	switch {
	case b == 0x1b:
		t.state = termEscape
	case b == '\n':
		t.flush()
	case b == '\b':
		if len(t.line) > 0 {
			t.line = t.line[:len(t.line)-1]
		}
	case b == '\t':
		t.text(' ')
	case b >= ' ' && b != 0x7f:
		t.text(b)
	}
}

func (t *terminal) escape(b byte) {
	t.state = termText
	switch b {
	case '[':
		t.state = termCSI
	case ']':
		t.state = termOSC
	case '(', ')', '*', '+', '#', '%':
		t.state = termCharset
	case 'M', 'D', 'E', 'c': // index, next line, reset
		t.flush()
	}
}

// control acts on the last letter of a control sequence.
func (t *terminal) control(b byte) {
	switch b {
	case 'A', 'B', 'E', 'F', 'H', 'J', 'd', 'f':
		t.flush()
	case 'C', 'G':
		t.text(' ')
	}
}

func (t *terminal) text(b byte) {
	if len(t.line) < maxLine {
		t.line = append(t.line, b)
	}
}

// flush ends the line; blank ones are not told.
func (t *terminal) flush() {
	if s := t.partial(); s != "" {
		t.emit(s)
	}
	t.line = t.line[:0]
}

// partial is the line that has not ended.
func (t *terminal) partial() string {
	return strings.ToValidUTF8(string(bytes.TrimSpace(t.line)), "?")
}

// tail keeps the last lines of a console.
type tail struct{ lines []string }

func (l *tail) add(s string) {
	s = clip(s)
	if n := len(l.lines); n > 0 && sameButNumbers(l.lines[n-1], s) {
		l.lines[n-1] = s // a counter that runs: one line is enough
		return
	}
	if len(l.lines) == maxLast {
		copy(l.lines, l.lines[1:])
		l.lines = l.lines[:maxLast-1]
	}
	l.lines = append(l.lines, s)
}

// clip cuts a line to what is shown of it.
func clip(s string) string {
	if len(s) > clipLine {
		return strings.ToValidUTF8(s[:clipLine], "") + "..."
	}
	return s
}

// sameButNumbers tells a line that is written again with another count.
func sameButNumbers(a, b string) bool {
	i, j := 0, 0
	for {
		for i < len(a) && isCounter(a[i]) {
			i++
		}
		for j < len(b) && isCounter(b[j]) {
			j++
		}
		if i == len(a) || j == len(b) {
			return i == len(a) && j == len(b)
		}
		if a[i] != b[j] {
			return false
		}
		i, j = i+1, j+1
	}
}

func isCounter(c byte) bool { return '0' <= c && c <= '9' || c == ' ' || c == '*' || c == '.' }
