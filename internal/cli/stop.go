package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
)

// newKill is stop --force under the name that people know.
func newKill(a *app) *cobra.Command {
	o := stopOptions{force: true}
	cmd := &cobra.Command{
		Use:     "kill NAME... [OPTIONS]",
		Aliases: []string{"destroy"},
		Short:   "Switch machines off at once",
		Long: `Switch machines off at once, as ` + "`lamina stop --force`" + ` does. The machines and their
disks stay; what a guest had only in its memory is lost.

` + patternHelp,
		Example:           "  lamina kill web",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	connectFlag(cmd, a)
	return cmd
}

type stopOptions struct {
	force   bool
	timeout time.Duration
	json    bool
}

func newStop(a *app) *cobra.Command {
	var o stopOptions
	cmd := &cobra.Command{
		Use:   "stop NAME... [OPTIONS]",
		Short: "Stop machines",
		Long: `Press the power button of machines and wait until they are off. A guest that does
not react is switched off after --timeout. What a guest has written to its disk
is kept, also with --force; what it had only in its memory is lost with --force.
A machine that is paused for lack of space shuts down when it goes on, and is
switched off if there is no space within --timeout.

` + patternHelp,
		Example:           "  lamina stop web\n  lamina stop 'w-*' --force",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "switch off at once")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "switch off after `TIME` (default 60s)")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	connectFlag(cmd, a)
	return cmd
}

func (o *stopOptions) run(ctx context.Context, a *app, patterns []string) error {
	if o.timeout < 0 {
		return usagef("--timeout %s: it cannot be negative", o.timeout)
	}
	c, list, err := a.selected(ctx, patterns)
	if err != nil {
		return err
	}
	req := api.StopRequest{Force: o.force, Timeout: o.timeout}
	return a.each(ctx, list, o.json, 16, func(ctx context.Context, m api.Machine) (api.Machine, error) {
		// Also where it does not seem to run: it may be starting, or have
		// a process that the daemon cannot reach.
		off := m.Run == nil && m.State != api.Starting
		f := a.follow(m.Name)
		got, err := c.Stop(ctx, m.Name, req, named(m.Name, f.event))
		f.end()
		switch {
		case err != nil:
		case off:
			a.note("%s is not running", m.Name)
		case !o.json:
			err = a.printf("%s is %s\n", got.Name, got.State)
		}
		return got, err
	})
}
