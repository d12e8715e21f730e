package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/qmp"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu/stream"
)

// States of a migration (MigrationStatus of QEMU's qapi/migration.json).
const (
	migPreSwitchover = "pre-switchover"
	migCompleted     = "completed"
	migFailed        = "failed"
	migCancelled     = "cancelled"
	migCancelling    = "cancelling"
)

const (
	// unlimited is more than any bus carries, in bytes a second.
	unlimited = 1 << 40
	// quietDowntime is the pause, in milliseconds, below which the last of the RAM
	// is to be written, anyDowntime QEMU's largest.
	quietDowntime, anyDowntime = 50, 2_000_000
	// maxPasses is after how many passes over the RAM a guest that writes faster
	// than we do is stopped.
	maxPasses = 3
	// migrationSocket is how much we would like to be under way, in bytes.
	migrationSocket = 4 << 20
)

// migration is one of the machine into our hands.
type migration struct {
	m      *machine
	split  *stream.Splitter
	events *qmp.Subscription
	conn   net.Conn
	done   chan struct{} // closed when the stream has ended: then res and err are set
	res    stream.Result
	err    error

	pass             int       // over the RAM, the last one known of
	stopped, resumed time.Time // by QEMU's clock
	guestEnd         string    // what the guest did that ends it
}

// newMigration makes QEMU ready, and a reader of what it will send.
func (m *machine) newMigration(ctx context.Context, o stream.Options) (*migration, error) {
	if err := m.setCapabilities(ctx); err != nil {
		return nil, err
	}
	near, far, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = far.Close() }()
	g := &migration{m: m, split: stream.New(o), events: m.monitor().Subscribe(eventBuffer), conn: near, done: make(chan struct{})}
	if err := m.monitor().SendFile(ctx, "freeze", far); err != nil {
		g.events.Close()
		return nil, errors.Join(err, near.Close())
	}
	go func() {
		defer close(g.done)
		if g.res, g.err = g.split.Run(near); g.err != nil {
			_ = near.Close() // so that QEMU does not wait for us
		}
	}()
	return g, nil
}

// close ends the reader. One that the host's disk does not let go of is left alone:
// the machine is to go on.
func (g *migration) close() {
	_ = g.conn.Close()
	g.ended(readerGrace)
	g.events.Close()
}

// readerGrace is how long the reader may take to end when it is told to.
const readerGrace = 2 * time.Second

// ended waits for the reader's end and says whether it came.
func (g *migration) ended(within time.Duration) bool {
	select {
	case <-g.done:
		return true
	case <-time.After(within):
		return false
	}
}

func socketpair() (near net.Conn, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	for _, fd := range fds { // as much of it as we are allowed
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, migrationSocket)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, migrationSocket)
	}
	ours, far := os.NewFile(uintptr(fds[0]), "freeze"), os.NewFile(uintptr(fds[1]), "freeze")
	near, err = net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return near, far, nil
}

// capability is one of a migration's.
type capability struct {
	Name  string `json:"capability"`
	State bool   `json:"state"`
}

// setCapabilities makes the next migration one of plain pages that stops before
// its last step, whatever was asked for before.
func (m *machine) setCapabilities(ctx context.Context) error {
	var now []capability
	if err := m.execute(ctx, "query-migrate-capabilities", nil, &now); err != nil {
		return err
	}
	want := []capability{}
	for _, c := range now {
		on := c.Name == "pause-before-switchover" || c.Name == "events"
		if c.State != on {
			want = append(want, capability{c.Name, on})
		}
	}
	if len(want) == 0 {
		return nil
	}
	return m.execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": want}, nil)
}

// begin starts it. A guest that executes is not stopped before downtime is called.
func (g *migration) begin(ctx context.Context, live, pauses bool) error {
	downtime := anyDowntime
	if live {
		downtime = 0
	}
	if !pauses {
		off := []capability{{"pause-before-switchover", false}}
		if err := g.m.execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": off}, nil); err != nil {
			return err
		}
	}
	if err := g.downtime(ctx, downtime); err != nil {
		return err
	}
	err := g.m.execute(ctx, "migrate", map[string]string{"uri": "fd:freeze"}, nil)
	var refusal *qmp.Error
	if errors.As(err, &refusal) && (strings.Contains(refusal.Desc, "migratable") || strings.Contains(refusal.Desc, "disallowed") || strings.Contains(refusal.Desc, "blocked")) {
		return fmt.Errorf("%w: %s", vm.ErrNoFreeze, refusal.Desc)
	}
	return err
}

func (g *migration) downtime(ctx context.Context, ms int) error {
	return g.m.execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(unlimited), "downtime-limit": ms}, nil)
}

// note takes an event into account and returns the migration's new state and pass,
// if it tells of one.
func (g *migration) note(e qmp.Event) (status string, pass int) {
	switch e.Name {
	case "MIGRATION":
		var d struct {
			Status string `json:"status"`
		}
		if json.Unmarshal(e.Data, &d) == nil {
			return d.Status, 0
		}
	case "MIGRATION_PASS":
		var d struct {
			Pass int `json:"pass"`
		}
		if json.Unmarshal(e.Data, &d) == nil {
			g.pass = max(g.pass, d.Pass)
			return "", d.Pass
		}
	case "STOP":
		g.stopped = e.Time
	case "RESUME":
		g.resumed = e.Time
	case "SHUTDOWN", "GUEST_PANICKED":
		g.guestEnd = e.Name
	}
	return "", 0
}

// next waits for the next event, and for all that can end the migration. It returns
// nothing where the stream is complete: QEMU says so after that.
func (g *migration) next(ctx context.Context) (status string, pass int, err error) {
	done := g.done
	silence := time.NewTimer(askAfter)
	defer silence.Stop()
	select {
	case <-done:
		if g.err == nil { // the stream is complete: the event comes
			done = nil
		}
	default:
	}
	select {
	case e, open := <-g.events.Events():
		if !open {
			return "", 0, fmt.Errorf("the monitor is gone: %w", qmp.ErrClosed)
		}
		status, pass = g.note(e)
		if status == migFailed || status == migCancelled {
			return "", 0, g.failure(ctx)
		}
		return status, pass, nil
	case <-silence.C:
		return g.ask(ctx)
	case <-done:
		if g.err == nil {
			return "", 0, nil
		}
		return "", 0, g.failure(ctx)
	case <-g.m.proc.done:
		return "", 0, vm.ErrNotRunning
	case <-ctx.Done():
		return "", 0, context.Cause(ctx)
	}
}

// askAfter is how long no event may come before QEMU is asked: one may be lost, as a
// subscription holds so many only.
const askAfter = time.Second

// ask is next without an event.
func (g *migration) ask(ctx context.Context) (status string, pass int, err error) {
	var q struct {
		Status string `json:"status"`
		RAM    struct {
			Syncs int `json:"dirty-sync-count"` // what an event calls the pass
		} `json:"ram"`
	}
	if err := g.m.execute(ctx, "query-migrate", nil, &q); err != nil {
		return "", 0, err
	}
	if q.Status == migFailed || q.Status == migCancelled {
		return "", 0, g.failure(ctx)
	}
	if q.RAM.Syncs > g.pass { // one that is known already is not another one
		g.pass, pass = q.RAM.Syncs, q.RAM.Syncs
	}
	return q.Status, pass, nil
}

// failure says why a migration failed: our reader's reason, unless that is only that
// QEMU stopped sending; else QEMU's.
func (g *migration) failure(ctx context.Context) error {
	// Whoever failed first, the other one follows.
	_ = g.conn.SetReadDeadline(time.Now().Add(time.Second))
	switch {
	case !g.ended(readerGrace):
		return errors.New("the host's disk takes no more of the guest's RAM")
	case g.err == nil, errors.Is(g.err, io.ErrUnexpectedEOF), errors.Is(g.err, os.ErrDeadlineExceeded):
	default:
		return g.err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		var q struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := g.m.execute(ctx, "query-migrate", nil, &q); err != nil {
			return err
		}
		if q.Status == migFailed || q.Status == migCancelled {
			if q.Desc == "" {
				q.Desc = lastWords(g.m.dir)
			}
			return fmt.Errorf("QEMU ended the migration (%s): %s", q.Status, q.Desc)
		}
		if err := pause(ctx, tick); err != nil {
			return errors.Join(g.err, err)
		}
	}
}

// awaitSwitch returns when the guest is stopped and its images are not: between
// its last instruction and its devices' state. flush is called once, just before
// the guest may be stopped.
func (g *migration) awaitSwitch(ctx context.Context, live bool, flush func()) error {
	passes := 0
	for {
		status, pass, err := g.next(ctx)
		switch {
		case err != nil:
			return err
		case status == migPreSwitchover:
			return nil
		case !live || pass < 2:
			continue
		}
		switch passes++; {
		case passes == 1:
			flush()
			err = g.downtime(ctx, quietDowntime)
		case passes > maxPasses && g.stopped.IsZero():
			// It writes faster than we do. What is left is written while it is stopped.
			if err = g.m.execute(ctx, "stop", nil, nil); err == nil {
				err = g.downtime(ctx, anyDowntime)
			}
		}
		if err != nil {
			return err
		}
	}
}

// awaitEnd returns when all has been sent.
func (g *migration) awaitEnd(ctx context.Context) error {
	for {
		status, _, err := g.next(ctx)
		if err != nil {
			return err
		}
		if status == migCompleted {
			return nil
		}
	}
}

// alive says whether the guest is still one that can go on.
func (g *migration) alive() error {
	for {
		select {
		case e, open := <-g.events.Events():
			if !open {
				return fmt.Errorf("the monitor is gone: %w", qmp.ErrClosed)
			}
			g.note(e)
			continue
		default:
		}
		if g.guestEnd != "" {
			return fmt.Errorf("the guest ended meanwhile (%s)", strings.ToLower(g.guestEnd))
		}
		return nil
	}
}

// result waits for the rest of the stream, which QEMU has sent.
func (g *migration) result(ctx context.Context) (stream.Result, error) {
	select {
	case <-g.done:
		return g.res, g.err
	case <-ctx.Done():
		return stream.Result{}, context.Cause(ctx)
	}
}

// pause is how long the guest did not execute, by QEMU's clock.
func (g *migration) pause() time.Duration {
	for end := time.After(time.Second); g.resumed.Before(g.stopped) || g.resumed.IsZero(); {
		select {
		case e, open := <-g.events.Events():
			if !open {
				return 0
			}
			g.note(e)
		case <-end:
			return 0
		}
	}
	if g.stopped.IsZero() {
		return 0
	}
	return g.resumed.Sub(g.stopped)
}
