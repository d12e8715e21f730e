package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// remote reports whether paths are of another computer.
func (g *guest) remote() bool {
	c := g.host.libvirtConn()
	return c != nil && c.Remote()
}

// resolvePath is a disk with a path: one that exists, or one to make there.
func (g *guest) resolvePath(ctx context.Context, d *disk) error {
	path, err := absolute(d.path)
	if err != nil {
		return err
	}
	d.file = path
	if g.remote() {
		return g.resolveRemote(ctx, d)
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return g.resolveNew(ctx, d)
	case err != nil:
		return err
	case st.IsDir():
		d.setType("dir")
		return d.setSource(g, "dir", "raw")
	case st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0:
		d.setType("block")
		if !d.removable() && d.device() != "lun" {
			if d.el.Get("driver/@cache") == "" {
				d.hint("cache", "none")
			}
			d.hint("discard", "unmap")
			if d.el.Get("driver/@cache") == "none" {
				d.hint("io", "native")
			}
		}
		return d.setSource(g, "dev", "raw")
	case !st.Mode().IsRegular():
		d.setType("file")
		return d.setSource(g, "file", "")
	}
	format, err := imageFormat(ctx, path)
	if errors.Is(err, fs.ErrPermission) && g.host.libvirtConn() != nil {
		return g.resolveUnreadable(ctx, d)
	}
	if err != nil {
		return err
	}
	d.setType("file")
	return d.setSource(g, "file", format)
}

// resolveUnreadable is a file that libvirt may read and we may not. Its format
// is what libvirt's pool knows, or what the command line says: a guessed one
// would let the guest write over the image's own tables.
func (g *guest) resolveUnreadable(ctx context.Context, d *disk) error {
	vol, err := g.host.libvirtConn().LookupVolume(ctx, d.file)
	if err == nil {
		return g.useVolume(ctx, d, vol)
	}
	if !errors.Is(err, libvirt.ErrNotFound) {
		return err
	}
	d.setType("file")
	return d.setUnreadable(g)
}

// setUnreadable writes the source and the driver of a file whose content is
// not known.
func (d *disk) setUnreadable(g *guest) error {
	switch {
	case d.removable():
		return d.setSource(g, "file", "raw")
	case d.el.Get("driver/@type") != "":
		return d.setSource(g, "file", "")
	case d.format != "":
		return d.setSource(g, "file", d.format)
	}
	return fmt.Errorf("%s: you may not read it, so its format cannot be seen, and a wrong one destroys it: say driver.type=qcow2 (or raw), or give its folder a storage pool", d.file)
}

// setSource writes the source and the driver of a disk that is at d.file.
func (d *disk) setSource(g *guest, attr, format string) error {
	d.el.Need("source").SetAttr(attr, d.file)
	d.setDriver(g, format)
	return nil
}

// libvirtFormats are the formats that libvirt has a name for; all else is raw
// for it, as what is inside is the guest's matter or QEMU's.
var libvirtFormats = []string{"raw", "bochs", "cloop", "dmg", "vpc", "vdi", "cow", "qcow", "qcow2", "qed", "vmdk", "ploop"}

// imageFormat returns the format of an existing image, by its first bytes as
// the original and libvirt's pools find it. It opens no other file that the
// image may name. A file that we may not read is [fs.ErrPermission].
func imageFormat(ctx context.Context, path string) (string, error) {
	infos, err := image.Inspect(ctx, path, image.InfoOptions{NoLock: true})
	if err != nil {
		return "", err
	}
	format := infos[0].Info.Format
	if format == "raw" {
		return foreignFormat(path)
	}
	if !slices.Contains(libvirtFormats, format) {
		return "raw", nil
	}
	return format, nil
}

// foreignFormats are those that QEMU reads and we do not, by what they begin
// with at an offset.
var foreignFormats = []struct {
	format string
	offset int
	magic  string
}{
	{"vmdk", 0, "KDMV"}, {"vmdk", 0, "COWD"}, {"vmdk", 0, "# Disk DescriptorFile"}, {"vdi", 64, "\x7f\x10\xda\xbe"},
	{"vpc", 0, "conectix"}, {"qed", 0, "QED\x00"}, {"qcow", 0, "QFI\xfb\x00\x00\x00\x01"}, {"cow", 0, "OOOM"},
}

// foreignFormat is imageFormat for an image that is none of ours.
func foreignFormat(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	for _, k := range foreignFormats {
		if k.offset < n && strings.HasPrefix(string(head[k.offset:n]), k.magic) {
			return k.format, nil
		}
	}
	return "raw", nil
}

// noFolder is the error for a folder of a new disk that cannot be used.
func noFolder(dir string, err error) error {
	var errno syscall.Errno
	text := err.Error()
	if errors.As(err, &errno) {
		text = errno.Error()
		text = strings.ToUpper(text[:1]) + text[1:] // as the C library writes it
	}
	return fmt.Errorf("Could not start storage pool: cannot open directory '%s': %s", dir, text)
}

// resolveNew is a disk that is to be made at d.file.
func (g *guest) resolveNew(ctx context.Context, d *disk) error {
	name := filepath.Base(d.file)
	if d.size == 0 && d.backing == "" {
		if d.path != "" && d.option != "" && d.el.Get("source/@file") == "" {
			if _, err := os.Stat(filepath.Dir(d.file)); err != nil && !g.remote() {
				return noFolder(filepath.Dir(d.file), err)
			}
			return fmt.Errorf("Size must be specified for non existent volume '%s'", name)
		}
		return fmt.Errorf("Must specify storage creation parameters for non-existent path '%s'.", d.file)
	}
	if st, err := os.Stat(filepath.Dir(d.file)); !g.remote() && d.inPool == "" && (err != nil || !st.IsDir()) {
		if err == nil {
			err = syscall.ENOTDIR
		}
		return noFolder(filepath.Dir(d.file), err)
	}
	if g.taken(d) {
		return fmt.Errorf("'%s' is made by another --disk of this command already", d.file)
	}
	if d.backing != "" {
		if err := g.resolveBacking(ctx, d); err != nil {
			return err
		}
	}
	d.new = true
	if d.format == "" {
		d.format = "qcow2"
	}
	if d.backing != "" && d.format != "qcow2" && d.format != "qed" && d.format != "vmdk" {
		return fmt.Errorf("format=%s has no backing files: backing_store= needs format=qcow2", d.format)
	}
	if err := g.checkSpace(ctx, d); err != nil {
		return err
	}
	d.setType("file")
	if err := d.setSource(g, "file", d.format); err != nil {
		return err
	}
	if !d.full && d.device() == "disk" {
		d.hint("discard", "unmap")
	}
	return nil
}

// taken reports whether an earlier disk of this machine is to be made at the
// same place.
func (g *guest) taken(d *disk) bool {
	return slices.ContainsFunc(g.disks, func(o *disk) bool { return o != d && o.new && o.file == d.file })
}

// resolveBacking checks backing_store= and finds its format and size.
func (g *guest) resolveBacking(ctx context.Context, d *disk) error {
	if isURL(d.backing) {
		return nil
	}
	path, err := absolute(d.backing)
	if err != nil {
		return err
	}
	d.backing = path
	if g.remote() {
		return nil
	}
	infos, err := image.Inspect(ctx, path, image.InfoOptions{NoLock: true, Format: d.backingFormat})
	if err != nil {
		return fmt.Errorf("backing_store=%s: %w", path, err)
	}
	if d.backingFormat == "" {
		d.backingFormat = infos[0].Info.Format
	}
	if d.size == 0 {
		d.size = infos[0].VirtualSize
	}
	if d.size < infos[0].VirtualSize {
		g.warn("The disk of %d bytes is smaller than its backing_store %s of %d bytes: what is beyond is not seen", d.size, path, infos[0].VirtualSize)
	}
	return nil
}
