package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/progress"
)

type forkOptions struct {
	waitFlags
	count int
	wait  string
	json  bool
}

func newFork(a *app) *cobra.Command {
	var o forkOptions
	cmd := &cobra.Command{
		Use:   "fork MACHINE [NAME...] [OPTIONS]",
		Short: "Make running copies of a running machine",
		Long: `Make copies of a running machine that go on from this instant, each on thin layers
of its memory and its disk. The machine itself goes on too: it is paused for a
moment only.

The copies become themselves before they are on a network: host name, machine-id,
SSH host keys, addresses. That needs an agent in the guest: cloud-init images that
were warmed have one (` + "`lamina template warm`" + `), and qemu-guest-agent will do. Without
one say --wait prompt: the copies run, with their cables out, and with the identity
of their original.

They have its labels, and its forwarded ports at free ports of the host.

Copies that the daemon was killed before it started stay defined, as ` + "`lamina info`" + `
says: the memory of the instant is gone, and ` + "`lamina start`" + ` boots them from the
disk of the instant, as after a power failure.

A NAME may be a pattern: 'try-{1..3}'. Without names they are MACHINE-1, MACHINE-2
and so on.`,
		Example: "  lamina fork web\n  lamina fork web --count 3\n  lamina fork web 'try-{a,b}' --wait prompt",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return nil
			}
			return words("MACHINE")(cmd, args)
		},
		ValidArgsFunction: completeMachines(a, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, args[0], args[1:])
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.count, "count", 0, "`NUMBER` of copies, where no names are given (default 1)")
	fs.BoolVar(&o.noWait, "no-wait", false, "return when the copies execute")
	fs.DurationVar(&o.timeout, "timeout", 0, "give up on the identity of a copy after `TIME` (default 1m)")
	choice(cmd, &o.wait, "wait", "`WHAT` is waited for (default ready)", waitWords)
	exclusive(cmd, "wait", "no-wait")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "virt-clone copies a libvirt's machine that is stopped")
	return cmd
}

func (o *forkOptions) run(ctx context.Context, a *app, machine string, patterns []string) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := oneOf("wait", o.wait, waitWords); err != nil {
		return err
	}
	if o.count < 0 || o.count > 0 && len(patterns) > 0 {
		return usagef("--count %d: it is a number of copies from 1, where no names are given", o.count)
	}
	if len(patterns) > 0 {
		if _, err := names.ExpandMachines(patterns); err != nil {
			return usageError{err}
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(machine)
	res, err := c.Fork(ctx, machine, api.ForkRequest{Names: patterns, Count: o.count, Wait: api.WaitTo(o.wait), NoWait: o.noWait, Timeout: o.timeout}, f.event)
	f.end()
	if err != nil {
		return a.bootEnded(f, machineHint(ctx, c, machine, err))
	}
	if o.json {
		return a.printJSON(res)
	}
	a.note("%s was paused for %s, %s of its memory were written meanwhile", machine, progress.Duration(res.Pause), progress.Bytes(res.Written))
	for _, m := range res.Machines {
		if err := a.reached(m, len(res.Machines) > 1); err != nil {
			return err
		}
	}
	return nil
}
