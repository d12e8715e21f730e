package cli

import (
	"github.com/spf13/cobra"
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
		RunE: func(cmd *cobra.Command, args []string) error {
			// Only reached with words before "install", which it does not take.
			return usagef("install comes first: lamina install [OPTIONS]")
		},
	}
}
