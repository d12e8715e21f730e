package cli

import (
	"github.com/spf13/cobra"
)

func newCompletion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script of a shell",
		Long: `Print the script that completes verbs, options and the names of machines and
templates in bash, zsh or fish.`,
		Example: `  lamina completion bash > /etc/bash_completion.d/lamina
  lamina completion zsh > "${fpath[1]}/_lamina"
  lamina completion fish > ~/.config/fish/completions/lamina.fish`,
		Args:      words("SHELL"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return usagef("completion %s: it is one of bash, zsh, fish", args[0])
		},
	}
}
