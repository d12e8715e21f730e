package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

type logsOptions struct {
	follow bool
	lines  int
}

func newLogs(a *app) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs NAME [OPTIONS]",
		Short: "Print what a machine wrote to its serial port",
		Long: `Print what the machine wrote to its serial port, from its first byte, as it is.
The log of a stopped machine is that of its last run.`,
		Example:           "  lamina logs web\n  lamina logs web -f -n 20",
		Args:              words("NAME"),
		ValidArgsFunction: completeMachines(a, false),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what comes until the machine ends")
	cmd.Flags().IntVarP(&o.lines, "lines", "n", -1, "only the last `N` lines")
	connectFlag(cmd, a)
	return cmd
}

func (o *logsOptions) run(ctx context.Context, a *app, name string) error {
	if o.lines < -1 {
		return usagef("--lines %d: it cannot be negative", o.lines)
	}
	c, err := a.backend(ctx)
	if err != nil {
		return err
	}
	log, err := c.Log(ctx, name, o.follow, o.lines)
	if err != nil {
		return machineHint(ctx, c, name, err)
	}
	defer func() { _ = log.Close() }()
	_, err = io.Copy(a.stdout, log)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("log of %s: %w", name, err)
	}
	return nil // Ctrl-C is how following ends
}
