package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/progress"
)

func newCommit(a *app) *cobra.Command {
	var req api.CommitRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "commit MACHINE [NAME] [OPTIONS]",
		Short: "Make a machine's layer a template",
		Long: `Make the layer of a stopped machine a template, over which the machine goes on
with an empty layer. It takes no time and no space: nothing is copied. With --move
NAME may be the machine's old template's, which makes this its next version:
machines that were made of the old one stay with that.

The template holds what the machine is: its keys and its machine-id too.
` + "`lamina template create --generalise`" + ` makes one without.`,
		Example: "  lamina commit web web-v2\n  lamina commit web web-template --move",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return words("MACHINE")(cmd, args)
		},
		ValidArgsFunction: completeMachines(a, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				req.Name = args[1]
			}
			return a.commit(cmd.Context(), args[0], req, asJSON)
		},
	}
	cmd.Flags().BoolVar(&req.Move, "move", false, "take the name from another template that has it")
	jsonFlag(cmd, &asJSON)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "a libvirt's disks are committed by `lamina img commit`")
	return cmd
}

func (a *app) commit(ctx context.Context, machine string, req api.CommitRequest, asJSON bool) error {
	if req.Name == "" && req.Move {
		return usagef("--move takes a name from another template: give the NAME")
	}
	if req.Name != "" {
		if err := names.CheckTemplate(req.Name); err != nil {
			return usageError{err}
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(machine)
	t, err := c.Commit(ctx, machine, req, f.event)
	f.end()
	if err != nil {
		return machineHint(ctx, c, machine, err)
	}
	return a.madeTemplate(t, machine, asJSON)
}

func newFlatten(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "flatten NAME... [OPTIONS]",
		Short: "Give machines disks of their own",
		Long: `Copy into the disks of machines all that they read of their templates, so that
they need none any more. A running machine goes on meanwhile. One that is broken
off (Ctrl-C) leaves the disk as good as it was, and goes on where it was the next
time.

` + patternHelp,
		Example:           "  lamina flatten web\n  lamina flatten 'w-*'",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.flatten(cmd.Context(), args, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "a libvirt's disks are made whole by `lamina img convert`")
	return cmd
}

func (a *app) flatten(ctx context.Context, patterns []string, asJSON bool) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	list, err := selectMachines(ctx, c, patterns)
	if err != nil {
		return err
	}
	// Two at once: more only makes the host's disk seek.
	return a.each(ctx, list, asJSON, 2, func(ctx context.Context, m api.Machine) (api.Machine, error) {
		f := a.follow(m.Name)
		got, err := c.Flatten(ctx, m.Name, named(m.Name, f.event))
		f.end()
		if err == nil && !asJSON {
			err = a.printf("%s: a disk of its own, %s\n", got.Name, progress.Bytes(got.DiskSize))
		}
		return got, err
	})
}

func newRebase(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rebase MACHINE TEMPLATE [OPTIONS]",
		Short: "Put a machine over another template",
		Long: `Put a stopped machine over another template. What its guest sees stays the same,
byte for byte: what differs between the old template and the new one is kept in
the machine's own layer. It saves space where the new template has what the
machine has written itself, or where the old one can go.`,
		Example:           "  lamina rebase web web-v2",
		Args:              words("MACHINE", "TEMPLATE"),
		ValidArgsFunction: completeRebase(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rebase(cmd.Context(), args[0], args[1], asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "a libvirt's disks are rebased by `lamina img rebase`")
	return cmd
}

func completeRebase(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return completeTemplates(a, false, true)(cmd, args, word)
		}
		return completeMachines(a, false)(cmd, args, word)
	}
}

func (a *app) rebase(ctx context.Context, machine, template string, asJSON bool) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(machine)
	m, err := c.Rebase(ctx, machine, api.RebaseRequest{Template: template}, f.event)
	f.end()
	if err != nil {
		return machineHint(ctx, c, machine, err)
	}
	if asJSON {
		return a.printJSON(m)
	}
	return a.printf("%s: over %s, %s of its own\n", m.Name, shortDigest(m.Template), progress.Bytes(m.DiskSize))
}
