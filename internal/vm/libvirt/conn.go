// Package libvirt speaks to libvirtd: domains, networks, storage, devices,
// streams and events over libvirt's RPC protocol, and a driver of package vm
// that runs machines as libvirt domains.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Conn is a connection to a libvirt daemon. It is safe for concurrent use.
//
// A call whose context ends returns at once; what it asked for may still
// happen, as libvirt knows no taking back.
type Conn struct {
	place place
	rpc   *golibvirt.Libvirt
	wire  *wire

	mu      sync.Mutex // guards closed and the start of calls
	closed  bool
	running sync.WaitGroup // goroutines of calls and subscriptions
}

// Connect connects to the daemon of a URI: qemu:///system, qemu:///session
// (whose daemon is started where it does not run), qemu+unix://...?socket=PATH
// or qemu+ssh://[user@]host[:port]/system. "" means [DefaultURI]. The errors
// are [ErrBadURI], [ErrUnreachable] and [ErrDenied]; they name the URI, the
// socket and the remedy.
func Connect(ctx context.Context, uri string) (*Conn, error) {
	if uri == "" {
		uri = DefaultURI()
	}
	p, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	return connect(ctx, p)
}

func connect(ctx context.Context, p place) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	nc, err := dial(ctx, p)
	if err != nil {
		return nil, unreachable(p, err)
	}
	c := &Conn{place: p, wire: newWire(nc)}
	c.rpc = golibvirt.NewWithDialer(c.wire)
	err = c.do(ctx, "connect", func(l *golibvirt.Libvirt) error {
		return l.ConnectToURI(golibvirt.ConnectURI(p.name))
	})
	if err != nil {
		// The reader's word says more than that the call was interrupted.
		if werr := c.wire.why(); werr != nil && errors.Is(err, ErrClosed) {
			err = fmt.Errorf("%w: %w", ErrClosed, werr)
		}
		_ = c.shut() // the first error says why
		if ssh, ok := nc.(*pipe); ok && ssh.words.String() != "" && errors.Is(err, ErrClosed) {
			err = fmt.Errorf("ssh: %s", ssh.words) // which it has said by its end
		}
		return nil, unreachable(p, err)
	}
	return c, nil
}

// unreachable names the URI in the error of a connection.
func unreachable(p place, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("connect to %s: %w", p.uri, err)
	case errors.Is(err, ErrDenied) && p.session:
		return fmt.Errorf("connect to %s: %w", p.uri, err)
	case errors.Is(err, ErrDenied):
		return fmt.Errorf("connect to %s: %w: join the group libvirt (`usermod -aG libvirt USER`, then log in again), or use qemu:///session", p.uri, err)
	}
	return fmt.Errorf("connect to %s: %w: %w", p.uri, ErrUnreachable, err)
}

// URI is the one that was asked for.
func (c *Conn) URI() string { return c.place.uri }

// Session says whether this is a user's own daemon.
func (c *Conn) Session() bool { return c.place.session }

// Remote says whether the daemon is on another host, so that paths are not
// of this one.
func (c *Conn) Remote() bool { return c.place.over == overSSH }

// Done is closed when the connection has ended, by [Conn.Close] or the daemon.
func (c *Conn) Done() <-chan struct{} { return c.wire.ended }

// closeTimeout is how long the daemon may take to say goodbye.
const closeTimeout = 2 * time.Second

// Close ends the connection and returns when all that belongs to it (calls,
// subscriptions, the ssh process) is gone. Domains stay as they are, but
// for those that were created with AutoDestroy. It may be called twice.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	// Without an answer the connection is cut, which says the same.
	_ = c.do(ctx, "close", func(l *golibvirt.Libvirt) error { return l.ConnectClose() })
	return c.shut()
}

// shut cuts the wire and waits for the goroutines.
func (c *Conn) shut() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.wire.Close()
	c.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// begin notes a goroutine that [Conn.Close] must wait for.
func (c *Conn) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.running.Add(1)
	return nil
}

// call makes an RPC and returns what it returns, or the context's error as
// soon as that has ended.
func call[T any](ctx context.Context, c *Conn, op string, f func(*golibvirt.Libvirt) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fmt.Errorf("%s: %w", op, err)
	}
	if err := c.begin(); err != nil {
		return zero, fmt.Errorf("%s: %w", op, err)
	}
	done := make(chan result, 1)
	go func() {
		defer c.running.Done()
		v, err := f(c.rpc)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return zero, translate(op, r.err)
		}
		return r.value, nil
	case <-ctx.Done():
		return zero, fmt.Errorf("%s: no answer from %s: %w", op, c.place.uri, ctx.Err())
	}
}

// do is call for an RPC that returns nothing.
func (c *Conn) do(ctx context.Context, op string, f func(*golibvirt.Libvirt) error) error {
	_, err := call(ctx, c, op, func(l *golibvirt.Libvirt) (struct{}, error) { return struct{}{}, f(l) })
	return err
}
