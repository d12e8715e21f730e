package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// servedTimeout is how long a server may take for a key exchange.
const servedTimeout = 10 * time.Second

// errSeen ends a handshake when the host key has been proved.
var errSeen = errors.New("the host key is known")

// ServedHostKey is the host key, as in [HostKeys.Public], that the SSH server at addr proves
// to have; "" where none answers there. It logs in nowhere. The guest does a key exchange
// for it, which without hardware virtualization takes it a good part of a second.
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
	key := ""
	_, _, _, err = ssh.NewClientConn(conn, addr, &ssh.ClientConfig{User: "lamina", HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error {
		key = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
		return errSeen
	}})
	switch {
	case key != "":
		return key, nil
	case ctx.Err() != nil && ctx.Err() != context.DeadlineExceeded:
		return "", context.Cause(ctx)
	case err == nil:
		return "", errors.New("an SSH server without a host key")
	}
	return "", nil // nobody, or no SSH
}

// CheckServed compares the host key that the SSH server at addr serves with those of the
// report: a server that was not told of its new keys goes on with the template's,
// which all clones of it share. One that does not answer serves none.
func (r Report) CheckServed(ctx context.Context, addr string) error {
	got, err := ServedHostKey(ctx, addr)
	if err != nil || got == "" || slices.Contains(r.HostKeys, got) {
		return err
	}
	return fmt.Errorf("%w: its SSH server still has the host key %q, not the one that the guest was given: others that were made of the same memory have it too. "+
		"Lamina tells the units ssh, sshd and dropbear, and the processes of /run/sshd.pid, to read their keys anew: have the server run as one of those in the template, warm it anew, or start its machines cold (`--cold`)", ErrMismatch, clip(got))
}
