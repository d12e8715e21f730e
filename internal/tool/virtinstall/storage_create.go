package virtinstall

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// undo is what takes back, newest first, what was made so far.
type undo struct {
	steps []func() error
	after []func() error // done in any case
}

// add notes how something that was just made is taken back.
func (u *undo) add(step func() error) { u.steps = append(u.steps, step) }

// keep forgets the steps: what was made stays.
func (u *undo) keep() { u.steps = nil }

// run takes everything back. Its error says what is left.
func (u *undo) run() error {
	var errs []error
	defer u.finish()
	for i := len(u.steps) - 1; i >= 0; i-- {
		errs = append(errs, u.steps[i]())
	}
	u.steps = nil
	return errors.Join(errs...)
}

// finish does what is done in any case, whether what was made stays or not.
func (u *undo) finish() {
	for _, step := range u.after {
		_ = step() // a helper of libvirt's that is left, which vanishes with its daemon
	}
	u.after = nil
}

// undoTimeout bounds one step back.
const undoTimeout = 30 * time.Second

// undoContext is the context of a step back: that of the run may have ended.
func undoContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), undoTimeout)
}

// lingering is the context of a call that makes something: libvirt makes it
// whether we wait or not, and what nobody waited for is not taken back. So it
// goes on after an interrupt, for as long as a step back may take. Whoever
// uses it looks at ctx when the step back is noted.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	long, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		late := time.AfterFunc(undoTimeout, cancel)
		context.AfterFunc(long, func() { late.Stop() })
	})
	return long, func() {
		stop()
		cancel()
	}
}

// removeFile is a step of undo.
func removeFile(path string) func() error {
	return func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

// createDisks makes the disks that are new, each with a line about it. What it
// has made when it fails is in u.
func (g *guest) createDisks(ctx context.Context, u *undo) error {
	for _, d := range g.disks {
		if !d.new {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		g.progress("Allocating '%s'", filepath.Base(d.file))
		if err := g.createDisk(ctx, d, u); err != nil {
			return fmt.Errorf("Couldn't create storage volume '%s': %w", filepath.Base(d.file), err)
		}
	}
	return nil
}

func (g *guest) createDisk(ctx context.Context, d *disk, u *undo) error {
	conn := g.host.libvirtConn()
	if conn == nil || d.inPool == "" && !conn.Remote() && writable(filepath.Dir(d.file)) {
		return d.create(ctx, u)
	}
	pool, err := g.openPool(ctx, d, u)
	if err != nil {
		return err
	}
	// Another program may have made a file since libvirt looked.
	if !conn.Remote() {
		if there, err := exists(d.file); err != nil || there && d.inPool == "" {
			return errors.Join(err, fmt.Errorf("%s: %w", d.file, fs.ErrExist))
		}
	}
	return createVolume(ctx, pool, d.volumeXML(), u, nil)
}

// createVolume makes a volume in a pool and fills it.
func createVolume(ctx context.Context, pool *libvirt.Pool, doc string, u *undo, fill func(*libvirt.Volume) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	long, cancel := lingering(ctx)
	defer cancel()
	vol, err := pool.CreateVolume(long, doc, false)
	if err != nil {
		return plain(err)
	}
	u.add(func() error {
		ctx, cancel := undoContext()
		defer cancel()
		return vol.Delete(ctx)
	})
	if err := ctx.Err(); err != nil || fill == nil {
		return err
	}
	return fill(vol)
}

// writable reports whether we may make files in a folder.
func writable(dir string) bool {
	f, err := os.CreateTemp(dir, ".lamina-*")
	if err != nil {
		return false
	}
	_ = f.Close()
	return os.Remove(f.Name()) == nil
}

// create makes the disk's file. An existing file is not touched.
func (d *disk) create(ctx context.Context, u *undo) error {
	if err := os.MkdirAll(filepath.Dir(d.file), 0o700); err != nil {
		return err
	}
	// The name is taken with O_EXCL first, so that nobody's file is emptied.
	f, err := os.OpenFile(d.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	u.add(removeFile(d.file))
	if err := f.Close(); err != nil {
		return err
	}
	if d.format == "qcow2" && d.backing != "" && !d.full && !isURL(d.backing) {
		if err := os.Remove(d.file); err != nil {
			return err
		}
		if err := image.Overlay(ctx, d.file, image.OverlayOptions{Base: d.backing, BaseFormat: d.backingFormat, Size: d.size}); err != nil {
			return err
		}
		return os.Chmod(d.file, 0o600)
	}
	opts := image.CreateOptions{Format: d.format, Size: d.size, BackingFile: d.backing, BackingFormat: d.backingFormat, NoFlush: true}
	if d.full {
		opts.Values = map[string]string{"preallocation": "falloc"}
	}
	return image.Create(ctx, d.file, opts)
}

// openPool returns the pool in which a disk is made: the one that was named,
// the one of its folder, or one that lives as long as it takes.
func (g *guest) openPool(ctx context.Context, d *disk, u *undo) (*libvirt.Pool, error) {
	conn := g.host.libvirtConn()
	if d.inPool != "" {
		pool, err := conn.LookupPool(ctx, d.inPool)
		if errors.Is(err, libvirt.ErrNotFound) && d.inPool == "default" {
			return g.makeDefaultPool(ctx, u)
		}
		if err != nil {
			return nil, err
		}
		active, err := pool.Active(ctx)
		if err == nil && !active {
			err = pool.Start(ctx, true)
		}
		return pool, err
	}
	dir := filepath.Dir(d.file)
	pool, err := conn.LookupPoolByTarget(ctx, dir)
	if !errors.Is(err, libvirt.ErrNotFound) {
		return pool, err
	}
	long, cancel := lingering(ctx)
	defer cancel()
	// No other pool is called so, of this run or of another client.
	pool, err = conn.CreatePool(long, poolXML("lamina-"+strings.ToLower(rand.Text()), dir))
	if err != nil {
		return nil, err
	}
	u.after = append(u.after, func() error {
		ctx, cancel := undoContext()
		defer cancel()
		return pool.Destroy(ctx)
	})
	return pool, ctx.Err()
}

// makeDefaultPool defines the pool "default", as the original does where it is
// missing.
func (g *guest) makeDefaultPool(ctx context.Context, u *undo) (*libvirt.Pool, error) {
	long, cancel := lingering(ctx)
	defer cancel()
	pool, err := g.host.libvirtConn().DefinePool(long, poolXML("default", defaultPoolDir))
	if err != nil {
		return nil, err
	}
	u.add(func() error {
		ctx, cancel := undoContext()
		defer cancel()
		_ = pool.Destroy(ctx) // it may not have started
		return pool.Undefine(ctx)
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := pool.Start(long, true); err != nil {
		return nil, err
	}
	return pool, pool.SetAutostart(ctx, true)
}

func poolXML(name, dir string) string {
	el := domxml.New("pool", "type", "dir")
	el.AddText("name", name)
	el.Add(domxml.New("target")).AddText("path", dir)
	return el.String()
}

// volumeXML is libvirt's description of a new disk.
func (d *disk) volumeXML() string {
	el := domxml.New("volume")
	el.AddText("name", filepath.Base(d.file))
	el.AddText("capacity", strconv.FormatInt(d.size, 10))
	if d.full {
		el.AddText("allocation", strconv.FormatInt(d.size, 10))
	} else {
		el.AddText("allocation", "0")
	}
	target := el.Add(domxml.New("target"))
	target.Add(domxml.New("format", "type", d.format))
	if d.backing != "" {
		backing := el.Add(domxml.New("backingStore"))
		backing.AddText("path", d.backing)
		if d.backingFormat != "" {
			backing.Add(domxml.New("format", "type", d.backingFormat))
		}
	}
	return el.String()
}
