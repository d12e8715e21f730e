// Package agent talks to a running guest from inside: it runs scripts there by
// Lamina's own resident agent or by QEMU's guest agent, and gives a guest that
// was copied while it ran an identity of its own.
//
// What a guest answers is not trusted: all of it is bounded, and nothing waits
// longer than the caller's context.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is which agent answers.
type Kind string

// The agents.
const (
	// KindLamina is the loop of [Script].
	KindLamina Kind = "lamina"
	// KindQEMU is qemu-guest-agent, by guest-exec.
	KindQEMU Kind = "qemu"
)

// Bounds.
const (
	// MaxScript is how long a script and its input may be together, in bytes.
	MaxScript = 256 << 10
	// MaxOutput is how much a script may print, in bytes.
	MaxOutput = 1 << 20
)

// Sentinels.
var (
	// ErrOutput: a script printed more than [MaxOutput]. The connection is of no
	// use any more.
	ErrOutput = fmt.Errorf("more than %d bytes of output", MaxOutput)
	// ErrProtocol: what came from the guest is not what an agent says. The
	// connection is of no use any more.
	ErrProtocol = errors.New("not an agent's answer")
	// ErrNoExec: QEMU's guest agent is there, but may not run programs, as its
	// configuration forbids it (that of Fedora and RHEL does).
	ErrNoExec = errors.New("the guest agent may not run programs: guest-exec is disabled in its configuration")
)

// Result is what became of a script that ran.
type Result struct {
	// Status is its exit status; above 128, as a shell says it, where a signal
	// ended it.
	Status int
	Output []byte // standard output and standard error
}

// wire is one of the two protocols on a connection. Its methods are called one
// at a time, under a deadline of the connection.
type wire interface {
	// sync returns when the agent has answered something that only this
	// connection can have asked for.
	sync() error
	// run tells each line of the output as it comes, if tell is not nil and the
	// agent passes them on before the end. tell must not wait.
	run(script string, tell func(line string)) (Result, error)
}

// Conn is a connection to an agent. Its methods may be called from several
// goroutines; they wait for each other.
type Conn struct {
	kind Kind
	conn net.Conn
	wire wire

	mu     sync.Mutex // held while the agent is talked to
	broken error

	noLibrary atomic.Bool // the agent has said that it has not ours
}

// Dial connects to the agent that answers first on the two unix sockets of a
// machine's channels; "" is a channel that the machine has not. A channel whose
// agent has not started yet is waited for until ctx ends. Where both answer at
// about the same time it is Lamina's own. QEMU serves one client of a channel at
// a time: others wait until this one is closed.
func Dial(ctx context.Context, laminaSocket, qgaSocket string) (*Conn, error) {
	type answer struct {
		c   *Conn
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dial := func(kind Kind, path string) <-chan answer {
		ch := make(chan answer, 1)
		if path == "" {
			return nil
		}
		go func() {
			c, err := dialOne(ctx, kind, path)
			ch <- answer{c, err}
		}()
		return ch
	}
	lamina, qga := dial(KindLamina, laminaSocket), dial(KindQEMU, qgaSocket)
	if lamina == nil && qga == nil {
		return nil, errors.New("the machine has no channel to an agent: it can only be reached as a person would, on its console or by SSH")
	}
	var second *Conn
	var errs []error
	var patience <-chan time.Time
	for lamina != nil || qga != nil {
		select {
		case a := <-lamina:
			lamina = nil
			if a.err == nil {
				if second != nil {
					_ = second.Close()
				}
				cancel()
				drop(qga, func(a answer) { _ = a.c.Close() }, func(a answer) bool { return a.err == nil })
				return a.c, nil
			}
			errs = append(errs, a.err)
		case a := <-qga:
			qga = nil
			if a.err != nil {
				errs = append(errs, a.err)
				break
			}
			second = a.c
			patience = time.After(preferOwn)
		case <-patience:
			cancel()
			drop(lamina, func(a answer) { _ = a.c.Close() }, func(a answer) bool { return a.err == nil })
			return second, nil
		}
		if second != nil && lamina == nil {
			return second, nil
		}
	}
	return nil, fmt.Errorf("no agent answers in the guest: %w", errors.Join(errs...))
}

// preferOwn is how much longer than QEMU's agent Lamina's own may take to be
// preferred: it answers in one message where the other needs many.
const preferOwn = time.Second

// drop closes what a dial that nobody waits for may still bring.
func drop[T any](ch <-chan T, closeIt func(T), ok func(T) bool) {
	if ch == nil {
		return
	}
	go func() {
		if a := <-ch; ok(a) {
			closeIt(a)
		}
	}()
}

// Connect connects to Lamina's own agent, which is known to be there, without
// asking for a sign of life: the first request is one.
func Connect(ctx context.Context, laminaSocket string) (*Conn, error) {
	nc, err := dialUnix(ctx, laminaSocket)
	if err != nil {
		return nil, fmt.Errorf("channel of the %s agent: %w", KindLamina, err)
	}
	return NewConn(KindLamina, nc), nil
}

func dialOne(ctx context.Context, kind Kind, path string) (*Conn, error) {
	nc, err := dialUnix(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("channel of the %s agent: %w", kind, err)
	}
	c := NewConn(kind, nc)
	if err := c.Ping(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s agent: %w", kind, err)
	}
	return c, nil
}

// maxSocketPath is how long the kernel takes the name of a socket.
const maxSocketPath = 107

// dialUnix reaches sockets by their folder where their names are too long.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	if len(path) <= maxSocketPath {
		return d.DialContext(ctx, "unix", path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

// NewConn talks to an agent over an open channel, which becomes the Conn's.
func NewConn(kind Kind, nc net.Conn) *Conn {
	c := &Conn{kind: kind, conn: nc}
	if kind == KindQEMU {
		c.wire = newQGA(nc)
	} else {
		c.wire = newLamina(nc)
	}
	return c
}

// Kind is which agent this is.
func (c *Conn) Kind() Kind { return c.kind }

// Close ends the connection. What runs in the guest runs on.
func (c *Conn) Close() error { return c.conn.Close() }

// Ping returns when the agent has answered; what earlier clients have left on
// the channel is skipped.
func (c *Conn) Ping(ctx context.Context) error {
	return c.locked(ctx, c.wire.sync)
}

// Run runs a script with sh in the guest, as root, in / and without a terminal,
// and returns when the script has ended. stdin, which may be nil, is its
// standard input. A script that should outlive Run must redirect the output of
// what it leaves in the background. An exit status is no error; an error leaves
// open whether the script ran.
func (c *Conn) Run(ctx context.Context, script string, stdin []byte) (Result, error) {
	return c.run(ctx, script, stdin, nil)
}

// run is Run that tells lines as wire.run does.
func (c *Conn) run(ctx context.Context, script string, stdin []byte, tell func(line string)) (Result, error) {
	full, err := compose(script, stdin)
	if err != nil {
		return Result{}, err
	}
	var r Result
	err = c.locked(ctx, func() (err error) {
		r, err = c.wire.run(full, tell)
		return err
	})
	return r, err
}

// locked calls f with the deadline of ctx on the connection, which an error
// breaks for good: nobody knows how much of an answer is still to come.
func (c *Conn) locked(ctx context.Context, f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return fmt.Errorf("the connection to the guest's agent is broken: %w", c.broken)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := f()
	if err == nil || errors.Is(err, ErrNoExec) {
		return err
	}
	c.broken = err
	_ = c.conn.Close()
	if ctx.Err() != nil {
		return fmt.Errorf("the guest's agent does not answer: %w", context.Cause(ctx))
	}
	return err
}

// compose returns one shell command that runs script with stdin. It is a
// compound command, which a shell runs only when it has read all of it: a
// script that was cut on its way does nothing.
func compose(script string, stdin []byte) (string, error) {
	if n := len(script) + len(stdin); n > MaxScript {
		return "", fmt.Errorf("a script of %d bytes with its input, more than %d", n, MaxScript)
	}
	if strings.ContainsRune(script, 0) {
		return "", errors.New("a script with a zero byte")
	}
	if len(stdin) == 0 {
		return "{ :\n" + script + "\n} </dev/null", nil
	}
	end := "LAMINA_" + nonce()
	var b strings.Builder
	b.WriteString("{ base64 -d | { :\n" + script + "\n}\n} <<" + end + "\n")
	writeBase64(&b, stdin)
	b.WriteString(end)
	return b.String(), nil
}

// nonce is what no earlier client, and no guest by chance, has said.
func nonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // does not fail
	return hex.EncodeToString(b[:])
}
