package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
)

func newRm(a *app) *cobra.Command {
	var force, disks bool
	cmd := &cobra.Command{
		Use:     "rm NAME... [OPTIONS]",
		Aliases: []string{"remove", "delete"},
		Short:   "Remove machines with their disks",
		Long: `Remove machines with all that is theirs: overlay, seed, logs. Their templates
stay. A running machine is only removed with --force, which switches it off.

A machine that ` + "`lamina install`" + ` made, or that is a libvirt's, has its disks where
a person put them: they stay, unless --remove-disks says otherwise. A disk that
another machine needs is never removed.

` + patternHelp,
		Example:           "  lamina rm web\n  lamina rm -f 'w-*'\n  lamina rm centos --remove-disks",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rm(cmd.Context(), args, force, disks)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also running machines")
	cmd.Flags().BoolVar(&disks, "remove-disks", false, "also the writable disk images that lie elsewhere")
	connectFlag(cmd, a)
	return cmd
}

func (a *app) rm(ctx context.Context, patterns []string, force, disks bool) error {
	c, list, err := a.selected(ctx, patterns)
	if err != nil {
		return err
	}
	return a.each(ctx, list, false, 8, func(ctx context.Context, m api.Machine) (api.Machine, error) {
		if disks {
			f := a.follow(m.Name)
			defer f.end()
			return m, c.RemoveDisks(ctx, m.Name, force, named(m.Name, f.event))
		}
		return m, c.Remove(ctx, m.Name, force)
	})
}
