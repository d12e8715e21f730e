package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

func (h *plainHost) libvirtConn() *libvirt.Conn { return nil }

// imageDir is the home's folder for disks without a path.
func (h *plainHost) imageDir() string {
	at, err := home.Find()
	if err != nil {
		return "" // the daemon says what is wrong with it
	}
	return at.Images()
}

// daemon returns the client of a daemon, which is started if none runs.
func (h *plainHost) daemon(ctx context.Context) (*client.Client, error) {
	at, err := home.Find()
	if err != nil {
		return nil, err
	}
	return client.Connect(ctx, at)
}

// diskUsers asks the daemon, but starts none: what nobody runs is used by
// nobody now, and the daemon looks again before it starts a machine.
func (h *plainHost) diskUsers(ctx context.Context, users map[string][]string) error {
	at, err := home.Find()
	if err != nil {
		return err
	}
	all, err := client.New(at).Machines(ctx)
	if errors.Is(err, client.ErrNoDaemon) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range all {
		for _, d := range m.Spec.Disks {
			if d.Path != "" && !slices.Contains(users[d.Path], m.Name) {
				users[d.Path] = append(users[d.Path], m.Name)
			}
		}
	}
	return nil
}

// create hands the machine to the daemon.
func (h *plainHost) create(ctx context.Context, o making, u *undo) (instance, error) {
	req := api.DefineRequest{Start: true, NoWait: true, Transient: o.transient, Autostart: o.autostart}
	var err error
	if req.Spec, err = h.spec(o.g, o.final); err != nil {
		return nil, err
	}
	if o.first == nil {
		req.Owned = o.staged // the seed stays in its drive
	} else {
		first, err := h.spec(o.g, o.first)
		if err != nil {
			return nil, err
		}
		req.Install = &api.Install{Spec: first, Owned: o.staged, NoRestart: o.noRestart}
	}
	c, err := h.daemon(ctx)
	if err != nil {
		return nil, err
	}
	// Before it is asked for: the daemon goes on with a start that nobody waits
	// for any more.
	u.add(func() error { return h.takeBack(req.Spec) })
	m, err := c.Define(ctx, req, o.g.event)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeExists {
		u.keep() // that one is not ours
	}
	if err != nil {
		return nil, err
	}
	return &plainMachine{g: o.g, c: c, name: m.Name, twoPhases: o.first != nil, quiet: o.g.chosenConsole() == "none"}, nil
}

// takeBack removes the machine that was made of a spec, if it is there. It waits
// for a start that is under way, and nothing of it runs when it returns nil.
func (h *plainHost) takeBack(spec vm.Spec) error {
	ctx, cancel := undoContext()
	defer cancel()
	err := func() error {
		c, err := h.daemon(ctx)
		if err != nil {
			return err
		}
		m, err := c.Machine(ctx, spec.Name)
		if err == nil && m.Spec.UUID == spec.UUID {
			err = c.Remove(ctx, spec.Name, true)
		}
		return err
	}()
	var refused *api.Error
	if err == nil || errors.As(err, &refused) && refused.Code == api.CodeNotFound {
		return nil
	}
	return fmt.Errorf("machine %s may be there still and run; `lamina rm -f %s` removes it: %w", spec.Name, spec.Name, err)
}

// event shows what the daemon tells.
func (g *guest) event(e api.Event) {
	switch {
	case e.Warning != "":
		g.warn("%s", e.Warning)
	case e.Text != "":
		g.debug("%s: %s", e.Step, e.Text)
	}
}

// chosenConsole is chooseConsole for an option that was checked.
func (g *guest) chosenConsole() string {
	c, err := g.chooseConsole()
	if err != nil {
		return "none"
	}
	return c
}

// plainMachine is a machine of the daemon's.
type plainMachine struct {
	g         *guest
	c         *client.Client
	name      string
	twoPhases bool
	quiet     bool // --noautoconsole: nobody waits for the login prompt
}

func (m *plainMachine) waitEnd(ctx context.Context) (ending, error) {
	what := api.WaitEnd
	if m.twoPhases {
		what = api.WaitInstalled
	}
	state, err := m.c.Wait(ctx, m.name, what)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeNotFound {
		return endedByGuest, nil // a transient one that has gone
	}
	if err != nil {
		return endedBadly, err
	}
	switch {
	case m.twoPhases && state.Definition != nil && state.Definition.Phase == api.Installed:
		return endedByGuest, nil
	case state.Exit == nil:
		return endedByGuest, nil
	case state.Exit.Cause == vm.CauseShutdown || state.Exit.Cause == vm.CauseReset:
		return endedByGuest, nil
	case state.Exit.Cause == vm.CauseKilled:
		return endedByUser, nil
	}
	return endedBadly, nil
}

func (m *plainMachine) running(ctx context.Context) (bool, error) {
	state, err := m.c.Machine(ctx, m.name)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Code == api.CodeNotFound {
		return false, nil
	}
	return state.State != api.Stopped && state.State != api.Crashed && state.State != api.Defined, err
}

// restart has been done by the daemon, which also does it when nobody waits.
func (m *plainMachine) restart(context.Context) error { return nil }

func (m *plainMachine) console(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.c.Console(ctx, m.name)
}

// follow waits for the login prompt, unless nobody wants to, and says how the
// machine is reached.
func (m *plainMachine) follow(ctx context.Context) error {
	if !m.quiet && !m.twoPhases {
		err := m.c.Boot(ctx, m.name, m.g.event)
		if err == nil {
			m.g.say("%s is at its login prompt.", m.name)
		} else if err = m.withoutLogin(ctx, err); err != nil {
			return err
		}
	}
	m.g.say("Reach it by: lamina console %s", m.name)
	state, err := m.c.Machine(ctx, m.name)
	if err != nil {
		return err
	}
	if state.SSHPort != 0 {
		m.g.say("             lamina ssh %s", m.name)
	}
	for _, d := range state.Spec.Displays {
		if d.Type == vm.DisplayVNC {
			m.g.say("      screen: lamina screen %s, or a VNC viewer on %s", m.name, vncAddress(state))
		}
	}
	return nil
}

// vncAddress is where a machine's VNC server listens.
func vncAddress(m api.Machine) string {
	if m.Run != nil && m.Run.VNC != "" {
		return m.Run.VNC
	}
	return filepath.Join(m.Dir, home.VNCSocket)
}

// withoutLogin is no error, but a warning, where the machine runs and only its
// login prompt is not seen: Windows and a desktop show none that can be read,
// and the machine was made as asked for.
func (m *plainMachine) withoutLogin(ctx context.Context, err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeBoot {
		return err
	}
	running, stateErr := m.running(ctx)
	if stateErr != nil || !running {
		return errors.Join(err, stateErr)
	}
	m.g.warn("%v", err)
	return nil
}

func (m *plainMachine) destroy(ctx context.Context) error {
	_, err := m.c.Stop(ctx, m.name, api.StopRequest{Force: true}, nil)
	return err
}

func (m *plainMachine) startCommand() string { return fmt.Sprintf("lamina start %s", m.name) }
