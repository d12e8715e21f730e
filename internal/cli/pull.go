package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

type pullOptions struct {
	list     bool
	checksum string
	force    bool
	json     bool
}

func newPull(a *app) *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use:   "pull IMAGE [OPTIONS]",
		Short: "Download an image",
		Long: `Download an image into the cache and verify it. IMAGE is a name of the catalog, an
http, https or file URL, or a file. A download that was interrupted is resumed;
one that is there is not fetched again. Images of the catalog are compared with
the checksums that their publishers give.`,
		Example: `  lamina pull --list
  lamina pull debian:12
  lamina pull https://example.com/disk.qcow2 --checksum sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.list {
				return words()(cmd, args)
			}
			return words("IMAGE")(cmd, args)
		},
		ValidArgsFunction: completeCatalog(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.list {
				return o.catalog(cmd.Context(), a)
			}
			return o.run(cmd.Context(), a, args[0])
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.list, "list", "l", false, "list the catalog")
	fs.StringVar(&o.checksum, "checksum", "", "`sha256:HEX` or sha512:HEX that the image must have")
	fs.BoolVar(&o.force, "force", false, "fetch again what is there")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	return cmd
}

func (o *pullOptions) run(ctx context.Context, a *app, image string) error {
	ref, err := imageRef(image)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(image)
	r, err := c.Pull(ctx, api.PullRequest{Ref: ref, Checksum: o.checksum, Force: o.force}, f.event)
	f.end()
	if err != nil {
		return imageHint(ctx, c, image, ref, err)
	}
	if o.json {
		return a.printJSON(r)
	}
	how := "downloaded"
	if r.Cached {
		how = "in the cache"
	}
	if r.Verified {
		how += ", checksum verified"
	} else {
		how += ", not verified: there is no checksum to compare with"
	}
	return a.printf("%s: %s, %s\n  file    %s\n  sha256  %s\n", image, progress.Bytes(r.Size), how, r.Path, r.SHA256)
}

func (o *pullOptions) catalog(ctx context.Context, a *app) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	list, err := c.Catalog(ctx)
	if err != nil {
		return err
	}
	if o.json {
		return a.printJSON(list)
	}
	t := table{}
	t.add("NAME", "USER", "MEMORY", "DESCRIPTION")
	for _, e := range list {
		t.add(e.Name, e.User, bytesOrNone(e.MinMemory), e.Description)
	}
	return t.print(a.stdout)
}

func completeCatalog(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.connect(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		list, err := c.Catalog(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		var out []string
		for _, e := range list {
			out = append(out, cobra.CompletionWithDesc(e.Name, e.Description))
		}
		return out, cobra.ShellCompDirectiveDefault
	}
}
