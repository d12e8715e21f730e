package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// maxReply is how long one answer of QEMU's agent may be: output in base64, and
// what is around it. maxSkipped is how much of the answers to other clients is
// skipped; the agent keeps up to 16 MiB of a program's output for them.
const (
	maxReply   = MaxOutput/3*4 + 64<<10
	maxSkipped = 32 << 20
)

// How often it is asked whether a program has ended.
const (
	firstPoll = 5 * time.Millisecond
	lastPoll  = 50 * time.Millisecond
)

// sentinelByte begins the answer to guest-sync-delimited, and resets the
// agent's parser where it is sent to it. It is in no UTF-8 text.
const sentinelByte = 0xff

// qga is the client of qemu-guest-agent: JSON objects, a line each.
type qga struct {
	conn net.Conn
	r    *bufio.Reader
}

func newQGA(nc net.Conn) *qga {
	return &qga{conn: nc, r: bufio.NewReaderSize(nc, 16<<10)}
}

// sync skips what is on its way to clients before this one.
func (q *qga) sync() error {
	id := rand.Int64N(1 << 52)
	if _, err := q.conn.Write([]byte{sentinelByte}); err != nil {
		return err
	}
	if err := q.send("guest-sync-delimited", map[string]any{"id": id}); err != nil {
		return err
	}
	skipped := 0
	for {
		n, err := q.skipTo(sentinelByte, maxSkipped-skipped)
		if err != nil {
			return err
		}
		line, err := q.readLine(maxReply)
		if err != nil {
			return err
		}
		if skipped += n + len(line); skipped > maxSkipped {
			return fmt.Errorf("%w: %d bytes that nobody asked for", ErrProtocol, skipped)
		}
		// Another client's answer may have one too.
		var got int64
		if decode(line, &got) == nil && got == id {
			return nil
		}
	}
}

func (q *qga) run(script string, _ func(line string)) (Result, error) {
	var started struct {
		PID int64 `json:"pid"`
	}
	err := q.call("guest-exec", map[string]any{
		"path":           "/bin/sh",
		"input-data":     []byte("exec 2>&1\ncd /\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" + script + "\n"),
		"capture-output": true,
	}, &started)
	if err != nil {
		return Result{}, err
	}
	wait := firstPoll
	for {
		var s execStatus
		if err := q.call("guest-exec-status", map[string]any{"pid": started.PID}, &s); err != nil {
			return Result{}, err
		}
		if s.Exited {
			return s.result()
		}
		time.Sleep(wait)
		wait = min(wait*3/2, lastPoll)
	}
}

type execStatus struct {
	Exited    bool   `json:"exited"`
	ExitCode  int    `json:"exitcode"`
	Signal    int    `json:"signal"`
	OutData   []byte `json:"out-data"`
	Truncated bool   `json:"out-truncated"`
}

func (s execStatus) result() (Result, error) {
	switch {
	case s.Truncated || len(s.OutData) > MaxOutput:
		return Result{}, ErrOutput
	case s.Signal < 0 || s.Signal > 127 || s.ExitCode < 0 || s.ExitCode > 255:
		return Result{}, fmt.Errorf("%w: exit status %d, signal %d", ErrProtocol, s.ExitCode, s.Signal)
	case s.Signal > 0:
		s.ExitCode = 128 + s.Signal
	}
	return Result{Status: s.ExitCode, Output: s.OutData}, nil
}

// call sends a command and decodes its answer into result.
func (q *qga) call(command string, arguments map[string]any, result any) error {
	if err := q.send(command, arguments); err != nil {
		return err
	}
	line, err := q.readLine(maxReply)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := decode(line, result); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

func (q *qga) send(command string, arguments map[string]any) error {
	b, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	_, err = q.conn.Write(append(b, '\n'))
	return err
}

// decode decodes one answer.
func decode(line []byte, result any) error {
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &reply); err != nil {
		return fmt.Errorf("%w: %s", ErrProtocol, err)
	}
	switch e := reply.Error; {
	case e != nil && e.Class == "CommandNotFound":
		// Also what a command is answered that its configuration disables.
		return ErrNoExec
	case e != nil:
		return fmt.Errorf("the guest agent: %q", clip(e.Desc))
	case reply.Return == nil:
		return fmt.Errorf("%w: neither a result nor an error", ErrProtocol)
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("%w: %s", ErrProtocol, err)
	}
	return nil
}

// skipTo reads up to the byte b and returns how much that was.
func (q *qga) skipTo(b byte, limit int) (n int, err error) {
	for n <= limit {
		s, err := q.r.ReadSlice(b)
		n += len(s)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return n, unexpected(err)
		}
	}
	return n, fmt.Errorf("%w: %d bytes that nobody asked for", ErrProtocol, n)
}

// readLine reads a line of at most limit bytes.
func (q *qga) readLine(limit int) ([]byte, error) {
	var line []byte
	for {
		s, err := q.r.ReadSlice('\n')
		if len(line)+len(s) > limit {
			return nil, fmt.Errorf("%w: an answer of more than %d bytes", ErrProtocol, limit)
		}
		line = append(line, s...)
		switch {
		case err == nil:
			return bytes.TrimSpace(line), nil
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return nil, unexpected(err)
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// clip bounds what a guest says for an error's text.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
