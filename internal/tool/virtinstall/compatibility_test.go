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
	b.WriteString(others)
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

// others are the differences that no printed document shows.
const others = `
## Where a machine is made

- A screen that others than this host's users can reach (listen=0.0.0.0), without password or TLS, gets a password, which is told once;
  --insecure-graphics leaves it as it is. The printed document is the original's.
- --dry-run and --print-xml change nothing: the original defines and starts storage pools.
- What fails, or is broken off, leaves nothing: no disk, no definition, no seed. The original leaves its disk.
- One image given to two disks, and a backing file that is missing, are refused. bus=virtio is refused for systems that cannot have the driver (DOS, Windows
  before NT, others released before June 2007); what else osinfo-db knows no driver for is a warning.
- An existing image that the person may not read is looked up in libvirt's pools, or needs driver.type=: the original takes it for raw.
- cloud-init's user-data= is taken as it is, and a warning says that the password and key options do nothing beside it. There is no pause
  of 10 s after a password is told.
- --unattended uses answers of our own (kickstart, preseed, autoinstall, AutoYaST, autounattend) and downloads no drivers for Windows.
- --xml name=value without ./ sets that element: the original replaces the whole document with the text.
- ftp locations are refused: the servers have gone.

## Without --connect (plain QEMU)

- The default is plain QEMU, not libvirt; LAMINA_CONNECT is another default.
- What QEMU alone cannot do is refused by name, by --dry-run too. pool= and vol= are libvirt's; the network default is QEMU's user-mode network.
- type=kvm means KVM where it works, else TCG, which is said. The first pty serial port is a socket with a log; a screen without port or address is a unix socket.
- The guest is started again when its installation has ended also without --wait, as the daemon does it. A boot without a login prompt is a warning.
- A machine has a generation id (genid, vmgenid) where --metadata genid= or genid_enable=yes asks for one, as in the original. Machines of
  lamina run and clone always have one: it tells a copy's guest that it is another.
`
