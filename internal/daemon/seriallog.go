package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// pollLog is how often a log that is followed is looked at when nothing tells
// of more.
const pollLog = 20 * time.Millisecond

// tailer reads a growing log from an offset on.
type tailer struct {
	path string
	off  int64
}

// next reads what there is, at most len(p) bytes; 0 bytes is the end for now,
// also where there is no file yet. A log that became shorter was begun anew.
func (t *tailer) next(p []byte) (int, error) {
	f, err := os.Open(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Size() < t.off {
		t.off = 0
	}
	n, err := f.ReadAt(p, t.off)
	t.off += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// copy passes the log to w until ended is closed (then also what came last) or
// ctx ends. wake, which may be nil, tells that there may be more.
func (t *tailer) copy(ctx context.Context, w io.Writer, ended <-chan struct{}, wake func() <-chan struct{}) error {
	buf := make([]byte, 32<<10)
	poll := time.NewTicker(pollLog)
	defer poll.Stop()
	for last := false; ; {
		var woken <-chan struct{}
		if wake != nil {
			woken = wake() // before the look, so that nothing falls between
		}
		n, err := t.next(buf)
		if err != nil {
			return err
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			continue
		}
		if last {
			return nil
		}
		select {
		case <-ended:
			last = true
		case <-ctx.Done():
			return cause(ctx)
		case <-woken:
		case <-poll.C:
		}
	}
}

// tailOffset returns where the last lines of a log begin; negative lines mean
// all. It reads backwards, and no more than most bytes (0: no bound).
func tailOffset(path string, lines int, most int64) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	end, floor := st.Size(), int64(0)
	if most > 0 {
		floor = max(0, end-most)
	}
	switch {
	case lines < 0:
		return floor, nil
	case lines == 0:
		return end, nil
	}
	buf := make([]byte, 32<<10)
	for off, first := end, true; off > floor; {
		n := min(int64(len(buf)), off-floor)
		off -= n
		if _, err := f.ReadAt(buf[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		part := buf[:n]
		if first && part[n-1] == '\n' {
			part = part[:n-1] // ends the last line, begins none
		}
		first = false
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part, '\n') {
			if lines--; lines == 0 {
				return off + int64(i) + 1, nil
			}
			part = part[:i]
		}
	}
	return floor, nil
}

// size is that of a log, 0 where there is none.
func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// lastLine is where the line begins that a log ends in: a prompt is a line
// without an end. It looks back some bytes, as no prompt is long.
func lastLine(path string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	end := size(path)
	buf := make([]byte, min(end, 512))
	n, err := f.ReadAt(buf, end-int64(len(buf)))
	if err != nil && !errors.Is(err, io.EOF) {
		return end
	}
	if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
		return end - int64(len(buf)) + int64(i) + 1
	}
	return end - int64(len(buf))
}

// patientWriter gives a client time for each piece, and no more.
type patientWriter struct {
	w   http.ResponseWriter
	ctl *http.ResponseController
}

func (p patientWriter) Write(b []byte) (int, error) {
	if err := p.ctl.SetWriteDeadline(time.Now().Add(clientPatience)); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	return n, errors.Join(err, p.ctl.Flush())
}

func (d *Daemon) getLog(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	lines := -1
	if v := r.FormValue("tail"); v != "" {
		if lines, err = strconv.Atoi(v); err != nil || lines < 0 {
			return api.Errorf(api.CodeInvalid, "tail=%s is not a number of lines", v)
		}
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return err
	}
	t := tailer{path: filepath.Join(m.dir, home.SerialLogFile)}
	if t.off, err = tailOffset(t.path, lines, 0); err != nil {
		return err
	}
	ended := closed
	if run := m.running(); run != nil && follow {
		ended = run.ended
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	out := patientWriter{w, http.NewResponseController(w)}
	if err := out.ctl.Flush(); err != nil {
		return nil // the client is gone
	}
	if err := t.copy(r.Context(), out, ended, nil); err != nil {
		d.log.Debug("log not sent to its end", "machine", m.name, "error", err)
		panic(http.ErrAbortHandler) // the client is to see that it is not whole
	}
	return nil
}

// closed is a channel that is closed.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// flag reads a query parameter that is 1 or true, 0 or false, or absent.
func flag(r *http.Request, name string) (bool, error) {
	v := r.FormValue(name)
	if v == "" {
		return false, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, api.Errorf(api.CodeInvalid, "%s=%s is neither 1 nor 0", name, v)
	}
	return on, nil
}
