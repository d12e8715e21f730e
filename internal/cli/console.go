package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// escapeKey leaves the console: Ctrl-], as of virsh and telnet.
const escapeKey = 0x1d

func newConsole(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "console NAME",
		Short: "Give the serial console of a machine",
		Long: `Connect the terminal to the machine's serial port. Ctrl-] leaves it; the machine
goes on. Press Enter to see the prompt again. Where the input is not a terminal
it is sent as it is, and what the guest writes is shown until the machine ends.`,
		Example:           "  lamina console web",
		Args:              words("NAME"),
		ValidArgsFunction: completeMachines(a, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.backend(cmd.Context())
			if err != nil {
				return err
			}
			return a.attach(cmd.Context(), c, args[0])
		},
	}
	connectFlag(cmd, a)
	return cmd
}

// attach connects the terminal to a machine's serial port until the person
// leaves, the machine ends, or ctx does. The terminal is restored on each way
// out.
func (a *app) attach(ctx context.Context, c Backend, name string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	con, err := c.Console(ctx, name)
	if err != nil {
		return machineHint(ctx, c, name, err)
	}
	defer func() { _ = con.Close() }()
	fd := int(a.stdin.Fd())
	interactive := term.IsTerminal(fd)
	if interactive {
		a.say("Connected to %s; leave with Ctrl-]", name)
		before, rerr := term.MakeRaw(fd)
		if rerr != nil {
			return fmt.Errorf("the terminal: %w", rerr)
		}
		defer func() {
			rerr := term.Restore(fd, before)
			// The guest's cursor may stand anywhere in its line.
			a.say("")
			if err == nil && rerr != nil {
				err = fmt.Errorf("the terminal: %w", rerr)
			}
		}()
	}
	left := make(chan error, 1)
	// This goroutine may wait for a key until the program ends.
	go func() { left <- typed(con, a.stdin, interactive) }()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(a.stdout, con)
		ended <- err
	}()
	for {
		select {
		case err := <-left:
			switch {
			case errors.Is(err, errLeft):
				return nil
			case err != nil && !hungUp(err):
				return fmt.Errorf("console of %s: %w", name, err)
			}
			left = nil // the input is at its end; the guest may still talk
		case err := <-ended:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil && !hungUp(err) {
				return fmt.Errorf("console of %s: %w", name, err)
			}
			if interactive {
				a.say("\r\nThe console of %s has ended.\r", name)
			}
			return nil
		}
	}
}

// hungUp says whether an error is how the end of the other side shows when
// there was something typed that it had not read.
func hungUp(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// errLeft: the person pressed the escape key.
var errLeft = errors.New("left")

// typed sends the input to the guest, up to the escape key where keys is true.
// It returns nil at the input's end.
func typed(to io.Writer, from io.Reader, keys bool) error {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		out := buf[:n]
		left := false
		if keys {
			for i, b := range out {
				if b == escapeKey {
					out, left = out[:i], true
					break
				}
			}
		}
		if len(out) > 0 {
			if _, werr := to.Write(out); werr != nil {
				return werr
			}
		}
		switch {
		case left:
			return errLeft
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
