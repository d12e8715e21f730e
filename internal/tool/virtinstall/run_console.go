package virtinstall

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/term"
)

// escapeKey leaves the text console: Ctrl-], as in virsh.
const escapeKey = 0x1d

// show shows the machine's console, until the person leaves it or the machine
// ends. It reports whether one was shown.
func (e *execution) show(ctx context.Context, m instance) (bool, error) {
	switch e.console {
	case "none":
		return false, nil
	case "graphical":
		return e.showScreen()
	}
	in, ok := e.g.std.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		if e.g.host.libvirtConn() != nil {
			e.g.warn("The text console needs a terminal; connect later with: virsh --connect %s console %s", e.g.host.uri(), e.g.dom.Get("name"))
		}
		return false, nil
	}
	con, err := m.console(ctx)
	if err != nil {
		e.g.warn("Unable to connect to the text console: %v", err)
		return false, nil
	}
	e.g.say("Connected to the text console of %s; leave with Ctrl-]", e.g.dom.Get("name"))
	return true, attach(ctx, con, in, e.g.std.Out)
}

// showScreen starts the viewer, where there is one and a screen to show it on.
func (e *execution) showScreen() (bool, error) {
	g := e.g
	conn := g.host.libvirtConn()
	if conn == nil {
		return false, nil // the machine's own words say how its screen is reached
	}
	viewer, err := exec.LookPath("virt-viewer")
	switch {
	case err != nil:
		g.warn("Unable to connect to graphical console: virt-viewer not installed. Please install the 'virt-viewer' package.")
	case os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "":
		g.warn("Graphics requested but DISPLAY is not set. Not running virt-viewer.")
	default:
		cmd := exec.Command(viewer, "--connect", conn.URI(), "--wait", g.dom.Get("name"))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, nil, os.Stderr
		if err := cmd.Run(); err != nil {
			g.warn("Console command returned failure.")
		}
		return true, nil
	}
	if !e.waits {
		g.warn("No console to launch for the guest, defaulting to --wait -1")
		e.waits, e.wait = true, -1
	}
	return false, nil
}

// attach joins a terminal and a console.
func attach(ctx context.Context, con io.ReadWriteCloser, in *os.File, out io.Writer) error {
	defer func() { _ = con.Close() }()
	fd := int(in.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return fmt.Errorf("the terminal: %w", err)
	}
	defer func() { _ = term.Restore(fd, before) }()
	left := make(chan struct{})
	// This goroutine may wait for a key until the program ends.
	go func() {
		defer close(left)
		buf := make([]byte, 4096)
		for {
			n, err := in.Read(buf)
			for i, b := range buf[:n] {
				if b == escapeKey {
					_, _ = con.Write(buf[:i])
					return
				}
			}
			if _, werr := con.Write(buf[:n]); werr != nil || err != nil {
				return
			}
		}
	}()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(out, con) // the machine's end shows as an error of the one or the other kind
		close(ended)
	}()
	select {
	case <-left:
		return nil
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
