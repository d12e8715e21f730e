package cli

import (
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/client"
)

// newInstall is virt-install's work-alike as it stands in the help and the
// completion; Main reaches it without the command tree.
func newInstall() *cobra.Command {
	return &cobra.Command{
		Use:   "install [OPTIONS]",
		Short: "Make a machine as virt-install does",
		Long: `Make a machine and install its guest with the options, output and exit statuses of
virt-install. Without --connect it runs on plain QEMU, and the other verbs manage
it; with --connect it is a libvirt's. A link to lamina that is called virt-install
is the same tool. ` + "`lamina install --help`" + ` lists its options.`,
		Example: `  lamina install --name web --memory 2048 --vcpus 2 --disk size=20 --cdrom debian.iso --osinfo debian12
  lamina install --name old --memory 1024 --import --disk centos6.qcow2 --osinfo centos6.10 --noautoconsole
  lamina install --connect qemu:///system --name web --import --disk web.qcow2 --osinfo detect=on,require=off --print-xml`,
		DisableFlagParsing: true,
		ValidArgsFunction:  completeInstall,
		RunE: func(cmd *cobra.Command, args []string) error {
			// Only reached with words before "install", which it does not take.
			return usagef("install comes first: lamina install [OPTIONS]")
		},
	}
}

// completeInstall completes the options, which the tool's own help lists.
func completeInstall(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	if !strings.HasPrefix(word, "-") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	help, err := client.ToolOutput(cmd.Context(), client.ToolInstall, "--help")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, m := range regexp.MustCompile(`(?m)^  (?:-\w, )?(--[a-z-]+)(?:, (--[a-z-]+))?`).FindAllStringSubmatch(string(help), -1) {
		for _, o := range m[1:] {
			if strings.HasPrefix(o, word) {
				out = append(out, o)
			}
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
