// Package qmp speaks the QEMU Machine Protocol over a stream connection. It
// knows the protocol (docs/interop/qmp-spec in QEMU's sources) and no policy of
// machines.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// MaxMessage is the largest message in bytes that a server may send. One that
// is larger ends the connection.
const MaxMessage = 16 << 20

// writeTimeout bounds how long a server may refuse to read a command before
// the connection counts as broken.
const writeTimeout = 30 * time.Second

// ErrClosed: the connection has ended; the wrapping error says why.
var ErrClosed = errors.New("QMP connection is closed")

// Error is the server's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"` // "GenericError", "CommandNotFound", ...
	Desc    string `json:"desc"`  // for people
}

func (e *Error) Error() string { return fmt.Sprintf("QMP command %s: %s", e.Command, e.Desc) }

// Version is the QEMU at the other end.
type Version struct {
	Major   int    `json:"major"`
	Minor   int    `json:"minor"`
	Micro   int    `json:"micro"`
	Package string `json:"-"` // the distribution's suffix, may be empty
}

// String returns "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Client is a QMP connection after its negotiation. It is safe for concurrent
// use; commands are answered in the order in which they were sent.
type Client struct {
	conn    net.Conn
	version Version

	wmu sync.Mutex // held while a command is written

	mu      sync.Mutex // guards the fields below; never held while blocking
	nextID  uint64
	pending map[string]chan reply
	subs    map[*Subscription]struct{}
	err     error // why the connection ended

	done chan struct{} // closed when the reader has ended
}

// reply is a server's answer to one command.
type reply struct {
	result json.RawMessage
	err    *Error
}

// message is anything that a server sends.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU    Version `json:"qemu"`
			Package string  `json:"package"`
		} `json:"version"`
	} `json:"QMP"`

	ID     json.RawMessage `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`

	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Dial connects to the unix socket at path and negotiates. QEMU serves one
// client at a time: while another one is connected, Dial waits until ctx ends.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c, err := New(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("QMP socket %s: %w", path, err)
	}
	return c, nil
}

// New negotiates on conn, which it owns from then on, also on an error.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn:    conn,
		pending: map[string]chan reply{},
		subs:    map[*Subscription]struct{}{},
		done:    make(chan struct{}),
	}
	// A deadline in the past wakes a read that waits for a greeting.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	dec := newDecoder(conn)
	err := c.greet(dec)
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	go c.read(dec)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// greet reads the server's greeting.
func (c *Client) greet(dec *decoder) error {
	m, err := dec.next()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("no greeting: another client may hold the monitor")
	case err != nil:
		return fmt.Errorf("greeting: %w", err)
	case m.Greeting == nil:
		return errors.New("the first message is no QMP greeting")
	}
	c.version = m.Greeting.Version.QEMU
	c.version.Package = m.Greeting.Version.Package
	return nil
}

// Version returns what the greeting said.
func (c *Client) Version() Version { return c.version }

// Execute runs a command and waits for its answer, which it decodes into
// result unless that is nil. args is nil or encodes as a JSON object. A
// refusal by the server is an [*Error]. When ctx ends first the command may
// still be carried out.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("QMP command %s: %w", command, err)
	}
	id, answer, err := c.register()
	if err != nil {
		return fmt.Errorf("QMP command %s: %w", command, err)
	}
	defer c.forget(id)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("QMP command %s: arguments: %w", command, err)
	}
	if err := c.write(append(line, '\n')); err != nil {
		return fmt.Errorf("QMP command %s: %w", command, err)
	}
	select {
	case r := <-answer:
		return r.decode(command, result)
	case <-ctx.Done():
		return fmt.Errorf("QMP command %s: %w", command, ctx.Err())
	case <-c.done:
	}
	select { // the answer may have come just before the end
	case r := <-answer:
		return r.decode(command, result)
	default:
		return fmt.Errorf("QMP command %s: %w", command, c.Err())
	}
}

func (r reply) decode(command string, result any) error {
	if r.err != nil {
		r.err.Command = command
		return r.err
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.result, result); err != nil {
		return fmt.Errorf("QMP command %s: answer: %w", command, err)
	}
	return nil
}

// register makes room for an answer.
func (c *Client) register() (id string, answer chan reply, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", nil, c.err
	}
	c.nextID++
	id = strconv.FormatUint(c.nextID, 10)
	answer = make(chan reply, 1)
	c.pending[id] = answer
	return id, answer, nil
}

func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// write sends one command. After an error half a command may have been sent,
// so that the connection is of no more use.
func (c *Client) write(line []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = c.conn.Write(line)
	}
	if err != nil {
		c.end(err)
		return c.Err()
	}
	return nil
}

// read delivers what the server sends until the connection ends.
func (c *Client) read(dec *decoder) {
	defer close(c.done)
	for {
		m, err := dec.next()
		if err != nil {
			c.end(err)
			c.endSubscriptions()
			return
		}
		switch {
		case m.Event != "":
			c.publish(m)
		case m.ID != nil:
			c.deliver(m)
		case m.Error != nil:
			// Without an id the server could not read the command.
			c.end(m.Error)
		}
	}
}

// deliver hands an answer to its caller, if it still waits.
func (c *Client) deliver(m message) {
	var id string
	if json.Unmarshal(m.ID, &id) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.pending[id]; ok {
		delete(c.pending, id)
		answer <- reply{m.Return, m.Error} // has room for one
	}
}

// end closes the connection and keeps the first reason.
func (c *Client) end(why error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = fmt.Errorf("%w: %w", ErrClosed, why)
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// Done is closed when the connection has ended and every event has been
// delivered.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits for the reader. Commands under way fail
// with [ErrClosed]. A second Close does nothing.
func (c *Client) Close() error {
	c.end(net.ErrClosed)
	<-c.done
	return nil
}
