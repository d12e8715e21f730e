package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/nearest"
)

// patternHelp is said by every verb that takes names of machines.
const patternHelp = `Names may be patterns: 'w-{01..10}' and '{web,db}' count as in a shell, '*',
'?' and '[a-c]' match the names that there are. Quote them.`

// matchNames returns the names of known that the patterns mean, each once, in
// the order of the patterns. kind is "machine" or "template".
func matchNames(kind string, patterns, known []string) ([]string, error) {
	var out []string
	for _, p := range patterns {
		words := []string{p}
		if !slices.Contains(known, p) { // a libvirt's name may look like a pattern
			var err error
			if words, err = names.Expand(p); err != nil {
				return nil, usageError{err}
			}
		}
		for _, w := range words {
			found, err := matchOne(kind, w, known)
			if err != nil {
				return nil, err
			}
			for _, f := range found {
				if !slices.Contains(out, f) {
					out = append(out, f)
				}
			}
		}
	}
	return out, nil
}

// matchOne returns what one name or glob means.
func matchOne(kind, word string, known []string) ([]string, error) {
	if slices.Contains(known, word) {
		return []string{word}, nil
	}
	if !strings.ContainsAny(word, "*?[") {
		return nil, noSuch(kind, word, known)
	}
	var out []string
	for _, k := range known {
		ok, err := path.Match(word, k)
		if err != nil {
			return nil, usagef("pattern %q: %w", word, err)
		}
		if ok {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no %s matches %q; `%s` shows what there is", kind, word, listVerb(kind))
	}
	return out, nil
}

func listVerb(kind string) string {
	switch kind {
	case "template", "fleet":
		return "lamina " + kind + " ls"
	}
	return "lamina ls"
}

// noSuch is the error for a name that nothing has.
func noSuch(kind, name string, known []string) error {
	hint := fmt.Sprintf("`%s` shows what there is", listVerb(kind))
	if len(known) == 0 {
		hint = fmt.Sprintf("there are no %ss yet", kind)
	}
	if near := nearest.Word(name, known); near != "" {
		hint = fmt.Sprintf("did you mean %s?", near)
	}
	return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no %s %q; %s", kind, name, hint)}
}

func machineNames(list []api.Machine) []string {
	out := make([]string, len(list))
	for i, m := range list {
		out[i] = m.Name
	}
	return out
}

func templateNames(list []api.Template) []string {
	var out []string
	for _, t := range list {
		for _, n := range namesOf(t) {
			if !slices.Contains(out, n) { // one with several names may come several times
				out = append(out, n)
			}
		}
	}
	return out
}

// selected returns the machines that the patterns mean, and where they are.
func (a *app) selected(ctx context.Context, patterns []string) (Backend, []api.Machine, error) {
	c, err := a.backend(ctx)
	if err != nil {
		return nil, nil, err
	}
	list, err := selectMachines(ctx, c, patterns)
	return c, list, err
}

// selectMachines returns the machines that the patterns mean.
func selectMachines(ctx context.Context, c Backend, patterns []string) ([]api.Machine, error) {
	list, err := c.Machines(ctx)
	if err != nil {
		return nil, err
	}
	wanted, err := matchNames("machine", patterns, machineNames(list))
	if err != nil {
		return nil, err
	}
	out := make([]api.Machine, 0, len(wanted))
	for _, w := range wanted {
		i := slices.IndexFunc(list, func(m api.Machine) bool { return m.Name == w })
		out = append(out, list[i])
	}
	return out, nil
}

// machineHint replaces the daemon's "not found" by one that says what may have
// been meant.
func machineHint(ctx context.Context, c Backend, name string, err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeNotFound {
		return err
	}
	list, lerr := c.Machines(ctx)
	if lerr != nil || slices.Contains(machineNames(list), name) {
		return err
	}
	return noSuch("machine", name, machineNames(list))
}

// completeMachines completes names of machines; with many it goes on after the
// first.
func completeMachines(a *app, many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.backend(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := c.Machines(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, m := range list {
			if !slices.Contains(args, m.Name) {
				out = append(out, cobra.CompletionWithDesc(m.Name, string(m.State)))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTemplates completes the name of a template as the first word; files
// says whether an image file may stand there too.
func completeTemplates(a *app, files, many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		directive := cobra.ShellCompDirectiveNoFileComp
		if files {
			directive = cobra.ShellCompDirectiveDefault
		}
		c, err := a.connect(cmd.Context())
		if err != nil {
			return nil, directive
		}
		list, err := c.Templates(cmd.Context())
		if err != nil {
			return nil, directive
		}
		return templateNames(list), directive
	}
}
