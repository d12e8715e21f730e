package qemuimg

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
	"github.com/lamina-vm/lamina/protocol/file"
)

const resizeSyntax = "[--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] [--force-shrink] [--fix-gpt] filename [+ | -]size"

func (t *tool) resize(args []string) int {
	var src source
	var opts image.ResizeOptions
	quiet := false
	// The size is taken off first: "-1G" is no option.
	if len(args) < 3 {
		return t.exit("Not enough arguments")
	}
	size := args[len(args)-1]
	p := getopt.New(args[:len(args)-1], ":f:hq", []getopt.Long{
		longHelp, longObject, longImageOpts,
		{Name: "preallocation", Arg: getopt.RequiredArgument, Val: optPrealloc},
		{Name: "shrink", Val: optShrink}, {Name: "force-shrink", Val: optForceShrink}, {Name: "fix-gpt", Val: optFixGPT},
	})
	for o, err := range p.All() {
		if err != nil {
			return t.badOption(err)
		}
		switch o.Val {
		case 'h':
			return t.help()
		case 'f':
			src.format = o.Arg
		case 'q':
			quiet = true
		case optPrealloc:
			switch m := block.Preallocation(o.Arg); m {
			case block.PreallocOff, block.PreallocMetadata, block.PreallocFalloc, block.PreallocFull:
				opts.Prealloc = m
			default:
				t.errorf("Invalid preallocation mode '%s'", o.Arg)
				return exitFailed
			}
		case optShrink:
			opts.Shrink = true
		case optForceShrink:
			opts.Shrink, opts.Force = true, true
		case optFixGPT:
			opts.FixGPT = true
		case optObject:
			if !t.object(o.Arg) {
				return exitFailed
			}
		case optImageOpts:
			src.imageOpts = true
		}
	}
	rest := p.Rest()
	if len(rest) != 1 {
		return t.exit("Expecting image file name and size")
	}
	src.name = rest[0]
	if !t.sizeChange(size, &opts) || !t.resolve(&src) {
		return exitFailed
	}
	opts.Format = src.format
	res, err := image.Resize(context.Background(), src.name, opts)
	if res.ProbedRaw {
		t.warnProbed(src.name)
	}
	if err != nil {
		return t.failResize(src.name, err)
	}
	if !quiet {
		t.printf("Image resized.\n")
		if res.MovedGPT {
			t.printf("The backup partition table was moved to the new end of the disk.\n")
		}
	}
	return exitOK
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

func (t *tool) failResize(name string, err error) int {
	var (
		open    *image.OpenError
		cut     *image.CutError
		regular *file.NotRegularError
		errno   syscall.Errno
	)
	switch {
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
	case errors.As(err, &errno):
		t.errorf("Could not resize file: %s", errnoText(errno))
	default:
		t.errorf("%s", strings.TrimPrefix(plainText(err), "resize "+name+": "))
	}
	return exitFailed
}
