package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
)

// This file speaks HTTP/1.1 (RFC 9112) over a unix socket: one request a
// connection. Package net/http is not used here because the command links
// this package: its initialisation and its pages cost every start of `lamina`
// about 0.4 ms, which is more than `lamina img info` has to spare.

// maxError is the longest error text that is read, in bytes.
const maxError = 1 << 20

// response is an answer whose body has not been read.
type response struct {
	status int
	header textproto.MIMEHeader
	body   io.Reader
	conn   net.Conn
	buf    *bufio.Reader
	stop   func() bool // ends the watch over the context
}

// Close ends the connection. The daemon cancels what it still does for it.
func (r *response) Close() error {
	r.stop()
	return r.conn.Close()
}

// send makes one request. body, if not nil, is sent as JSON. An answer of
// status 400 or above is returned as an *api.Error. Once ctx is done every
// read of the body fails with ctx's error.
func (c *Client) send(ctx context.Context, method, path string, body any, upgrade string) (*response, error) {
	var payload []byte
	if body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	r := &response{conn: conn, buf: bufio.NewReader(conn)}
	r.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := r.exchange(method, path, payload, upgrade); err != nil {
		_ = r.Close()
		var refused *api.Error
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, c.broken(ctx, method+" "+path, err)
	}
	r.body = &contextReader{ctx: ctx, r: r.body}
	return r, nil
}

// exchange writes the request and reads the answer up to its body.
func (r *response) exchange(method, path string, payload []byte, upgrade string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: laminad\r\n", method, path)
	if upgrade != "" {
		fmt.Fprintf(&b, "Connection: Upgrade\r\nUpgrade: %s\r\n", upgrade)
	} else {
		b.WriteString("Connection: close\r\n")
	}
	if payload != nil {
		b.WriteString("Content-Type: application/json\r\n")
	}
	if payload != nil || method == "POST" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(payload))
	}
	b.WriteString("\r\n")
	b.Write(payload)
	if _, err := r.conn.Write(b.Bytes()); err != nil {
		return err
	}
	if err := r.readHead(); err != nil {
		return err
	}
	if r.status >= 400 {
		return r.refusal()
	}
	return nil
}

// readHead reads the status line and the header, and sets up the body.
func (r *response) readHead() error {
	tp := textproto.NewReader(r.buf)
	line, err := tp.ReadLine()
	if err != nil {
		return err
	}
	proto, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(proto, "HTTP/1.") {
		return fmt.Errorf("answer begins with %.40q, which is not HTTP", line)
	}
	if r.status, err = strconv.Atoi(code); err != nil {
		return fmt.Errorf("answer begins with %.40q, which has no status", line)
	}
	if r.header, err = tp.ReadMIMEHeader(); err != nil {
		return err
	}
	switch length := r.header.Get("Content-Length"); {
	case r.status == 101:
		r.body = r.buf
	case r.status == 204 || r.status == 304:
		r.body = bytes.NewReader(nil)
	case strings.EqualFold(r.header.Get("Transfer-Encoding"), "chunked"):
		r.body = &chunkedReader{r: r.buf}
	case length != "":
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("answer has a content length of %q", length)
		}
		r.body = &exactReader{r: r.buf, left: n}
	default:
		r.body = r.buf
	}
	return nil
}

// refusal reads the error that an answer carries.
func (r *response) refusal() error {
	text, err := io.ReadAll(io.LimitReader(r.body, maxError))
	if err != nil {
		return err
	}
	var e api.Error
	if json.Unmarshal(text, &e) == nil && e.Message != "" {
		return &e
	}
	e = api.Error{Code: api.CodeFailed, Message: strings.TrimSpace(string(text))}
	switch r.status {
	case 404:
		e.Code = api.CodeNotFound
	case 400:
		e.Code = api.CodeInvalid
	}
	if e.Message == "" {
		e.Message = "the daemon answered with HTTP status " + strconv.Itoa(r.status)
	}
	return &e
}

// contextReader reports a read that failed because ctx ended as ctx's error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF && r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	return n, err
}

// exactReader reads a body of known length; less is io.ErrUnexpectedEOF.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

// chunkedReader reads a body of chunks (RFC 9112, 7.1). A body that ends
// before its last chunk is io.ErrUnexpectedEOF.
type chunkedReader struct {
	r    *bufio.Reader
	left int64 // of the current chunk
	mid  bool  // a chunk's data has been read, its line end not
	done bool
}

func (c *chunkedReader) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	if c.left == 0 {
		if err := c.next(); err != nil {
			if err == io.EOF && !c.done {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// next reads the size of the following chunk.
func (c *chunkedReader) next() error {
	if c.mid {
		if _, err := c.line(); err != nil {
			return err
		}
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("answer has a chunk of size %.40q", line)
	}
	c.left, c.mid = n, true
	if n > 0 {
		return nil
	}
	for { // trailer fields, up to the empty line
		line, err := c.line()
		if err != nil {
			return err
		}
		if line == "" {
			c.done = true
			return io.EOF
		}
	}
}

// line reads a line without its end; one longer than the buffer is an error.
func (c *chunkedReader) line() (string, error) {
	b, err := c.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}
