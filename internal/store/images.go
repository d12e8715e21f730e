package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// Images does to disk images what the store needs done. All of its images but the
// sources of Import are qcow2, and all names of backing files are relative to
// the folder of the image that has them. Progress may be nil.
type Images interface {
	// Import checks the image at source, which nobody vouches for, and
	// writes its content to target, an empty file of the store's own, as a
	// qcow2 image that names no other file, compressed as said ("none", "zlib",
	// "zstd"). The same content gives the same bytes. It returns the virtual size.
	Import(ctx context.Context, source, format, target, compress string, progress func(done, total int64)) (int64, error)
	// Overlay makes an empty image of size bytes at path on the image backing.
	Overlay(ctx context.Context, path, backing string, size int64) error
	// Describe reads the header of an image, which may be in use.
	Describe(ctx context.Context, path string) (Disk, error)
	// Empty says whether an image itself stores nothing at all, no internal snapshot either,
	// and everything it shows is its backing file's. Nothing may write to it.
	Empty(ctx context.Context, path string) (bool, error)
	// Content is how many bytes of what an image shows, with all below it, are stored
	// somewhere: the rest is known to be zeros. format "" probes; untrusted as in Import.
	Content(ctx context.Context, path, format string, untrusted bool) (int64, error)
	// Convert writes the disk that source shows, with all below it, to target, an
	// empty file. With Backing, what that holds is left out.
	Convert(ctx context.Context, source, target string, o ConvertOptions, progress func(done, total int64)) error
	// Copy copies an image as it is, with its holes, sharing storage where the
	// file system can, to target, which is empty or not there.
	Copy(ctx context.Context, source, target string) error
	// Rebase puts an image over another one, and keeps what it shows.
	Rebase(ctx context.Context, path, backing string, progress func(done, total int64)) error
	// SetBacking records the name of a backing file in an image, and changes nothing else.
	SetBacking(ctx context.Context, path, backing string) error
}

// Disk is what an image's header says.
type Disk struct {
	Size    int64  // virtual, in bytes
	Backing string // as recorded
	// BackingFormat is the format that is recorded of it, DataFile the name of an
	// external data file; "" for none.
	BackingFormat, DataFile string
	Snapshots               int // internal ones
}

// ConvertOptions are the choices of Images.Convert.
type ConvertOptions struct {
	Format   string // "" is qcow2; "raw"
	Compress string // "" or "none", "zlib", "zstd"
	Backing  string // name of a backing file, relative to target's folder
}

// diskImages does the work with package image.
type diskImages struct{}

// Import implements [Images]. The image is always converted, never taken as it
// is: what is kept then was all written by us, with no table, name or feature
// that came from outside, and equal content makes equal files whatever it was
// packed in. Writes go in ascending order, so that the result depends on the
// content only.
func (diskImages) Import(ctx context.Context, source, format, target, compress string, progress func(done, total int64)) (int64, error) {
	size, found, err := inspect(ctx, source, format)
	if err != nil {
		return 0, err
	}
	o := convertOptions(ConvertOptions{Compress: compress}, progress)
	o.SourceFormat, o.SourceUntrusted = found, true
	err = image.Convert(ctx, []string{source}, target, o)
	return size, err
}

func convertOptions(c ConvertOptions, progress func(done, total int64)) image.ConvertOptions {
	// The store syncs the file when it is whole.
	o := image.ConvertOptions{Format: c.Format, Cache: image.CacheUnsafe, Progress: progress}
	if o.Format == "" {
		o.Format = "qcow2"
	}
	if c.Backing != "" {
		o.BackingFile, o.BackingFormat = c.Backing, "qcow2"
	}
	if c.Compress == "zlib" || c.Compress == "zstd" {
		// One at a time: compressed clusters lie one behind the other as they come,
		// and equal content is to make equal files.
		o.Compress, o.Workers = true, 1
		o.Values = map[string]string{"compression_type": c.Compress}
	}
	return o
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

// Describe implements [Images].
func (diskImages) Describe(ctx context.Context, path string) (Disk, error) {
	list, err := image.Inspect(ctx, path, image.InfoOptions{Format: "qcow2", NoLock: true})
	if err != nil {
		return Disk{}, err
	}
	i := list[0]
	d := Disk{Size: i.VirtualSize, Backing: i.BackingFile, BackingFormat: i.BackingFormat, Snapshots: len(i.Snapshots)}
	for _, f := range i.Specific {
		if f.Key == "data-file" {
			d.DataFile = fmt.Sprint(f.Value)
		}
	}
	return d, nil
}

// Empty implements [Images].
func (d diskImages) Empty(ctx context.Context, path string) (empty bool, err error) {
	if head, err := d.Describe(ctx, path); err != nil || head.Snapshots > 0 {
		return false, err
	}
	im, err := image.Open(ctx, path, image.Options{Format: "qcow2", NoLock: true, NoBacking: true})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	for e, err := range im.Node().Extents(0, im.Node().Size()) {
		if err != nil {
			return false, err
		}
		if e.Depth == 0 && e.Kind != block.Unallocated {
			return false, nil
		}
	}
	return true, nil
}

// Convert implements [Images].
func (diskImages) Convert(ctx context.Context, source, target string, c ConvertOptions, progress func(done, total int64)) error {
	o := convertOptions(c, progress)
	o.SourceFormat = "qcow2"
	return image.Convert(ctx, []string{source}, target, o)
}

// Copy implements [Images].
func (diskImages) Copy(ctx context.Context, source, target string) error {
	return copySparse(ctx, source, target)
}

// Rebase implements [Images].
func (diskImages) Rebase(ctx context.Context, path, backing string, progress func(done, total int64)) error {
	return image.Rebase(ctx, path, image.RebaseOptions{Format: "qcow2", Backing: backing, BackingFormat: "qcow2", Progress: progress})
}

// SetBacking implements [Images].
func (diskImages) SetBacking(ctx context.Context, path, backing string) error {
	return image.Rebase(ctx, path, image.RebaseOptions{Format: "qcow2", Backing: backing, BackingFormat: "qcow2", Unsafe: true})
}
