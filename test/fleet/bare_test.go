package fleet

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

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/qmp"
)

// byHand is a machine that is run as one runs QEMU by hand.
type byHand struct {
	b    *testing.B
	dir  string
	cmd  *exec.Cmd
	ends chan error
}

// startByHand runs QEMU with the devices that ours has where they matter: a virtio
// disk, a serial port, no card. Its end is the benchmark's at the latest.
func startByHand(b *testing.B, dir, disk string, args ...string) *byHand {
	b.Helper()
	all := append([]string{"-nodefaults", "-machine", "pc,memory-backend=pc.ram", "-accel", "tcg", "-cpu", "max", "-display", "none", "-vga", "std",
		"-drive", "if=virtio,format=qcow2,file=" + disk,
		"-device", "virtio-rng-pci",
		"-serial", "unix:" + filepath.Join(dir, "serial") + ",server=on,wait=off",
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off"}, args...)
	q := &byHand{b: b, dir: dir, cmd: exec.Command("qemu-system-x86_64", all...), ends: make(chan error, 1)}
	var words bytes.Buffer
	q.cmd.Stderr = &words
	if err := q.cmd.Start(); err != nil {
		b.Fatalf("qemu-system-x86_64: %v: run make deps", err)
	}
	go func() {
		err := q.cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, words.String())
		}
		q.ends <- err
	}()
	b.Cleanup(func() { _ = q.cmd.Process.Kill() })
	return q
}

func (q *byHand) end() {
	_ = q.cmd.Process.Kill()
	select {
	case err := <-q.ends:
		if err == nil {
			q.b.Log("QEMU had ended by itself before it was killed")
		}
	case <-time.After(30 * time.Second):
		q.b.Errorf("QEMU process %d does not end", q.cmd.Process.Pid)
	}
}

// dial connects to a socket of a QEMU that is still coming up.
func (q *byHand) dial(name string) net.Conn {
	q.b.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", filepath.Join(q.dir, name))
		if err == nil {
			return c
		}
		select {
		case err := <-q.ends:
			q.b.Fatalf("QEMU has ended: %v", err)
		default:
		}
		if time.Now().After(end) {
			q.b.Fatal(err)
		}
	}
}

func (q *byHand) monitor(ctx context.Context) *qmp.Client {
	q.b.Helper()
	c, err := qmp.New(ctx, q.dial("qmp"))
	if err != nil {
		q.b.Fatal(err)
	}
	return c
}

func do(b *testing.B, ctx context.Context, c *qmp.Client, command string, args any) {
	b.Helper()
	if err := c.Execute(ctx, command, args, nil); err != nil {
		b.Fatal(err)
	}
}

// prompt waits for a login prompt on the serial port; ask says that it is to be
// asked for by an empty line, again and again.
func prompt(b *testing.B, c net.Conn, ask bool, limit time.Duration) {
	b.Helper()
	end := time.Now().Add(limit)
	var seen []byte
	buf := make([]byte, 4096)
	for {
		if ask {
			if err := c.SetWriteDeadline(end); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Write([]byte("\n")); err != nil {
				b.Fatal(err)
			}
		}
		wait := end
		if ask {
			wait = time.Now().Add(100 * time.Millisecond)
		}
		if err := c.SetReadDeadline(wait); err != nil {
			b.Fatal(err)
		}
		for {
			n, err := c.Read(buf)
			seen = append(seen, buf[:n]...)
			if bytes.Contains(seen, []byte("login:")) {
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) && ask {
				break
			}
			if err != nil {
				b.Fatalf("no login prompt: %v; the guest said %q", err, tail(seen))
			}
		}
		if time.Now().After(end) {
			b.Fatalf("no login prompt after %s; the guest said %q", limit, tail(seen))
		}
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-500):] }

// bareTimes are what QEMU takes for a warm clone without anything around it:
// the limit of what is possible.
type bareTimes struct {
	prompt series
	pss    int64
}

func bareFleet(b *testing.B, g guest) (t bareTimes) {
	dir := b.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), g.boot+5*time.Minute)
	defer cancel()
	base := filepath.Join(dir, "base.qcow2")
	overlay(b, g.image, base)
	ram, state := filepath.Join(dir, "ram"), filepath.Join(dir, "state")
	backend := func(share string) []string {
		return []string{"-m", fmt.Sprint(g.memory >> 20), "-object", fmt.Sprintf("memory-backend-file,id=pc.ram,mem-path=%s,size=%dM,share=%s", ram, g.memory>>20, share)}
	}
	// The boot, kept: RAM in its file, the devices in another.
	short := shortDir(b)
	q := startByHand(b, short, base, backend("on")...)
	serial := q.dial("serial")
	prompt(b, serial, false, g.boot)
	c := q.monitor(ctx)
	do(b, ctx, c, "stop", nil)
	do(b, ctx, c, "migrate-set-capabilities", ignoreShared())
	do(b, ctx, c, "migrate", map[string]string{"uri": "exec:cat > " + state})
	awaitStatus(b, ctx, c, "query-migrate", "completed")
	_ = c.Close()
	_ = serial.Close()
	q.end()

	for i := range *rounds {
		short := shortDir(b)
		begun := time.Now()
		disk := filepath.Join(dir, fmt.Sprintf("clone-%d.qcow2", i))
		overlay(b, base, disk)
		q := startByHand(b, short, disk, append(backend("off"), "-incoming", "defer")...)
		c := q.monitor(ctx)
		do(b, ctx, c, "migrate-set-capabilities", ignoreShared())
		do(b, ctx, c, "migrate-incoming", map[string]string{"uri": "exec:cat " + state})
		// The state is one of a guest that was stopped.
		awaitStatus(b, ctx, c, "query-status", "paused")
		do(b, ctx, c, "cont", nil)
		serial := q.dial("serial")
		prompt(b, serial, true, time.Minute)
		t.prompt = append(t.prompt, time.Since(begun))
		t.pss = max(t.pss, pss(b, q.cmd.Process.Pid))
		_ = serial.Close()
		_ = c.Close()
		q.end()
	}
	return t
}

// awaitStatus asks until QEMU says what is wanted.
func awaitStatus(b *testing.B, ctx context.Context, c *qmp.Client, command, want string) {
	b.Helper()
	for {
		var now struct {
			Status string `json:"status"`
		}
		if err := c.Execute(ctx, command, nil, &now); err != nil {
			b.Fatal(err)
		}
		switch now.Status {
		case want:
			return
		case "failed":
			b.Fatalf("bare QEMU: %s: failed", command)
		}
		time.Sleep(time.Millisecond)
	}
}

func ignoreShared() any {
	return map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}
}

// overlay makes an overlay with the stock tool.
func overlay(b *testing.B, base, path string) {
	b.Helper()
	if r := qemutest.Run(b, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path); r.Status != 0 {
		b.Fatalf("qemu-img create: %s", r.Stderr)
	}
}

// shortDir is a folder whose path is short enough for sockets.
func shortDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "lf-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// copyTimes are what a machine takes that has a full copy of the image.
type copyTimes struct {
	copied, login series
	disk          int64
}

// copiesFleet copies the image with cp and boots the copy.
func copiesFleet(b *testing.B, g guest) (t copyTimes) {
	dir := b.TempDir()
	for i := range 2 {
		disk := filepath.Join(dir, fmt.Sprintf("copy-%d.qcow2", i))
		short := shortDir(b)
		begun := time.Now()
		command(b, exec.Command("cp", "--reflink=auto", g.image, disk))
		command(b, exec.Command("chmod", "u+w", disk))
		t.copied = append(t.copied, time.Since(begun))
		t.disk = allocated(b, disk)
		q := startByHand(b, short, disk, "-m", fmt.Sprint(g.memory>>20), "-object", fmt.Sprintf("memory-backend-ram,id=pc.ram,size=%dM", g.memory>>20))
		serial := q.dial("serial")
		prompt(b, serial, false, g.boot)
		t.login = append(t.login, time.Since(begun))
		_ = serial.Close()
		q.end()
	}
	return t
}

func command(b *testing.B, cmd *exec.Cmd) {
	b.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
	}
}
