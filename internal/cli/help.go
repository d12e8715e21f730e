package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usageText is the part of the help behind the description.
func usageText(cmd *cobra.Command) string {
	var b strings.Builder
	use := cmd.UseLine()
	if !cmd.HasParent() {
		use += " VERB"
	}
	fmt.Fprintf(&b, "Usage:\n  %s\n", use)
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAlso called:\n  %s\n", strings.Join(cmd.Aliases, ", "))
	}
	for _, g := range cmd.Groups() {
		b.WriteString("\n" + g.Title + "\n" + verbLines(cmd, g.ID))
	}
	if lines := verbLines(cmd, ""); lines != "" {
		b.WriteString("\nVerbs:\n" + lines)
	}
	if cmd.HasAvailableFlags() {
		b.WriteString("\nOptions:\n" + cmd.Flags().FlagUsagesWrapped(100))
	}
	if cmd.Example != "" {
		b.WriteString("\nExamples:\n" + cmd.Example + "\n")
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n`%s VERB --help` shows the help of a verb.\n", cmd.CommandPath())
	}
	return b.String()
}

// verbLines lists the verbs of a group.
func verbLines(cmd *cobra.Command, group string) string {
	var b strings.Builder
	for _, c := range cmd.Commands() {
		if c.GroupID == group && c.IsAvailableCommand() {
			fmt.Fprintf(&b, "  %-12s%s\n", c.Name(), c.Short)
		}
	}
	return b.String()
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [VERB]",
		Short:   "Show the help of a verb",
		Long:    "Show the help of a verb, as `lamina VERB --help` does.",
		Example: "  lamina help run\n  lamina help template import",
		GroupID: groupOther,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			at, _, err := cmd.Root().Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return verbNames(at), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			at, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				if at == nil {
					at = cmd.Root()
				}
				word := ""
				if len(rest) > 0 {
					word = rest[0]
				}
				return unknownVerb(at, word)
			}
			at.InitDefaultHelpFlag()
			return at.Help()
		},
	}
}
