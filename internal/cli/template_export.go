package cli

import (
	"context"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

// Methods of compression of an image.
var (
	methods       = []string{"zlib", "zstd"}
	importMethods = append([]string{"none"}, methods...)
)

func newTemplateExport(a *app) *cobra.Command {
	var req api.ExportRequest
	cmd := &cobra.Command{
		Use:   "export TEMPLATE FILE [OPTIONS]",
		Short: "Write a template as one image",
		Long: `Write a template, with all layers that it lies over, as one image that needs
nothing else. A file that is there is only replaced with --force, and then as a
whole: until the new one is complete the old one stays.`,
		Example:           "  lamina template export web-template web.qcow2 -c zstd\n  lamina template export web-template web.raw -O raw",
		Args:              words("TEMPLATE", "FILE"),
		ValidArgsFunction: completeThenFile(completeTemplates(a, false, false)),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Path = args[1]
			return a.export(cmd.Context(), args[0], req)
		},
	}
	cmd.Flags().StringVarP(&req.Format, "output-format", "O", "qcow2", "`FORMAT` of the image: qcow2, raw")
	_ = cmd.RegisterFlagCompletionFunc("output-format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // it is there
	cmd.Flags().StringVarP(&req.Compress, "compress", "c", "", "compress it by `METHOD`: zlib, zstd (qcow2 only)")
	_ = cmd.RegisterFlagCompletionFunc("compress", cobra.FixedCompletions(methods, cobra.ShellCompDirectiveNoFileComp)) // as above
	cmd.Flags().BoolVar(&req.Force, "force", false, "replace a file that is there")
	quietFlag(cmd, a)
	return cmd
}

func (a *app) export(ctx context.Context, ref string, req api.ExportRequest) error {
	if err := oneOf("output-format", req.Format, formats); err != nil {
		return err
	}
	if err := oneOf("compress", req.Compress, methods); err != nil {
		return err
	}
	if req.Compress != "" && req.Format != "qcow2" {
		return usagef("--compress: a %s image is never compressed: leave it out, or write qcow2", req.Format)
	}
	var err error
	if req.Path, err = filepath.Abs(req.Path); err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(ref)
	err = c.ExportTemplate(ctx, ref, req, f.event)
	f.end()
	if err != nil {
		return templateHint(ctx, c, ref, err)
	}
	size := ""
	if st, err := os.Stat(req.Path); err == nil {
		size = ", " + progress.Bytes(st.Size())
	}
	return a.printf("%s: %s%s\n", ref, req.Path, size)
}

// completeThenFile completes a first word, and files after it.
func completeThenFile(first cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return first(cmd, args, word)
	}
}
