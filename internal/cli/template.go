package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/progress"
)

func newTemplate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template VERB",
		Short: "Make, list and remove templates",
		Long: `A template is an image that machines are made of: imported once, verified,
read-only, stored under the SHA-256 of its content. It cannot be removed while a
machine needs it.`,
		Example: "  lamina template import debian.qcow2 --name web-template\n  lamina template ls",
	}
	return verbs(cmd, newTemplateImport(a), newTemplateCreate(a), newTemplateLs(a), newTemplateInfo(a), newTemplateTree(a),
		newTemplateVerify(a), newTemplateWarm(a), newTemplateUnits(a), newTemplateCool(a), newTemplateTag(a), newTemplateExport(a), newTemplateRm(a))
}

func newTemplateImport(a *app) *cobra.Command {
	var req api.ImportRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "import IMAGE [OPTIONS]",
		Short: "Make a template of an image",
		Long: `Make a template of an image: a file, a name of the catalog, a URL, or another
template, of which a whole image is made, compressed as is said here. An image that
names other files (a backing file, an external data file) is refused.`,
		Example:           "  lamina template import debian.qcow2 --name web-template\n  lamina template import disk.raw --format raw --name old --user admin\n  lamina template import https://example.com/disk.qcow2 --checksum sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n  lamina template import web-template --name web-small --compress zstd",
		Args:              words("IMAGE"),
		ValidArgsFunction: completeTemplates(a, true, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("format", req.Format, formats); err != nil {
				return err
			}
			if err := oneOf("compress", req.Compress, importMethods); err != nil {
				return err
			}
			return a.importTemplate(cmd.Context(), args[0], req, asJSON)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&req.Name, "name", "", "`NAME` of the template (default the image's)")
	choice(cmd, &req.Format, "format", "`FORMAT` of the image; raw is not found out by itself where that is unsafe", formats)
	fs.StringVar(&req.User, "user", "", "`USER` to log in as on its machines")
	fs.StringVar(&req.Checksum, "checksum", "", "`sha256:HEX` or sha512:HEX that the image must have")
	choice(cmd, &req.Compress, "compress", "`METHOD` of the stored image; none is read fastest, zstd takes least", importMethods)
	jsonFlag(cmd, &asJSON)
	quietFlag(cmd, a)
	return cmd
}

func (a *app) importTemplate(ctx context.Context, image string, req api.ImportRequest, asJSON bool) error {
	var err error
	if req.Source, err = imageRef(image); err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	f := a.follow(image)
	t, err := c.ImportTemplate(ctx, req, f.event)
	f.end()
	if err != nil {
		return imageHint(ctx, c, image, req.Source, err)
	}
	if asJSON {
		return a.printJSON(t)
	}
	return a.printf("%s: template of %s, %s on disk, sha256 %.12s\n", templateName(t), progress.Bytes(t.VirtualSize), progress.Bytes(t.DiskSize), t.Digest)
}

// templateName is what a template is called: its first name, or the beginning of its
// digest.
func templateName(t api.Template) string {
	if list := namesOf(t); len(list) > 0 {
		return list[0]
	}
	return shortDigest(t.Digest)
}

// namesOf are all names of a template, the one that it was asked for by first.
func namesOf(t api.Template) []string {
	var out []string
	if t.Name != "" {
		out = []string{t.Name}
	}
	for _, n := range t.Names {
		if n != t.Name {
			out = append(out, n)
		}
	}
	return out
}

func newTemplateLs(a *app) *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List the templates",
		Long: `List the templates. SIZE is what a guest sees, DISK what the image takes here,
LAYERS how many images lie directly over it.

With --all also the layers that were frozen when a machine was cloned, and those of
warm units: ` + "`lamina prune`" + ` removes those that nothing needs.`,
		Example: "  lamina template ls\n  lamina template ls --all --json",
		Args:    words(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			look := c.Templates
			if all {
				look = c.AllTemplates
			}
			list, err := look(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(list)
			}
			return templateTable(list).print(a.stdout)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also frozen layers and those of warm units")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func templateTable(list []api.Template) *table {
	t := &table{}
	t.add("NAME", "KIND", "SIZE", "DISK", "MACHINES", "LAYERS", "MADE", "SHA256", "SOURCE")
	for _, e := range list {
		name := strings.Join(namesOf(e), ", ")
		t.add(name, string(e.Kind), progress.Bytes(e.VirtualSize), progress.Bytes(e.DiskSize), strconv.Itoa(len(e.Machines)), strconv.Itoa(len(e.Layers)),
			e.CreatedAt.Local().Format("2006-01-02 15:04"), shortID(e.Digest), progress.Clean(e.Source))
	}
	return t
}

// shortID is the beginning of a digest, or of the id of a layer without one.
func shortID(id string) string { return id[:min(len(id), 12)] }

func newTemplateInfo(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "info NAME... [OPTIONS]",
		Short:             "Show all that is known of templates",
		Long:              "Show all that is known of templates, by name or digest. With --json it is a list.\n\n" + patternHelp,
		Example:           "  lamina template info web-template\n  lamina template info '*' --json",
		Args:              words("NAME..."),
		ValidArgsFunction: completeTemplates(a, false, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := selectTemplates(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(list)
			}
			for i, t := range list {
				gap := ""
				if i > 0 {
					gap = "\n"
				}
				if err := a.printf("%s%s", gap, templateText(t)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func templateText(t api.Template) string {
	var b strings.Builder
	put := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", key+":", progress.Clean(fmt.Sprintf(format, args...)))
	}
	put("name", "%s", strings.Join(namesOf(t), ", "))
	if t.Kind != "" && t.Kind != api.LayerTemplate {
		put("kind", "%s", t.Kind)
	}
	put("sha256", "%s", t.Digest)
	if t.Parent != "" {
		put("over", "%s", t.Parent)
	}
	put("source", "%s", t.Source)
	size := progress.Bytes(t.VirtualSize) + ", " + progress.Bytes(t.DiskSize) + " on disk"
	if t.Compress != "" && t.Compress != "none" {
		size += ", compressed by " + t.Compress
	}
	put("size", "%s", size)
	imageText(put, t.Info)
	if t.User != "" {
		put("user", "%s", t.User)
	}
	put("made", "%s", t.CreatedAt.Local().Format(time.DateTime))
	if !t.UsedAt.IsZero() {
		put("used", "%s", t.UsedAt.Local().Format(time.DateTime))
	}
	if t.Immutable {
		put("immutable", "the file system keeps it from being changed")
	}
	if len(t.Layers) > 0 {
		put("layers", "%d %s", len(t.Layers), strings.Join(t.Layers, " "))
	}
	if len(t.Warm) > 0 {
		put("warm", "%s", strings.Join(t.Warm, " "))
	}
	put("machines", "%d %s", len(t.Machines), strings.Join(t.Machines, " "))
	return b.String()
}

// imageText says what was found in an image.
func imageText(put func(key, format string, args ...any), i api.ImageInfo) {
	if i.OS != "" || i.Name != "" {
		name := i.Name
		if i.OS != "" {
			name = strings.TrimSpace(name + " (" + i.OS + ")")
		}
		put("system", "%s %s", name, i.Arch)
	}
	if i.BootMode != "" {
		put("boot", "%s", i.BootMode)
	}
	if i.CloudInit || i.Agent {
		var has []string
		for _, p := range []struct {
			is   bool
			name string
		}{{i.CloudInit, "cloud-init"}, {i.Agent, "QEMU's guest agent"}} {
			if p.is {
				has = append(has, p.name)
			}
		}
		put("has", "%s", strings.Join(has, ", "))
	}
	for _, v := range i.Volumes {
		what := v.Type
		if what == "" {
			what = "unknown"
		}
		if v.Label != "" {
			what += " " + v.Label
		}
		if v.Root {
			what += ", the system"
		}
		if v.Number == 0 {
			put("disk", "%s, %s", progress.Bytes(v.Size), what)
			continue
		}
		put("partition", "%d: %s at %s, %s", v.Number, progress.Bytes(v.Size), progress.Bytes(v.Offset), what)
	}
	if i.Note != "" {
		put("note", "%s", i.Note)
	}
}

func newTemplateVerify(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "verify NAME... [OPTIONS]",
		Short:             "Compare templates with their digests",
		Long:              "Read the images of templates, and of the layers below each, and compare them with\nthe SHA-256 that they were stored under. The exit status is 1 if one differs.\n\n" + patternHelp,
		Example:           "  lamina template verify web-template\n  lamina template verify '*'",
		Args:              words("NAME..."),
		ValidArgsFunction: completeTemplates(a, false, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachTemplate(cmd.Context(), args, func(ctx context.Context, c *client.Client, t api.Template) error {
				f := a.follow(templateName(t))
				got, err := c.VerifyTemplate(ctx, t.Digest, f.event)
				f.end()
				if err != nil {
					return err
				}
				return a.printf("%s: verified, sha256 %s\n", templateName(t), got.Digest)
			})
		},
	}
	quietFlag(cmd, a)
	return cmd
}

func newTemplateRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove", "delete"},
		Short:   "Remove templates that no machine needs",
		Long: `Remove templates. By one of several names only that name goes. What a machine or
another layer needs is kept, with their names: ` + "`lamina flatten`" + ` frees a machine
of its template, as does ` + "`lamina rebase`" + `.

` + patternHelp,
		Example:           "  lamina template rm web-template",
		Args:              words("NAME..."),
		ValidArgsFunction: completeTemplates(a, false, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachTemplate(cmd.Context(), args, func(ctx context.Context, c *client.Client, t api.Template) error {
				return c.RemoveTemplate(ctx, templateRef(t))
			})
		},
	}
}

// templateRef is what the daemon is told to find a template again.
func templateRef(t api.Template) string {
	if t.Name != "" {
		return t.Name
	}
	return t.Digest
}

// eachTemplate does one thing to the templates that the patterns mean, and
// goes on where one fails.
func (a *app) eachTemplate(ctx context.Context, patterns []string, do func(context.Context, *client.Client, api.Template) error) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	list, err := selectTemplates(ctx, c, patterns)
	if err != nil {
		return err
	}
	failed := false
	for _, t := range list {
		if err := do(ctx, c, t); err != nil {
			if errors.Is(err, errInterrupted) {
				return err
			}
			a.say("lamina: %s: %v", templateName(t), err)
			failed = true
		}
	}
	if failed {
		return silentError{}
	}
	return nil
}

// selectTemplates returns the templates that names, patterns and digests mean.
func selectTemplates(ctx context.Context, c *client.Client, patterns []string) ([]api.Template, error) {
	list, err := c.Templates(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.Template
	for _, p := range patterns {
		if names.IsDigest(p) {
			t, err := c.Template(ctx, p)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
			continue
		}
		found, err := matchNames("template", []string{p}, templateNames(list))
		if err != nil {
			return nil, err
		}
		for _, name := range found {
			i := slices.IndexFunc(list, func(t api.Template) bool { return slices.Contains(namesOf(t), name) })
			t := list[i]
			t.Name = name // the one that it was asked for by
			out = append(out, t)
		}
	}
	return out, nil
}
