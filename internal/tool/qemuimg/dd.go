package qemuimg

import (
	"context"
	"errors"
	"math"
	"os/signal"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const ddSyntax = "[--object objectdef] [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output"

// ddArgs is the command line of dd.
type ddArgs struct {
	common
	outFormat         string
	in, out           string
	hasIn, hasOut     bool
	bs, count, skip   int64
	hasCount, hasSkip bool
}

func (t *tool) dd(args []string) int {
	a := ddArgs{outFormat: "raw", bs: 512}
	var status int
	var done bool
	a.common, status, done = t.parse(args, ":hf:O:U", []getopt.Long{
		longHelp, longObject, longImageOpts, longForce, longFormat, {Name: "output-format", Arg: getopt.RequiredArgument, Val: 'O'},
	}, func(o getopt.Option) bool { a.outFormat = o.Arg; return true })
	if done {
		return status
	}
	for _, word := range a.rest {
		if !t.ddOperand(&a, word) {
			return exitFailed
		}
	}
	if !a.hasIn || !a.hasOut {
		t.errorf("Must specify both input and output files")
		return exitFailed
	}
	return t.runDD(a)
}

// ddOperand takes over an operand NAME=VALUE.
func (t *tool) ddOperand(a *ddArgs, word string) (ok bool) {
	name, value, ok := strings.Cut(word, "=")
	switch {
	case !ok:
	case name == "bs":
		a.bs, ok = t.boundedNumber("bs", value, 1, math.MaxInt32)
		return ok
	case name == "count":
		a.count, ok = t.number("count", value)
		a.hasCount = true
		return ok
	case name == "skip":
		a.skip, ok = t.number("skip", value)
		a.hasSkip = true
		return ok
	case name == "if":
		a.in, a.hasIn = value, true
		return true
	case name == "of":
		a.out, a.hasOut = value, true
		return true
	}
	t.errorf("unrecognized operand %s", name)
	return false
}

func (t *tool) runDD(a ddArgs) int {
	ctx, stop := signal.NotifyContext(t.ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	src := a.image(a.in)
	if !t.resolve(&src) {
		return exitFailed
	}
	size, err := t.imageSize(ctx, src, a.common)
	if err != nil {
		return t.failOpen(err)
	}
	if all.Find(a.outFormat) == nil {
		t.errorf("Unknown file format")
		return exitFailed
	}
	part, beyond := a.part(size)
	err = image.Convert(ctx, []string{src.name}, a.out, image.ConvertOptions{
		Secrets: &t.secrets, SourceFormat: src.format, SourceNoLock: a.noLock, SourceUntrusted: a.untrusted, Part: &part, Format: a.outFormat,
	})
	if err != nil {
		return t.failDD(a, err)
	}
	if beyond {
		t.errorf("%s: cannot skip to specified offset", a.in)
	}
	return exitOK
}

// imageSize opens an image to find out its size.
func (t *tool) imageSize(ctx context.Context, src source, c common) (int64, error) {
	im, err := image.Open(ctx, src.name, image.Options{Format: src.format, NoLock: c.noLock, Untrusted: c.untrusted, Secrets: &t.secrets})
	if err != nil {
		return 0, err
	}
	return im.Node().Size(), im.Close()
}

// part returns what is copied of a disk of size bytes. As in the stock tool,
// count is that of the blocks from the beginning of the disk, not of those
// behind skip. beyond says that skip leads behind them.
func (a *ddArgs) part(size int64) (part image.Part, beyond bool) {
	if a.hasCount && a.count <= math.MaxInt64/a.bs {
		size = min(size, a.count*a.bs)
	}
	if !a.hasSkip {
		return image.Part{Length: size}, false
	}
	if a.skip > math.MaxInt64/a.bs || size < a.skip*a.bs {
		return image.Part{}, true
	}
	return image.Part{Offset: a.skip * a.bs, Length: size - a.skip*a.bs}, false
}

func (t *tool) failDD(a ddArgs, err error) int {
	var (
		target *image.TargetError
		open   *image.OpenError
		cp     *image.CopyError
	)
	switch {
	case errors.As(err, &target):
		t.errorf("%s: error while creating output image: %s", target.Name, createText(target.Err, target.Format, ""))
	case errors.As(err, &cp) && cp.Writing:
		t.errorf("error while writing to output image file: %s", reasonText(cp.Err))
	case errors.As(err, &cp):
		t.errorf("error while reading from input image file: %s", reasonText(cp.Err))
	case errors.As(err, &open):
		return t.failOpen(err)
	case errors.Is(err, image.ErrSourceIsTarget):
		t.errorf("%s: input and output are the same file", a.out)
	case errors.Is(err, context.Canceled):
		t.errorf("dd was interrupted; the unfinished target was removed")
	default:
		t.errorf("%s", plainText(err))
	}
	return exitFailed
}
