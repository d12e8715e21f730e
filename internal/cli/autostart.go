package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
)

func newAutostart(a *app) *cobra.Command {
	var disable bool
	cmd := &cobra.Command{
		Use:   "autostart NAME... [OPTIONS]",
		Short: "Start machines with the host",
		Long: `Start machines when the daemon starts for the first time after the host has. For
that the daemon itself must start with the host: enable laminad.service.

` + patternHelp,
		Example:           "  lamina autostart web\n  lamina autostart web --disable",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, list, err := a.selected(cmd.Context(), args)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), list, false, 8, func(ctx context.Context, m api.Machine) (api.Machine, error) {
				return m, c.Autostart(ctx, m.Name, !disable)
			})
		},
	}
	cmd.Flags().BoolVar(&disable, "disable", false, "start them no more by themselves")
	connectFlag(cmd, a)
	return cmd
}
