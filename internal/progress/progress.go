// Package progress tells a person how work goes on: a live block of lines on a
// terminal, plain lines elsewhere.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Options say what the output can do.
type Options struct {
	// Terminal: the cursor can be moved. Without it each step is a line.
	Terminal bool
	// Color allows colours (a terminal, and no NO_COLOR).
	Color bool
	// Size returns the columns and rows of the terminal; nil means 80x24.
	Size func() (columns, rows int)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// refresh is the time between two pictures on a terminal.
const refresh = 100 * time.Millisecond

// Display is where tasks are shown. Its methods, and those of its tasks, are
// safe for concurrent use.
type Display struct {
	out io.Writer
	opt Options

	mu    sync.Mutex // guards what follows
	tasks []*Task    // that are not done, in the order of their beginning
	drawn int        // lines of the live block on the screen
	frame int
	stop  chan struct{} // ends the ticker; nil while there is none
	done  bool
}

// For returns a display on a file, most often os.Stderr, as its kind and the
// environment (TERM, NO_COLOR) allow.
func For(f *os.File) *Display {
	terminal := term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
	return New(f, Options{
		Terminal: terminal,
		Color:    terminal && os.Getenv("NO_COLOR") == "",
		Size: func() (int, int) {
			c, r, err := term.GetSize(int(f.Fd()))
			if err != nil || c <= 0 || r <= 0 {
				return 80, 24
			}
			return c, r
		},
	})
}

// New returns a display on w.
func New(w io.Writer, opt Options) *Display {
	if opt.Size == nil {
		opt.Size = func() (int, int) { return 80, 24 }
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	return &Display{out: w, opt: opt}
}

// Terminal says whether the display is a live block rather than lines.
func (d *Display) Terminal() bool { return d.opt.Terminal }

// Task begins a task. The name is shown before everything that it says.
func (d *Display) Task(name string) *Task {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := &Task{d: d, name: Clean(name), began: d.opt.Now()}
	if !d.done {
		d.tasks = append(d.tasks, t)
		d.tick()
	}
	return t
}

// Printf writes a line that stays, above the live block.
func (d *Display) Printf(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.line(fmt.Sprintf(format, args...))
}

// Close removes the live block. Later lines are still written.
func (d *Display) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.erase()
	d.tasks, d.done = nil, true
	if d.stop != nil {
		close(d.stop)
		d.stop = nil
	}
}

// tick starts the ticker of a terminal. The caller holds mu.
func (d *Display) tick() {
	if !d.opt.Terminal || d.stop != nil {
		return
	}
	stop := make(chan struct{})
	d.stop = stop
	go func() {
		t := time.NewTicker(refresh)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
			}
			d.mu.Lock()
			if d.stop == stop {
				d.frame++
				d.draw()
			}
			d.mu.Unlock()
		}
	}()
}

// line writes one line that stays. The caller holds mu.
func (d *Display) line(s string) {
	d.erase()
	// A message that cannot be written has nobody to be told about it.
	_, _ = io.WriteString(d.out, s+"\n")
	d.draw()
}

// erase removes the live block from the screen. The caller holds mu.
func (d *Display) erase() {
	if d.drawn == 0 {
		return
	}
	_, _ = fmt.Fprintf(d.out, "\r\x1b[%dA\x1b[J", d.drawn)
	d.drawn = 0
}

// draw shows the live block. The caller holds mu.
func (d *Display) draw() {
	if !d.opt.Terminal || d.done {
		return
	}
	columns, rows := d.opt.Size()
	var b strings.Builder
	if d.drawn > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA", d.drawn)
	}
	shown := d.tasks
	hidden := 0
	if room := max(rows-2, 1); len(shown) > room {
		shown, hidden = shown[:room], len(shown)-room
	}
	width := 0
	for _, t := range shown {
		width = max(width, len(t.name))
	}
	lines := 0
	put := func(s string) {
		b.WriteString("\x1b[2K" + s + "\n")
		lines++
	}
	for _, t := range shown {
		put(t.live(columns-1, width))
	}
	if hidden > 0 {
		put(fmt.Sprintf("  and %d more", hidden))
	}
	b.WriteString("\x1b[J")
	d.drawn = lines
	_, _ = io.WriteString(d.out, b.String())
}

// remove takes a task out of the live block. The caller holds mu.
func (d *Display) remove(t *Task) {
	for i, o := range d.tasks {
		if o == t {
			d.tasks = append(d.tasks[:i:i], d.tasks[i+1:]...)
			break
		}
	}
	if len(d.tasks) == 0 && d.stop != nil {
		close(d.stop)
		d.stop = nil
	}
}

// paint wraps s in a colour where colours are allowed.
func (d *Display) paint(code, s string) string {
	if !d.opt.Color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// Clean returns s without control characters: what a guest or a server wrote
// must not move the cursor or set the title of a person's terminal.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
