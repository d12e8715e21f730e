package qemuimg

import (
	"errors"
	"strings"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const commitSyntax = "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename"

func (t *tool) commit(args []string) int {
	opts := image.CommitOptions{Secrets: &t.secrets}
	c, status, done := t.parse(args, ":f:ht:b:dpqr:", []getopt.Long{
		longHelp, longObject, longImageOpts, longFormat, longCache, longQuiet, longProgress,
		{Name: "base", Arg: getopt.RequiredArgument, Val: 'b'}, {Name: "drop", Val: 'd'}, {Name: "rate-limit", Arg: getopt.RequiredArgument, Val: 'r'},
	}, func(o getopt.Option) (ok bool) {
		switch o.Val {
		case 'b':
			opts.Base, opts.HasBase = o.Arg, true
		case 'd':
			opts.Keep = true
		case 'r':
			opts.RateLimit, ok = t.number("rate limit", o.Arg)
			return ok
		}
		return true
	})
	if done {
		return status
	}
	src, ok := t.oneImage(c)
	if !ok {
		return exitFailed
	}
	if opts.Cache, ok = t.cacheMode("cache", c.cache, image.CacheWriteback); !ok || !t.resolve(&src) {
		return exitFailed
	}
	meter := t.newMeterLater(c.progress, 1)
	defer meter.stop()
	status = t.runCommit(src, opts, meter)
	if status == exitOK && !c.quiet {
		t.printf("Image committed.\n")
	}
	return status
}

func (t *tool) runCommit(src source, opts image.CommitOptions, meter *meter) int {
	opts.Format, opts.Progress = src.format, meter.update
	opts.Opened = func(probedRaw bool) {
		if probedRaw {
			t.warnProbed(src.name)
		}
		meter.update(0, 1)
	}
	err := image.Commit(t.ctx, src.name, opts)
	if err != nil {
		meter.end()
		return t.failCommit(err)
	}
	meter.finish()
	return exitOK
}

// failCommit reports why a commit failed.
func (t *tool) failCommit(err error) int {
	var (
		open *image.OpenError
		base *image.BaseError
		none *image.NoBaseError
	)
	switch {
	case errors.As(err, &base):
		t.errorf("%s", causeText(base.Err))
	case errors.As(err, &none):
		t.errorf("Did not find '%s' in the backing chain of '%s'", none.Base, none.Name)
	case errors.As(err, &open):
		return t.failOpen(err)
	case errors.Is(err, image.ErrNoBacking):
		text := image.ErrNoBacking.Error()
		t.errorf("%s", strings.ToUpper(text[:1])+text[1:])
	case noSpace(err):
		t.errorf("Block job failed: %s", reasonText(err))
	default:
		t.errorf("%s", causeText(err))
	}
	return exitFailed
}
