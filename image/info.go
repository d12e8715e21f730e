package image

import (
	"context"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// Info describes one image of a chain, as `qemu-img info` does.
type Info struct {
	format.Info
	// Filename is the name as it was opened.
	Filename string
	// VirtualSize and DiskSize are in bytes: what the guest sees, and what
	// the file takes on the host.
	VirtualSize, DiskSize int64
	// FullBackingFile is the backing file's name resolved against the
	// image's folder, "" where there is none.
	FullBackingFile string
	// Probed says that the format was guessed.
	Probed bool
	// Usage is what the structures of the file take, if it was asked for.
	Usage []format.UsageItem
}

// InfoOptions are the choices of [Inspect].
type InfoOptions struct {
	Format    string // as in Options
	NoLock    bool   // as in Options
	Untrusted bool   // as in Options
	// Secrets resolves the names of keys of encrypted images. nil is none.
	Secrets format.Secrets
	// Chain describes the backing files too.
	Chain bool
	// Usage finds out what each structure of the file takes, for which all
	// tables are read.
	Usage bool
}

// Inspect describes an image: one Info, or with opts.Chain one for each image
// of the backing chain, top first. Only headers are read, and without Chain
// the backing file need not exist.
func Inspect(ctx context.Context, name string, opts InfoOptions) ([]Info, error) {
	var infos []Info
	// Not by way of Open: each image must be described with what its own
	// header says, also where a lower one is missing.
	c := &chain{opts: Options{NoLock: opts.NoLock, Untrusted: opts.Untrusted, NoBacking: true, Secrets: opts.Secrets, use: useInfo}}
	var open []block.Node
	defer func() {
		for _, n := range open {
			_ = n.Close() // nothing was written
		}
	}()
	formatName := opts.Format
	for {
		l, err := c.open(ctx, name, formatName, true)
		if err != nil {
			return nil, &OpenError{Name: name, Err: err}
		}
		open = append(open, l.Node)
		info, err := describe(l)
		if err != nil {
			return nil, fmt.Errorf("describe %s: %w", name, err)
		}
		if opts.Usage {
			if info.Usage, err = usage(ctx, l); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		infos = append(infos, info)
		if !opts.Chain || info.FullBackingFile == "" {
			return infos, nil
		}
		name, formatName = info.FullBackingFile, info.BackingFormat
	}
}

func describe(l *Layer) (Info, error) {
	info := Info{Filename: l.Name, Probed: l.Probed, VirtualSize: l.Node.Size()}
	if inf, ok := block.As[format.Informer](l.Node); ok {
		var err error
		if info.Info, err = inf.ImageInfo(); err != nil {
			return info, err
		}
	}
	info.Format = l.Format
	if l.protocol {
		info.Format = l.opts.Driver
	}
	var err error
	if info.DiskSize, err = l.file.DiskSize(); err != nil {
		return info, err
	}
	if info.BackingFile != "" {
		info.FullBackingFile = combine(l.path, info.BackingFile)
	}
	return info, nil
}

// usage returns what the parts of a layer's file take. Formats that have no
// parts are data.
func usage(ctx context.Context, l *Layer) ([]format.UsageItem, error) {
	if r, ok := block.As[format.UsageReporter](l.Node); ok {
		return r.Usage(ctx)
	}
	data := format.UsageItem{Name: "data", Key: "data", Count: 1, Bytes: l.file.Size()}
	for e, err := range l.file.Extents(0, data.Bytes) {
		if err != nil {
			return nil, err
		}
		if !e.IsZero() {
			data.DiskBytes += e.Length
		}
	}
	return []format.UsageItem{data}, ctx.Err()
}
