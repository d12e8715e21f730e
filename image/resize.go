package image

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/partition"
)

// SizeChange says how the Size of [ResizeOptions] is meant.
type SizeChange uint8

// How a size is meant.
const (
	SizeAbsolute SizeChange = iota // the new size
	SizeGrow                       // added to the old one
	SizeShrink                     // taken from the old one
)

// ResizeOptions are the choices of [Resize].
type ResizeOptions struct {
	Format string // as in Options
	Cache  CacheMode
	// Secrets resolves the names of keys of encrypted images. nil is none.
	Secrets format.Secrets
	// Size is in bytes; Change says of what.
	Size   int64
	Change SizeChange
	// Prealloc applies to the grown area.
	Prealloc block.Preallocation
	// Shrink allows to make the disk smaller. DANGER: what is behind the
	// new end is lost. It is refused, with a *CutError, where the disk's
	// partition table says that a partition would be cut, unless Force.
	Shrink, Force bool
	// FixGPT moves the backup of a GUID partition table to the new end of
	// the disk, where firmware and tools look for it, and makes the table
	// cover the disk. A disk without a GPT is resized as ever.
	FixGPT    bool
	Untrusted bool // refuses images that name other files, as in Options
}

// Errors of [Resize].
var (
	// ErrNeedsShrink: the new size is smaller and Shrink was not set.
	ErrNeedsShrink = errors.New("the new size is smaller than the old one, and shrinking was not allowed")
	// ErrSizeNotPositive: the new size would be zero or negative.
	ErrSizeNotPositive = errors.New("new image size must be positive")
	// ErrPreallocShrink: preallocation was asked for a smaller size.
	ErrPreallocShrink = errors.New("preallocation can only be used for growing images")
)

// ResizeResult says what a resize did.
type ResizeResult struct {
	Old, New int64 // bytes
	Format   string
	// ProbedRaw says that the format was guessed to be raw.
	ProbedRaw bool
	// MovedGPT says that FixGPT changed the partition table.
	MovedGPT bool
}

// Resize changes an image's virtual size. The new area reads as zeros. The
// result is valid beside an error as far as it is filled.
func Resize(ctx context.Context, name string, opts ResizeOptions) (res ResizeResult, err error) {
	im, err := Open(ctx, name, Options{Format: opts.Format, Cache: opts.Cache, Writable: true, Untrusted: opts.Untrusted, Secrets: opts.Secrets, use: useResize})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	res.ProbedRaw = im.Layers()[0].ProbedRaw()
	res.Old, res.Format = im.Node().Size(), im.Format()
	if res.New, err = newSize(res.Old, opts); err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case res.New <= res.Old && opts.Prealloc != "" && opts.Prealloc != block.PreallocOff:
		return res, fmt.Errorf("%s: %w", name, ErrPreallocShrink)
	case res.New < res.Old && !opts.Shrink:
		return res, fmt.Errorf("%s: %w", name, ErrNeedsShrink)
	case res.New < res.Old && !opts.Force:
		if err := checkCut(name, im.Node(), res.New); err != nil {
			return res, err
		}
	}
	r, ok := block.As[block.Resizer](im.Node())
	if !ok {
		return res, fmt.Errorf("%s: format %s cannot be resized: %w", name, im.Format(), block.ErrUnsupported)
	}
	// A backup table must lie on the disk at every instant: before a disk
	// shrinks, and after it has grown.
	if opts.FixGPT && res.New < res.Old {
		if res.MovedGPT, err = moveGPT(name, im.Node(), res.New); err != nil {
			return res, err
		}
	}
	if err := r.Resize(ctx, res.New, block.ResizeOptions{Prealloc: opts.Prealloc, AllowShrink: opts.Shrink, Exact: true}); err != nil {
		return res, err
	}
	if opts.FixGPT && res.New >= res.Old {
		if res.MovedGPT, err = moveGPT(name, im.Node(), res.New); err != nil {
			return res, err
		}
	}
	if w, ok := block.As[block.Writer](im.Node()); ok && opts.Cache != CacheUnsafe {
		err = w.Flush()
	}
	return res, err
}

// moveGPT makes the GPT of a disk, if it has one, fit one of newSize bytes. It
// flushes between the steps, so one whole copy is there at every instant.
func moveGPT(name string, disk block.Node, newSize int64) (bool, error) {
	patches, err := partition.MoveBackup(disk, disk.Size(), newSize)
	if errors.Is(err, partition.ErrNone) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	w, ok := block.As[block.Writer](disk)
	if !ok {
		return false, fmt.Errorf("%s: move the backup partition table: %w", name, block.ErrReadOnly)
	}
	for _, p := range patches {
		_, err := w.WriteAt(p.Data, p.Offset)
		if err == nil {
			err = w.Flush()
		}
		if err != nil {
			return false, fmt.Errorf("%s: move the backup partition table to %d: %w", name, p.Offset, err)
		}
	}
	return len(patches) > 0, nil
}

func newSize(old int64, opts ResizeOptions) (int64, error) {
	size := opts.Size
	switch opts.Change {
	case SizeGrow:
		if size > math.MaxInt64-old {
			return 0, ErrSizeNotPositive // as a signed number the sum is negative
		}
		size += old
	case SizeShrink:
		size = old - size
	}
	if size <= 0 {
		return size, ErrSizeNotPositive
	}
	return size, nil
}

// checkCut refuses a size that cuts a partition. A table that cannot be read
// for an error of the disk is one too: what is not known is not thrown away.
func checkCut(name string, disk block.Node, size int64) error {
	t, err := partition.Read(disk, disk.Size())
	if errors.Is(err, partition.ErrNone) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: look for partitions before cutting: %w", name, err)
	}
	for ; t != nil; t = t.Hidden {
		for _, p := range t.Partitions {
			// A protective MBR whose GPT is damaged is one partition that
			// covers the disk: where the real ones are is not known.
			if p.End() > size {
				return &CutError{Name: name, Size: size, Scheme: t.Scheme, Partition: p}
			}
		}
	}
	return nil
}
