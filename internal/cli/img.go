package cli

import (
	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/tool/qemuimg"
)

// newImg is the image tool as it stands in the help and the completion; main
// reaches it without the command tree.
func newImg() *cobra.Command {
	return &cobra.Command{
		Use:   "img VERB",
		Short: "Work on disk images, as qemu-img does",
		Long: `Work on disk images with the verbs, options, output and exit statuses of qemu-img
` + qemuimg.Compatible + `. A link to lamina that is called qemu-img is the same tool.
` + "`lamina img --help`" + ` lists its verbs.`,
		Example: `  lamina img create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2
  lamina img info --backing-chain overlay.qcow2
  lamina img convert -O qcow2 -c disk.raw disk.qcow2`,
		DisableFlagParsing: true,
		ValidArgs:          qemuimg.Verbs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Only reached with words before "img", which it does not take.
			return usagef("img comes first: lamina img VERB ...")
		},
	}
}
