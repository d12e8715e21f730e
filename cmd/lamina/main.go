// Command lamina takes disk images to machines at their login prompt: the
// client of laminad, the qemu-img work-alike as `lamina img` or under the name
// qemu-img, and virt-install's as `lamina install` or under the name
// virt-install.
package main

import (
	"os"

	"github.com/lamina-vm/lamina/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args)) }
