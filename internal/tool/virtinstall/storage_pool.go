package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// defaultPoolDir is where libvirt's pool "default" lies.
const defaultPoolDir = "/var/lib/libvirt/images"

// extension is the end of a file name by its format.
func extension(format string) string {
	if format == "raw" {
		return "img"
	}
	return format
}

// resolveVolume is a disk in a storage pool: pool=, vol=, or size= alone.
func (g *guest) resolveVolume(ctx context.Context, d *disk) error {
	if g.host.libvirtConn() == nil {
		return g.resolvePlainPool(ctx, d)
	}
	pool, dir, err := g.pool(ctx, d.pool)
	if err != nil {
		return err
	}
	if d.volume != "" && pool != nil {
		return g.resolveNamedVolume(ctx, d, pool)
	}
	d.inPool = d.pool
	if d.format == "" {
		d.format = "qcow2"
	}
	if d.file, err = g.freeName(ctx, d, dir, func(name string) (bool, error) {
		if pool == nil {
			return false, nil
		}
		_, err := pool.LookupVolume(ctx, name)
		if errors.Is(err, libvirt.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	}); err != nil {
		return err
	}
	return g.resolvePoolNew(ctx, d)
}

// resolvePoolNew is a new disk in a pool, whose messages name the volume.
func (g *guest) resolvePoolNew(ctx context.Context, d *disk) error {
	if d.size == 0 && d.backing == "" {
		return fmt.Errorf("Size must be specified for non existent volume '%s'", filepath.Base(d.file))
	}
	return g.resolveNew(ctx, d)
}

// freeName returns the path of a new disk in a folder: the machine's name, with
// a number if that is taken.
func (g *guest) freeName(ctx context.Context, d *disk, dir string, exists func(name string) (bool, error)) (string, error) {
	base := g.dom.Get("name")
	for n := 0; n < 100000; n++ {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		name := base
		if n > 0 {
			name += "-" + strconv.Itoa(n)
		}
		name += "." + extension(d.format)
		d.file = filepath.Join(dir, name)
		if g.taken(d) {
			continue
		}
		used, err := exists(name)
		if err != nil {
			return "", err
		}
		if !used {
			return d.file, nil
		}
	}
	return "", fmt.Errorf("%s: every name for a disk of %s is taken", dir, base)
}

// pool returns a pool by its name and the folder of its volumes. Libvirt's
// default pool may not be there yet: then it is nil, and made with the disk.
func (g *guest) pool(ctx context.Context, name string) (*libvirt.Pool, string, error) {
	pool, err := g.host.libvirtConn().LookupPool(ctx, name)
	if errors.Is(err, libvirt.ErrNotFound) {
		if name == "default" {
			return nil, defaultPoolDir, nil
		}
		return nil, "", plain(err)
	}
	if err != nil {
		return nil, "", err
	}
	doc, err := pool.XML(ctx)
	if err != nil {
		return nil, "", err
	}
	el, err := domxml.Parse([]byte(doc))
	if err != nil {
		return nil, "", fmt.Errorf("pool %s: %w", name, err)
	}
	active, err := pool.Active(ctx)
	if err != nil {
		return nil, "", err
	}
	if !active && name != "default" {
		return nil, "", fmt.Errorf("storage pool %q is not active: virsh pool-start %s", name, name)
	}
	if !active {
		pool = nil
	}
	return pool, el.Get("target/path"), nil
}

// resolveNamedVolume is vol=POOL/VOLUME, which must exist.
func (g *guest) resolveNamedVolume(ctx context.Context, d *disk, pool *libvirt.Pool) error {
	vol, err := pool.LookupVolume(ctx, d.volume)
	if err != nil {
		return plain(err)
	}
	return g.useVolume(ctx, d, vol)
}

// plain is libvirt's own message, without what was tried.
func plain(err error) error {
	if text := libvirt.Message(err); text != "" {
		return errors.New(text)
	}
	return err
}

// useVolume is a disk that is a volume of a pool.
func (g *guest) useVolume(ctx context.Context, d *disk, vol *libvirt.Volume) error {
	doc, err := vol.XML(ctx)
	if err != nil {
		return err
	}
	el, err := domxml.Parse([]byte(doc))
	if err != nil {
		return fmt.Errorf("volume %s: %w", vol.Name(), err)
	}
	if d.file, err = vol.Path(ctx); err != nil {
		return err
	}
	format := el.Get("target/format/@type")
	if format == "iso" || format == "unknown" {
		format = "raw"
	}
	attr := "file"
	switch el.Attr("type") {
	case "block":
		attr, format = "dev", "raw"
		d.setType("block")
	case "dir":
		attr, format = "dir", "raw"
		d.setType("dir")
	case "network", "netdir":
		d.setType("volume")
		d.el.Need("source").SetAttr("pool", vol.Pool())
		d.el.Need("source").SetAttr("volume", vol.Name())
		d.setDriver(g, format)
		return nil
	default:
		d.setType("file")
	}
	return d.setSource(g, attr, format)
}

// resolveRemote is a path on another computer, of which libvirt knows what
// its pools hold.
func (g *guest) resolveRemote(ctx context.Context, d *disk) error {
	conn := g.host.libvirtConn()
	vol, err := conn.LookupVolume(ctx, d.file)
	if err == nil {
		return g.useVolume(ctx, d, vol)
	}
	if !errors.Is(err, libvirt.ErrNotFound) {
		return err
	}
	pool, err := conn.LookupPoolByTarget(ctx, filepath.Dir(d.file))
	if err == nil {
		d.inPool = pool.Name()
	} else if !errors.Is(err, libvirt.ErrNotFound) {
		return err
	}
	return g.resolveNew(ctx, d)
}

// resolveSourceVolume is source.pool= and source.volume=.
func (g *guest) resolveSourceVolume(ctx context.Context, d *disk, src *domxml.Element) error {
	if g.host.libvirtConn() == nil {
		return errNoPools
	}
	pool, _, err := g.pool(ctx, src.Attr("pool"))
	if err != nil {
		return err
	}
	if pool == nil {
		return fmt.Errorf("storage pool %q is not active: virsh pool-start %s", src.Attr("pool"), src.Attr("pool"))
	}
	vol, err := pool.LookupVolume(ctx, src.Attr("volume"))
	if err != nil {
		return plain(err)
	}
	doc, err := vol.XML(ctx)
	if err != nil {
		return err
	}
	el, err := domxml.Parse([]byte(doc))
	if err != nil {
		return err
	}
	format := el.Get("target/format/@type")
	if format == "iso" || format == "unknown" {
		format = "raw"
	}
	d.setType("volume")
	d.setDriver(g, format)
	return nil
}

var errNoPools = errors.New("storage pools are libvirt's: give the disk's path=, or the connection: --connect qemu:///system")

// resolvePlainPool is a disk without a path on plain QEMU, which has one
// folder for them.
func (g *guest) resolvePlainPool(ctx context.Context, d *disk) error {
	if d.pool != "default" || d.volume != "" {
		return errNoPools
	}
	if d.format == "" {
		d.format = "qcow2"
	}
	dir := g.host.imageDir()
	file, err := g.freeName(ctx, d, dir, func(name string) (bool, error) { return exists(filepath.Join(dir, name)) })
	if err != nil {
		return err
	}
	d.file, d.inPool = file, "default"
	return g.resolvePoolNew(ctx, d)
}
