package progress

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a clock that only moves when told.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func TestPlainLines(t *testing.T) {
	var out strings.Builder
	c := newClock()
	d := New(&out, Options{Now: c.Now})
	task := d.Task("web")
	task.Stage("kernel")
	task.Stage("kernel") // said once
	task.Stage("init")
	for i := range int64(101) {
		c.Sleep(100 * time.Millisecond)
		task.Bytes("download", i<<20, 100<<20)
	}
	task.Done("ready")
	d.Close()
	got := out.String()
	if strings.Contains(got, "\x1b") || strings.Contains(got, "\r") {
		t.Errorf("plain output has control characters: %q", got)
	}
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 2+11+1 {
		t.Errorf("%d lines, want 2 stages, 11 tenths and the end:\n%s", len(lines), got)
	}
	for _, want := range []string{"web: kernel\nweb: init\n", "web: download 50% of 100 MiB, 10 MiB/s, 5 s left\n", "web: ready\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestPlainUnknownTotalIsToldNowAndThen(t *testing.T) {
	var out strings.Builder
	c := newClock()
	d := New(&out, Options{Now: c.Now})
	task := d.Task("")
	for i := range int64(400) {
		c.Sleep(100 * time.Millisecond)
		task.Bytes("download", i<<20, 0)
	}
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines in 40 s, want 2:\n%s", n, out.String())
	}
	if !strings.Contains(out.String(), "10 MiB/s") {
		t.Errorf("no rate: %s", out.String())
	}
}

// screen is a terminal that knows what the display uses.
type screen struct {
	mu    sync.Mutex
	lines []string
	row   int
	raw   strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw.Write(p)
	for i := 0; i < len(p); {
		for s.row >= len(s.lines) {
			s.lines = append(s.lines, "")
		}
		switch {
		case p[i] == '\n':
			s.row++
			i++
		case p[i] == '\r':
			i++
		case p[i] == 0x1b:
			j := i + 2
			n := 0
			for ; p[j] >= '0' && p[j] <= '9'; j++ {
				n = n*10 + int(p[j]-'0')
			}
			switch p[j] {
			case 'A':
				s.row -= n
			case 'K':
				s.lines[s.row] = ""
			case 'J':
				s.lines = s.lines[:s.row]
			case 'm':
			}
			i = j + 1
		default:
			s.lines[s.row] += string(p[i])
			i++
		}
	}
	return len(p), nil
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimRight(strings.Join(s.lines, "\n"), "\n")
}

func TestTerminalBlock(t *testing.T) {
	s := &screen{}
	c := newClock()
	d := New(s, Options{Terminal: true, Now: c.Now, Size: func() (int, int) { return 60, 24 }})
	a, b := d.Task("web-1"), d.Task("db")
	a.Stage("kernel")
	b.Bytes("download", 50<<20, 100<<20)
	c.Sleep(65 * time.Second)
	d.Printf("a line that stays")
	got := s.text()
	want := []string{"a line that stays", " web-1  kernel 1 min 5 s", " db     download [############............] 50% of 100 MiB"}
	for i, l := range strings.Split(got, "\n") {
		if !strings.HasSuffix(l, want[i]) {
			t.Errorf("line %d is %q, want %q at its end", i, l, want[i])
		}
	}
	a.Done("login prompt after 3.1 s")
	b.Fail("no space")
	d.Close()
	if got, want := s.text(), "a line that stays\nweb-1: login prompt after 3.1 s\ndb: no space"; got != want {
		t.Errorf("at the end:\n%s\nwant:\n%s", got, want)
	}
}

func TestTerminalKeepsWithinItsSize(t *testing.T) {
	s := &screen{}
	d := New(s, Options{Terminal: true, Size: func() (int, int) { return 20, 5 }})
	for range 10 {
		d.Task("name").Stage(strings.Repeat("long ", 20))
	}
	d.Printf("x")
	lines := strings.Split(s.text(), "\n")
	if len(lines) > 5 {
		t.Errorf("%d lines on a screen of 5:\n%s", len(lines), s.text())
	}
	for _, l := range lines {
		if len(l) >= 20 {
			t.Errorf("line of %d columns on a screen of 20: %q", len(l), l)
		}
	}
	d.Close()
	if s.text() != "x" {
		t.Errorf("left behind: %q", s.text())
	}
}

func TestTicker(t *testing.T) {
	s := &screen{}
	d := New(s, Options{Terminal: true})
	task := d.Task("web")
	task.Stage("kernel")
	for end := time.Now().Add(10 * time.Second); !strings.Contains(s.text(), "kernel"); {
		if time.Now().After(end) {
			t.Fatal("nothing was drawn within 10 s")
		}
		time.Sleep(10 * time.Millisecond)
	}
	task.Done("")
	d.Close()
	if s.text() != "" {
		t.Errorf("left behind: %q", s.text())
	}
}

func TestColors(t *testing.T) {
	for _, color := range []bool{false, true} {
		s := &screen{}
		d := New(s, Options{Terminal: true, Color: color})
		d.Task("web").Fail("no space")
		d.Close()
		if has := strings.Contains(s.raw.String(), "\x1b[31m"); has != color {
			t.Errorf("color %v: %q", color, s.raw.String())
		}
	}
}

func TestClean(t *testing.T) {
	got := Clean("a\x1b]0;title\x07b\tc\u009bd\xffe\nf")
	if got != "a]0;titleb cd?ef" {
		t.Errorf("Clean: %q", got)
	}
}

func TestBytesAndDuration(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 12288: "12 KiB", 1<<20 - 1: "1.00 MiB",
		1610612736: "1.50 GiB", 123456789: "117.7 MiB", 1 << 62: "4096 PiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0 s", 80 * time.Millisecond: "0.08 s", 3140 * time.Millisecond: "3.1 s",
		125 * time.Second: "2 min 5 s", 3720 * time.Second: "1 h 2 min"} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
}
