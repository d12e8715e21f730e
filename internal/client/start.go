package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// IdleExit is how long a daemon that was started on demand stays without work.
const IdleExit = "5m"

// startTimeout is how long a new daemon may take to listen. It re-adopts the
// running machines first.
const startTimeout = 30 * time.Second

// maxSocketPath is the longest path that a unix socket can have on Linux.
const maxSocketPath = 107

// ErrNoDaemon is wrapped by the errors of a client whose daemon does not run,
// or ended before it had answered.
var ErrNoDaemon = errors.New("laminad does not run")

// Connect returns a client of the daemon of h. Where none runs it starts
// laminad, which then ends by itself when it has had nothing to do for
// [IdleExit]. A daemon that speaks another level of the API is asked to end
// (its machines go on) and a new one takes its place.
func Connect(ctx context.Context, h home.Home) (*Client, error) {
	c := New(h)
	v, err := c.Version(ctx)
	if err == nil && v.API == api.Level {
		return c, nil
	}
	if err != nil && !errors.Is(err, ErrNoDaemon) {
		return nil, err
	}
	unlock, err := lockStart(ctx, h)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Another command may have started or replaced it meanwhile.
	v, err = c.Version(ctx)
	switch {
	case err == nil && v.API == api.Level:
		return c, nil
	case err == nil:
		if err := c.replace(ctx, v); err != nil {
			return nil, err
		}
		// A kept connection may still reach the old one while it ends.
		c = New(h)
	case !errors.Is(err, ErrNoDaemon):
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	v, err = c.Version(ctx)
	if err != nil {
		return nil, err
	}
	if v.API != api.Level {
		return nil, levelError(v)
	}
	return c, nil
}

func levelError(v api.Version) error {
	return fmt.Errorf("laminad (pid %d, version %s) speaks level %d of the API, this lamina (version %s) level %d: install both programs from one build",
		v.PID, v.Version, v.API, api.BuildVersion, api.Level)
}

// replace asks a daemon of another level to end and waits until it has.
func (c *Client) replace(ctx context.Context, v api.Version) error {
	if err := c.Shutdown(ctx); err != nil {
		return fmt.Errorf("%w; it did not take the request to end: %w", levelError(v), err)
	}
	for end := time.Now().Add(startTimeout); time.Now().Before(end); {
		if _, err := c.Version(ctx); errors.Is(err, ErrNoDaemon) {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w; it was asked to end and did not: end process %d yourself, its machines go on", levelError(v), v.PID)
}

// dialError says why there is no way to the daemon.
func (c *Client) dialError(err error) error {
	path := c.home.Socket()
	switch {
	case len(path) > maxSocketPath:
		return fmt.Errorf("the daemon's socket would be %s: that is %d bytes, a unix socket may have %d: set %s to a shorter folder",
			path, len(path), maxSocketPath, home.Env)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %s: %w", ErrNoDaemon, path, plain(err))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied: the daemon there belongs to another user; use that user, or set %s to a folder of your own", path, home.Env)
	}
	return err
}

// plain strips what net adds to an error number.
func plain(err error) error {
	var n syscall.Errno
	if errors.As(err, &n) {
		return n
	}
	return err
}

// lockStart lets one command at a time start the daemon of a home.
func lockStart(ctx context.Context, h home.Home) (unlock func(), err error) {
	if err := os.MkdirAll(h.Run, 0o700); err != nil {
		return nil, fmt.Errorf("the folder of the daemon's socket: %w; set %s to a folder that you may write to", err, home.Env)
	}
	f, err := os.OpenFile(h.StartLock(), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w; set %s to a folder that you may write to", err, home.Env)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", h.StartLock(), err)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
}

// start runs laminad and waits until it answers. The caller holds the lock.
func (c *Client) start(ctx context.Context) error {
	program, err := findDaemon()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.home.Data, 0o700); err != nil {
		return fmt.Errorf("the folder of Lamina's state: %w; set %s to a folder that you may write to", err, home.Env)
	}
	log, err := os.OpenFile(c.home.DaemonLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("the daemon's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	before, err := log.Stat()
	if err != nil {
		return fmt.Errorf("the daemon's log: %w", err)
	}
	cmd := exec.Command(program, "--idle-exit", IdleExit)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	// A session of its own: the terminal's Ctrl-C and hang-up are not its.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = append(os.Environ(), homeEnv(c.home)...)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return c.await(ctx, program, ended, before.Size())
}

// await waits until the new daemon answers, or says why it does not.
func (c *Client) await(ctx context.Context, program string, ended <-chan error, logFrom int64) error {
	deadline := time.After(startTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		_, err := c.Version(ctx)
		if err == nil || !errors.Is(err, ErrNoDaemon) {
			return err
		}
		select {
		case err := <-ended:
			// It may have ended because another one (systemd's) was first.
			if _, verr := c.Version(ctx); verr == nil {
				return nil
			}
			return c.startError(fmt.Errorf("%s ended at once (%w)", program, exitText(err)), logFrom)
		case <-deadline:
			return c.startError(fmt.Errorf("%s did not listen on %s within %s", program, c.home.Socket(), startTimeout), logFrom)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

func exitText(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// startError adds the last words of the daemon's log.
func (c *Client) startError(err error, logFrom int64) error {
	if words := lastWords(c.home.DaemonLog(), logFrom); words != "" {
		return fmt.Errorf("%w; its log %s ends with:\n%s", err, c.home.DaemonLog(), words)
	}
	return fmt.Errorf("%w; its log: %s", err, c.home.DaemonLog())
}

// lastWords returns the last lines that were written to a log behind from.
func lastWords(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const most = 4096
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	from = max(from, st.Size()-most)
	b := make([]byte, most)
	n, _ := f.ReadAt(b, from)
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// homeEnv names the home for the daemon where this process's environment
// leads elsewhere, as in tests that make a home of their own.
func homeEnv(h home.Home) []string {
	if found, err := home.Find(); err == nil && found == h {
		if dir := os.Getenv(home.Env); dir != "" {
			// The daemon works in "/": the folder must be absolute.
			return []string{home.Env + "=" + h.Data}
		}
		return nil
	}
	return []string{home.Env + "=" + h.Data}
}

// Exec runs a tool that is linked into laminad in the place of this process: it
// returns only an error. name is what the tool is called by, and what laminad
// knows it by: see [ToolInstall] and its kin.
func Exec(name string, args ...string) error {
	program, err := findDaemon()
	if err != nil {
		return err
	}
	err = syscall.Exec(program, append([]string{name}, args...), os.Environ())
	return &os.PathError{Op: "run", Path: program, Err: err}
}

// ToolOutput runs a tool as Exec does, in a process of its own, and returns what
// it writes to its standard output.
func ToolOutput(ctx context.Context, name string, args ...string) ([]byte, error) {
	program, err := findDaemon()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Args[0] = name
	return cmd.Output()
}

// The names by which laminad is a tool and not the daemon (its argv[0]).
const (
	ToolVirtInstall = "virt-install"   // the drop-in, under its own name
	ToolInstall     = "lamina install" // the same
	ToolVerbs       = "lamina-libvirt" // the verbs of lamina that were given a libvirt, or a fleet's document
)

// findDaemon returns the laminad that belongs to this program: the one beside
// it, else the one in PATH.
func findDaemon() (string, error) {
	const name = "laminad"
	beside := ""
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		beside = filepath.Join(filepath.Dir(exe), name)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	return "", fmt.Errorf("laminad is neither at %s nor in PATH: install it beside lamina (`make install` installs both)", beside)
}

// pause waits, or returns why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
