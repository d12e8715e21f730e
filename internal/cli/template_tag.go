package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
)

func newTemplateTag(a *app) *cobra.Command {
	var req api.TagRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "tag TEMPLATE NAME [OPTIONS]",
		Short: "Give a template one more name",
		Long: `Give a template one more name; ` + "`lamina template rm NAME`" + ` takes it away again, and
the template stays while it has another. With --move the name may be another
template's, which loses it: machines that were made of that one stay as they are.`,
		Example:           "  lamina template tag debian:12 web-template\n  lamina template tag 3f5d0a7c91be web-template --move",
		Args:              words("TEMPLATE", "NAME"),
		ValidArgsFunction: completeTemplates(a, false, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[1]
			return a.tag(cmd.Context(), args[0], req, asJSON)
		},
	}
	cmd.Flags().BoolVar(&req.Move, "move", false, "take the name from another template that has it")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) tag(ctx context.Context, ref string, req api.TagRequest, asJSON bool) error {
	if err := names.CheckTemplate(req.Name); err != nil {
		return usageError{err}
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	t, err := c.TagTemplate(ctx, ref, req)
	if err != nil {
		return templateHint(ctx, c, ref, err)
	}
	if asJSON {
		return a.printJSON(t)
	}
	return a.printf("%s: sha256 %s\n", req.Name, shortDigest(t.Digest))
}
