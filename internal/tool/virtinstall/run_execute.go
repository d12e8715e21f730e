package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// runner is the part of a host that runs machines.
type runner interface {
	// create makes a machine and starts it. What it has made when it fails is
	// in u.
	create(ctx context.Context, o making, u *undo) (instance, error)
	// check says what create would refuse in the documents of a machine, and
	// warns of what is done in another way than they say. It changes nothing,
	// and may be called before the disks exist.
	check(g *guest, docs ...*domxml.Element) error
}

// making is what a runner is asked for.
type making struct {
	g *guest
	// first is the document of the install phase, nil where there is none.
	first, final *domxml.Element
	staged       []string // files that only the first run needs
	transient    bool
	reinstall    bool // the definition is there, and stays as it is
	autostart    bool
	noRestart    bool // it stays off when the install phase is over
	ephemeral    bool // it ends with this process
	// again: the machine is there, and stays as it is defined (--reinstall).
	again bool
}

// ending is how a machine's run ended.
type ending int

const (
	endedByGuest ending = iota // it switched itself off, or rebooted in the install phase
	endedByUser                // it was killed
	endedBadly
)

// instance is a machine that was made here.
type instance interface {
	// waitEnd waits until the run, or the install phase, is over.
	waitEnd(ctx context.Context) (ending, error)
	running(ctx context.Context) (bool, error)
	// restart starts the machine after its install phase.
	restart(ctx context.Context) error
	// console opens the text console.
	console(ctx context.Context) (io.ReadWriteCloser, error)
	// follow waits for the login prompt where the runner knows of it, and says
	// how the machine is reached.
	follow(ctx context.Context) error
	destroy(ctx context.Context) error
	// startCommand is how a person starts it.
	startCommand() string
}

// progress says what is being done.
func (g *guest) progress(format string, args ...any) { g.say("%-60s", fmt.Sprintf(format, args...)) }

// debug says what is done and how, with --debug.
func (g *guest) debug(format string, args ...any) {
	if g.args.has("debug") {
		_, _ = fmt.Fprintf(g.std.Err, "[%s virt-install] DEBUG %s\n", time.Now().Format(time.RFC1123), fmt.Sprintf(format, args...))
	}
}

// execute makes the machine, and stays with it as the command line says.
// Nothing is left of a machine that does not come to run.
func execute(ctx context.Context, g *guest, in *installation) error {
	e, err := newExecution(ctx, g, in)
	if err != nil {
		return err
	}
	machine, err := e.make(ctx)
	var left *leftError
	switch {
	case errors.As(err, &left):
		return err
	case err != nil && ctx.Err() != nil:
		return errors.New("Installation aborted at user request; nothing was kept")
	case err != nil:
		return err
	}
	if e.order.ephemeral {
		defer func() {
			ctx, cancel := undoContext()
			defer cancel()
			_ = machine.destroy(ctx) // it may have ended by itself
		}()
	}
	err = e.stay(ctx, machine)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("Installation aborted at user request; the machine goes on")
	}
	return err
}

// execution is one run of execute.
type execution struct {
	g       *guest
	in      *installation
	order   making
	console string        // "text", "graphical", "none"
	wait    time.Duration // negative: as long as it takes; 0: not at all
	waits   bool
}

func newExecution(ctx context.Context, g *guest, in *installation) (*execution, error) {
	first, final, err := g.documents(ctx, in)
	if err != nil {
		return nil, err
	}
	g.warnDrivers(final)
	docs := []*domxml.Element{final}
	if first != nil {
		docs = append(docs, first)
	}
	a := g.args
	e := &execution{g: g, in: in, order: making{g: g, first: first, final: final, staged: in.paths(), transient: a.has("transient"), reinstall: a.has("reinstall"),
		autostart: a.has("autostart"), noRestart: a.has("noreboot"), ephemeral: a.has("destroy-on-exit"), again: a.has("reinstall")}}
	if e.order.transient && e.order.autostart {
		return nil, errors.New("--autostart and --transient exclude each other: a transient machine is gone when it stops")
	}
	if text, ok := a.last("wait"); ok {
		minutes, err := strconv.ParseInt(strings.TrimSpace(text), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--wait %s: it is a number of minutes", text)
		}
		e.waits, e.wait = minutes != 0, time.Duration(minutes)*time.Minute
	}
	if e.console, err = g.chooseConsole(); err != nil {
		return nil, err
	}
	name := g.dom.Get("name")
	there, err := g.host.domain(ctx, name)
	if err != nil {
		return nil, err
	}
	if there != nil && !a.has("reinstall") {
		return nil, fmt.Errorf("Guest name '%s' is already in use.", name)
	}
	if err := g.host.check(g, docs...); err != nil {
		return nil, err
	}
	if err := g.secureGraphics(docs...); err != nil {
		return nil, err
	}
	return e, nil
}

// make makes the storage and the machine.
func (e *execution) make(ctx context.Context) (machine instance, err error) {
	var disks, files, domain undo
	defer func() {
		if err != nil {
			err = takeBack(err, &domain, &files, &disks)
		}
		for _, u := range []*undo{&domain, &files, &disks} {
			u.finish()
		}
	}()
	e.g.say("\nStarting install...")
	if e.in.cloud != nil {
		e.in.cloud.tell(e.g)
	}
	if err := e.in.makeStaged(ctx, &files); err != nil {
		return nil, err
	}
	if err := e.g.createDisks(ctx, &disks); err != nil {
		return nil, err
	}
	e.g.debug("install phase: %v\n%s", e.order.first != nil, document(e.order.final))
	e.g.progress("Creating domain...")
	machine, err = e.g.host.create(ctx, e.order, &domain)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if e.g.host.libvirtConn() != nil && e.order.first != nil {
		// The machine has loaded its kernel and holds its discs open. Without an
		// install phase the definition names them, and they stay.
		if err := files.run(); err != nil {
			e.g.warn("%v", err)
		}
	}
	disks.keep()
	files.keep()
	domain.keep()
	return machine, nil
}

// takeBack takes back what was made for a machine that came to nothing, and
// returns why, with what is left. While the machine itself may be there, all that
// it may use stays.
func takeBack(why error, domain, files, disks *undo) error {
	if err := domain.run(); err != nil {
		files.keep()
		disks.keep()
		return &leftError{fmt.Errorf("%w\nnot taken back, and its new disks and files are kept: %w", why, err)}
	}
	if err := errors.Join(files.run(), disks.run()); err != nil {
		return &leftError{fmt.Errorf("%w\nnot taken back: %w", why, err)}
	}
	return why
}

// leftError: something is left of what was made.
type leftError struct{ error }

func (e *leftError) Unwrap() error { return e.error }

// chooseConsole decides which console is shown.
func (g *guest) chooseConsole() (string, error) {
	text, ok := g.args.last("autoconsole")
	switch text {
	case "none", "text", "graphical":
		return text, nil
	case "", "default":
	default:
		return "", fmt.Errorf("--autoconsole %s: it is one of default, text, graphical, none", text)
	}
	if ok && text == "" {
		return "", errors.New("--autoconsole: it is one of default, text, graphical, none")
	}
	if slices.ContainsFunc(g.devices("graphics"), func(el *domxml.Element) bool { return el.Attr("type") != "" && el.Attr("type") != "none" }) {
		return "graphical", nil
	}
	if len(g.devices("console")) > 0 || len(g.devices("serial")) > 0 {
		return "text", nil
	}
	return "none", nil
}

// stay does what is left after the start: the console, waiting, the restart
// when the install phase is over.
func (e *execution) stay(ctx context.Context, m instance) error {
	shown, err := e.show(ctx, m)
	if err != nil {
		return err
	}
	running, err := m.running(ctx)
	if err != nil {
		return err
	}
	if running && !e.waits {
		switch {
		case shown && e.order.first == nil, e.order.first == nil:
			e.g.say("Domain creation completed.")
			return m.follow(ctx)
		default:
			e.g.say("\nDomain is still running. Installation may be in progress.\nYou can reconnect to the console to complete the installation process.")
			return m.follow(ctx)
		}
	}
	if running {
		e.sayWaiting()
	}
	how, err := e.waitFor(ctx, m)
	if err != nil {
		return err
	}
	if running {
		e.g.say("Domain has shutdown. Continuing.")
	}
	return e.finish(ctx, m, how)
}

func (e *execution) sayWaiting() {
	text := "Waiting for the installation to complete."
	if e.wait > 0 {
		n := int(e.wait / time.Minute)
		text = fmt.Sprintf("Waiting %d minute%s for the installation to complete.", n, map[bool]string{false: "s"}[n == 1])
	}
	e.g.say("\nDomain is still running. Installation may be in progress.\n%s", text)
}

// waitFor waits for the end of the run, or of --wait.
func (e *execution) waitFor(ctx context.Context, m instance) (ending, error) {
	if e.wait <= 0 {
		return m.waitEnd(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, e.wait)
	defer cancel()
	how, err := m.waitEnd(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return how, errors.New("Installation has exceeded specified time limit. Exiting application.")
	}
	return how, err
}

// finish is what follows the end of the first run.
func (e *execution) finish(ctx context.Context, m instance, how ending) error {
	if how == endedBadly {
		return errors.New("Domain has crashed.")
	}
	e.g.say("Domain creation completed.")
	switch {
	case e.order.first == nil || e.order.noRestart || e.order.transient:
		if !e.order.transient {
			e.g.say("You can restart your domain by running:\n  %s", m.startCommand())
		}
		return nil
	case how == endedByUser:
		e.g.say("User stopped the VM. Not rebooting.")
		return nil
	}
	e.g.say("Restarting guest.")
	if err := m.restart(ctx); err != nil {
		return err
	}
	if e.console == "text" && !e.waits {
		_, err := e.show(ctx, m)
		return err
	}
	return m.follow(ctx)
}
