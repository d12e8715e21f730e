package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/lineage"
)

type treeOptions struct {
	json, force bool
	svg         string
}

func newTemplateTree(a *app) *cobra.Command {
	var o treeOptions
	cmd := &cobra.Command{
		Use:   "tree [NAME...] [OPTIONS]",
		Short: "Show who lies over whom",
		Long: `Show templates, layers and machines as a tree: what lies over something stands
under it, with what it takes on the host. With names or digests of templates, or
names of machines, only the branches that they are on.

Where a machine lies over many layers the tree says so: each costs a little at
every read, and ` + "`lamina flatten`" + ` makes one of them.`,
		Example:           "  lamina template tree\n  lamina template tree web-template --svg lineage.svg\n  lamina template tree --json",
		ValidArgsFunction: completeTemplates(a, false, true),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	cmd.Flags().StringVar(&o.svg, "svg", "", "draw it as a picture in `FILE`; - is standard output")
	cmd.Flags().BoolVar(&o.force, "force", false, "replace a file that is there")
	jsonFlag(cmd, &o.json)
	exclusive(cmd, "json", "svg")
	return cmd
}

func (o *treeOptions) run(ctx context.Context, a *app, patterns []string) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	nodes, err := c.Lineage(ctx)
	if err != nil {
		return err
	}
	for _, p := range patterns {
		if !slices.ContainsFunc(nodes, func(n api.LineageNode) bool { return named1(n, p) }) {
			return fmt.Errorf("there is no template, layer or machine %q; `lamina template tree` shows what there is", p)
		}
	}
	if len(patterns) > 0 {
		nodes = lineage.Under(nodes, func(n api.LineageNode) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { return named1(n, p) })
		})
	}
	switch {
	case o.json:
		if nodes == nil {
			nodes = []api.LineageNode{}
		}
		return a.printJSON(nodes)
	case o.svg == "-":
		return lineage.SVG(a.stdout, nodes)
	case o.svg != "":
		return writeSVG(o.svg, nodes, o.force)
	}
	return lineage.Text(a.stdout, nodes)
}

// named1 says whether a word means a node: its id or the beginning of that, one of
// its names, or a pattern of those.
func named1(n api.LineageNode, word string) bool {
	if n.ID == word || len(word) >= 12 && strings.HasPrefix(n.ID, word) {
		return true
	}
	return slices.ContainsFunc(n.Names, func(name string) bool {
		ok, err := path.Match(word, name)
		return name == word || err == nil && ok
	})
}

// writeSVG writes the picture to a file that is there whole or not at all. One that is
// there is only replaced with force.
func writeSVG(name string, nodes []api.LineageNode, force bool) error {
	var b strings.Builder
	if err := lineage.SVG(&b, nodes); err != nil {
		return err
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a plain file: choose another name, or - for the standard output", name)
	}
	if force {
		return replaceFile(name, b.String())
	}
	if err := newFile(name, b.String()); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: choose another name, or replace it with --force", name)
	} else if err != nil {
		return err
	}
	return nil
}
