package progress

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Task is one piece of work.
type Task struct {
	d     *Display
	name  string
	began time.Time

	// Guarded by d.mu.
	text           string
	current, total int64
	bytes          bool
	meter          meter
	told           int64     // plain lines: the tenth that was last told
	toldAt         time.Time // and when
}

// tellEvery is the longest silence about a transfer where there is no terminal.
const tellEvery = 15 * time.Second

// Stage says what the task does now. Elsewhere than on a terminal it is a line
// when it differs from the last one.
func (t *Task) Stage(text string) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	text = Clean(text)
	if text == t.text && !t.bytes {
		return
	}
	t.text, t.bytes = text, false
	if !t.d.opt.Terminal {
		t.d.line(t.prefix() + text)
	}
}

// Bytes says that current of total bytes are done of what text names; a total
// of 0 is not known.
func (t *Task) Bytes(text string, current, total int64) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	text = Clean(text)
	now := t.d.opt.Now()
	if !t.bytes || text != t.text {
		t.text, t.bytes = text, true
		t.meter = meter{}
		t.told, t.toldAt = -1, now
	}
	t.current, t.total = current, total
	t.meter.add(now, current)
	if t.d.opt.Terminal {
		return
	}
	tenth := t.told
	if total > 0 {
		tenth = current * 10 / total
	}
	if tenth != t.told || now.Sub(t.toldAt) >= tellEvery {
		t.told, t.toldAt = tenth, now
		t.d.line(t.prefix() + t.text + " " + t.amount())
	}
}

// Note writes a line about the task that stays.
func (t *Task) Note(format string, args ...any) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	t.d.line(t.prefix() + Clean(fmt.Sprintf(format, args...)))
}

// Done ends the task with a line that stays; "" writes none.
func (t *Task) Done(text string) { t.end("32", text) }

// Fail ends the task like Done, in the colour of a failure.
func (t *Task) Fail(text string) { t.end("31", text) }

func (t *Task) end(color, text string) {
	t.d.mu.Lock()
	defer t.d.mu.Unlock()
	t.d.erase()
	t.d.remove(t)
	if text == "" {
		t.d.draw()
		return
	}
	t.d.line(t.d.paint(color, t.prefix()+Clean(text)))
}

func (t *Task) prefix() string {
	if t.name == "" {
		return ""
	}
	return t.name + ": "
}

// live is the task's line on a terminal, at most columns wide. The caller
// holds mu.
func (t *Task) live(columns, nameWidth int) string {
	const spinner = `|/-\`
	head := string(spinner[t.d.frame%len(spinner)]) + " "
	if nameWidth > 0 {
		head += fmt.Sprintf("%-*s  ", nameWidth, t.name)
	}
	text := t.text
	if t.bytes {
		text += " " + t.bar() + t.amount()
	} else {
		text += " " + short(t.d.opt.Now().Sub(t.began))
	}
	return t.d.paint("36", clip(head, columns)) + clip(text, columns-utf8.RuneCountInString(head))
}

// bar is a picture of how much is done, "" where the total is not known.
func (t *Task) bar() string {
	const width = 24
	if t.total <= 0 {
		return ""
	}
	n := int(min(max(t.current, 0), t.total) * width / t.total)
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", width-n) + "] "
}

// amount is what is done, of how much, how fast, and how long it will take.
func (t *Task) amount() string {
	s := Bytes(t.current)
	if t.total > 0 {
		s = fmt.Sprintf("%d%% of %s", min(t.current*100/t.total, 100), Bytes(t.total))
	}
	rate := t.meter.rate()
	if rate <= 0 {
		return s
	}
	s += ", " + Bytes(int64(rate)) + "/s"
	if left := t.total - t.current; left > 0 {
		s += ", " + short(time.Duration(float64(left)/rate*float64(time.Second))) + " left"
	}
	return s
}

// meter measures a rate over the last seconds, so that it follows a line that
// becomes slower.
type meter struct {
	at   [32]time.Time
	done [32]int64
	n    int // samples taken
}

// sampleEvery is the least time between two samples.
const sampleEvery = 250 * time.Millisecond

func (m *meter) add(now time.Time, done int64) {
	if m.n > 0 && now.Sub(m.at[(m.n-1)%len(m.at)]) < sampleEvery {
		return
	}
	m.at[m.n%len(m.at)], m.done[m.n%len(m.at)] = now, done
	m.n++
}

// rate returns bytes a second, 0 while it is not known.
func (m *meter) rate() float64 {
	if m.n < 2 {
		return 0
	}
	first, last := max(0, m.n-len(m.at)), m.n-1
	a, b := first%len(m.at), last%len(m.at)
	d := m.at[b].Sub(m.at[a]).Seconds()
	if d <= 0 || m.done[b] < m.done[a] {
		return 0
	}
	return float64(m.done[b]-m.done[a]) / d
}

// Bytes writes a number of bytes for a person: "512 B", "1.5 GiB".
func Bytes(n int64) string {
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		v /= 1024
		// 1023.95 would be written as 1024.0.
		if v < 1023.95 && v > -1023.95 || unit == "PiB" {
			if v < 9.995 && v > -9.995 && v != float64(int64(v)) {
				return fmt.Sprintf("%.2f %s", v, unit)
			}
			if v == float64(int64(v)) {
				return fmt.Sprintf("%d %s", int64(v), unit)
			}
			return fmt.Sprintf("%.1f %s", v, unit)
		}
	}
	return ""
}

// Duration writes a duration for a person: "0.42 s", "3.1 s", "2 min 5 s".
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 995*time.Millisecond:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < 60*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return short(d)
}

// short writes whole seconds, minutes and hours.
func short(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", max(s, 0))
	case s < 3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	}
	return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
}

// clip cuts s to a number of columns, taking each rune as one.
func clip(s string, columns int) string {
	if columns <= 0 {
		return ""
	}
	if utf8.RuneCountInString(s) <= columns {
		return s
	}
	return string([]rune(s)[:columns])
}
