package libvirt

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialTimeout bounds the way to a local daemon, which answers at once or
	// not at all; reachTimeout the whole greeting, also over ssh.
	dialTimeout  = 5 * time.Second
	reachTimeout = 30 * time.Second
	// packetMin is a packet's length field and header, packetMax libvirt's own
	// bound for one (VIR_NET_MESSAGE_MAX), with room.
	packetMin, packetMax = 28, 64 << 20
)

// dial opens the way to the daemon of p.
func dial(ctx context.Context, p place) (net.Conn, error) {
	if p.over == overSSH {
		return dialSSH(ctx, p)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	paths, err := p.sockets()
	if err != nil {
		return nil, err
	}
	c, tried, err := dialUnix(ctx, paths)
	if err == nil {
		return c, nil
	}
	if p.session && p.socket == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)) {
		if serr := startSession(ctx, p.mode); serr != nil {
			return nil, fmt.Errorf("socket %s: %w; starting the session daemon: %w", tried, err, serr)
		}
		if c, tried, err = dialUnix(ctx, paths); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("socket %s: %w: %s", tried, cause(err), remedy(p, err))
}

// dialUnix takes the first socket that somebody listens at. On an error, path
// is the one to name.
func dialUnix(ctx context.Context, paths []string) (c net.Conn, path string, err error) {
	var d net.Dialer
	for _, path := range paths {
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return c, path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) || path == paths[len(paths)-1] {
			return nil, path, err
		}
	}
	return nil, "", fs.ErrNotExist
}

// cause is the system's word without the dialer's decoration.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		var errno unix.Errno
		if errors.As(op.Err, &errno) {
			return errno
		}
	}
	return err
}

// remedy says what to do about a socket that does not answer.
func remedy(p place, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "join the group libvirt (`usermod -aG libvirt USER`, then log in again), or use qemu:///session"
	case p.socket != "":
		return "is the path right, and does libvirtd listen there?"
	case p.session:
		return "install libvirt-daemon, whose libvirtd is started when it is needed"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return "`systemctl start libvirtd` (or `libvirtd -d` where there is no systemd); install libvirt-daemon-system if it is not there; without libvirt, leave out --connect"
	}
	return "is libvirtd alive? `systemctl restart libvirtd`"
}

// sessionIdle is how long a session daemon stays without clients and machines,
// in seconds, as libvirt's own clients start it.
const sessionIdle = "120"

// startSession starts the user's own daemon, which says by its parent's end
// that it listens.
func startSession(ctx context.Context, mode string) error {
	programs := []string{"virtqemud", "libvirtd"}
	switch mode {
	case "legacy":
		programs = programs[1:]
	case "direct":
		programs = programs[:1]
	}
	for _, name := range programs {
		path, err := lookDaemon(name)
		if err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--timeout="+sessionIdle, "--daemon").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", path, err, lastLine(out))
		}
		return nil
	}
	return fmt.Errorf("%s: %w: install libvirt-daemon, or leave out --connect", strings.Join(programs, " and "), exec.ErrNotFound)
}

// lookDaemon also looks where a user's PATH often does not lead.
func lookDaemon(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", name))
	}
	return path, err
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// wire is a connection that hands the RPC library whole packets: it checks the
// length of each before any of it is allocated, says when it has ended, and
// keeps back the packets of a stream that overtake the answer to the call that
// opens it. libvirtd may send them first, and the library would take the one for
// the other, lose data, and block.
type wire struct {
	net.Conn
	ended chan struct{} // closed by the first error of a read, and by Close
	once  sync.Once
	err   error // of that read, nil after Close; read it after ended

	// Of the one reader.
	in       *bufio.Reader
	out      []byte // what is ready to be read
	early    []byte // stream packets of the call earlyOf, which is not answered yet
	earlyOf  uint32
	answered uint32 // the highest serial with an answer; a stream's call is the last of its connection
}

// The header of a packet, after its length: program, version, procedure, type,
// serial, status (libvirt, rpc/virnetprotocol.x).
const (
	typeOffset   = 16
	serialOffset = 20
	typeReply    = 1
	typeStream   = 3
	replyWithFDs = 5
	typeHole     = 6
)

func newWire(c net.Conn) *wire {
	return &wire{Conn: c, ended: make(chan struct{}), in: bufio.NewReader(c)}
}

// Dial hands the connection to the RPC library.
func (w *wire) Dial() (net.Conn, error) { return w, nil }

func (w *wire) Read(b []byte) (int, error) {
	for len(w.out) == 0 {
		if err := w.packet(); err != nil {
			w.end(err)
			return 0, err
		}
	}
	n := copy(b, w.out)
	w.out = w.out[n:]
	return n, nil
}

// packet reads one packet into what is ready, or keeps it back.
func (w *wire) packet() error {
	head, err := w.in.Peek(4)
	if err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	if size < packetMin || size > packetMax {
		return fmt.Errorf("packet of %d bytes, expected %d to %d: this is not libvirt's protocol", size, packetMin, packetMax)
	}
	p := make([]byte, size)
	if _, err := io.ReadFull(w.in, p); err != nil {
		return err
	}
	kind, serial := binary.BigEndian.Uint32(p[typeOffset:]), binary.BigEndian.Uint32(p[serialOffset:])
	switch kind {
	case typeReply, replyWithFDs:
		w.answered = max(w.answered, serial)
		w.out = p
		if serial == w.earlyOf {
			w.out, w.early, w.earlyOf = append(p, w.early...), nil, 0
		}
		return nil
	case typeStream, typeHole:
		if serial > w.answered {
			if len(w.early)+len(p) > packetMax {
				return fmt.Errorf("a stream of more than %d bytes before the answer that opens it", packetMax)
			}
			w.early, w.earlyOf = append(w.early, p...), serial
			return nil
		}
	}
	w.out = p
	return nil
}

func (w *wire) end(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.ended)
	})
}

// why is the error that ended the connection, nil where it goes on or was
// closed by us.
func (w *wire) why() error {
	select {
	case <-w.ended:
		return w.err
	default:
		return nil
	}
}

func (w *wire) Close() error {
	w.end(nil)
	return w.Conn.Close()
}
