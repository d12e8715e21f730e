// Command lamina takes disk images to machines at their login prompt: the
// client of laminad, and the qemu-img work-alike as `lamina img` or under the
// name qemu-img.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/tool/qemuimg"
)

func main() { os.Exit(start(os.Args)) }

// start picks the personality. The image tool is reached before anything of
// the command tree is built: scripts call it many times, and each call is to
// take no longer than the C tool's.
func start(args []string) int {
	if len(args) > 0 && filepath.Base(args[0]) == "qemu-img" {
		return qemuimg.Main("qemu-img", args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	if len(args) > 0 && filepath.Base(args[0]) == client.ToolVirtInstall {
		return tool(client.ToolVirtInstall, args[1:])
	}
	if len(args) > 1 && args[1] == "install" {
		return tool(client.ToolInstall, args[2:])
	}
	if len(args) > 1 && args[1] == "img" {
		return qemuimg.Main("lamina img", args[2:], os.Stdin, os.Stdout, os.Stderr)
	}
	return newApp(os.Stdin, os.Stdout, os.Stderr).main(args[1:])
}

// tool becomes a tool that is linked into laminad.
func tool(name string, args []string) int {
	err := client.Exec(name, args...)
	_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	return exitFailed
}
