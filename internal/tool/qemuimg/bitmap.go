package qemuimg

import (
	"errors"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const bitmapSyntax = "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap"

// bitmapArgs is the command line of bitmap.
type bitmapArgs struct {
	actions []image.BitmapAction
	opts    image.BitmapOptions
}

func (t *tool) bitmap(args []string) int {
	a := bitmapArgs{opts: image.BitmapOptions{Secrets: &t.secrets, Warn: t.warnProbed}}
	c, status, done := t.parse(args, ":b:f:F:g:h", []getopt.Long{
		longHelp, longObject, longImageOpts, longFormat,
		{Name: "add", Val: optAdd}, {Name: "granularity", Arg: getopt.RequiredArgument, Val: 'g'},
		{Name: "remove", Val: optRemove}, {Name: "clear", Val: optClear}, {Name: "enable", Val: optEnable}, {Name: "disable", Val: optDisable},
		{Name: "merge", Arg: getopt.RequiredArgument, Val: optMerge},
		{Name: "source-file", Arg: getopt.RequiredArgument, Val: 'b'}, {Name: "source-format", Arg: getopt.RequiredArgument, Val: 'F'},
	}, func(o getopt.Option) bool { return t.bitmapOption(&a, o) })
	if done {
		return status
	}
	has := func(op image.BitmapOp) bool {
		for _, action := range a.actions {
			if action.Op == op {
				return true
			}
		}
		return false
	}
	bad := ""
	switch {
	case len(a.actions) == 0:
		bad = "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"
	case len(c.rest) != 2:
		bad = "Expecting filename and bitmap name"
	case a.opts.Granularity != 0 && !has(image.BitmapAdd):
		bad = "granularity only supported with --add"
	case a.opts.SourceFormat != "" && a.opts.SourceFile == "":
		bad = "-F only supported with -b"
	case a.opts.SourceFile != "" && !has(image.BitmapMerge):
		bad = "Merge bitmap source file only supported with --merge"
	}
	if bad != "" {
		t.errorf("%s", bad)
		return exitFailed
	}
	src := c.image(c.rest[0])
	if !t.resolve(&src) {
		return exitFailed
	}
	a.opts.Format, a.opts.Untrusted = src.format, c.untrusted
	if err := image.ChangeBitmap(t.ctx, src.name, c.rest[1], a.actions, a.opts); err != nil {
		return t.failBitmap(src.name, err)
	}
	return exitOK
}

// bitmapOption takes an option over that only bitmap has.
func (t *tool) bitmapOption(a *bitmapArgs, o getopt.Option) (ok bool) {
	add := func(op image.BitmapOp, source string) {
		a.actions = append(a.actions, image.BitmapAction{Op: op, Source: source})
	}
	switch o.Val {
	case 'b':
		a.opts.SourceFile = o.Arg
	case 'F':
		a.opts.SourceFormat = o.Arg
	case 'g':
		a.opts.Granularity, ok = t.number("granularity", o.Arg)
		return ok
	case optAdd:
		add(image.BitmapAdd, "")
	case optRemove:
		add(image.BitmapRemove, "")
	case optClear:
		add(image.BitmapClear, "")
	case optEnable:
		add(image.BitmapEnable, "")
	case optDisable:
		add(image.BitmapDisable, "")
	case optMerge:
		add(image.BitmapMerge, o.Arg)
	}
	return true
}

func (t *tool) failBitmap(name string, err error) int {
	var (
		bitmap *image.BitmapError
		open   *image.OpenError
	)
	switch {
	case errors.As(err, &bitmap):
		text := plainText(bitmap.Err)
		if errors.Is(bitmap.Err, image.ErrNoBitmaps) {
			// Stock names the node, which has a random name.
			text = "Can't store persistent bitmaps to " + name + ": Operation not supported"
		}
		t.errorf("Operation %s on bitmap %s failed: %s", bitmap.Op, bitmap.Bitmap, text)
		t.hintBitmap(bitmap.Err)
	case errors.As(err, &open):
		return t.failOpen(err)
	default:
		t.errorf("%s", plainText(err))
	}
	return exitFailed
}

// hintBitmap says what to do about an inconsistent bitmap.
func (t *tool) hintBitmap(err error) {
	var broken *format.InconsistentBitmapError
	if errors.As(err, &broken) {
		t.stderrf("Try block-dirty-bitmap-remove to delete this bitmap from disk\n")
	}
}

// failCopyBitmap reports a bitmap that convert could not copy.
func (t *tool) failCopyBitmap(e *image.CopyBitmapError) {
	var broken *format.InconsistentBitmapError
	switch {
	case errors.As(e.Err, &broken):
		t.errorf("Cannot copy inconsistent bitmap '%s'", e.Bitmap)
		t.stderrf("Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it\n")
	case e.Populate:
		t.errorf("Failed to populate bitmap %s: %s", e.Bitmap, plainText(e.Err))
	default:
		t.errorf("Failed to create bitmap %s: %s", e.Bitmap, plainText(e.Err))
	}
}
