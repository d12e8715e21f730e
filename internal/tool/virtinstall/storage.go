package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// storage is the part of a host that keeps disks.
type storage interface {
	// libvirtConn is the connection to libvirtd, nil for plain QEMU.
	libvirtConn() *libvirt.Conn
	// imageDir is the folder of new disks for which no path is given, of plain
	// QEMU; it need not exist.
	imageDir() string
	// diskUsers adds to users, for each path, the machines of plain QEMU that
	// have it as a disk.
	diskUsers(ctx context.Context, users map[string][]string) error
}

// disk is the storage behind one devices/disk element: what was asked for,
// and once it is resolved what is to be made.
type disk struct {
	el *domxml.Element
	// option is the --disk as it was given, for messages; "" is one that the
	// installation adds.
	option string

	path, pool, volume     string
	size                   int64 // bytes of a new disk, 0 where none was given
	format                 string
	full                   bool // sparse=no
	backing, backingFormat string

	// new: the disk does not exist and is made when the machine is.
	new bool
	// file is the absolute path of the disk, existing or new, "" where it is
	// not a file or block device that we know of.
	file string
	// inPool is the libvirt pool that makes a new disk, "" where we do.
	inPool string
	// installer: the medium of an installation.
	installer bool
}

// planDisk notes what one --disk says of the storage; it is called when the
// sub-options have made the element. What it means is found out later, by
// resolveDisks, when the machine has its name.
func (g *guest) planDisk(el *domxml.Element, given *suboptions) error {
	get := func(key string) string { v, _ := given.get(key); return v }
	d := &disk{el: el, option: given.raw, path: get("path"), pool: get("pool"), volume: get("vol"), format: get("format"),
		backing: get("backing_store"), backingFormat: get("backing_format")}
	if text, ok := given.get("size"); ok {
		size, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			return fmt.Errorf("Improper value for 'size': could not convert string to float: '%s'", text)
		}
		if !(size >= 0 && size < math.MaxInt64/(1<<30)) {
			return fmt.Errorf("size=%s: it is a number of GiB, 0 or more and below 8 EiB", text)
		}
		d.size = int64(size * (1 << 30))
	}
	if text, ok := given.get("sparse"); ok {
		on, err := yes("sparse", text)
		if err != nil {
			return err
		}
		d.full = !on
	}
	if d.volume != "" {
		pool, volume, ok := strings.Cut(d.volume, "/")
		if !ok || pool == "" || volume == "" {
			return errors.New("Storage volume must be specified as vol=poolname/volname")
		}
		d.pool, d.volume = pool, volume
	}
	if d.backingFormat != "" && d.backing == "" {
		return errors.New("backing_format= says the format of backing_store=, which is missing")
	}
	g.disks = append(g.disks, d)
	return nil
}

// wrap says which --disk an error is about.
func (d *disk) wrap(err error) error {
	var check *checkError
	if err == nil || d.option == "" || errors.As(err, &check) {
		return err
	}
	return fmt.Errorf("Error: --disk %s: %w", d.option, err)
}

// device is what the guest sees: "disk", "cdrom", "floppy", "lun".
func (d *disk) device() string {
	if v := d.el.Attr("device"); v != "" {
		return v
	}
	return "disk"
}

// removable: the drive may be empty.
func (d *disk) removable() bool { return d.device() == "cdrom" || d.device() == "floppy" }

// resolveDisks finds out what each disk is and says it in the document: the
// type, the source, the driver's type. It changes nothing outside.
func (g *guest) resolveDisks(ctx context.Context) error {
	if err := g.defaultDisk(); err != nil {
		return err
	}
	for _, d := range g.disks {
		if err := g.resolveDisk(ctx, d); err != nil {
			return d.wrap(err)
		}
	}
	return g.checkDisks(ctx)
}

// defaultDisk adds the disk of a machine for which no --disk was given, of the
// size that its OS should have.
func (g *guest) defaultDisk() error {
	if g.args.has("reinstall") || len(g.args.all("disk")) > 0 || g.args.has("nodisks") || len(g.disks) > 0 && slices.ContainsFunc(g.disks, func(d *disk) bool { return !d.installer }) ||
		g.dom.Get("devices/filesystem/@type") != "" || g.dom.Get("os/type") == "exe" {
		return nil
	}
	if !g.known() {
		return nil // validate says that there is none
	}
	size := g.os.Recommended("x86_64").Storage
	gib := strconv.FormatInt(size>>30, 10)
	el := domxml.New("disk")
	given := &suboptions{raw: "size=" + gib}
	given.set("size", gib)
	if err := g.planDisk(el, given); err != nil {
		return err
	}
	g.add("devices/disk", el)
	return nil
}

// known reports whether more is known of the guest OS than that it is one.
func (g *guest) known() bool { return g.os.ShortID != "" && g.os.ShortID != "generic" }

// resolveDisk is resolveDisks for one.
func (g *guest) resolveDisk(ctx context.Context, d *disk) error {
	if src := d.el.Child("source"); src != nil && d.path == "" && d.pool == "" {
		switch {
		case src.Attr("file") != "":
			d.path = src.Attr("file")
		case src.Attr("dev") != "":
			d.path = src.Attr("dev")
		case src.Attr("dir") != "":
			d.path = src.Attr("dir")
		case src.Attr("volume") != "":
			return g.resolveSourceVolume(ctx, d, src)
		default:
			g.networkDisk(d)
			return nil
		}
		if u := d.path; !filepath.IsAbs(u) {
			abs, err := filepath.Abs(u)
			if err != nil {
				return err
			}
			d.path = abs
		}
	}
	switch {
	case d.pool != "":
		return g.resolveVolume(ctx, d)
	case isURL(d.path):
		return g.resolveURL(d)
	case d.path != "":
		return g.resolvePath(ctx, d)
	case d.size > 0 || d.backing != "":
		d.pool = "default"
		return g.resolveVolume(ctx, d)
	case d.removable():
		d.setType("file")
		return nil
	}
	return fmt.Errorf("Device type '%s' requires a path", d.device())
}

// setType gives the element its type where none was given.
func (d *disk) setType(kind string) {
	if d.el.Attr("type") == "" {
		d.el.SetAttr("type", kind)
	}
}

// setDriver says in the document of what kind the image is, where the command
// line does not.
func (d *disk) setDriver(g *guest, format string) {
	driver := d.el.Need("driver")
	if _, ok := driver.LookAttr("name"); !ok && g.qemu() {
		driver.SetAttr("name", "qemu")
	}
	if _, ok := driver.LookAttr("type"); !ok && format != "" {
		driver.SetAttr("type", format)
	}
}

// hint gives an attribute of the driver a value where it has none.
func (d *disk) hint(name, value string) {
	driver := d.el.Need("driver")
	if _, ok := driver.LookAttr(name); !ok {
		driver.SetAttr(name, value)
	}
}

// networkDisk is a disk whose source is given in full.
func (g *guest) networkDisk(d *disk) {
	if d.el.Attr("type") == "nvme" {
		return // QEMU drives the device itself
	}
	kind := "network"
	if d.el.Child("source").Attr("protocol") == "" && d.el.Child("source").Attr("type") != "" {
		kind = d.el.Child("source").Attr("type")
	}
	d.setType(kind)
	d.setDriver(g, "")
}

// isURL reports whether a path= is the URL of a network disk.
func isURL(path string) bool {
	scheme, _, ok := strings.Cut(path, "://")
	return ok && scheme != "" && !strings.Contains(scheme, "/")
}

// resolveURL is path=SCHEME://HOST:PORT/NAME.
func (g *guest) resolveURL(d *disk) error {
	u, err := url.Parse(d.path)
	if err != nil {
		return err
	}
	d.setType("network")
	src := d.el.Need("source")
	protocol, transport, _ := strings.Cut(u.Scheme, "+")
	src.SetAttr("protocol", protocol)
	name := strings.TrimPrefix(u.Path, "/")
	if u.RawQuery != "" && (protocol == "http" || protocol == "https") {
		src.SetAttr("query", u.RawQuery)
	}
	socket := u.Query().Get("socket")
	if transport == "unix" && socket == "" && protocol == "nbd" && u.Host == "" {
		socket, name = u.Path, "" // the original's short form
	}
	if name != "" {
		src.SetAttr("name", name)
	}
	if u.Hostname() != "" || transport != "" || socket != "" {
		h := src.Need("host")
		for _, a := range []struct{ name, value string }{{"name", u.Hostname()}, {"port", u.Port()}, {"transport", transport}, {"socket", socket}} {
			if a.value != "" {
				h.SetAttr(a.name, a.value)
			}
		}
	}
	d.setDriver(g, "")
	return nil
}

// absolute makes a path= absolute, with "~" for the home folder.
func absolute(path string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		dir, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, rest)
	}
	return filepath.Abs(path)
}
