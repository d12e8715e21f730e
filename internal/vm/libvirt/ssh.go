package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// pipe is the standard input and output of an ssh that leads to the daemon's
// socket on another host.
type pipe struct {
	io.WriteCloser               // the process's input
	out            io.ReadCloser // and output
	cmd            *exec.Cmd
	words          *tail
	once           sync.Once
	err            error
}

// dialSSH runs ssh as libvirt's own clients do. Nothing is asked for on the
// terminal unless ssh itself does.
func dialSSH(ctx context.Context, p place) (net.Conn, error) {
	program := p.command
	if program == "" {
		program = "ssh"
	}
	cmd := exec.Command(program, p.sshArgs()...)
	words := &tail{}
	cmd.Stderr = words
	cmd.WaitDelay = sshGrace // a master connection that ssh leaves behind may hold it open
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, in.Close(), out.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w: install openssh-client", program, err)
	}
	return &pipe{WriteCloser: in, out: out, cmd: cmd, words: words}, nil
}

// sshArgs are ssh's arguments: no terminal there, no escape character.
func (p place) sshArgs() []string {
	args := []string{"-T", "-e", "none"}
	if p.port != "" {
		args = append(args, "-p", p.port)
	}
	if p.user != "" {
		args = append(args, "-l", p.user)
	}
	if p.keyfile != "" {
		args = append(args, "-i", p.keyfile)
	}
	if p.noTTY {
		args = append(args, "-o", "BatchMode=yes")
	}
	if p.noVerify {
		args = append(args, "-o", "StrictHostKeyChecking=no")
	}
	return append(args, "--", p.host, "sh -c "+shellQuote(p.remoteScript()))
}

// remoteScript joins the other host's socket with ssh: virt-ssh-helper knows
// where it is; netcat is for hosts that are older than it, and for a socket
// that was named, which the helper does not heed.
func (p place) remoteScript() string {
	helper := "virt-ssh-helper " + shellQuote(p.name)
	nc := p.netcat
	if nc == "" {
		nc = "nc"
	}
	nc = shellQuote(nc)
	socket := p.socket
	if socket == "" {
		socket = "/run/libvirt/" + legacySocket
	}
	// A netcat that knows -N or -q must be told to end with its input.
	netcat := fmt.Sprintf(`h=$(%s -h 2>&1); case $h in *" -N"*) e=-N;; *" -q "*) e=-q0;; *) e=;; esac; exec %s $e -U %s`, nc, nc, shellQuote(socket))
	switch {
	case p.proxy == "native":
		return "exec " + helper
	case p.proxy == "netcat", p.netcat != "", p.socket != "":
		return netcat
	}
	return "if command -v virt-ssh-helper >/dev/null 2>&1; then exec " + helper + "; fi; " + netcat
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (p *pipe) Read(b []byte) (int, error) {
	return p.out.Read(b)
}

// sshGrace is how long ssh may take to end when its input does.
const sshGrace = 2 * time.Second

// Close ends ssh and waits for its end.
func (p *pipe) Close() error {
	p.once.Do(func() {
		p.err = p.WriteCloser.Close()
		kill := time.AfterFunc(sshGrace, func() { _ = p.cmd.Process.Kill() })
		defer kill.Stop()
		// How it ended says nothing: the connection is over either way.
		_ = p.cmd.Wait()
	})
	return p.err
}

// The rest makes it a net.Conn; deadlines are not used on it.

func (p *pipe) LocalAddr() net.Addr              { return pipeAddr{} }
func (p *pipe) RemoteAddr() net.Addr             { return pipeAddr{} }
func (p *pipe) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (p *pipe) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (p *pipe) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "ssh" }
func (pipeAddr) String() string  { return "ssh" }

// tail keeps the last of what ssh says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 2048

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = t.b[over:]
	}
	return len(b), nil
}

// String is the words as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.ReplaceAll(bytes.TrimSpace(t.b), []byte("\r\n"), []byte("; ")))
}
