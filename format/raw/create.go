package raw

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// Options implements [format.Driver].
func (Driver) Options() []format.Option {
	return []format.Option{
		{Name: "extent_size_hint", Type: format.TypeSize, Help: "Extent size hint for the image file, 0 to disable"},
		{Name: "nocow", Type: format.TypeBool, Help: "Turn off copy-on-write (valid only on btrfs)"},
		{Name: "preallocation", Type: format.TypeString, Help: "Preallocation mode (allowed values: off, falloc, full)"},
		{Name: "size", Type: format.TypeSize, Help: "Virtual disk size"},
	}
}

// optionError is about a creation option, in stock QEMU's words. It matches
// [block.ErrUnsupported].
type optionError string

func (e optionError) Error() string        { return string(e) }
func (e optionError) Is(target error) bool { return target == block.ErrUnsupported }

func unsupported(format string, args ...any) error {
	return optionError(fmt.Sprintf(format, args...))
}

// choices are the creation options by value.
type choices struct {
	prealloc   block.Preallocation
	extentHint int64
	hasHint    bool
	noCow      bool
}

// Create implements [format.Driver]. The size is rounded up to
// [block.SectorSize]. The option size, if given, is what the caller passes.
func (Driver) Create(ctx context.Context, file block.Node, size int64, opts format.CreateOptions) error {
	if err := (Driver{}).CheckCreate(size, opts); err != nil {
		return err
	}
	c, err := parse(opts)
	if err != nil {
		return err
	}
	// Both are wishes that most file systems do not know.
	if a, ok := block.As[interface{ SetExtentHint(int64) error }](file); ok && c.hasHint {
		_ = a.SetExtentHint(c.extentHint)
	}
	if a, ok := block.As[interface{ SetNoCow() error }](file); ok && c.noCow {
		_ = a.SetNoCow()
	}
	size = roundUp(size)
	if size == file.Size() {
		return nil
	}
	r, ok := block.As[block.Resizer](file)
	if !ok {
		return fmt.Errorf("create %s: the storage has a fixed size of %d bytes: %w", opts.Filename, file.Size(), block.ErrUnsupported)
	}
	return r.Resize(ctx, size, block.ResizeOptions{Prealloc: c.prealloc})
}

// CheckCreate implements [format.CreateChecker].
func (Driver) CheckCreate(size int64, opts format.CreateOptions) error {
	if _, err := parse(opts); err != nil {
		return err
	}
	if size < 0 || size > math.MaxInt64-block.SectorSize+1 {
		return fmt.Errorf("create %s of %d bytes: %w", opts.Filename, size, block.ErrOutOfRange)
	}
	return nil
}

func parse(opts format.CreateOptions) (c choices, err error) {
	if opts.BackingFile != "" {
		return c, unsupported("Backing file not supported for file format 'raw'")
	}
	for k, v := range opts.Values {
		switch k {
		case "preallocation":
			err = c.setPrealloc(v)
		case "nocow":
			switch v {
			case "on", "off":
				c.noCow = v == "on"
			default:
				err = unsupported("Parameter 'nocow' expects 'on' or 'off'")
			}
		case "extent_size_hint":
			err = c.setHint(v)
		case "size":
		default:
			err = unsupported("Invalid parameter '%s'", k)
		}
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *choices) setPrealloc(v string) error {
	switch p := block.Preallocation(v); p {
	case block.PreallocOff, block.PreallocFalloc, block.PreallocFull:
		c.prealloc = p
		return nil
	case block.PreallocMetadata:
		return unsupported("Unsupported preallocation mode: %s", v)
	}
	return unsupported("invalid parameter value: %s", v)
}

// setHint reads a number of bytes with one of QEMU's suffixes.
func (c *choices) setHint(v string) error {
	digits := strings.TrimRight(v, "bBkKmMgGtT")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
	s, ok := shift[strings.ToLower(v[len(digits):])]
	if err != nil || !ok || n < 0 {
		return unsupported("Parameter 'extent_size_hint' expects a non-negative number below 2^64")
	}
	if n > math.MaxUint32>>s {
		return unsupported("Extent size hint is too large")
	}
	c.extentHint, c.hasHint = n<<s, true
	return nil
}
