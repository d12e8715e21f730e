package agent

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// Script is Lamina's resident agent: a POSIX shell script that is started once
// in the guest, as root, and costs nothing while nobody talks to it. Its one
// argument is the port's device, "" for the one that has the channel's name.
//
// A request is lines: "@lamina NONCE", the script, each line behind a blank,
// and "@end NONCE". A line that begins a request ends whatever was
// not finished before it, so that half a request that another client left, or
// that was under way when the guest was frozen, does no harm. The answer is
// "@lamina NONCE", what the script prints as it prints it, and
// "@end NONCE STATUS", each mark on a line of its own. A request that ends with
// "@keep NONCE" runs in the agent's own shell: the functions that it defines stay
// for later requests. An agent whose variable lamina_agent is less than 2 does not
// know it, and does not answer.
//
//go:embed scripts/agent.sh
var Script []byte

// maxNoise is how much of what others have left on the channel is skipped before
// an answer begins.
const maxNoise = 4 << 20

// lamina is the client of [Script].
type lamina struct {
	conn net.Conn
	r    *bufio.Reader
}

func newLamina(nc net.Conn) *lamina {
	return &lamina{conn: nc, r: bufio.NewReaderSize(nc, 16<<10)}
}

func (l *lamina) sync() error {
	r, err := l.run("", nil)
	if err == nil && (r.Status != 0 || len(r.Output) > 0) {
		err = fmt.Errorf("%w: status %d and %d bytes to an empty script", ErrProtocol, r.Status, len(r.Output))
	}
	return err
}

func (l *lamina) run(script string, tell func(line string)) (Result, error) {
	return l.request("@end ", script, tell)
}

// define has the agent run a script in its own shell.
func (l *lamina) define(script string) (Result, error) {
	return l.request("@keep ", script, nil)
}

func (l *lamina) request(end, script string, tell func(line string)) (Result, error) {
	id := nonce()
	if err := l.send(id, script, end+id); err != nil {
		return Result{}, err
	}
	if err := l.skipTo("@lamina " + id); err != nil {
		return Result{}, err
	}
	return l.result("@end "+id+" ", tell)
}

// send writes a request in one piece. The empty line ends what a client before
// has not.
func (l *lamina) send(id, script, end string) error {
	var b bytes.Buffer
	b.WriteString("\n@lamina " + id + "\n")
	for line := range strings.SplitSeq(script, "\n") {
		b.WriteString(" " + line + "\n")
	}
	b.WriteString(end + "\n")
	_, err := l.conn.Write(b.Bytes())
	return err
}

// skipTo reads up to the line that begins the answer.
func (l *lamina) skipTo(mark string) error {
	var c capped
	c.max = maxNoise
	for {
		line, whole, err := l.line(&c)
		if err != nil {
			return fmt.Errorf("before an answer: %w", err)
		}
		if whole && string(line) == mark {
			return nil
		}
		c.b = c.b[:0]
	}
}

// result reads the output up to the line that ends it.
func (l *lamina) result(mark string, tell func(line string)) (Result, error) {
	c := capped{max: MaxOutput + 1 + len(mark) + 8}
	for {
		at := len(c.b)
		line, whole, err := l.line(&c)
		switch {
		case errors.Is(err, errFull):
			return Result{}, ErrOutput
		case err != nil:
			return Result{}, fmt.Errorf("in an answer: %w", err)
		}
		status, ok := strings.CutPrefix(string(line), mark)
		if !whole || !ok {
			if whole && tell != nil {
				tell(string(line))
			}
			continue
		}
		n, err := strconv.ParseUint(status, 10, 8)
		if err != nil {
			return Result{}, fmt.Errorf("%w: exit status %q", ErrProtocol, status)
		}
		// The agent ends the output's last line, which may have an end already.
		out := bytes.TrimSuffix(c.b[:at], []byte("\n"))
		if len(out) > MaxOutput {
			return Result{}, ErrOutput
		}
		return Result{Status: int(n), Output: out}, nil
	}
}

// capped collects at most max bytes in all.
type capped struct {
	b    []byte
	max  int
	seen int
}

var errFull = fmt.Errorf("%w: it does not end", ErrProtocol)

// line adds the next line, or a piece of a long one, with its end to c, and
// returns it without that. whole is false for a piece.
func (l *lamina) line(c *capped) (line []byte, whole bool, err error) {
	s, err := l.r.ReadSlice('\n')
	c.seen += len(s)
	if c.seen > c.max {
		return nil, false, errFull
	}
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		c.b = append(c.b, s...)
		return s, false, nil
	case errors.Is(err, io.EOF):
		return nil, false, io.ErrUnexpectedEOF
	case err != nil:
		return nil, false, err
	}
	c.b = append(c.b, s...)
	return s[:len(s)-1], true, nil
}

// writeBase64 writes lines that a shell's here-document takes.
func writeBase64(b *strings.Builder, data []byte) {
	enc := base64.StdEncoding.EncodeToString(data)
	for len(enc) > 0 {
		n := min(len(enc), 76)
		b.WriteString(enc[:n] + "\n")
		enc = enc[n:]
	}
}
