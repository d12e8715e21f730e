package virtctl

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
	"github.com/lamina-vm/lamina/internal/vm/screen"
)

// Console opens the domain's first console; one that another client has is not
// taken from it.
func (v *Machines) Console(ctx context.Context, name string) (io.ReadWriteCloser, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	c, err := d.OpenConsole(ctx, "", false)
	if err != nil {
		return nil, refusal(err)
	}
	return c, nil
}

// Screen returns the screen as "text" or as "png". Reading the text goes by
// QEMU's monitor, of which libvirt notes that somebody used it.
func (v *Machines) Screen(ctx context.Context, name, format string) ([]byte, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if format == "png" {
		picture, err := d.Screenshot(ctx)
		if err != nil {
			return nil, refusal(err)
		}
		return picture.PNG()
	}
	lines, err := screen.Text(
		func() (screen.Picture, error) { return d.Screenshot(ctx) },
		func(command string) (string, error) { return d.MonitorCommand(ctx, command, true) })
	if err != nil {
		return nil, refusal(err)
	}
	if lines == nil {
		return nil, api.Errorf(api.CodeInvalid, "the screen of %s is not in a text mode: ask for a picture (--png)", name)
	}
	return []byte(strings.Join(lines, "\n") + "\n"), nil
}

// Log opens the log of the domain's serial port, where its document has one.
func (v *Machines) Log(ctx context.Context, name string, follow bool, tail int) (io.ReadCloser, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	root, err := document(ctx, d, false)
	if err != nil {
		return nil, refusal(err)
	}
	path := ""
	for _, kind := range []string{"serial", "console"} {
		for _, e := range root.Child("devices").All(kind) {
			if path == "" {
				path = e.Get("./log/@file")
			}
		}
	}
	if path == "" {
		return nil, api.Errorf(api.CodeInvalid, "machine %s keeps no log of its serial port: give it one (--serial pty,log.file=PATH), or look at `lamina console`", name)
	}
	if err := v.local("the log " + path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := seekTail(f, tail); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !follow {
		return f, nil
	}
	ended, err := v.stopped(ctx, d)
	if err != nil {
		return nil, errors.Join(refusal(err), f.Close())
	}
	return &follower{f: f, ctx: ctx, ended: ended}, nil
}

// stopped returns a channel that is closed when a domain does not run (any
// more).
func (v *Machines) stopped(ctx context.Context, d *libvirt.Domain) (<-chan struct{}, error) {
	ended := make(chan struct{})
	watch, err := v.watch(ctx, d)
	if err != nil {
		return nil, err
	}
	state, _, err := d.State(ctx)
	if err != nil || !state.Active() {
		watch.end()
		close(ended)
		return ended, err
	}
	go func() {
		defer watch.end()
		_, _ = watch.WaitStopped(ctx) // its end is all that matters
		close(ended)
	}()
	return ended, nil
}

// seekTail puts a file at where its last lines begin; all for negative ones.
func seekTail(f *os.File, lines int) error {
	if lines < 0 {
		return nil
	}
	off, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for first := true; off > 0 && lines > 0; first = false {
		n := min(int64(len(buf)), off)
		if _, err := f.ReadAt(buf[:n], off-n); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		part := buf[:n]
		if first && part[n-1] == '\n' {
			part = part[:n-1] // ends the last line, begins none
		}
		for i := len(part) - 1; i >= 0; i-- {
			if part[i] == '\n' {
				if lines--; lines == 0 {
					_, err := f.Seek(off-n+int64(i)+1, io.SeekStart)
					return err
				}
			}
		}
		off -= n
	}
	_, err = f.Seek(off, io.SeekStart)
	return err
}

// follower reads a file that grows until the domain has stopped.
type follower struct {
	f     *os.File
	ctx   context.Context
	ended <-chan struct{}
	last  bool
}

const pollLog = 100 * time.Millisecond

func (r *follower) Read(p []byte) (int, error) {
	for {
		n, err := r.f.Read(p)
		if n > 0 || err != nil && err != io.EOF || r.last {
			return n, err
		}
		select {
		case <-r.ended:
			r.last = true // what came between the look and the end
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-time.After(pollLog):
		}
	}
}

func (r *follower) Close() error { return r.f.Close() }
