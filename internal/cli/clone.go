package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/nearest"
	"github.com/lamina-vm/lamina/internal/progress"
)

type cloneOptions struct {
	machineFlags
	waitFlags
	heatFlags
	start bool
	json  bool
}

func newClone(a *app) *cobra.Command {
	var o cloneOptions
	cmd := &cobra.Command{
		Use:   "clone TEMPLATE|MACHINE NAME... [OPTIONS]",
		Short: "Make machines of a template or of a machine",
		Long: `Make machines of a template, each a thin overlay of some KiB and a seed of its
own. They are not started unless --start is given; where the template has a warm
unit that fits (` + "`lamina template warm`" + `), they are at their prompts in a moment.

Where no template has that name, a machine is cloned: its disk becomes a layer that
nobody changes any more, and it and its clones go on over that, each on a layer of
its own. It may be running; its clones then start as after a power failure, with
what its guest had written to its disk. What is not said of them is as with it,
labels and forwarded ports too; each has free ports of the host in place of its.

Clones of a machine that has run have its machine-id and SSH host keys on their
disks. cloud-init gives them other host keys at their first start, and the same
machine-id stays. Where they are to share neither, make a template of the machine
(` + "`lamina template create --generalise`" + `), or fork it, which renews both.

A NAME may be a pattern: 'w-{01..10}' makes ten machines, '{web,db}-{1..3}' six.
Quote it, so that it is one word. Nothing is made if one of the names is taken.`,
		Example: `  lamina clone web-template 'w-{01..10}'
  lamina clone web-template one --start
  lamina clone web-template 'db-{1..3}' --user-data-template db.yaml --start
  lamina clone one 'copy-{1..3}'`,
		Args:              words("TEMPLATE|MACHINE", "NAME..."),
		ValidArgsFunction: completeCloneable(a),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0], args[1:]) },
	}
	cmd.Flags().BoolVar(&o.start, "start", false, "start the machines and follow their boots")
	o.machineFlags.register(cmd)
	o.waitFlags.register(cmd)
	o.heatFlags.register(cmd)
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "thin clones need a template of Lamina")
	return cmd
}

func (o *cloneOptions) run(ctx context.Context, a *app, template string, patterns []string) error {
	if err := errors.Join(o.waitFlags.check(), o.heatFlags.check()); err != nil {
		return err
	}
	if (o.noWait || o.timeout != 0 || o.given()) && !o.start {
		return usagef("--no-wait, --timeout, --wait, --warm and --cold say how to start and follow a boot: they need --start")
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
	f := a.follow(template)
	list, err := o.make(ctx, a, c, template, patterns, cfg, f)
	f.end()
	if err != nil {
		o.arrived(ctx, a, c, f)
		return a.bootEnded(f, cloneableHint(ctx, c, template, err))
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

// make makes the machines, of a template or, where there is none of that name, of
// a machine.
func (o *cloneOptions) make(ctx context.Context, a *app, c *client.Client, ref string, patterns []string, cfg api.MachineConfig, f *follower) ([]api.Machine, error) {
	_, err := c.Template(ctx, ref)
	if !isNotFound(err) {
		if err != nil {
			return nil, err
		}
		warm, wait := o.heat()
		return c.Clone(ctx, api.CloneRequest{Template: ref, Names: patterns, MachineConfig: cfg, Start: o.start, NoWait: o.noWait, Timeout: o.timeout, Warm: warm, Wait: wait}, f.event)
	}
	if _, merr := c.Machine(ctx, ref); merr != nil {
		if isNotFound(merr) {
			return nil, err
		}
		return nil, merr
	}
	if o.heatFlags.warm {
		return nil, usagef("--warm: clones of a machine boot; `lamina fork %s` makes running copies of one that runs", ref)
	}
	a.note("no template is called %s: cloning the machine", ref)
	return c.CloneMachine(ctx, ref, api.CloneMachineRequest{Names: patterns, MachineConfig: cfg, Start: o.start, NoWait: o.noWait, Timeout: o.timeout}, f.event)
}

func isNotFound(err error) bool {
	var refused *api.Error
	return errors.As(err, &refused) && refused.Code == api.CodeNotFound
}

// completeCloneable completes a template or a machine as the first word.
func completeCloneable(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out, directive := completeTemplates(a, false, false)(cmd, args, word)
		more, _ := completeMachines(a, false)(cmd, args, word)
		return append(out, more...), directive
	}
}

// cloneableHint says which template or machine may have been meant.
func cloneableHint(ctx context.Context, c *client.Client, ref string, err error) error {
	if !isNotFound(err) {
		return err
	}
	list, lerr := c.Templates(ctx)
	machines, merr := c.Machines(ctx)
	if lerr != nil || merr != nil {
		return err
	}
	templates := templateNames(list)
	if near := nearest.Word(ref, machineNames(machines)); near != "" && nearest.Word(ref, templates) == "" {
		return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no template and no machine %q; did you mean %s?", ref, near)}
	}
	return noSuch("template", ref, templates)
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
