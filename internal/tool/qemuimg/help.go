package qemuimg

import "strings"

const versionText = "qemu-img version " + Compatible + " (Lamina)\n"

// help prints the overview, for `--help` with or without a verb.
func (t *tool) help() int {
	var b strings.Builder
	b.WriteString(versionText)
	b.WriteString("usage: " + t.prog + " [standard options] command [command options]\n")
	t.printf("%s", b.String())
	return exitOK
}
