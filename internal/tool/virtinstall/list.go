package virtinstall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// version is the one of virt-install whose behaviour this is; tools that call
// it compare the number.
const version = "4.1.0"

// list answers what needs no host: --help, --version, the sub-options of an
// option ("--disk=?", "--disk help") and --osinfo list. It reports whether it
// did.
func list(a *arguments, std Streams) (bool, error) {
	switch {
	case a.has("help"):
		_, err := fmt.Fprint(std.Out, help())
		return true, err
	case a.has("version"):
		_, err := fmt.Fprintln(std.Out, version)
		return true, err
	}
	asked := func(key string) bool {
		return slices.ContainsFunc(a.all(key), func(text string) bool { return text == "?" || text == "help" })
	}
	var out strings.Builder
	for _, l := range listings() {
		if !asked(l.flag) {
			continue
		}
		fmt.Fprintf(&out, "--%s options:\n", l.flag)
		for _, name := range l.names() {
			out.WriteString("  " + name + "\n")
		}
		out.WriteString("\n")
	}
	if out.Len() > 0 {
		_, err := fmt.Fprint(std.Out, out.String())
		return true, err
	}
	if a.get("os-variant") == "list" {
		return true, listOS(std)
	}
	return false, nil
}

// listing is the list of an option's sub-options.
type listing struct {
	flag  string
	names func() []string
}

// listings are those of all options, in their order.
func listings() []listing {
	plain := func(flag, names string) listing {
		return listing{flag, func() []string { return strings.Fields(names) }}
	}
	var out []listing
	for _, o := range options() {
		out = append(out, listing{o.flag, o.names})
	}
	return append(out,
		plain("xml", "xpath.create xpath.delete xpath.set xpath.value"),
		plain("location", "initrd kernel location"),
		plain("install", "bootdev initrd kernel kernel_args kernel_args_overwrite no_install os"),
		plain("unattended", "admin-password-file product-key profile reg-login user-login user-password-file"),
		plain("cloud-init", "clouduser-ssh-key disable meta-data network-config root-password-file root-password-generate root-ssh-key user-data"),
		plain("os-variant", "detect id name require short-id"),
		plain("check", "all disk_size mac_in_use path_exists path_in_use"),
	)
}

// listOS prints the short ids of the systems that osinfo-db knows.
func listOS(std Streams) error {
	var out strings.Builder
	for _, o := range osinfo.Open(osinfo.Dirs()...).List() {
		ids := slices.Clone(o.ShortIDs)
		slices.Sort(ids)
		out.WriteString(strings.Join(ids, ", ") + "\n")
	}
	_, err := fmt.Fprint(std.Out, out.String())
	return err
}

// help is the text of --help.
func help() string {
	var b strings.Builder
	b.WriteString(usageLine + `

Make a virtual machine and install a guest into it. This is Lamina's work-alike
of virt-install ` + version + `: its command lines, sub-options and exit statuses. Without
--connect the machine runs on QEMU alone; with --connect it becomes a domain of
that libvirtd.

Examples:
  virt-install --name web --osinfo debian12 --import --disk web.qcow2
  virt-install --osinfo debian12 --cdrom debian-12.iso --disk size=20 --graphics vnc
  virt-install --connect qemu:///system --osinfo win10 --cdrom win10.iso --disk size=40

Options (each takes "=?" to list its sub-options):
`)
	for _, f := range flags() {
		if f.hidden {
			continue
		}
		names := strings.Join(f.names, ", ")
		switch f.takes {
		case takesOne:
			names += " " + strings.ToUpper(f.key)
		case takesMaybe:
			names += " [" + strings.ToUpper(f.key) + "]"
		}
		b.WriteString("  " + names + "\n")
	}
	b.WriteString("\nThe manual page virt-install(1) explains them all.\n")
	return b.String()
}
