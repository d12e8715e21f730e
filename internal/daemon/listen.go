package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long a daemon that is ending may take to give its lock
// back: the grace of its clients, and the end of a QEMU that was being started.
const lockPatience = 15 * time.Second

// takeLock takes the lock of a home for the life of the process. The file
// names the process that has it, for people. While somebody has it who does
// not serve clients (any more), takeLock waits.
func takeLock(ctx context.Context, path string, serves func() bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || ctx.Err() != nil || serves() {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid := make([]byte, 20)
		n, _ := f.ReadAt(pid, 0)
		_ = f.Close()
		return nil, fmt.Errorf("%w: it has the lock %s (pid %s)", ErrRunning, path, string(pid[:n]))
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// answers says whether a daemon serves a unix socket. That somebody listens does not
// tell it: what a killed daemon was just about to run has its socket, and its
// lock, for a moment.
func answers(path string) bool {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }() // only asked
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return false
	}
	if _, err := conn.Write([]byte("GET /v1/version HTTP/1.0\r\n\r\n")); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, 1))
	return err == nil
}

// maxSocketPath is the room that Linux has for a unix socket's path.
const maxSocketPath = 107

// listen makes the daemon's socket, mode 0600 from its first moment. The
// caller has the home's lock, so that a socket that is there is a dead one's.
func listen(path string) (*net.UnixListener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes, Linux allows %d: set LAMINA_HOME to a shorter one", path, len(path), maxSocketPath)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket %s: something else is there: move it away", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The umask is the process's: New runs before anything else makes files.
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	return l, err
}

// watchSocket is how often the daemon looks whether its socket is still there.
const watchSocket = time.Second

// endWithSocket ends the daemon when its socket is not there any more, or is
// another one's: no client can reach it then, and the next one is to find the
// lock free. A user's socket goes with the last of his sessions.
func (d *Daemon) endWithSocket(l *net.UnixListener, mine os.FileInfo) {
	tick := time.NewTicker(watchSocket)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		now, err := os.Lstat(d.home.Socket())
		switch {
		case err == nil && os.SameFile(now, mine):
			continue
		case err == nil:
			l.SetUnlinkOnClose(false) // what is there now is not ours
		case !errors.Is(err, os.ErrNotExist):
			continue
		}
		d.log.Warn("the socket was taken away; the daemon ends, the machines go on", "socket", d.home.Socket())
		d.stop(errStopping)
		return
	}
}

// Activated returns the socket that systemd passed to this process, nil where
// it passed none (sd_listen_fds(3)). It clears the variables, so that no child
// takes them for its own.
func Activated() (net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(v); err != nil {
			return nil, err
		}
	}
	if fds == "" || pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	if fds != "1" {
		return nil, fmt.Errorf("socket activation: %s sockets were passed, want 1", fds)
	}
	const first = 3 // SD_LISTEN_FDS_START
	unix.CloseOnExec(first)
	f := os.NewFile(first, "systemd socket")
	l, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the socket is systemd's
		return l, nil
	}
	_ = l.Close()
	return nil, fmt.Errorf("socket activation: %s is not a unix socket", l.Addr())
}

type peerKey struct{}

// withPeer notes who is at the other end of a connection. The socket's mode
// keeps others out already; this also holds where the mode was changed.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, checkPeer(c))
}

func checkPeer(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return err
	}
	return allowed(int(cred.Uid), os.Geteuid())
}

// allowed says whether a user may use the daemon of another.
func allowed(uid, owner int) error {
	if uid != owner && uid != 0 {
		return fmt.Errorf("user %d may not use the daemon of user %d", uid, owner)
	}
	return nil
}
