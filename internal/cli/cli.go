// Package cli is the command line of lamina: its verbs, what they print, and
// their help. It is a client: of the daemon, or of what [Options] give it.
//
// Two programs link it. Command lamina is [Main], which starts in 2 ms and
// therefore links nothing heavy; a verb that is given a libvirt by --connect, or the
// document of a fleet, is run by laminad, which lamina becomes for it (client.Exec),
// as the same verb with what is [Heavy].
package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/tool/qemuimg"
)

// Main is the program lamina, with its name as the first word, and returns the
// exit status. It picks the personality. The image tool is reached before
// anything of the command tree is built: scripts call it many times, and each
// call is to take no longer than the C tool's.
func Main(args []string) int {
	if len(args) > 0 {
		switch filepath.Base(args[0]) {
		case "qemu-img":
			return qemuimg.Main("qemu-img", args[1:], os.Stdin, os.Stdout, os.Stderr)
		case client.ToolVirtInstall:
			return tool(client.ToolVirtInstall, args[1:])
		}
	}
	if len(args) > 1 {
		switch args[1] {
		case "img":
			return qemuimg.Main("lamina img", args[2:], os.Stdin, os.Stdout, os.Stderr)
		case "install":
			return tool(client.ToolInstall, args[2:])
		}
	}
	return newApp(os.Stdin, os.Stdout, os.Stderr, Heavy{}).main(args[1:])
}

// Heavy is what only laminad links.
type Heavy struct {
	Open      OpenFunc
	ReadFleet FleetFunc
}

// Over is lamina with the words args and all that is heavy.
func Over(args []string, h Heavy) int {
	return newApp(os.Stdin, os.Stdout, os.Stderr, h).main(args)
}

// tool becomes a tool that is linked into laminad.
func tool(name string, args []string) int {
	err := client.Exec(name, args...)
	_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return exitFailed
}
