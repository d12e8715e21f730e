package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// installation is where the guest comes from: what the machine runs at first,
// and what it needs for that.
type installation struct {
	g *guest
	// bootdev is what the first run boots from: "cdrom", "network", "hd", "fd";
	// "" is what the machine boots from anyway, or a kernel.
	bootdev string
	// medium is the ISO, or its URL, of --cdrom or of a --location that is one.
	medium string
	live   bool // --livecd: the medium stays, and there is no second phase
	// where is the tree of --location, nil for none.
	where *location
	// kernel and initrd are names in where, or of files and URLs without it.
	kernel, initrd string
	cmdline        []string // arguments of the kernel, in order
	overwrite      bool     // they replace those of the installation
	injections     []string // files of --initrd-inject
	osName         string   // --install OS
	noInstall      bool     // --install no_install=yes: the guest is there already
	cloud          *cloudInit
	unattended     *unattended

	// staged are the files that exist only for the installation.
	staged []*staged
	// bootArgs is the kernel's command line as prepare has made it.
	bootKernel, bootInitrd, bootArgs string
	drives                           []*domxml.Element // of the media: emptied in the end
	after                            []string          // staged discs whose drives follow that of the medium
	scratch                          string
}

// newInstallation reads the options of the installation.
func newInstallation(g *guest) (*installation, error) {
	in := &installation{g: g, live: g.args.has("livecd"), injections: g.args.all("initrd-inject")}
	for _, text := range g.args.all("extra-args") {
		if text = strings.TrimSpace(text); text != "" {
			in.cmdline = append(in.cmdline, text)
		}
	}
	if err := in.readMethod(); err != nil {
		return nil, err
	}
	kernel := in.where != nil || in.kernel != "" || in.osName != ""
	if len(in.cmdline) > 0 && !kernel {
		return nil, errors.New("Kernel arguments are only supported with location or kernel installs.")
	}
	if len(in.injections) > 0 && !kernel {
		return nil, errors.New("Install method does not support initrd injections.")
	}
	for _, name := range in.injections {
		if st, err := os.Stat(name); err != nil {
			return nil, fmt.Errorf("--initrd-inject: %w", err)
		} else if !st.Mode().IsRegular() {
			return nil, fmt.Errorf("--initrd-inject %s: it is not a file", name)
		}
	}
	var err error
	if in.cloud, err = readCloudInit(g); err != nil {
		return nil, err
	}
	if in.unattended, err = readUnattended(g); err != nil {
		return nil, err
	}
	if in.cloud != nil && in.unattended != nil {
		return nil, errors.New("--unattended and --cloud-init can not be specified together.")
	}
	return in, nil
}

// readMethod reads --location, --cdrom, --pxe and --install.
func (in *installation) readMethod() error {
	a := in.g.args
	if text, ok := a.last("install"); ok {
		if err := in.readInstall(text); err != nil {
			return err
		}
	}
	if text, ok := a.last("location"); ok {
		if err := in.readLocation(text); err != nil {
			return err
		}
	}
	cdrom, ok := a.last("cdrom")
	switch {
	case in.where != nil || in.kernel != "" || in.osName != "":
	case ok && cdrom == "":
		return errors.New("--cdrom: it is the path or the URL of an ISO image")
	case ok:
		in.bootdev = "cdrom"
		return in.setMedium(cdrom)
	case a.has("pxe"):
		in.bootdev = "network"
	}
	return nil
}

// setMedium checks the ISO of an installation.
func (in *installation) setMedium(name string) error {
	in.medium = name
	if isURL(name) {
		return nil
	}
	path, err := absolute(name)
	if err != nil {
		return err
	}
	in.medium = path
	if c := in.g.host; c != nil && in.g.remote() {
		return nil
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("Validating install media '%s' failed: Must specify storage creation parameters for non-existent path '%s'.", name, path)
	}
	return nil
}

// installSubs are the sub-options of --install.
func installSubs() option {
	return option{flag: "install", first: []string{"os"}, subs: func() []sub {
		return []sub{{name: "bootdev"}, {name: "initrd", comma: true}, {name: "kernel", comma: true}, {name: "kernel_args", comma: true},
			{name: "kernel_args_overwrite", kind: yesNo}, {name: "no_install", kind: yesNo}, {name: "os"}}
	}}
}

// readInstall reads --install.
func (in *installation) readInstall(text string) error {
	o := installSubs()
	given, err := o.read(text)
	if err != nil {
		return err
	}
	get := func(key string) string { v, _ := given.get(key); return v }
	in.bootdev, in.kernel, in.initrd, in.osName = get("bootdev"), get("kernel"), get("initrd"), get("os")
	if in.bootdev != "" && !slices.Contains([]string{"hd", "cdrom", "network", "fd"}, in.bootdev) {
		return fmt.Errorf("--install bootdev=%s: it is one of hd, cdrom, network, fd", in.bootdev)
	}
	if args := get("kernel_args"); args != "" {
		in.cmdline = append([]string{args}, in.cmdline...)
	}
	if in.overwrite, err = given.yes("kernel_args_overwrite"); err != nil {
		return err
	}
	if in.overwrite {
		in.cmdline = in.cmdline[:min(1, len(in.cmdline))]
	}
	if in.noInstall, err = given.yes("no_install"); err != nil {
		return err
	}
	if in.initrd != "" && in.kernel == "" {
		return errors.New("--install initrd=: it needs kernel= too")
	}
	if in.osName != "" {
		return in.useOS()
	}
	return nil
}

// useOS takes the tree where the vendor has the OS of --install.
func (in *installation) useOS() error {
	o, err := osDB().Lookup(in.osName)
	if err != nil {
		return fmt.Errorf("Unknown OS name '%s'. See `--osinfo list` for valid values.", in.osName)
	}
	for _, t := range o.Trees() {
		if t.Arch == "x86_64" && t.URL != "" {
			in.where = &location{name: t.URL, url: t.URL, kernel: t.Kernel, initrd: t.Initrd}
			return nil
		}
	}
	for _, m := range o.Media() {
		if (m.Arch == "x86_64" || m.Arch == "all") && m.URL != "" && m.Installer {
			in.bootdev, in.medium = "cdrom", m.URL
			return nil
		}
	}
	return fmt.Errorf("OS '%s' does not have a URL location for the architecture 'x86_64'", in.osName)
}

// read parses an option that makes no element: sub-options, all known, all
// with a value.
func (o option) read(text string) (*suboptions, error) {
	given, err := o.parse(text)
	if err != nil {
		return nil, fmt.Errorf("Error: --%s %s: %w", o.flag, text, err)
	}
	var unknown []suboption
	for _, w := range given.list {
		if !slices.ContainsFunc(o.subs(), func(s sub) bool { _, ok := s.match(w.key); return ok }) {
			unknown = append(unknown, w)
		} else if !w.given {
			return nil, fmt.Errorf("Error: --%s %s: Option '%s' had no value set.", o.flag, text, w.key)
		}
	}
	if len(unknown) > 0 {
		return nil, &unknownError{o.flag, unknown}
	}
	return given, nil
}

// yes reads a sub-option that is yes or no; it is no where it was not given.
func (s *suboptions) yes(key string) (bool, error) {
	text, ok := s.get(key)
	if !ok {
		return false, nil
	}
	return yes(key, text)
}

// detect returns the short id of the OS that the installation media hold, ""
// where nothing is known of them.
func (in *installation) detect(ctx context.Context, _ *guest) (string, error) {
	if in.osName != "" {
		return in.osName, nil
	}
	if in.where != nil {
		if err := in.where.open(ctx); err != nil {
			return "", err
		}
		return in.where.detect(ctx)
	}
	if in.medium == "" || isURL(in.medium) || in.g.remote() {
		return "", nil
	}
	f, size, err := openISO(in.medium)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	m, _, err := osDB().Detect(f, size)
	if errors.Is(err, osinfo.ErrNotISO) || errors.Is(err, osinfo.ErrUnknownMedia) {
		return "", nil
	}
	return m.OS.ShortID, err
}

func openISO(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		err = fmt.Errorf("%s is a folder", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// specified reports whether an install method was given.
func (in *installation) specified() bool {
	return in.twoPhases() || in.noInstall || in.live || in.g.args.has("import") || in.g.args.has("boot") || in.g.args.has("reinstall") || len(in.g.disks) > 0
}

// twoPhases reports whether the first run is another one than those that
// follow.
func (in *installation) twoPhases() bool {
	if in.noInstall || in.live {
		return false
	}
	return in.bootdev != "" || in.where != nil || in.kernel != "" || in.cloud != nil || in.unattended != nil
}

// prepare gives the machine the drives of the installation and finds the
// storage of all drives. It is called before the defaults are set.
func (in *installation) prepare(ctx context.Context, _ *installation) error {
	g := in.g
	if err := g.defaultName(ctx); err != nil {
		return err
	}
	if in.unattended != nil {
		if err := in.unattended.prepare(ctx, in); err != nil {
			return err
		}
	}
	if in.where != nil || in.kernel != "" {
		if err := in.prepareKernel(ctx); err != nil {
			return err
		}
	}
	if in.medium != "" {
		if err := in.addMedium(in.medium, ""); err != nil {
			return err
		}
	}
	for _, path := range in.after {
		if err := in.addMedium(path, "raw"); err != nil {
			return err
		}
	}
	if in.cloud != nil {
		f, err := in.stage("cloudinit.iso", in.cloud.write)
		if err != nil {
			return err
		}
		if err := in.addMedium(f.path, "raw"); err != nil {
			return err
		}
	}
	if err := g.resolveDisks(ctx); err != nil {
		return err
	}
	in.defaultBoot()
	return nil
}

// addMedium adds a CD drive with a medium, that exists unless its format is
// given: then it is made with the machine.
func (in *installation) addMedium(path, format string) error {
	el := domxml.New("disk", "device", "cdrom")
	el.Add(domxml.New("readonly"))
	in.drives = append(in.drives, el)
	in.addDrive(el, format == "")
	if format == "" {
		in.g.disks = append(in.g.disks, &disk{el: el, path: path, installer: true})
		return nil
	}
	d := &disk{el: el, file: path, installer: true}
	d.setType("file")
	return d.setSource(in.g, "file", format)
}

// addDrive adds a drive: that of the installation's medium before the person's
// own CD drives, as firmware boots from the first.
func (in *installation) addDrive(el *domxml.Element, front bool) {
	devices := in.g.dom.Need("devices")
	at := len(devices.Children)
	for i, c := range devices.Children {
		if front && c.Name == "disk" && c.Attr("device") == "cdrom" && !slices.Contains(in.drives, c) {
			at = i
			break
		}
	}
	devices.Children = slices.Insert(devices.Children, at, el)
}

// defaultBoot gives the machine its boot order: the kind of its first drive.
func (in *installation) defaultBoot() {
	o := in.g.dom.Need("os")
	if in.g.container() || o.Child("boot") != nil || o.Child("kernel") != nil || in.g.bootOrdered() {
		return
	}
	dev := "hd"
	if drives := in.g.devices("disk"); len(drives) > 0 {
		switch drives[0].Attr("device") {
		case "cdrom":
			dev = "cdrom"
		case "floppy":
			dev = "fd"
		}
	} else if in.bootdev == "network" || in.bootdev == "cdrom" {
		dev = in.bootdev
	}
	o.Add(domxml.New("boot", "dev", dev))
	if dev != "hd" && in.g.hasHardDisk() {
		o.Add(domxml.New("boot", "dev", "hd"))
	}
}

// hasHardDisk reports whether one of the drives is a disk.
func (g *guest) hasHardDisk() bool {
	return slices.ContainsFunc(g.devices("disk"), func(d *domxml.Element) bool { k := d.Attr("device"); return k == "" || k == "disk" })
}

// bootOrdered reports whether a device says its place in the boot order.
func (g *guest) bootOrdered() bool {
	for _, el := range g.deviceList() {
		if el.Find("boot") != nil {
			return true
		}
	}
	return false
}

// documents returns the document of the install phase, nil where there is
// none, and the one of the machine.
func (in *installation) documents(_ context.Context, g *guest) (first, final *domxml.Element, err error) {
	if !in.twoPhases() {
		return nil, g.dom, nil
	}
	first = g.dom.Clone()
	set := func(path, value string) {
		if err == nil {
			err = first.Set(path, value)
		}
	}
	set("on_reboot", "destroy")
	o := first.Need("os")
	in.firstBoot(o)
	if in.bootKernel != "" {
		set("os/kernel", in.bootKernel)
		if in.bootInitrd != "" {
			set("os/initrd", in.bootInitrd)
		}
		if in.bootArgs != "" {
			set("os/cmdline", in.bootArgs)
		}
	}
	if in.cloud != nil {
		set("os/smbios/@mode", "sysinfo")
		set("sysinfo/@type", "smbios")
		set("sysinfo/system/entry[@name='serial']", "ds=nocloud")
	}
	if err == nil {
		err = in.networkMemory(first)
	}
	final = g.dom.Clone()
	in.eject(g, final)
	return first, final, err
}

// networkMemory gives the install phase what an installer needs that fetches
// all of itself into memory.
func (in *installation) networkMemory(first *domxml.Element) error {
	if in.where == nil || in.where.iso {
		return nil
	}
	least := in.g.os.NetworkInstallMemory("x86_64") >> 10
	for _, name := range []string{"memory", "currentMemory"} {
		el := first.Child(name)
		if el == nil || el.Attr("unit") != "" && el.Attr("unit") != "KiB" {
			continue
		}
		now, err := strconv.ParseInt(el.Text, 10, 64)
		if err != nil {
			return fmt.Errorf("memory of %q KiB: %w", el.Text, err)
		}
		if now < least {
			el.Text = strconv.FormatInt(least, 10)
		}
	}
	return nil
}

// firstBoot gives the install phase its boot order.
func (in *installation) firstBoot(o *domxml.Element) {
	had := o.All("boot")
	for _, b := range had {
		o.Drop(b)
	}
	if in.bootKernel != "" || o.Child("kernel") != nil || in.bootdev == "" || in.g.bootOrdered() {
		return
	}
	o.Add(domxml.New("boot", "dev", in.bootdev))
	if in.bootdev != "hd" && in.g.hasHardDisk() {
		o.Add(domxml.New("boot", "dev", "hd"))
	}
}

// eject empties the drives of the installation. Windows reads its medium again
// after the first reboot.
func (in *installation) eject(g *guest, final *domxml.Element) {
	all, finals := g.devices("disk"), final.Child("devices").All("disk")
	for i, el := range all {
		if !slices.Contains(in.drives, el) {
			continue
		}
		if g.os.IsWindows() && in.medium != "" && el == in.drives[0] {
			continue
		}
		for _, name := range []string{"source", "driver"} {
			if c := finals[i].Child(name); c != nil {
				finals[i].Drop(c)
			}
		}
		finals[i].SetAttr("type", "file")
	}
}

// deviceList returns all devices.
func (g *guest) deviceList() []*domxml.Element {
	if d := g.dom.Child("devices"); d != nil {
		return d.Children
	}
	return nil
}

// scratchDir is where files for the installation are put.
func (in *installation) scratchDir() (string, error) {
	if in.scratch != "" {
		return in.scratch, nil
	}
	conn := in.g.host.libvirtConn()
	switch {
	case conn == nil:
		in.scratch = in.g.host.imageDir()
	case conn.Session() && !conn.Remote():
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		in.scratch = filepath.Join(cache, "virt-manager", "boot")
	default:
		in.scratch = "/var/lib/libvirt/boot"
	}
	return in.scratch, nil
}
