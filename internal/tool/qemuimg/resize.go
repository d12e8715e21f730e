package qemuimg

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
	"github.com/lamina-vm/lamina/protocol/file"
)

const resizeSyntax = "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] [--force-shrink] [--fix-gpt] filename [+ | -]size"

func (t *tool) resize(args []string) int {
	opts := image.ResizeOptions{Secrets: &t.secrets}
	// The size is taken off first: "-1G" is no option.
	if len(args) < 3 {
		return t.exit("Not enough arguments")
	}
	size := args[len(args)-1]
	c, status, done := t.parse(args[:len(args)-1], ":f:hq", []getopt.Long{
		longHelp, longObject, longImageOpts, longFormat, longQuiet,
		{Name: "preallocation", Arg: getopt.RequiredArgument, Val: optPrealloc},
		{Name: "shrink", Val: optShrink}, {Name: "force-shrink", Val: optForceShrink}, {Name: "fix-gpt", Val: optFixGPT},
	}, func(o getopt.Option) bool { return t.resizeOption(&opts, o) })
	if done {
		return status
	}
	if len(c.rest) != 1 {
		return t.exit("Expecting image file name and size")
	}
	src := c.image(c.rest[0])
	if !t.sizeChange(size, &opts) || !t.resolve(&src) {
		return exitFailed
	}
	opts.Format, opts.Untrusted = src.format, c.untrusted
	res, err := image.Resize(t.ctx, src.name, opts)
	if res.ProbedRaw {
		t.warnProbed(src.name)
	}
	if err != nil {
		return t.failResize(src.name, opts.Prealloc, res, err)
	}
	if !c.quiet {
		t.printf("Image resized.\n")
		if res.MovedGPT {
			t.printf("The backup partition table was moved to the new end of the disk.\n")
		}
	}
	return exitOK
}

// resizeOption takes an option over that only resize has.
func (t *tool) resizeOption(opts *image.ResizeOptions, o getopt.Option) bool {
	switch o.Val {
	case optPrealloc:
		switch m := block.Preallocation(o.Arg); m {
		case block.PreallocOff, block.PreallocMetadata, block.PreallocFalloc, block.PreallocFull:
			opts.Prealloc = m
		default:
			t.errorf("Invalid preallocation mode '%s'", o.Arg)
			return false
		}
	case optShrink:
		opts.Shrink = true
	case optForceShrink:
		opts.Shrink, opts.Force = true, true
	case optFixGPT:
		opts.FixGPT = true
	}
	return true
}

// sizeChange reads [+|-]size.
func (t *tool) sizeChange(arg string, opts *image.ResizeOptions) bool {
	if arg != "" {
		switch arg[0] {
		case '+':
			opts.Change, arg = image.SizeGrow, arg[1:]
		case '-':
			opts.Change, arg = image.SizeShrink, arg[1:]
		}
	}
	n, err := parseSize(arg)
	switch {
	case errors.Is(err, errSizeTooBig):
		t.errorf("Value '%s' is out of range for parameter 'size'", arg)
	case err != nil:
		t.errorf("Parameter 'size' expects a non-negative number below 2^64%s", sizeHint)
	case n > math.MaxInt64:
		t.errorf("New image size must be positive") // as a signed number it is not
	default:
		opts.Size = int64(n)
		return true
	}
	return false
}

// maxLength is the largest disk that stock takes.
const maxLength = math.MaxInt64 >> 30 << 30

func (t *tool) failResize(name string, prealloc block.Preallocation, res image.ResizeResult, err error) int {
	var (
		open    *image.OpenError
		cut     *image.CutError
		regular *file.NotRegularError
		errno   syscall.Errno
	)
	var broken *format.InconsistentBitmapError
	text, sized := sizeText(err)
	switch {
	case errors.As(err, &broken):
		t.errorf("%s", broken.Error())
		t.hintBitmap(err)
	case errors.As(err, &regular) && isDirectory(regular.File):
		t.errorf("Could not open '%s': Could not open '%s': %s", regular.File, regular.File, errnoText(syscall.EISDIR))
	case errors.As(err, &open):
		return t.failOpen(err)
	case errors.Is(err, image.ErrNeedsShrink):
		t.errorf("Use the --shrink option to perform a shrink operation.")
		t.errorf("warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there.")
	case errors.Is(err, image.ErrSizeNotPositive):
		t.errorf("New image size must be positive")
	case errors.Is(err, image.ErrPreallocShrink):
		t.errorf("Preallocation can only be used for growing images")
	case errors.As(err, &cut):
		t.errorf("%s", fmt.Sprintf("Partition %d (%s partition table) ends at %d bytes and would be cut: make it smaller first, or use --force-shrink to lose what is behind the new end.",
			cut.Partition.Number, cut.Scheme, cut.Partition.End()))
	case res.New > maxLength:
		t.errorf("offset(%d) exceeds maximum(%d)", res.New, int64(maxLength))
	case hasClusters(res.Format):
		t.errorf("%s", clusterResizeText(name, prealloc, err))
	case sized:
		t.errorf("%s", text)
	case errors.As(err, &errno):
		t.errorf("Could not resize file: %s", errnoText(errno))
	default:
		t.errorf("%s", strings.TrimPrefix(plainText(err), "resize "+name+": "))
	}
	return exitFailed
}

// clusterResizeText says why an image that has clusters could not be resized.
func clusterResizeText(name string, prealloc block.Preallocation, err error) string {
	text, sized := sizeText(err)
	var errno syscall.Errno
	switch full := noSpace(err); {
	case sized:
		return underlying(err) + text
	case full && (prealloc == block.PreallocFull || prealloc == block.PreallocFalloc):
		return failedUnderlying + preallocText(prealloc) + reasonText(err)
	case full && prealloc == block.PreallocMetadata:
		return "Allocating clusters failed: " + reasonText(err)
	case full || errors.Is(err, syscall.EFBIG):
		return "Failed to grow the L1 table: " + reasonText(err)
	case errors.As(err, &errno):
		return "Could not resize file: " + errnoText(errno)
	}
	return strings.TrimPrefix(plainText(err), "resize "+name+": ")
}
