package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// diskImages does the work with package image.
type diskImages struct{}

// Import implements [Images]. The image is always converted, never taken as it
// is: what is kept then was all written by us, with no table, name or feature
// that came from outside, and equal content makes equal files whatever it was
// packed in. Writes go in ascending order, so that the result depends on the
// content only.
func (diskImages) Import(ctx context.Context, source, format, target string, progress func(done, total int64)) (int64, error) {
	size, found, err := inspect(ctx, source, format)
	if err != nil {
		return 0, err
	}
	err = image.Convert(ctx, []string{source}, target, image.ConvertOptions{
		SourceFormat: found, SourceUntrusted: true,
		// The store syncs the file when it is whole.
		Format: "qcow2", Cache: image.CacheUnsafe, Progress: progress,
	})
	return size, err
}

// inspect checks an untrusted image, and returns the virtual size that its
// copy will have and its format.
func inspect(ctx context.Context, source, format string) (size int64, found string, err error) {
	im, err := image.Open(ctx, source, image.Options{Format: format, Untrusted: true})
	if errors.Is(err, block.ErrUntrusted) {
		err = fmt.Errorf("%w: convert it to one whole image where you trust it, and import that", err)
	}
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	if c, ok := block.As[block.Checker](im.Node()); ok {
		res, err := c.Check(ctx, block.CheckOptions{})
		if err != nil {
			return 0, "", err
		}
		if n := res.Corruptions + res.CheckErrors; n > 0 {
			return 0, "", fmt.Errorf("%w: a check finds %d errors: fetch it again, or repair it (lamina img check -r all)", block.ErrCorrupt, n)
		}
	}
	size = im.Node().Size()
	if size == 0 {
		return 0, "", fmt.Errorf("%w: the image is empty", ErrInvalid)
	}
	return (size + block.SectorSize - 1) / block.SectorSize * block.SectorSize, im.Format(), nil
}

// Overlay implements [Images].
func (diskImages) Overlay(ctx context.Context, path, backing string, size int64) error {
	// Not flushed: the store syncs many at once.
	return image.Overlay(ctx, path, image.OverlayOptions{Base: backing, BaseFormat: "qcow2", Size: size})
}
