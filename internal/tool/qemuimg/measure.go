package qemuimg

import (
	"errors"
	"strconv"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const measureSyntax = "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] [-U] filename]"

// measureArgs is the command line of measure.
type measureArgs struct {
	common
	outFormat string
	snapshot  *image.SnapshotRef // of -l ID_OR_NAME
	exact     *image.SnapshotRef // of -l snapshot.id=ID,snapshot.name=NAME
	size      int64
	hasSize   bool
}

func (t *tool) measure(args []string) int {
	a := measureArgs{outFormat: "raw"}
	var status int
	var done bool
	a.common, status, done = t.parse(args, "hf:l:o:O:Us:", []getopt.Long{
		longHelp, longObject, longImageOpts, longForce, longOutput, longFormat, longOptions,
		{Name: "size", Arg: getopt.RequiredArgument, Val: 's'}, {Name: "source-format", Arg: getopt.RequiredArgument, Val: 'f'},
		{Name: "source-image-opts", Val: optImageOpts}, {Name: "snapshot", Arg: getopt.RequiredArgument, Val: 'l'},
		{Name: "target-format", Arg: getopt.RequiredArgument, Val: 'O'}, {Name: "target-format-options", Arg: getopt.RequiredArgument, Val: 'o'},
	}, func(o getopt.Option) (ok bool) {
		switch ok = true; o.Val {
		case 'O':
			a.outFormat = o.Arg
		case 'l':
			ok = t.snapshotOption(o.Arg, &a.snapshot, &a.exact)
		case 's':
			a.size, ok = t.number("image size", o.Arg)
			a.hasSize = true
		}
		return ok
	})
	if done {
		return status
	}
	mode, ok := t.outputFormat(a.output, a.hasOutput)
	if !ok {
		return exitFailed
	}
	bad := ""
	switch named := len(a.rest) > 0; {
	case len(a.rest) > 1:
		bad = "At most one filename argument is allowed."
	case !named && (a.imageOpts || a.format != "" || a.snapshot != nil || a.exact != nil):
		bad = "--image-opts, -f, and -l require a filename argument."
	case named && a.hasSize:
		bad = "--size N cannot be used together with a filename."
	case !named && !a.hasSize:
		bad = "Either --size N or one filename must be specified."
	}
	if bad != "" {
		t.errorf("%s", bad)
		return exitFailed
	}
	if a.exact != nil {
		a.snapshot = a.exact
	}
	return t.runMeasure(a, mode)
}

func (t *tool) runMeasure(a measureArgs, mode output) int {
	opts := image.MeasureOptions{SourceNoLock: a.noLock, Untrusted: a.untrusted, Snapshot: a.snapshot, Format: a.outFormat, Secrets: &t.secrets}
	if len(a.rest) > 0 {
		src := a.image(a.rest[0])
		if !t.resolve(&src) {
			return exitFailed
		}
		opts.Source, opts.SourceFormat = src.name, src.format
		if src.name == "" {
			_, err := image.Open(t.ctx, "", image.Options{})
			return t.failOpen(err)
		}
	}
	c := creation{drv: all.Find(a.outFormat)}
	bad := ""
	if c.drv != nil {
		bad = c.parse(&a.options)
	}
	if bad != "" {
		// The stock tool opens the source before it looks at the options.
		return t.failMeasure(a, opts, bad)
	}
	opts.Values = c.values
	if opts.Size = a.size; !a.hasSize {
		// Nothing but its being too large is of interest.
		opts.Size, _ = strconv.ParseInt(c.values["size"], 10, 64)
	}
	m, err := image.Measure(t.ctx, opts)
	if err != nil {
		return t.failMeasured(a, err)
	}
	t.printMeasured(m, mode)
	return exitOK
}

// failMeasure reports options that do not parse, unless the source does not
// open either.
func (t *tool) failMeasure(a measureArgs, opts image.MeasureOptions, bad string) int {
	if len(a.rest) > 0 {
		opts.Format = "raw"
		if _, err := image.Measure(t.ctx, opts); err != nil {
			return t.failMeasured(a, err)
		}
	}
	t.errorf("%s", bad)
	t.errorf("Invalid options for file format '%s'", a.outFormat)
	return exitFailed
}

func (t *tool) failMeasured(a measureArgs, err error) int {
	var (
		open    *image.OpenError
		snap    *image.SnapshotError
		unknown *image.UnknownFormatError
		status  *format.MeasureError
	)
	switch {
	case errors.As(err, &open):
		return t.failOpen(err)
	case errors.As(err, &snap):
		t.errorf("Failed to load snapshot: %s", snapshotText(snap))
	case errors.As(err, &unknown):
		t.errorf("Unknown file format '%s'", a.outFormat)
	case errors.As(err, &status):
		t.errorf("Unable to get block status: %s", reasonText(status.Err))
	default:
		t.errorf("%s", plainText(err))
	}
	return exitFailed
}

func (t *tool) printMeasured(m format.Measurement, mode output) {
	if mode == outputHuman {
		t.printf("required size: %d\nfully allocated size: %d\n", m.Required, m.FullyAllocated)
		if m.HasBitmaps {
			t.printf("bitmaps size: %d\n", m.Bitmaps)
		}
		return
	}
	var o object
	if m.HasBitmaps {
		o.add("bitmaps", int64(m.Bitmaps))
	}
	o.add("required", int64(m.Required))
	o.add("fully-allocated", int64(m.FullyAllocated))
	t.printf("%s\n", writeJSON(o))
}
