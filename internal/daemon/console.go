package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// consoleBacklog is how much of what the guest wrote before is shown to a
// client that comes, in bytes at most and in lines.
const (
	consoleBacklog      = 16 << 10
	consoleBacklogLines = 24
)

// console shares a machine's serial port among clients.
//
// What the guest writes is taken from the serial log, which has its every byte
// in order: each client reads it at its own pace, none waits for another, and
// none can hold up the guest. The one connection to the serial socket, made
// when the first client comes, carries what clients type to the guest. What
// arrives on it is only the sign that the log has more.
type console struct {
	socket, log string
	ended       <-chan struct{} // the machine's process is gone

	mu      sync.Mutex
	clients int
	conn    net.Conn
	more    chan struct{} // closed when the guest wrote something

	// input serialises what clients write.
	input sync.Mutex
}

func newConsole(socket, log string, ended <-chan struct{}) *console {
	return &console{socket: socket, log: log, ended: ended, more: make(chan struct{})}
}

// join makes the connection for the first client.
func (c *console) join(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		var d net.Dialer
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		conn, err := d.DialContext(ctx, "unix", c.socket)
		if err != nil {
			return fmt.Errorf("serial port: %w", err)
		}
		c.conn = conn
		go c.drain(conn)
	}
	c.clients++
	return nil
}

// leave closes the connection after the last client.
func (c *console) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clients--; c.clients == 0 && c.conn != nil {
		_ = c.conn.Close() // nothing is left to be sent
		c.conn = nil
	}
}

// drain reads the socket so that the guest never waits, and wakes the clients.
// QEMU writes to the socket just before it writes to the log: they are woken
// once at once and once a little later.
func (c *console) drain(conn net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		_, err := conn.Read(buf)
		c.wake()
		if err != nil {
			c.lost(conn)
			return
		}
		time.AfterFunc(time.Millisecond, c.wake)
	}
}

// lost forgets a connection that broke; the next input makes a new one.
func (c *console) lost(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		_ = conn.Close() // broken already
		c.conn = nil
	}
}

func (c *console) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.more)
	c.more = make(chan struct{})
}

func (c *console) woken() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.more
}

// write passes what a client typed to the guest.
func (c *console) write(p []byte) error {
	c.input.Lock()
	defer c.input.Unlock()
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return errors.New("serial port: the connection is lost")
	}
	// A guest that does not read its port must not hold this for ever.
	if err := conn.SetWriteDeadline(time.Now().Add(clientPatience)); err != nil {
		return err
	}
	_, err := conn.Write(p)
	return err
}

// attach serves one client until it leaves, the machine ends, or ctx does.
func (c *console) attach(ctx context.Context, client net.Conn, from io.Reader) error {
	if err := c.join(ctx); err != nil {
		return err
	}
	defer c.leave()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	off, err := tailOffset(c.log, consoleBacklogLines, consoleBacklog)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 4<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				err = errors.Join(err, c.write(buf[:n]))
			}
			if err != nil {
				cancel(err) // io.EOF: the client left
				return
			}
		}
	}()
	t := tailer{path: c.log, off: off}
	return t.copy(ctx, deadlineWriter{client}, c.ended, c.woken)
}

// deadlineWriter cuts off a client that does not read.
type deadlineWriter struct{ net.Conn }

func (w deadlineWriter) Write(p []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(clientPatience)); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

const consoleProtocol = "lamina-console"

func (d *Daemon) postConsole(w http.ResponseWriter, r *http.Request) error {
	m, err := d.find(r.PathValue("name"))
	if err != nil {
		return err
	}
	if r.Header.Get("Upgrade") != consoleProtocol {
		return api.Errorf(api.CodeInvalid, "the console needs the header Upgrade: %s", consoleProtocol)
	}
	run, err := m.needRun()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(run.vm.SerialSocket()); errors.Is(err, fs.ErrNotExist) && !ended(run) {
		return api.Errorf(api.CodeInvalid, "machine %s has no serial port with a console: look at its screen (`lamina screen %s`), or connect to its VNC or SPICE server", m.name, m.name)
	}
	// Clients are served under the daemon's context: net/http cancels the
	// request's when the connection is taken over.
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(d.ctx, func() { _ = conn.Close() })
	defer stop()
	err = errors.Join(conn.SetDeadline(time.Time{}), switchProtocol(conn))
	if err == nil {
		err = run.console.attach(d.ctx, conn, buf)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		d.log.Debug("console ended", "machine", m.name, "error", err)
	}
	return nil
}

func switchProtocol(w io.Writer) error {
	_, err := io.WriteString(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+consoleProtocol+"\r\n\r\n")
	return err
}
