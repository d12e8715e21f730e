package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shells are the two in which a guest runs the scripts.
var shells = [][]string{{"dash"}, {"busybox", "ash"}}

// terminal opens a pseudo terminal that passes bytes as they are: to a shell it
// is what a virtio-serial port is.
func terminal(t *testing.T) (host *os.File, port string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	host = os.NewFile(uintptr(fd), "ptmx") // nonblocking: it has deadlines
	t.Cleanup(func() { _ = host.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	raw.Iflag, raw.Oflag, raw.Lflag = 0, 0, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, raw); err != nil {
		t.Fatal(err)
	}
	return host, fmt.Sprintf("/dev/pts/%d", n)
}

// resident starts the resident agent in a shell and returns its other end.
func resident(t *testing.T, shell []string) *fileConn {
	t.Helper()
	host, port := terminal(t)
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, Script, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shell[0], append(shell[1:len(shell):len(shell)], script, port)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &fileConn{host}
}

// fileConn is a connection over a terminal. Close keeps the terminal, as QEMU
// keeps the port.
type fileConn struct{ *os.File }

func (fileConn) Close() error         { return nil }
func (fileConn) LocalAddr() net.Addr  { return &net.UnixAddr{} }
func (fileConn) RemoteAddr() net.Addr { return &net.UnixAddr{} }

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestResidentRuns(t *testing.T) {
	for _, shell := range shells {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			ctx := testContext(t)
			c := NewConn(KindLamina, resident(t, shell))
			if err := c.Ping(ctx); err != nil {
				t.Fatal(err)
			}
			for _, tc := range []struct {
				name, script, stdin string
				status              int
				output              string
			}{
				{name: "nothing"},
				{name: "line", script: "echo one; echo two >&2", output: "one\ntwo\n"},
				{name: "no line end", script: "printf one", output: "one"},
				{name: "only line ends", script: "echo; echo", output: "\n\n"},
				{name: "status", script: "exit 3", status: 3},
				{name: "text as it is", script: "cat <<'X'\n  a\\b \"q\" $HOME\n\n@end\n@lamina x\nX", output: "  a\\b \"q\" $HOME\n\n@end\n@lamina x\n"},
				{name: "no input", script: "cat; echo end", output: "end\n"},
				{name: "input", script: "cat; echo end", stdin: "a\x00b\nc", output: "a\x00b\ncend\n"},
				{name: "input that nobody reads", script: "exit 4", stdin: strings.Repeat("x", 100_000), status: 4},
				{name: "syntax", script: "echo a; )", status: 2},
				{name: "marks", script: "printf '@end x 0'; printf '\\n@end x'", output: "@end x 0\n@end x"},
				{name: "background", script: "sleep 60 >/dev/null 2>&1 & echo $((1+1)); kill $!", output: "2\n"},
				{name: "place", script: "pwd; umask", output: "/\n0022\n"},
			} {
				r, err := c.Run(ctx, tc.script, []byte(tc.stdin))
				if err != nil {
					t.Fatalf("%s: %v", tc.name, err)
				}
				if tc.name == "syntax" {
					r.Output = nil // each shell has its own words
				}
				if r.Status != tc.status || string(r.Output) != tc.output {
					t.Errorf("%s: status %d, output %q, want %d, %q", tc.name, r.Status, r.Output, tc.status, tc.output)
				}
			}
			r, err := c.Run(ctx, "dd if=/dev/zero bs=1024 count=1024 2>/dev/null", nil)
			if err != nil || len(r.Output) != MaxOutput {
				t.Errorf("%d bytes of output, error %v, want %d", len(r.Output), err, MaxOutput)
			}
		})
	}
}

// TestResidentResyncs has clients that leave in the middle of everything: the
// next one is answered, and what was cut off does not run.
func TestResidentResyncs(t *testing.T) {
	for _, shell := range shells {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			ctx := testContext(t)
			conn := resident(t, shell)
			mark := filepath.Join(t.TempDir(), "ran")
			write := func(s string) {
				if _, err := conn.Write([]byte(s)); err != nil {
					t.Fatal(err)
				}
			}
			for _, left := range []string{
				"@lamina 1",
				"@lamina 1\n touch " + mark,
				"@lamina 1\n touch " + mark + "\n@end ",
				"@end 1\n",
				"@lamina \n touch " + mark + "\n@end \n",
				"@lamina 1\n touch " + mark + "\n@end 2\n",
				" touch " + mark + "\n@end 1\n",
				"{\"execute\": \"guest-ping\"}\n\xff\x00\n",
				"@lamina 9\n i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done\n@end 9\n",
			} {
				write(left)
				c := NewConn(KindLamina, conn)
				r, err := c.Run(ctx, "echo here", nil)
				if err != nil || string(r.Output) != "here\n" {
					t.Fatalf("after %q: %q, %v", left, r.Output, err)
				}
			}
			if _, err := os.Stat(mark); err == nil {
				t.Error("a script ran that was not sent to its end")
			}
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c := NewConn(KindLamina, resident(t, shells[0]))
	if err := c.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Run(ctx, "sleep 1", nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a script that takes too long: %v", err)
	}
	if _, err := c.Run(t.Context(), "echo", nil); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("after that: %v, want a broken connection", err)
	}
}

func TestRunBounds(t *testing.T) {
	ctx := testContext(t)
	c := NewConn(KindLamina, resident(t, shells[0]))
	if _, err := c.Run(ctx, "dd if=/dev/zero bs=1024 count=1025 2>/dev/null", nil); !errors.Is(err, ErrOutput) {
		t.Errorf("more output than allowed: %v", err)
	}
	c = NewConn(KindLamina, resident(t, shells[0]))
	if _, err := c.Run(ctx, strings.Repeat("#", MaxScript), []byte("x")); err == nil {
		t.Error("a script that is too long was sent")
	}
	if _, err := c.Run(ctx, "echo \x00", nil); err == nil {
		t.Error("a script with a zero byte was sent")
	}
	if r, err := c.Run(ctx, "echo fine", nil); err != nil || string(r.Output) != "fine\n" {
		t.Errorf("after scripts that were refused: %q, %v", r.Output, err)
	}
}

// peer serves one unix socket with f, for each client that comes.
func peer(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			f(nc)
			_ = nc.Close()
		}
	}()
	return path
}

func silent(nc net.Conn) {
	var b [512]byte
	for {
		if _, err := nc.Read(b[:]); err != nil {
			return
		}
	}
}

func TestDial(t *testing.T) {
	ctx := testContext(t)
	lamina := peer(t, fakeLamina)
	qemu := peer(t, (&fakeQGA{}).serve)
	mute := peer(t, silent)
	gone := filepath.Join(t.TempDir(), "none")
	for _, tc := range []struct {
		lamina, qga string
		want        Kind
	}{
		{lamina, "", KindLamina}, {"", qemu, KindQEMU},
		{lamina, qemu, KindLamina}, {mute, qemu, KindQEMU}, {gone, qemu, KindQEMU}, {lamina, mute, KindLamina},
	} {
		c, err := Dial(ctx, tc.lamina, tc.qga)
		if err != nil {
			t.Fatalf("%+v: %v", tc, err)
		}
		if c.Kind() != tc.want {
			t.Errorf("%s answers, want %s", c.Kind(), tc.want)
		}
		if r, err := c.Run(ctx, "echo hello", nil); err != nil || string(r.Output) != "ran\n" {
			t.Errorf("%s: %q, %v", c.Kind(), r.Output, err)
		}
		_ = c.Close()
	}
	if _, err := Dial(ctx, "", ""); err == nil {
		t.Error("a machine without channels was dialled")
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(short, mute, gone); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
	}
}

// fakeLamina answers as the resident agent would, without running anything.
func fakeLamina(nc net.Conn) {
	_, _ = nc.Write([]byte("an answer that was cut\n@end 0 0\n@lamina 77\n"))
	lines := newLineReader(nc)
	id, body := "", 0
	for line, ok := lines(); ok; line, ok = lines() {
		switch {
		case strings.HasPrefix(line, "@lamina "):
			id, body = line[8:], 0
		case line == "@end "+id:
			out := ""
			if body > 1 {
				out = "ran\n"
			}
			_, _ = fmt.Fprintf(nc, "\n@lamina %s\n%s\n@end %s 0\n", id, out, id)
		case strings.HasPrefix(line, " "):
			if !strings.Contains(line, "dev/null") && len(line) > 1 {
				body++
			}
		}
	}
}

func newLineReader(nc net.Conn) func() (string, bool) {
	var buf bytes.Buffer
	return func() (string, bool) {
		for {
			if i := bytes.IndexByte(buf.Bytes(), '\n'); i >= 0 {
				return strings.TrimSuffix(string(buf.Next(i+1)), "\n"), true
			}
			var b [4096]byte
			n, err := nc.Read(b[:])
			if err != nil {
				return "", false
			}
			buf.Write(b[:n])
		}
	}
}
