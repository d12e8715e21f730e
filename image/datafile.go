package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/file"
)

// OpenData implements [format.Opener]. As for the stock tool the name is
// relative to the working directory, and who only wants to know what the
// image's header says leaves the file closed.
func (o *opener) OpenData(ctx context.Context, name string, writable bool) (block.Node, error) {
	opts := o.c.opts
	if opts.Untrusted {
		return nil, fmt.Errorf("%s: data file %q: %w", o.path, name, block.ErrUntrusted)
	}
	if name == "" && (o.opts == nil || o.opts.Data == nil) {
		return nil, nil
	}
	f, node, err := o.openDataNode(ctx, name, writable)
	if err != nil || f == nil {
		return nil, err
	}
	o.l.data = f
	if w, ok := node.(block.Writer); ok && writable && o.c.unfinished != nil {
		node = unfinishedData{w, o.c.unfinished}
	}
	return node, nil
}

// dataLocks returns the locks that stock QEMU takes on a data file: those of
// the image's user, who in any case does not share the size.
func (c *chain) dataLocks(writable bool) file.Locks {
	switch {
	case writable:
		return file.Locks{Held: file.PermRead | file.PermWrite | file.PermResize, NotShared: file.PermResize}
	case c.opts.use == useSource:
		return file.StableReadLocks()
	}
	return file.Locks{Held: file.PermRead, NotShared: file.PermResize}
}

// planData finds the external data file that the options ask for.
func (p *CreatePlan) planData() error {
	name, ok := p.opts.Values["data_file"]
	if !ok || !hasOption(p.drv, "data_file") {
		return nil
	}
	loc, err := parseName(name)
	if err != nil {
		return err
	}
	p.data, p.hasData = loc.path, true
	return nil
}

// refuseSharedData refuses a data file that would destroy another file of the
// new image, under whatever name.
func (p *CreatePlan) refuseSharedData() error {
	if !p.hasData {
		return nil
	}
	st, statErr := os.Stat(p.data)
	for _, name := range append([]string{p.path}, p.below...) {
		other, err := os.Stat(name)
		same := err == nil && statErr == nil && os.SameFile(st, other)
		if same || filepath.Clean(name) == filepath.Clean(p.data) {
			return fmt.Errorf("%w: the data file %s is %s: %w", &file.LockError{File: p.data, Perm: "resize", Shared: true}, p.data, name, block.ErrBackingLoop)
		}
	}
	return nil
}

// newData is the new external data file of an image that is being made; with
// no file it does nothing.
type newData struct{ f block.Node }

// createData makes the data file and hands it to the driver.
func (p *CreatePlan) createData(ctx context.Context, made *madeFile, opts *format.CreateOptions) (newData, error) {
	if !p.hasData {
		return newData{}, nil
	}
	f, madeData, err := createFile(p.data, true, false)
	if err != nil {
		return newData{}, err
	}
	made.data = &madeData
	opts.Data = underlay.Node(ctx, p.data, f)
	opts.Values["data_file"] = p.data
	if err := p.empty(ctx, opts.Data, f); err != nil {
		_ = opts.Data.Close()
		return newData{}, err
	}
	return newData{opts.Data}, nil
}

func (d newData) Close() error {
	if d.f == nil {
		return nil
	}
	return d.f.Close()
}
