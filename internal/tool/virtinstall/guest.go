package virtinstall

import (
	"context"
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// guest is the machine in the making.
type guest struct {
	args *arguments
	host host
	std  Streams
	// quiet: nothing but the document and what went wrong is printed.
	quiet bool
	dom   *domxml.Element // <domain>
	// os is what the guest is known to be; osinfo's generic until then.
	os osinfo.OS
	// disks are the storage plans of the elements devices/disk, in order.
	disks []*disk

	// said remembers what was decided though the document does not show it: a
	// path that was set to "no", such as features/acpi.
	said map[string]string
	// edits are the XPath edits of the sub-options xpath...., and of --xml,
	// which are made when the document is complete.
	edits    []edit
	editKeys map[string]int // places of edits that may be completed
	caps     *capabilities  // of the host, see host_capabilities.go
	dcaps    *domainCaps    // of the machine's kind, once asked for
	// wantsUEFI: --boot uefi, or what is the same.
	wantsUEFI bool
	// cpuSecure: the CPU model gets the features against its security problems.
	cpuSecure bool
}

func newGuest(a *arguments, h host, std Streams) *guest {
	return &guest{args: a, host: h, std: std, quiet: a.has("quiet") || a.has("print-xml"),
		dom: domxml.New("domain"), said: map[string]string{}, cpuSecure: true}
}

// add appends an element to the document, under what its path says above it.
func (g *guest) add(path string, el *domxml.Element) {
	at := g.dom
	names := strings.Split(path, "/")
	for _, name := range names[:len(names)-1] {
		at = at.Need(name)
	}
	at.Add(el)
}

// devices returns the machine's devices of a kind: "disk", "interface".
func (g *guest) devices(name string) []*domxml.Element {
	return g.dom.Child("devices").All(name)
}

// warn prints a warning on stderr, unless --quiet or --print-xml want silence.
func (g *guest) warn(format string, args ...any) {
	if g.quiet {
		return
	}
	_, _ = fmt.Fprintf(g.std.Err, "WARNING  "+format+"\n", args...)
}

// say prints what goes on, unless --quiet or --print-xml want silence.
func (g *guest) say(format string, args ...any) {
	if !g.quiet {
		_, _ = fmt.Fprintf(g.std.Out, format+"\n", args...)
	}
}

// The facts that defaults ask for most.

func (g *guest) arch() string     { return g.dom.Get("os/type/@arch") }
func (g *guest) machine() string  { return g.dom.Get("os/type/@machine") }
func (g *guest) virtType() string { return g.dom.Get("@type") }
func (g *guest) hvm() bool        { return g.dom.Get("os/type") == "hvm" }
func (g *guest) container() bool  { return g.dom.Get("os/type") == "exe" }
func (g *guest) x86() bool        { a := g.arch(); return a == "x86_64" || a == "i686" }
func (g *guest) q35() bool {
	return g.x86() && (strings.HasPrefix(g.machine(), "pc-q35") || strings.Contains(g.machine(), "q35"))
}

// qemu reports whether the machine runs on QEMU, with KVM or without.
func (g *guest) qemu() bool {
	t := g.virtType()
	return t == "kvm" || t == "qemu" || t == "hvf"
}

// uefi reports whether the machine boots by UEFI.
func (g *guest) uefi() bool {
	return g.dom.Get("os/@firmware") == "efi" || g.dom.Get("os/loader/@type") == "pflash"
}

// use is what each option with sub-options, in their order, makes of the
// command line.
func (g *guest) use(ctx context.Context, o option) error {
	for _, text := range g.args.all(o.flag) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := o.apply(g, text); err != nil {
			return err
		}
	}
	return nil
}
