package qemuimg

import (
	"errors"
	"math"
	"strconv"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const createSyntax = "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]"

// createArgs is the command line of create.
type createArgs struct {
	common
	backing, backingFormat string
	unchecked              bool
	filename               string
	size                   int64
	hasSize                bool
}

func (t *tool) create(args []string) int {
	var a createArgs
	var status int
	var done bool
	a.common, status, done = t.parse(args, ":F:B:b:f:ho:qu", []getopt.Long{
		longHelp, longObject, longFormat, longOptions, longQuiet, {Name: "backing", Arg: getopt.RequiredArgument, Val: 'b'},
		{Name: "backing-format", Arg: getopt.RequiredArgument, Val: 'F'}, {Name: "backing-unsafe", Val: 'u'},
	}, func(o getopt.Option) bool {
		switch o.Val {
		case 'F', 'B': // QEMU 10 calls it -B
			a.backingFormat = o.Arg
		case 'b':
			a.backing = o.Arg
		case 'u':
			a.unchecked = true
		}
		return true
	})
	if done {
		return status
	}
	if a.format == "" {
		a.format = "raw"
	}
	if len(a.rest) > 0 {
		a.filename = a.rest[0]
	}
	if a.options.set && a.options.wantsHelp() {
		return t.creationHelp(a.filename, a.format)
	}
	if len(a.rest) == 0 {
		return t.exit("Expecting image file name")
	}
	if names := a.several(); t.extended() && len(names) > 1 {
		return t.createSeveral(a, names)
	}
	if len(a.rest) > 1 {
		if a.size, a.hasSize = t.number("image size", a.rest[1]); !a.hasSize {
			return exitFailed
		}
	}
	if len(a.rest) > 2 {
		return t.exit("Unexpected argument: %s", a.rest[2])
	}
	return t.runCreate(a)
}

// several returns the images that the operands name: all of them, but for a
// last one that is a size.
func (a *createArgs) several() []string {
	names := a.rest
	if _, err := parseSize(names[len(names)-1]); err == nil {
		names = names[:len(names)-1]
	}
	return names
}

// createSeveral makes images that are alike. One that cannot be made does not
// keep the others from being made.
func (t *tool) createSeveral(a createArgs, names []string) int {
	if len(names) < len(a.rest) {
		if a.size, a.hasSize = t.number("image size", a.rest[len(names)]); !a.hasSize {
			return exitFailed
		}
	}
	status := exitOK
	for _, name := range names {
		a.filename = name
		status = max(status, t.runCreate(a))
	}
	return status
}

// creationHelp is `-o help`.
func (t *tool) creationHelp(filename, formatName string) int {
	drv := all.Find(formatName)
	if drv == nil {
		t.errorf("Unknown file format '%s'", formatName)
		return exitFailed
	}
	return t.optionHelp(drv, filename)
}

func (t *tool) runCreate(a createArgs) int {
	fail := func(text string) int {
		t.errorf("%s: %s", a.filename, text)
		return exitFailed
	}
	c := creation{drv: all.Find(a.format)}
	if c.drv == nil {
		return fail("Unknown file format '" + a.format + "'")
	}
	if bad := c.parse(&a.options); bad != "" {
		return fail(bad)
	}
	if size, ok := c.values["size"]; ok {
		if a.hasSize {
			return fail("The image size must be specified only once")
		}
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return fail("The image size is too large")
		}
		a.size, a.hasSize = n, true
	}
	if a.backing == "" {
		a.backing = c.values["backing_file"]
	}
	if a.backingFormat == "" {
		a.backingFormat = c.values["backing_fmt"]
	}
	if a.backing != "" && a.backing == a.filename {
		return fail("Error: Trying to create an image with the same filename as the backing file")
	}
	plan, err := image.PlanCreate(t.ctx, a.filename, image.CreateOptions{
		Secrets: &t.secrets,
		Format:  a.format, Size: a.size, SizeFromBacking: !a.hasSize && a.backing != "",
		Values: c.values, BackingFile: a.backing, BackingFormat: a.backingFormat, Unchecked: a.unchecked,
	})
	if err == nil && !a.hasSize && a.backing == "" {
		err = image.ErrNoSize
	}
	if err != nil {
		return t.failPlan(a, err)
	}
	c.values["size"] = strconv.FormatInt(plan.Size, 10)
	if a.backing != "" {
		c.values["backing_file"] = a.backing
	}
	if a.backingFormat != "" {
		c.values["backing_fmt"] = a.backingFormat
	}
	if !a.quiet {
		t.printf("Formatting '%s', fmt=%s%s\n", a.filename, a.format, c.line())
	}
	if a.backingFormat != "" && a.backing == "" {
		return fail("Backing format cannot be used without backing file")
	}
	err = plan.Create(t.ctx)
	switch {
	case err == nil:
		return exitOK
	case plan.Size <= math.MaxInt64-block.SectorSize+1:
		return fail(createText(err, a.format, c.values["preallocation"]))
	case hasClusters(a.format): // a size that cannot be rounded up to sectors
		return fail("Could not resize image: Image size cannot be negative")
	}
	return fail("Could not resize file: " + errnoText(syscall.EINVAL))
}

// failPlan reports why an image cannot be made.
func (t *tool) failPlan(a createArgs, err error) int {
	var (
		noFormat  *image.NoBackingFormatError
		noSupport *image.NoBackingSupportError
		backing   *image.BackingError
	)
	switch {
	case errors.As(err, &noFormat) && noFormat.Detected != "":
		// The stock tool does not end the second line.
		t.flush()
		t.stderrf("%s: %s: Backing file specified without backing format\nDetected format of %s.", t.prog, a.filename, noFormat.Detected)
	case errors.As(err, &noFormat):
		t.errorf("%s: Backing file specified without backing format", a.filename)
	case errors.As(err, &noSupport) && a.backing != "":
		t.errorf("%s: Backing file not supported for file format '%s'", a.filename, noSupport.Format)
	case errors.As(err, &noSupport):
		t.errorf("%s: Backing file format not supported for file format '%s'", a.filename, noSupport.Format)
	case errors.As(err, &backing):
		t.errorf("%s: %s\nCould not open backing image.", a.filename, causeText(backing.Err))
	case errors.Is(err, image.ErrNoSize):
		t.errorf("%s: Image creation needs a size parameter", a.filename)
	default:
		t.errorf("%s: %s", a.filename, causeText(err))
	}
	return exitFailed
}
