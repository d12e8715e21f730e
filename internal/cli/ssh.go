package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
)

type sshOptions struct {
	identity string
	user     string
	wait     time.Duration
	tty      bool
	print    bool
}

func newSSH(a *app) *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:   "ssh NAME [OPTIONS] [-- COMMAND...]",
		Short: "Log in to a machine, or run a command in it",
		Long: `Run the system's ssh client with the machine's port, user, host keys and SSH key.
The exit status is the command's. As with ssh, the words of COMMAND are joined
by spaces and read by the guest's shell.

The keys that are tried: --identity alone if given, else the key of this home
and your ~/.ssh/id_*. Your known_hosts and ssh configuration are not used: each
machine's host keys are kept in its own folder and go with it.

The user is --user, else the one that the machine was made with or that the
image is known for, else the one that the guest names when root knocks.

A machine that is still booting is waited for. --print shows the command line
in place of running it: what scp and others need to know is in it.`,
		Example:           "  lamina ssh web\n  lamina ssh web --print\n  lamina ssh web -- uname -a\n  lamina ssh web -i ~/.ssh/lab -l admin -- 'df -h | tail -1'",
		ValidArgsFunction: completeMachines(a, false),
		Args: func(cmd *cobra.Command, args []string) error {
			before := cmd.ArgsLenAtDash()
			if before < 0 {
				before = len(args)
			}
			switch {
			case before == 0:
				return errors.New("ssh: the name of a machine is missing")
			case before > 1:
				return fmt.Errorf("ssh: one name, and -- before the command: lamina ssh %s -- %s", args[0], pasted(args[1:]))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0], args[1:]) },
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.identity, "identity", "i", "", "private key `FILE`")
	fs.StringVarP(&o.user, "user", "l", "", "`USER` to log in as (default the machine's)")
	fs.DurationVar(&o.wait, "wait", 2*time.Minute, "how long to wait for the guest's SSH server, `TIME`; 0 for not at all")
	fs.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVar(&o.print, "print", false, "print the command line of ssh, for a shell, in place of running it")
	quietFlag(cmd, a)
	ownOnly(cmd, a, "log in at the address that `virsh domifaddr` shows, or use `lamina console --connect URI`")
	return cmd
}

func (o *sshOptions) run(ctx context.Context, a *app, name string, command []string) error {
	if o.wait < 0 {
		return usagef("--wait %s: it cannot be negative", o.wait)
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return errors.New("ssh is not installed: install the package openssh-client, or use `lamina console`")
	}
	if o.identity != "" {
		if _, err := os.Stat(o.identity); err != nil {
			return fmt.Errorf("--identity: %w", err)
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	m, err := c.Machine(ctx, name)
	if err != nil {
		return machineHint(ctx, c, name, err)
	}
	switch {
	case m.Run == nil:
		return fmt.Errorf("%s is %s; start it: lamina start %s", name, m.State, name)
	case m.SSHPort == 0:
		return fmt.Errorf("%s has no port for SSH; use `lamina console %s`", name, name)
	}
	if o.wait > 0 {
		if err := a.awaitSSH(ctx, c, m, o.wait); err != nil {
			return err
		}
	}
	h, err := home.Find()
	if err != nil {
		return err
	}
	argv := o.argv(m, o.sshUser(ctx, a, program, m, h), h, command)
	if o.print {
		return a.printf("%s\n", shellLine(argv))
	}
	a.display.Close()
	return fmt.Errorf("run %s: %w", program, syscall.Exec(program, argv, os.Environ()))
}

// argv is the command line of the ssh client.
func (o *sshOptions) argv(m api.Machine, user string, h home.Home, command []string) []string {
	argv := []string{"ssh", "-F", "none", "-p", strconv.Itoa(m.SSHPort)}
	option := func(name, value string) { argv = append(argv, "-o", name+"="+value) }
	// Spaces are allowed in a home's name, so the values are quoted.
	option("UserKnownHostsFile", quote(filepath.Join(m.Dir, home.KnownHosts)))
	option("GlobalKnownHostsFile", "/dev/null")
	option("HostKeyAlias", "lamina-"+m.ID)
	option("StrictHostKeyChecking", "accept-new")
	option("CheckHostIP", "no")
	option("LogLevel", "ERROR")
	option("IdentitiesOnly", "yes")
	for _, k := range o.identities(h) {
		option("IdentityFile", quote(k))
	}
	if o.tty {
		argv = append(argv, "-t")
	}
	argv = append(argv, "-l", user, "127.0.0.1")
	if len(command) > 0 {
		argv = append(append(argv, "--"), command...)
	}
	return argv
}

// identities are the private keys to try. They are named one by one, since a
// server gives up after some keys and an agent may hold many.
func (o *sshOptions) identities(h home.Home) []string {
	if o.identity != "" {
		return []string{o.identity}
	}
	var keys []string
	if _, err := os.Stat(h.Key()); err == nil {
		keys = append(keys, h.Key())
	}
	dir, err := os.UserHomeDir()
	if err != nil {
		return keys
	}
	pubs, err := filepath.Glob(filepath.Join(dir, ".ssh", "id_*.pub"))
	if err != nil {
		return keys
	}
	for _, p := range pubs {
		keys = append(keys, strings.TrimSuffix(p, ".pub"))
	}
	return keys
}

// shellLine is a command line as a shell reads it.
func shellLine(argv []string) string {
	out := make([]string, len(argv))
	for i, w := range argv {
		if out[i] = w; w == "" || strings.IndexFunc(w, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./:=@%+,", r)
		}) >= 0 {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// quote makes one word of an option's value, whose % signs ssh would expand.
func quote(s string) string {
	return `"` + strings.ReplaceAll(s, "%", "%%") + `"`
}

// pasted are words as a shell has to be given them.
func pasted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`|&;<>()*?[]{}!#~") {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// awaitSSH waits until the guest's SSH server greets. QEMU's user network
// accepts a connection before the guest does, so only the greeting counts.
func (a *app) awaitSSH(ctx context.Context, c *client.Client, m api.Machine, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var task interface {
		Stage(string)
		Done(string)
	}
	stage := ""
	for begun := time.Now(); ; {
		if greets(ctx, m.SSHPort) {
			if task != nil {
				task.Done("")
			}
			return nil
		}
		if task == nil && time.Since(begun) > time.Second && !a.quiet {
			task = a.display.Task(m.Name)
		}
		now, err := c.Machine(ctx, m.Name)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			return err
		case now.Run == nil:
			return fmt.Errorf("%s has ended while its SSH server was waited for: it is %s", m.Name, now.State)
		default:
			stage = stateText(now)
		}
		if task != nil {
			task.Stage("waiting for its SSH server; it is " + stage)
		}
		select {
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errInterrupted) {
				return errInterrupted
			}
			return fmt.Errorf("%s: its SSH server does not answer after %s; the machine is %s. Look at it with `lamina console %s`, or wait longer with --wait",
				m.Name, limit, stage, m.Name)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// greets says whether an SSH server answers on a port of this host.
func greets(ctx context.Context, port int) bool {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	// Under TCG a server may take seconds to greet.
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.HasPrefix(line, "SSH-")
}
