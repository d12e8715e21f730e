package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/nearest"
)

type runOptions struct {
	machineFlags
	waitFlags
	heatFlags
	name   string
	format string
	attach bool
	json   bool
}

func newRun(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run IMAGE [OPTIONS]",
		Short: "Make a machine of an image and start it",
		Long: `Make a machine of an image, start it, follow its boot, and say when it is at its
login prompt and how to reach it.

IMAGE is a file, a template, a name of the catalog (` + "`lamina pull --list`" + `) or a
URL. The image is imported as a template, which is verified and never written
to; the machine gets a thin overlay on it, and a NoCloud seed with its host
name, user, SSH keys and password. A word that names a file here is the file.

Your public keys (~/.ssh/id_*.pub, or those of --ssh-key) may log in, and so
may the key of this home, which is made when it is first needed: with it
` + "`lamina ssh`" + ` always gets in.

Ctrl-C ends the waiting, not the machine.`,
		Example: `  lamina run debian.qcow2 --name web --cpus 2 --memory 1G --ssh-key ~/.ssh/id_ed25519.pub -p 8080:80
  lamina run cirros --name try --attach
  lamina run disk.raw --format raw --bus sata --no-seed`,
		Args:              words("IMAGE"),
		ValidArgsFunction: completeTemplates(a, true, false),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.name, "name", "", "`NAME` of the machine (default made up from the image's)")
	choice(cmd, &o.format, "format", "`FORMAT` of the image; raw is not found out by itself where that is unsafe", formats)
	o.machineFlags.register(cmd)
	o.waitFlags.register(cmd)
	o.heatFlags.register(cmd)
	fs.BoolVar(&o.attach, "attach", false, "give the serial console at once; Ctrl-] leaves it")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	exclusive(cmd, "attach", "json")
	ownOnly(cmd, a, "`lamina install --import --connect URI` makes a machine there")
	return cmd
}

func jsonFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "json", false, "print JSON")
}

func quietFlag(cmd *cobra.Command, a *app) {
	cmd.Flags().BoolVarP(&a.quiet, "quiet", "q", false, "show no progress")
}

func (o *runOptions) run(ctx context.Context, a *app, image string) error {
	if err := errors.Join(o.waitFlags.check(), o.heatFlags.check()); err != nil {
		return err
	}
	if err := oneOf("format", o.format, formats); err != nil {
		return err
	}
	ref, err := imageRef(image)
	if err != nil {
		return err
	}
	cfg, err := o.config(ctx, a)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	req := api.RunRequest{Image: ref, Format: o.format, Name: o.name, MachineConfig: cfg, NoWait: o.noWait || o.attach, Timeout: o.timeout}
	req.Warm, req.Wait = o.heat()
	f := a.follow(image)
	m, err := c.Run(ctx, req, f.event)
	f.end()
	if err != nil {
		return a.bootEnded(f, imageHint(ctx, c, image, ref, err))
	}
	if o.attach {
		return a.attach(ctx, c, m.Name)
	}
	if o.json {
		return a.printJSON(m)
	}
	return a.reached(m, false)
}

// imageHint says what may have been meant where no image was found.
func imageHint(ctx context.Context, c *client.Client, image, ref string, err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeNotFound || ref != image {
		return err
	}
	var known []string
	if list, lerr := c.Templates(ctx); lerr == nil {
		known = templateNames(list)
	}
	if list, lerr := c.Catalog(ctx); lerr == nil {
		for _, e := range list {
			known = append(known, e.Name)
		}
	}
	if near := nearest.Word(image, known); near != "" {
		return fmt.Errorf("%w; did you mean %s?", err, near)
	}
	return err
}

// bootEnded explains why an operation that starts machines ended without
// success, and what became of the machines.
func (a *app) bootEnded(f *follower, err error) error {
	var refused *api.Error
	names := strings.Join(f.order, " ")
	switch {
	case errors.Is(err, errInterrupted) && len(f.order) > 0:
		first := f.order[0]
		a.say("lamina: not waiting any longer; %s: %s", names, plural(len(f.order), "the machine goes on", "the machines go on"))
		a.say("  see it      lamina logs -f %s", first)
		a.say("  get to it   lamina console %s", first)
		a.say("  stop        lamina stop %s", names)
		return silentError{}
	case errors.As(err, &refused) && refused.Problem != nil && len(f.order) > 0:
		a.say("lamina: %v", err)
		a.explain(refused.Problem)
		a.say("  look at it   lamina logs %[1]s; lamina screen %[1]s; lamina console %[1]s", f.order[0])
		return silentError{}
	}
	return err
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
