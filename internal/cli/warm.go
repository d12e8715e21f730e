package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/vm"
)

type warmOptions struct {
	req    api.WarmRequest
	memory string
	accel  string
	json   bool
}

func newTemplateWarm(a *app) *cobra.Command {
	var o warmOptions
	cmd := &cobra.Command{
		Use:   "warm TEMPLATE [OPTIONS]",
		Short: "Boot a template once, for machines that start in a moment",
		Long: `Boot a template once, wait until its guest is ready, and keep its memory, its
devices and its disk as a warm unit. Machines of the template that have the same
CPUs and memory then start from that: they are at their prompts in a moment, share
the memory that they do not change, and become themselves (host name, machine-id,
SSH host keys, keys and user-data of yours) before they are put on a network.

The image needs cloud-init, by which a small agent is installed, or
qemu-guest-agent. Nothing of yours is in a warm unit. One that fits is used as it
is, unless --again is given.`,
		Example:           "  lamina template warm web-template\n  lamina template warm web-template --cpus 2 --memory 2G",
		Args:              words("TEMPLATE"),
		ValidArgsFunction: completeTemplates(a, false, false),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	fs := cmd.Flags()
	fs.IntVar(&o.req.CPUs, "cpus", 0, "number of virtual CPUs (default 1)")
	fs.StringVar(&o.memory, "memory", "", "memory `SIZE`: 512M, 2G; a number alone is MiB (default 1G)")
	choice(cmd, &o.accel, "accel", "what runs the guest's instructions, `ACCEL`", accels)
	fs.StringVar(&o.req.Machine, "machine", "", "machine `TYPE`, as of `lamina run`")
	fs.DurationVar(&o.req.Timeout, "timeout", 0, "give up after `TIME`, such as 5m (default 10m, 40m without KVM)")
	fs.BoolVar(&o.req.Again, "again", false, "also where a warm unit that fits is there")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	return cmd
}

func (o *warmOptions) run(ctx context.Context, a *app, template string) error {
	if o.req.CPUs < 0 || o.req.Timeout < 0 {
		return usagef("--cpus and --timeout cannot be negative")
	}
	if err := oneOf("accel", o.accel, accels); err != nil {
		return err
	}
	o.req.Accel = vm.Accel(o.accel)
	if o.memory != "" {
		var err error
		if o.req.Memory, err = vm.ParseMemory(o.memory); err != nil {
			return usagef("--memory: %w", err)
		}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(template)
	u, err := c.WarmTemplate(ctx, template, o.req, f.event)
	f.end()
	if err != nil {
		return templateHint(ctx, c, template, err)
	}
	if o.json {
		return a.printJSON(u)
	}
	return a.printf("%s is warm: unit %s, %s of memory, %s of disk, ready %s after its start\n", template, u.ID,
		progress.Bytes(u.RAMSize), progress.Bytes(u.DiskSize), progress.Duration(time.Duration(u.BootTime)))
}

func newTemplateUnits(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "units [OPTIONS]",
		Short: "List the warm units of all templates",
		Long: `List the warm units: what each takes, how many machines were made of it, and
whether it fits this host as it is now.`,
		Example: "  lamina template units",
		Args:    words(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.WarmUnits(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(list)
			}
			return unitTable(list).print(a.stdout)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func unitTable(list []api.WarmUnit) *table {
	t := &table{}
	t.add("UNIT", "TEMPLATE", "CPUS", "MEMORY", "ACCEL", "RAM", "DISK", "BOOT", "MACHINES", "MADE", "FITS")
	for _, u := range list {
		fits := "yes"
		if !u.Fits {
			fits = "no: " + progress.Clean(u.Note)
		}
		t.add(u.ID, shortDigest(u.Template), strconv.Itoa(u.Key.CPUs), progress.Bytes(u.Key.Memory), string(u.Key.Accel), progress.Bytes(u.RAMSize),
			progress.Bytes(u.DiskSize), progress.Duration(time.Duration(u.BootTime)), strconv.Itoa(len(u.Machines)), u.CreatedAt.Local().Format("2006-01-02 15:04"), fits)
	}
	return t
}

func newTemplateCool(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cool UNIT|TEMPLATE...",
		Short: "Remove warm units",
		Long: `Remove warm units, by their ids, or all of a template by its name. Machines that
were made of them go on; the disk of a unit goes with the last machine over it.`,
		Example:           "  lamina template cool web-template\n  lamina template cool bcbeb7aed7e5",
		Args:              words("UNIT|TEMPLATE..."),
		ValidArgsFunction: completeUnits(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.cool(cmd.Context(), args)
		},
	}
}

// completeUnits completes warm units, and the templates that have one.
func completeUnits(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := a.connect(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		units, err := c.WarmUnits(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var out []string
		for _, u := range units {
			out = append(out, u.ID+"\tof "+u.Template)
			if name := shortDigest(u.Template); name == u.Template && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) cool(ctx context.Context, args []string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	units, err := c.WarmUnits(ctx)
	if err != nil {
		return err
	}
	var gone []string
	for _, arg := range args {
		list, err := unitsFor(ctx, c, units, arg)
		if err != nil {
			return err
		}
		for _, id := range list {
			if slices.Contains(gone, id) {
				continue
			}
			if err := c.RemoveWarm(ctx, id); err != nil {
				return err
			}
			gone = append(gone, id)
		}
	}
	return nil
}

// unitsFor are the ids of the units that a word means.
func unitsFor(ctx context.Context, c *client.Client, units []api.WarmUnit, word string) ([]string, error) {
	if slices.ContainsFunc(units, func(u api.WarmUnit) bool { return u.ID == word }) {
		return []string{word}, nil
	}
	t, err := c.Template(ctx, word)
	if isNotFound(err) {
		return nil, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no warm unit and no template %q; `lamina template units` shows what there is", word)}
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, u := range units {
		if u.Digest == t.Digest {
			out = append(out, u.ID)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("template %s has no warm unit", word)
	}
	return out, nil
}

// waitWords are the values of --wait.
var waitWords = []string{string(api.WaitPrompt), string(api.WaitReady)}

// heatFlags say how machines are started: from a warm unit or not.
type heatFlags struct {
	warm, cold bool
	wait       string
}

func (f *heatFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.warm, "warm", false, "start from a warm unit of the template, or not at all (default where one fits)")
	cmd.Flags().BoolVar(&f.cold, "cold", false, "boot, also where a warm unit fits")
	choice(cmd, &f.wait, "wait", "`WHAT` is waited for after a warm start (default ready)", waitWords)
	exclusive(cmd, "warm", "cold")
	exclusive(cmd, "wait", "no-wait")
}

func (f *heatFlags) given() bool { return f.warm || f.cold || f.wait != "" }

func (f *heatFlags) check() error { return oneOf("wait", f.wait, waitWords) }

// heat is what the daemon is told.
func (f *heatFlags) heat() (api.Warm, api.WaitTo) {
	switch {
	case f.warm:
		return api.WarmMust, api.WaitTo(f.wait)
	case f.cold:
		return api.WarmNever, api.WaitTo(f.wait)
	}
	return api.WarmAuto, api.WaitTo(f.wait)
}
