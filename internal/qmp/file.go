package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// SendFile gives the server a copy of f's descriptor, which commands then know
// by that name (the command getfd). The connection must be a unix socket.
func (c *Client) SendFile(ctx context.Context, name string, f *os.File) error {
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("QMP command getfd: files go through unix sockets only")
	}
	id, answer, err := c.register()
	if err != nil {
		return fmt.Errorf("QMP command getfd: %w", err)
	}
	defer c.forget(id)
	line, err := json.Marshal(map[string]any{"execute": "getfd", "arguments": map[string]string{"fdname": name}, "id": id})
	if err != nil {
		return err
	}
	if err := c.writeFile(conn, append(line, '\n'), f); err != nil {
		return fmt.Errorf("QMP command getfd: %w", err)
	}
	select {
	case r := <-answer:
		return r.decode("getfd", nil)
	case <-ctx.Done():
		return fmt.Errorf("QMP command getfd: %w", ctx.Err())
	case <-c.done:
		return fmt.Errorf("QMP command getfd: %w", c.Err())
	}
}

// writeFile sends one command with a descriptor beside it.
func (c *Client) writeFile(conn *net.UnixConn, line []byte, f *os.File) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	err := conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		var n int
		n, _, err = conn.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
		if err == nil && n < len(line) {
			_, err = conn.Write(line[n:])
		}
	}
	if err != nil {
		c.end(err)
		return c.Err()
	}
	return nil
}
