package qemuimg

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const benchSyntax = "[--object objectdef] [--image-opts] [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename"

// benchArgs is the command line of bench.
type benchArgs struct {
	common
	opts   image.BenchOptions
	native bool // -n, -i native
	mode   image.CacheMode
}

func (t *tool) bench(args []string) int {
	a := benchArgs{opts: image.BenchOptions{Count: 75000, Depth: 64, Size: 4096}, mode: image.CacheWriteback}
	var status int
	var done bool
	need := func(name string, val rune) getopt.Long {
		return getopt.Long{Name: name, Arg: getopt.RequiredArgument, Val: val}
	}
	a.common, status, done = t.parseBut("ot", args, ":hc:d:f:ni:o:qs:S:t:wU", []getopt.Long{
		longHelp, longObject, longImageOpts, longForce, longFormat, longQuiet,
		need("flush-interval", optFlushInterval), need("pattern", optPattern), {Name: "no-drain", Val: optNoDrain},
		need("cache", 't'), need("count", 'c'), need("depth", 'd'), need("offset", 'o'), need("buffer-size", 's'), need("step-size", 'S'),
		need("aio", 'i'), {Name: "native", Val: 'n'}, {Name: "write", Val: 'w'},
	}, func(o getopt.Option) bool { return t.benchOption(&a, o) })
	if done {
		return status
	}
	bad := ""
	switch o := a.opts; {
	case len(a.rest) != 1:
		return t.exit("Expecting one image file name")
	case !o.Write && o.FlushInterval != 0:
		bad = "--flush-interval is only available in write tests"
	case o.FlushInterval != 0 && o.FlushInterval < o.Depth:
		bad = "Flush interval can't be smaller than depth"
	}
	if bad != "" {
		t.errorf("%s", bad)
		return exitFailed
	}
	return t.runBench(a)
}

// benchOption takes over an option that only bench has, or has otherwise.
func (t *tool) benchOption(a *benchArgs, o getopt.Option) (ok bool) {
	b := &a.opts
	switch ok = true; o.Val {
	case 'c':
		b.Count, ok = t.plainNumber("request count", o.Arg, 0, math.MaxInt32)
	case 'd':
		// The stock tool takes 0, and never ends.
		b.Depth, ok = t.plainNumber("queue depth", o.Arg, 1, math.MaxInt32)
	case 'n':
		a.native = true
	case 'i':
		switch o.Arg {
		case "native":
			a.native = true
		case "threads", "io_uring":
		default:
			t.errorf("Invalid aio option: %s", o.Arg)
			ok = false
		}
	case 'o':
		b.Offset, ok = t.number("offset", o.Arg)
	case 's':
		b.Size, ok = t.boundedNumber("buffer size", o.Arg, 0, math.MaxInt32)
	case 'S':
		b.Step, ok = t.boundedNumber("step_size", o.Arg, 0, math.MaxInt32)
	case 't':
		var err error
		if a.mode, err = image.ParseCacheMode(o.Arg); err != nil {
			t.errorf("Invalid cache mode")
			ok = false
		}
	case 'w':
		b.Write = true
	case optPattern:
		var n int
		n, ok = t.plainNumber("pattern byte", o.Arg, 0, 0xff)
		b.Pattern = byte(n)
	case optFlushInterval:
		b.FlushInterval, ok = t.plainNumber("flush interval", o.Arg, 0, math.MaxInt32)
	case optNoDrain:
		b.NoDrain = true
	}
	return ok
}

// plainNumber reads a number without a suffix, in C's notations.
func (t *tool) plainNumber(what, arg string, least, most uint64) (int, bool) {
	digits := strings.TrimPrefix(strings.TrimLeft(arg, " \t\n\v\f\r"), "+")
	// Go's own notations are not C's.
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || strings.ContainsAny(digits, "_oO") || strings.HasPrefix(strings.ToLower(digits), "0b") || n < least || n > most {
		t.errorf("Invalid %s specified", what)
		return 0, false
	}
	return int(n), true
}

func (t *tool) runBench(a benchArgs) int {
	ctx, stop := signal.NotifyContext(t.ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	src := a.image(a.rest[0])
	if !t.resolve(&src) {
		return exitFailed
	}
	if a.noLock && a.opts.Write {
		t.errorf("Could not open '%s': force-share=on can only be used with read-only images", a.rest[0])
		return exitFailed
	}
	im, err := image.Open(ctx, src.name, image.Options{Format: src.format, Writable: a.opts.Write, Cache: a.mode, NoLock: a.noLock, Untrusted: a.untrusted, Secrets: &t.secrets})
	direct := a.mode == image.CacheNone || a.mode == image.CacheDirectsync
	var path *fs.PathError
	switch {
	case a.native && !direct && !errors.As(err, &path):
		// It would make no difference here: requests are threads' always.
		t.errorf("Could not open '%s': aio=native was specified, but it requires cache.direct=on, which was not specified.", a.rest[0])
		if err == nil {
			_ = im.Close() // nothing was written
		}
		return exitFailed
	case err != nil:
		return t.failOpen(err)
	}
	status := t.sendRequests(ctx, a, im, src.name)
	if err := im.Close(); err != nil && status == exitOK {
		t.errorf("%s", plainText(err))
		return exitFailed
	}
	return status
}

// sendRequests runs the bench on an open image.
func (t *tool) sendRequests(ctx context.Context, a benchArgs, im *image.Image, name string) int {
	o := a.opts
	kind := "read"
	if o.Write {
		kind = "write"
		if im.Layers()[0].ProbedRaw() {
			t.warnProbed(name)
		}
	}
	step := o.Step
	if step == 0 {
		step = o.Size
	}
	t.printf("Sending %d %s requests, %d bytes each, %d in parallel (starting at offset %d, step size %d)\n", o.Count, kind, o.Size, o.Depth, o.Offset, step)
	if o.FlushInterval > 0 {
		t.printf("Sending flush every %d requests\n", o.FlushInterval)
	}
	t.flush()
	took, err := im.Bench(ctx, o)
	var bad *image.BenchError
	switch {
	case errors.As(err, &bad) && bad.Flush:
		t.errorf("Failed flush request: %s", reasonText(bad.Err))
		return exitFailed
	case errors.As(err, &bad):
		t.errorf("Failed request: %s", reasonText(bad.Err))
		return exitFailed
	case err != nil:
		t.errorf("%s", plainText(err))
		return exitFailed
	}
	t.printf("Run completed in %.3f seconds.\n", took.Seconds())
	return exitOK
}
