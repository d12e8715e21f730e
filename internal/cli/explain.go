package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/nearest"
	"github.com/lamina-vm/lamina/internal/vm/advice"
)

func newExplain(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [TOPIC [CHOICE]] [OPTIONS]",
		Short: "Say what the choices for a disk mean",
		Long: `Say what the choices of a topic mean, as a table: what survives a power loss,
whether the host caches too, what the file system must be able to do, what live
migration allows, how fast it is. With CHOICE say in full what that one means.

The topics are cache, bus, preallocation and format. ` + "`lamina check`" + ` says what holds
for a machine on this host.`,
		Example: "  lamina explain cache\n  lamina explain cache none\n  lamina explain bus --json",
		Args:    cobra.MaximumNArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return topics(), cobra.ShellCompDirectiveNoFileComp
			}
			t, err := advice.Explain(advice.Topic(args[0]))
			if err != nil || len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return choices(t), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.explainTopic(args, asJSON) },
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func topics() (out []string) {
	for _, t := range advice.Topics() {
		out = append(out, string(t))
	}
	return out
}

func choices(t advice.Table) (out []string) {
	for _, r := range t.Rows {
		out = append(out, r.Name)
	}
	return out
}

func (a *app) explainTopic(args []string, asJSON bool) error {
	if len(args) == 0 {
		return a.listTopics(asJSON)
	}
	t, err := advice.Explain(advice.Topic(args[0]))
	if err != nil {
		return usageError{meant(err, args[0], topics())}
	}
	if len(args) == 1 {
		if asJSON {
			return a.printJSON(t)
		}
		return a.printTopic(t)
	}
	r, err := t.Row(args[1])
	if err != nil {
		return usageError{meant(err, args[1], choices(t))}
	}
	if asJSON {
		return a.printJSON(r)
	}
	return a.printChoice(t, r)
}

// meant adds to an error the word that may have been meant.
func meant(err error, word string, known []string) error {
	if near := nearest.Word(word, known); near != "" {
		return fmt.Errorf("%w; did you mean %s?", err, near)
	}
	return err
}

func (a *app) listTopics(asJSON bool) error {
	var all []advice.Table
	t := table{}
	t.add("TOPIC", "CHOICES")
	for _, topic := range advice.Topics() {
		one, err := advice.Explain(topic)
		if err != nil {
			return err
		}
		all = append(all, one)
		t.add(string(topic), strings.Join(choices(one), ", "))
	}
	if asJSON {
		return a.printJSON(all)
	}
	return t.print(a.stdout)
}

func (a *app) printTopic(t advice.Table) error {
	if err := a.printf("%s\n\n", wrap(t.Summary, "")); err != nil {
		return err
	}
	out := table{}
	head := make([]string, 0, len(t.Columns))
	for _, c := range t.Columns {
		head = append(head, strings.ToUpper(c))
	}
	out.add(head...)
	for _, r := range t.Rows {
		name := r.Name
		if r.Default {
			name += " *"
		}
		out.add(append([]string{name}, r.Cells...)...)
	}
	if err := out.print(a.stdout); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("\n* is the default. `lamina explain " + string(t.Topic) + " CHOICE` says more of one.\n")
	for _, n := range t.Notes {
		b.WriteString("\n" + wrap(n, "") + "\n")
	}
	if len(t.Sources) > 0 {
		b.WriteString("\nSources: " + strings.Join(t.Sources, "; ") + "\n")
	}
	return a.printf("%s", b.String())
}

func (a *app) printChoice(t advice.Table, r advice.Row) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n\n", t.Topic, r.Name)
	for i, c := range r.Cells {
		if i+1 < len(t.Columns) {
			fmt.Fprintf(&b, "  %-24s %s\n", t.Columns[i+1]+":", c)
		}
	}
	b.WriteString("\n" + wrap(r.Text, "") + "\n")
	return a.printf("%s", b.String())
}

// wrap breaks text into lines of at most 84 columns, each behind indent.
func wrap(text, indent string) string {
	const width = 84
	var b strings.Builder
	col := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case col == 0:
			b.WriteString(indent)
			col = len(indent)
		case col+1+n > width:
			b.WriteString("\n" + indent)
			col = len(indent)
		default:
			b.WriteByte(' ')
			col++
		}
		b.WriteString(word)
		col += n
	}
	return b.String()
}
