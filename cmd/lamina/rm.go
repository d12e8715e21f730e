package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
)

func newRm(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "rm NAME... [OPTIONS]",
		Aliases: []string{"remove", "delete"},
		Short:   "Remove machines with their disks",
		Long: `Remove machines with all that is theirs: overlay, seed, logs. Their templates
stay. A running machine is only removed with --force, which switches it off.

` + patternHelp,
		Example:           "  lamina rm web\n  lamina rm -f 'w-*'",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rm(cmd.Context(), args, force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also running machines")
	return cmd
}

func (a *app) rm(ctx context.Context, patterns []string, force bool) error {
	c, list, err := a.selected(ctx, patterns)
	if err != nil {
		return err
	}
	return a.each(ctx, list, false, 8, func(ctx context.Context, m api.Machine) (api.Machine, error) {
		return m, c.Remove(ctx, m.Name, force)
	})
}
