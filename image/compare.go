package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// CompareOptions are the choices of [Compare]. The zero value probes both
// formats and compares what a guest reads.
type CompareOptions struct {
	// FormatA and FormatB are the images' formats; "" probes.
	FormatA, FormatB string
	Cache            CacheMode
	// NoLock reads images that may be in use. DANGER: what is compared may
	// be of no one point in time.
	NoLock bool
	// Strict finds a difference too where the sizes differ, and where one
	// image stores what the other says to be zeros or leaves to nobody.
	Strict bool
	// Secrets resolves the names of keys. nil is none.
	Secrets format.Secrets
	// Progress receives the bytes of the larger disk that are done, of its
	// size, from any goroutine, one call at a time, ascending from 0, which
	// says that both images are open. May be nil.
	Progress  func(done, total int64)
	Untrusted bool // refuses images that name other files, as in Options
}

// DifferenceKind is what the first difference of two disks is.
type DifferenceKind uint8

// The kinds. SizeDiffers and StatusDiffers are found with
// [CompareOptions].Strict only.
const (
	NoDifference   DifferenceKind = iota
	ContentDiffers                // a sector reads differently
	SizeDiffers                   // the disks are not of one size
	StatusDiffers                 // one is stored where the other is not
)

// Comparison is the result of [Compare].
type Comparison struct {
	Kind DifferenceKind
	// Offset is the guest offset of the difference in bytes: of the sector
	// that reads differently, or of the run whose status differs.
	Offset int64
	// SizeA and SizeB are the sizes of the disks in bytes. Without Strict, a
	// disk that is longer by nothing but zeros does not differ.
	SizeA, SizeB int64
}

// CompareError says where a comparison stopped.
type CompareError struct {
	Name   string // of the image
	Offset int64  // guest offset of the request, in bytes
	// Status says that it was not known what is stored there; else the
	// bytes could not be read.
	Status bool
	// Tail says that the other image does not reach that far.
	Tail bool
	Err  error
}

// Error names the image, the offset and the cause.
func (e *CompareError) Error() string {
	if e.Status {
		return fmt.Sprintf("map %s at guest offset %#x: %v", e.Name, e.Offset, e.Err)
	}
	return fmt.Sprintf("read %s at guest offset %#x: %v", e.Name, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *CompareError) Unwrap() error { return e.Err }

// Compare looks for the first difference of two disk images. What neither of
// them stores is not read, nor what both take from the same bytes of the same
// file. It needs memory for [compareWorkers] pairs of chunks of 1 MiB, beside
// the caches of the images. Errors are an *[OpenError], a *[CompareError], or
// that of ctx.
func Compare(ctx context.Context, a, b string, opts CompareOptions) (c Comparison, err error) {
	imA, err := Open(ctx, a, Options{Format: opts.FormatA, Cache: opts.Cache, NoLock: opts.NoLock, Untrusted: opts.Untrusted, Secrets: opts.Secrets})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, imA.Close()) }()
	imB, err := Open(ctx, b, Options{Format: opts.FormatB, Cache: opts.Cache, NoLock: opts.NoLock, Untrusted: opts.Untrusted, Secrets: opts.Secrets})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, imB.Close()) }()
	return compareSides(ctx, newSide(imA, a), newSide(imB, b), opts)
}

// CompareImages is [Compare] for images that are open. Of opts it heeds Strict
// and Progress.
func CompareImages(ctx context.Context, a, b *Image, opts CompareOptions) (Comparison, error) {
	return compareSides(ctx, newSide(a, a.layers[0].Name), newSide(b, b.layers[0].Name), opts)
}

func compareSides(ctx context.Context, a, b *side, opts CompareOptions) (Comparison, error) {
	c := &comparison{opts: opts, sides: [2]*side{a, b}}
	result := Comparison{SizeA: c.sides[0].size, SizeB: c.sides[1].size}
	c.common = min(result.SizeA, result.SizeB)
	c.total = max(result.SizeA, result.SizeB)
	if opts.Progress != nil {
		opts.Progress(0, c.total)
	}
	if opts.Strict && result.SizeA != result.SizeB {
		result.Kind = SizeDiffers
		return result, nil
	}
	found, err := c.run(ctx)
	switch {
	case err != nil:
		return Comparison{}, err
	case found != nil && found.err != nil:
		return Comparison{}, found.err
	case found != nil:
		result.Kind, result.Offset = found.kind, found.offset
	}
	return result, nil
}

// side is one of the two images.
type side struct {
	name string // for messages
	im   *Image
	node block.Node
	size int64
	// slices[depth] is the part of the disk that one metadata table of the
	// layers down to depth covers, 0 for no bound: where a run ends for the
	// stock tool, which the strict mode shows.
	slices []int64
}

func newSide(im *Image, name string) *side {
	s := &side{name: name, im: im, node: im.Node(), size: im.Node().Size()}
	least := int64(0)
	for _, l := range im.Layers() {
		if inf, ok := block.As[format.Informer](l.Node); ok {
			// The stock tool caches tables by slices of at most 4 KiB.
			if info, err := inf.ImageInfo(); err == nil && info.ClusterSize > 0 {
				if n := min(info.ClusterSize, 4096) / 8 * info.ClusterSize; least == 0 || n < least {
					least = n
				}
			}
		}
		s.slices = append(s.slices, least)
	}
	return s
}

// status is what the strict mode compares of a run.
type status struct {
	allocated, zero, data, offset, atEnd bool
}

// status returns what the stock tool calls the block status of an extent at
// its beginning.
func (s *side) status(e block.Extent) status {
	end := e.End()
	if n := s.slices[min(e.Depth, len(s.slices)-1)]; n > 0 {
		end = min(end, (e.Start/n+1)*n)
	}
	return status{
		allocated: e.Kind != block.Unallocated,
		zero:      e.IsZero(),
		data:      e.Kind == block.Compressed || e.Kind == block.Data,
		offset:    e.HostOffset != block.NoHostOffset && e.Kind != block.Compressed,
		atEnd:     end == s.size,
	}
}

// sameBytes reports whether two runs that begin at one guest offset are the
// same bytes of the same file, so that they need not be read.
func sameBytes(a, b *side, x, y block.Extent) bool {
	if x.Kind != block.Data || y.Kind != block.Data || x.HostOffset != y.HostOffset || x.HostOffset == block.NoHostOffset || x.File != nil || y.File != nil ||
		x.Depth >= len(a.im.layers) || y.Depth >= len(b.im.layers) {
		return false
	}
	p, q := a.im.layers[x.Depth], b.im.layers[y.Depth]
	return p.Format == q.Format && p.file.SameFile(q.file)
}
