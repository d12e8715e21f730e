package image

import (
	"context"
	"errors"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// SnapshotOptions are the choices of [ListSnapshots], [CreateSnapshot],
// [ApplySnapshot] and [DeleteSnapshot].
type SnapshotOptions struct {
	Format string // as in Options
	Cache  CacheMode
	// NoLock neither takes nor heeds image locks; only for listing.
	NoLock bool
	// Secrets resolves the names of keys of encrypted images. nil is none.
	Secrets format.Secrets
	// Opened is called when the image is open, before anything is done with
	// it; probedRaw says that its format was guessed to be raw. May be nil.
	Opened    func(probedRaw bool)
	Untrusted bool // refuses images that name other files, as in Options
}

// open opens the image.
func (o SnapshotOptions) open(ctx context.Context, name string, writable bool) (*Image, error) {
	im, err := Open(ctx, name, Options{Format: o.Format, Cache: o.Cache, NoLock: o.NoLock, Untrusted: o.Untrusted, Secrets: o.Secrets, Writable: writable})
	if err == nil && o.Opened != nil {
		o.Opened(im.layers[0].ProbedRaw())
	}
	return im, err
}

// ListSnapshots returns the internal snapshots of an image, oldest first; none
// for a format that has none.
func ListSnapshots(ctx context.Context, name string, opts SnapshotOptions) (list []format.Snapshot, err error) {
	im, err := opts.open(ctx, name, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	i, ok := block.As[format.Informer](im.Node())
	if !ok {
		return nil, nil
	}
	info, err := i.ImageInfo()
	return info.Snapshots, err
}

// CreateSnapshot keeps an image's disk as it is now as an internal snapshot,
// and returns it. Other snapshots may have the same name. Errors but those of
// opening are a *[SnapshotError].
func CreateSnapshot(ctx context.Context, name, snapshot string, opts SnapshotOptions) (made format.Snapshot, err error) {
	err = opts.change(ctx, name, SnapshotRef{IDOrName: snapshot}, func(m format.SnapshotManager, _ []format.Snapshot) error {
		made, err = m.CreateSnapshot(ctx, snapshot, time.Time{})
		return err
	})
	return made, err
}

// ApplySnapshot makes an image's disk what an internal snapshot keeps. DANGER:
// what was written since is lost. Errors but those of opening are a
// *[SnapshotError].
func ApplySnapshot(ctx context.Context, name string, ref SnapshotRef, opts SnapshotOptions) error {
	return opts.change(ctx, name, ref, func(m format.SnapshotManager, list []format.Snapshot) error {
		// Their bits would have to tell what is different then.
		if k, ok := m.(format.BitmapKeeper); ok && len(k.Bitmaps()) > 0 {
			return format.ErrActiveBitmaps
		}
		i := ref.find(list)
		if i < 0 {
			return ErrNoSnapshot
		}
		return m.ApplySnapshot(ctx, i)
	})
}

// DeleteSnapshot gives up an internal snapshot. Errors but those of opening
// are a *[SnapshotError].
func DeleteSnapshot(ctx context.Context, name string, ref SnapshotRef, opts SnapshotOptions) error {
	return opts.change(ctx, name, ref, func(m format.SnapshotManager, list []format.Snapshot) error {
		i := ref.find(list)
		if i < 0 {
			return ErrNoSnapshot
		}
		return m.DeleteSnapshot(ctx, i)
	})
}

// change opens an image for writing and does something with its snapshots.
func (o SnapshotOptions) change(ctx context.Context, name string, ref SnapshotRef, do func(format.SnapshotManager, []format.Snapshot) error) (err error) {
	im, err := o.open(ctx, name, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	fail := func(err error) error {
		return &SnapshotError{Op: "change", Image: im.layers[0].Name, Format: im.Format(), Snapshot: ref, Err: err}
	}
	m, ok := block.As[format.SnapshotManager](im.Node())
	if !ok {
		return fail(ErrSnapshotFormat)
	}
	info, err := m.ImageInfo()
	if err == nil {
		err = do(m, info.Snapshots)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// OpenForSnapshots opens and closes an image as the changes of its snapshots
// do, without one.
func OpenForSnapshots(ctx context.Context, name string, opts SnapshotOptions) error {
	im, err := opts.open(ctx, name, true)
	if err != nil {
		return err
	}
	return im.Close()
}
