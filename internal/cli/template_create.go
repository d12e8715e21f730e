package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/progress"
)

func newTemplateCreate(a *app) *cobra.Command {
	var req api.TemplateFromRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create MACHINE [OPTIONS]",
		Short: "Make a template of a machine",
		Long: `Make a template of a stopped machine, which stays as it is. The template is a thin
layer over the machine's own template; --flatten makes a whole image of it.

What must not be the same in two machines (machine-id, SSH host keys, logs, the
state of cloud-init) is in it unless --generalise takes it out: a copy of the
machine is booted once for that, and the machine itself is not touched.`,
		Example: "  lamina template create web --name web-template --generalise\n  lamina template create web --flatten --compress zstd",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && req.Machine != "":
				return usagef("create: %s and --from %s: give one machine", args[0], req.Machine)
			case len(args) == 1:
				req.Machine = args[0]
			}
			return a.templateFrom(cmd.Context(), req, asJSON)
		},
	}
	cmd.ValidArgsFunction = completeMachines(a, false)
	fs := cmd.Flags()
	fs.StringVar(&req.Machine, "from", "", "the `MACHINE`, in place of the word")
	_ = cmd.RegisterFlagCompletionFunc("from", completeMachines(a, true)) // it is there
	fs.StringVar(&req.Name, "name", "", "`NAME` of the template (default none: it has its digest)")
	fs.BoolVar(&req.Generalise, "generalise", false, "take out what must not be the same in two machines")
	fs.BoolVar(&req.Flatten, "flatten", false, "make a whole image, not a layer")
	choice(cmd, &req.Compress, "compress", "compress the whole image by `METHOD`", importMethods)
	fs.DurationVar(&req.Timeout, "timeout", 0, "give up on the boot of --generalise after `TIME` (default 10m, 40m without KVM)")
	jsonFlag(cmd, &asJSON)
	quietFlag(cmd, a)
	return cmd
}

func (a *app) templateFrom(ctx context.Context, req api.TemplateFromRequest, asJSON bool) error {
	if req.Machine == "" {
		return usagef("create: MACHINE is missing; an image becomes a template by `lamina template import`")
	}
	if req.Name != "" {
		if err := names.CheckTemplate(req.Name); err != nil {
			return usageError{err}
		}
	}
	if err := oneOf("compress", req.Compress, importMethods); err != nil {
		return err
	}
	switch {
	case req.Compress != "" && !req.Flatten:
		return usagef("--compress is for a whole image: it needs --flatten")
	case req.Timeout < 0:
		return usagef("--timeout %s: it cannot be negative", req.Timeout)
	case req.Timeout != 0 && !req.Generalise:
		return usagef("--timeout is of the boot of --generalise: leave it out")
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(req.Machine)
	t, err := c.TemplateFrom(ctx, req, f.event)
	f.end()
	if err != nil {
		return machineHint(ctx, c, req.Machine, err)
	}
	return a.madeTemplate(t, req.Machine, asJSON)
}

// madeTemplate says what became of a machine's disk.
func (a *app) madeTemplate(t api.Template, of string, asJSON bool) error {
	if asJSON {
		return a.printJSON(t)
	}
	return a.printf("%s: template of machine %s, %s, %s on disk, sha256 %s\n", templateName(t), of, progress.Bytes(t.VirtualSize), progress.Bytes(t.DiskSize), shortDigest(t.Digest))
}
