package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// servedTimeout is how long a server may take for a key exchange, servedAgain after what
// time one is asked again that may just have been starting.
const (
	servedTimeout = 20 * time.Second
	servedAgain   = 500 * time.Millisecond
)

// errSeen ends a handshake when the host key has been proved.
var errSeen = errors.New("the host key is known")

// ServedHostKey is the host key, as in [HostKeys.Public], that the SSH server at addr proves
// to have; "" where none answers there; one that does not come to its key in time is an
// error. It logs in nowhere. The guest does a key exchange for it: without hardware
// virtualization dropbear of the small guest takes 0.1 s, Debian's sshd 1 to 1.6 s.
func ServedHostKey(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", nil
	}
	defer func() { _ = conn.Close() }() // only asked
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	key, said := "", &listener{Conn: conn}
	_, _, _, err = ssh.NewClientConn(said, addr, &ssh.ClientConfig{User: "lamina", HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
		key = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
		return errSeen
	}})
	switch {
	case key != "":
		return key, nil
	case ctx.Err() != nil && ctx.Err() != context.DeadlineExceeded:
		return "", context.Cause(ctx)
	case said.ssh.Load():
		return "", fmt.Errorf("the SSH server at %s has not told its host key: %w", addr, errors.Join(context.Cause(ctx), err))
	case err == nil:
		return "", errors.New("an SSH server without a host key")
	}
	return "", nil // nobody, or no SSH
}

// listener knows whether the other side speaks SSH.
type listener struct {
	net.Conn
	begun bool
	ssh   atomic.Bool
}

// Read is called by one goroutine at a time.
func (l *listener) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 && !l.begun {
		l.begun = true
		// A byte is what the version line is read by.
		l.ssh.Store(p[0] == 'S')
	}
	return n, err
}

// CheckServed compares the host key that the SSH server at addr serves with those of the
// report: a server that was not told of its new keys goes on with the template's,
// which all clones of it share. One that does not answer serves none.
func (r Report) CheckServed(ctx context.Context, addr string) error {
	got, err := ServedHostKey(ctx, addr)
	if err == nil && got != "" && !slices.Contains(r.HostKeys, got) {
		select {
		case <-time.After(servedAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		got, err = ServedHostKey(ctx, addr)
	}
	if err != nil || got == "" || slices.Contains(r.HostKeys, got) {
		return err
	}
	return fmt.Errorf("%w: its SSH server still has the host key %q, not the one that the guest was given: others that were made of the same memory have it too. "+
		"Lamina tells the units ssh, sshd and dropbear, and the processes of /run/sshd.pid, to read their keys anew: have the server run as one of those in the template, warm it anew, or start its machines cold (`--cold`)", ErrMismatch, clip(got))
}
