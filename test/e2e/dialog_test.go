package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/guestimage"
)

// patience is how long a guest may take to answer on its console.
const patience = 90 * time.Second

// dialog attaches a terminal to the console of a machine as a person does,
// logs in, asks for the host name, and leaves with Ctrl-]; then once more, and
// is ended by a signal. The terminal must be as it was before: dialog NAME.
func dialog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: dialog NAME")
	}
	name := args[0]
	attached(ts, name, func(t *terminal, _ *os.Process) { converse(ts, t, name) })
	attached(ts, name, func(_ *terminal, p *os.Process) { ts.Check(p.Signal(syscall.SIGTERM)) })
}

// attached runs lamina console on a terminal and calls talk, after which it
// must end and leave the terminal as it was.
func attached(ts *testscript.TestScript, name string, talk func(*terminal, *os.Process)) {
	t, err := openTerminal()
	ts.Check(err)
	defer t.close()
	before, err := t.mode()
	ts.Check(err)
	lamina, err := exec.LookPath(strings.SplitN(ts.Getenv("PATH"), ":", 2)[0] + "/lamina")
	ts.Check(err)
	cmd := exec.Command(lamina, "console", name)
	cmd.Env = []string{"LAMINA_HOME=" + ts.Getenv("LAMINA_HOME"), "HOME=" + ts.Getenv("HOME"), "PATH=" + ts.Getenv("PATH"), "TERM=xterm"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = t.slave, t.slave, t.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // status 1 where a signal ended it
		close(ended)
	}()
	ts.Check(t.expect("leave with Ctrl-]"))
	ts.Check(t.awaitRaw(before))
	talk(t, cmd.Process)
	select {
	case <-ended:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		ts.Fatalf("the console did not end:\n%s", t.text())
	}
	after, err := t.mode()
	ts.Check(err)
	if after != before {
		ts.Fatalf("the terminal is not as it was: %+v, before %+v", after, before)
	}
}

// converse logs in, asks for the host name, logs out and leaves.
func converse(ts *testscript.TestScript, t *terminal, name string) {
	for _, step := range []struct{ send, expect string }{
		{"\r", name + " login:"},
		{guestimage.User + "\r", "assword:"},
		{guestimage.Password + "\r", "$"},
		{"echo at=$(hostname)\r", "at=" + name},
		{"exit\r", name + " login:"},
	} {
		ts.Check(t.send(step.send))
		ts.Check(t.expect(step.expect))
	}
	ts.Check(t.send("\x1d"))
}

// terminal is a pseudo-terminal, seen from the person's side.
type terminal struct {
	master, slave *os.File

	mu   sync.Mutex
	seen bytes.Buffer
	from int           // what expect has consumed of seen
	more chan struct{} // has a value when something came
}

func openTerminal() (*terminal, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t := &terminal{master: master, slave: slave, more: make(chan struct{}, 1)}
	go t.read()
	return t, nil
}

func (t *terminal) close() {
	_ = t.slave.Close()
	_ = t.master.Close()
}

func (t *terminal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		t.mu.Lock()
		t.seen.Write(buf[:n])
		t.mu.Unlock()
		select {
		case t.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (t *terminal) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen.String()
}

// expect waits for a text behind what was expected before.
func (t *terminal) expect(want string) error {
	limit := time.After(patience)
	for {
		t.mu.Lock()
		i := strings.Index(t.seen.String()[t.from:], want)
		if i >= 0 {
			t.from += i + len(want)
		}
		t.mu.Unlock()
		if i >= 0 {
			return nil
		}
		select {
		case <-t.more:
		case <-limit:
			return fmt.Errorf("no %q within %s on the terminal:\n%s", want, patience, t.text())
		}
	}
}

func (t *terminal) send(s string) error {
	_, err := t.master.WriteString(s)
	return err
}

// awaitRaw waits until the terminal has other settings than before.
func (t *terminal) awaitRaw(before unix.Termios) error {
	for range 1000 {
		m, err := t.mode()
		if err != nil || m != before {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("the terminal was not raw while the console was attached:\n%s", t.text())
}

// mode returns the terminal's settings.
func (t *terminal) mode() (unix.Termios, error) {
	m, err := unix.IoctlGetTermios(int(t.slave.Fd()), unix.TCGETS)
	if err != nil {
		return unix.Termios{}, err
	}
	return *m, nil
}
