package main

import "github.com/spf13/cobra"

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
