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
// logs in, asks for the host name, leaves with Ctrl-], and requires that the
// terminal is as it was before: dialog NAME.
func dialog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: dialog NAME")
	}
	name := args[0]
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
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	ts.Check(t.expect("leave with Ctrl-]"))
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
	if raw, err := t.mode(); err != nil || raw == before {
		ts.Fatalf("the terminal was not raw while the console was attached (%v)", err)
	}
	ts.Check(t.send("\x1d"))
	select {
	case err := <-ended:
		ts.Check(err)
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		ts.Fatalf("Ctrl-] did not end the console:\n%s", t.text())
	}
	after, err := t.mode()
	ts.Check(err)
	if after != before {
		ts.Fatalf("the terminal is not as it was: %+v, before %+v", after, before)
	}
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

// mode returns the terminal's settings.
func (t *terminal) mode() (unix.Termios, error) {
	m, err := unix.IoctlGetTermios(int(t.slave.Fd()), unix.TCGETS)
	if err != nil {
		return unix.Termios{}, err
	}
	return *m, nil
}
