package qemuimg

import (
	"context"
	"errors"
	"time"
)

// progressEvents is --progress=json: lines on standard error, each a JSON
// object with an "event": "progress" (with done and total in bytes of the
// disk, and percent) at most some times a second, and at the end one of
// "completed", "failed" or "cancelled".
type progressEvents struct {
	t           *tool
	last        time.Time
	done, total int64
}

// update is a callback of image's progress.
func (e *progressEvents) update(done, total int64) {
	e.done, e.total = done, total
	if now := time.Now(); now.Sub(e.last) >= 200*time.Millisecond {
		e.last = now
		e.write("progress", nil)
	}
}

// end writes the last event. A nil receiver writes none.
func (e *progressEvents) end(event string, err error) {
	if e == nil {
		return
	}
	if event == "completed" {
		e.done = e.total
	}
	if errors.Is(err, context.Canceled) {
		event = "cancelled"
	}
	e.write(event, err)
}

func (e *progressEvents) write(event string, err error) {
	percent := int64(100)
	if e.total > 0 {
		percent = int64(float64(e.done) / float64(e.total) * 100)
	}
	line := `{"event": ` + writeJSON(event) + `, "done": ` + formatInt(e.done) + `, "total": ` + formatInt(e.total) + `, "percent": ` + formatInt(percent)
	if err != nil {
		line += `, "error": ` + writeJSON(plainText(err))
	}
	e.t.flush()
	e.t.stderrf("%s}\n", line)
}
