package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/progress"
)

type cloneOptions struct {
	machineFlags
	waitFlags
	start bool
	json  bool
}

func newClone(a *app) *cobra.Command {
	var o cloneOptions
	cmd := &cobra.Command{
		Use:   "clone TEMPLATE NAME... [OPTIONS]",
		Short: "Make machines of a template",
		Long: `Make machines of a template, each a thin overlay of some KiB and a seed of its
own. They are not started unless --start is given.

A NAME may be a pattern: 'w-{01..10}' makes ten machines, '{web,db}-{1..3}' six.
Quote it, so that it is one word. Nothing is made if one of the names is taken.`,
		Example: `  lamina clone web-template 'w-{01..10}'
  lamina clone web-template one --start
  lamina clone web-template 'db-{1..3}' --cpus 2 --memory 2G --start --no-wait`,
		Args:              words("TEMPLATE", "NAME..."),
		ValidArgsFunction: completeTemplates(a, false, false),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0], args[1:]) },
	}
	cmd.Flags().BoolVar(&o.start, "start", false, "start the machines and follow their boots")
	o.machineFlags.register(cmd)
	o.waitFlags.register(cmd)
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "thin clones need a template of Lamina")
	return cmd
}

func (o *cloneOptions) run(ctx context.Context, a *app, template string, patterns []string) error {
	if err := o.check(); err != nil {
		return err
	}
	if (o.noWait || o.timeout != 0) && !o.start {
		return usagef("--no-wait and --timeout say how to follow a boot: they need --start")
	}
	if _, err := names.ExpandMachines(patterns); err != nil {
		return usageError{err}
	}
	cfg, err := o.config(ctx, a)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	req := api.CloneRequest{Template: template, Names: patterns, MachineConfig: cfg, Start: o.start, NoWait: o.noWait, Timeout: o.timeout}
	f := a.follow(template)
	list, err := c.Clone(ctx, req, f.event)
	f.end()
	if err != nil {
		o.arrived(ctx, a, c, f)
		return a.bootEnded(f, templateHint(ctx, c, template, err))
	}
	switch {
	case o.json:
		return a.printJSON(list)
	case o.start:
		for _, m := range list {
			if err := a.reached(m, len(list) > 1); err != nil {
				return err
			}
		}
		return nil
	}
	made := machineNames(list)
	if len(made) > 4 {
		made = append(made[:2:2], "...", made[len(made)-1])
	}
	return a.printf("%d %s of %s: %s; `lamina start` starts %s\n", len(list), plural(len(list), "machine", "machines"),
		template, strings.Join(made, " "), plural(len(list), "it", "them"))
}

// arrived says which machines are at their login prompts where others are not.
func (o *cloneOptions) arrived(ctx context.Context, a *app, c *client.Client, f *follower) {
	if len(f.order) < 2 || ctx.Err() != nil {
		return
	}
	list, err := selectMachines(ctx, c, f.order)
	if err != nil {
		return // what is told next is why
	}
	for _, m := range list {
		if m.State == api.Login {
			a.say("%s is at its login prompt after %s", m.Name, progress.Duration(m.LoginIn))
		}
	}
}

// templateHint says which template may have been meant where there is none.
func templateHint(ctx context.Context, c *client.Client, ref string, err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeNotFound {
		return err
	}
	list, lerr := c.Templates(ctx)
	if lerr != nil {
		return err
	}
	return noSuch("template", ref, templateNames(list))
}
