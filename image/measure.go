package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
)

// MeasureOptions are the choices of [Measure]. The zero value measures an
// empty raw image of no bytes.
type MeasureOptions struct {
	// Source is the image that is to be converted; "" measures an empty
	// disk of Size bytes. SourceFormat is its format; "" probes.
	Source, SourceFormat string
	// SourceNoLock reads an image that may be in use.
	SourceNoLock bool
	// Snapshot measures an internal snapshot of the source.
	Snapshot *SnapshotRef
	Size     int64

	// Format of the new image; "" is raw. Values are its creation options;
	// those that do not change the size are not looked at.
	Format string
	Values map[string]string
	// Secrets resolves the names of keys. nil is none.
	Secrets   format.Secrets
	Untrusted bool // refuses images that name other files, as in Options
}

// Measure returns how large the file of a new image would be, as
// [format.Measurement] says: of an empty one, or of the copy that [Convert]
// would make without compression. It reads metadata only. Errors are an
// *[OpenError], a *[SnapshotError], a *[format.MeasureError], one that matches
// [block.ErrUnknownFormat] or block.ErrUnsupported, or that of ctx.
func Measure(ctx context.Context, opts MeasureOptions) (m format.Measurement, err error) {
	if opts.Format == "" {
		opts.Format = rawName
	}
	o := format.MeasureOptions{Size: opts.Size}
	o.Values, o.Secrets = opts.Values, opts.Secrets
	if opts.Source != "" {
		im, err := Open(ctx, opts.Source, Options{Format: opts.SourceFormat, NoLock: opts.SourceNoLock, Untrusted: opts.Untrusted, Secrets: opts.Secrets})
		if err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, im.Close()) }()
		o.Source = im.Node()
		if keeper, ok := block.As[format.BitmapKeeper](im.Node()); ok {
			o.Bitmaps, o.BitmapsSize = keeper, im.Node().Size()
		}
		if opts.Snapshot != nil {
			node, err := im.OpenSnapshot(ctx, *opts.Snapshot)
			if err != nil {
				return m, err
			}
			defer func() { err = errors.Join(err, node.Close()) }()
			o.Source = node
		}
	}
	drv := all.Find(opts.Format)
	if drv == nil {
		return m, &UnknownFormatError{Format: opts.Format}
	}
	measurer, ok := drv.(format.Measurer)
	if !ok {
		return m, fmt.Errorf("images of format %s cannot be measured: %w", opts.Format, block.ErrUnsupported)
	}
	return measurer.Measure(ctx, o)
}
