package virtinstall

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestCompatibilityPage holds that docs/compatibility-virt-install.md lists
// every intended difference, with its reason. -update writes it.
func TestCompatibilityPage(t *testing.T) {
	const page = "../../../docs/compatibility-virt-install.md"
	var b strings.Builder
	b.WriteString(`# Compatibility with virt-install

` + "`lamina install`, and the same program called `virt-install`, take the command lines of virt-install " + version + `. The test ` + "`TestDifferential`" + ` runs
each of its command lines through the stock program and ours, for a real libvirtd, and compares the exit status, the domain documents element
by element (all of them, where an installation has two phases) and what is said. What each run makes anew is left out: UUIDs, MAC addresses, the
emulator's path, the version of a machine type, names of temporary files. Every sub-option that the stock program lists is tried as well.

Where a line of this table stops to differ, the test fails too. Written by
` + "`go test ./internal/tool/virtinstall -run TestCompatibilityPage -update`" + `.

| virt-install ... | what differs, and why |
| --- | --- |
`)
	lines := 0
	for _, g := range table() {
		for _, c := range g.cases {
			lines++
			if c.why == "" {
				continue
			}
			line, alone := strings.CutPrefix(c.line, "@")
			if !alone {
				line = strings.TrimPrefix(line, "--connect qemu:///system ")
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", strings.ReplaceAll(line, "|", `\|`), c.why)
		}
	}
	fmt.Fprintf(&b, "\n%d command lines are compared.\n", lines)
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != b.String() {
		t.Errorf("%s is not up to date: run the command in it", page)
	}
}
